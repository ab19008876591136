"""A success classifier from episodes of blocks that say how they ended, or of any robot that the
policy it begins with knows.

    python -m experiments.train_success --config=blocks_success.py --config.data.root=ROOT
    --config.data.mixture=NAME [--config.data.datasets=FILE.py]
    --config.model.start=RUN/checkpoints --workdir=OUT

It begins with RUN's backbone, which has looked at such pictures; every parameter of it learns.
"""

from ml_collections import ConfigDict

from experiments.configs import blocks_reward
from vla_jax.rl.success import ALGORITHM


def get_config(arg: str = "") -> ConfigDict:
    """The config that goes on from a checkpoint; `arg`: its folder."""
    config = blocks_reward.get_config(arg)
    config.data.mixture = ""  # yours
    config.data.held_out = "0.2"
    config.data.ram_budget = 4 * 2**30
    config.batch_size = 64  # frames
    config.rl.algorithm = ALGORITHM
    return config
