"""A reward model from preferences between clips of blocks, or of any world that the policy it
begins with knows.

    python -m experiments.train_reward --config=blocks_reward.py --preferences DIR
    --config.model.start=RUN/checkpoints --workdir=OUT

It begins with RUN's backbone, which has looked at such pictures; every parameter of it learns. What
a few hundred choices are of is soon known by heart: each frame is shifted and lit otherwise each
time.
"""

from ml_collections import ConfigDict

from experiments.configs import finetune
from vla_jax.rl.reward import ALGORITHM


def get_config(arg: str = "") -> ConfigDict:
    """The config that goes on from a checkpoint; `arg`: its folder."""
    config = finetune.otherwise(arg)
    config.steps = 300
    config.batch_size = 16  # pairs
    config.log_every = 10
    config.save_every = 100
    config.optim.lr = 3e-4
    config.optim.schedule = "half_cosine"
    config.optim.min_lr_scale = 0.05
    config.optim.warmup_steps = 20
    config.augment.shift = (4,) * len(config.model.cameras)  # pixels
    config.augment.brightness = 0.2
    config.rl.algorithm = ALGORITHM
    return config
