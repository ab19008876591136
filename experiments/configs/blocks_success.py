"""A success classifier from episodes of blocks that say how they ended, or of any robot that the
policy it begins with knows.

    python -m experiments.train_success --config=blocks_success.py --config.data.root=ROOT
    --config.data.mixture=NAME [--config.data.datasets=FILE.py]
    --config.model.start=RUN/checkpoints --workdir=OUT

It begins with RUN's backbone, which has looked at such pictures; every parameter of it learns.
"""

from ml_collections import ConfigDict

from experiments.configs import finetune
from vla_jax.rl.success import ALGORITHM


def get_config(arg: str = "") -> ConfigDict:
    """The config that goes on from a checkpoint; `arg`: its folder."""
    config = finetune.otherwise(arg)
    config.data.mixture = ""  # yours
    config.data.held_out = "0.2"
    config.data.ram_budget = 4 * 2**30
    config.steps = 300
    config.batch_size = 64  # frames
    config.log_every = 10
    config.save_every = 100
    config.optim.lr = 3e-4
    config.optim.schedule = "half_cosine"
    config.optim.min_lr_scale = 0.05
    config.optim.warmup_steps = 20
    config.rl.algorithm = ALGORITHM
    return config
