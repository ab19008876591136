"""A policy of blocks.py, or of any world, learns from preferences between clips, without a reward
model.

    python -m experiments.finetune_preferences --config=blocks_dpo.py --preferences DIR
    --config.model.start=RUN/checkpoints --workdir=OUT

What the policy is made of is RUN's. rl.std is how far its actions are thought to stray: the wider,
the less a difference counts.
"""

from ml_collections import ConfigDict

from experiments.configs import finetune
from vla_jax.rl.learner import DIRECT


def get_config(arg: str = "") -> ConfigDict:
    """The config that goes on from a checkpoint; `arg`: its folder, perhaps "lora"."""
    config = finetune.otherwise(arg)
    config.steps = 200
    config.batch_size = 16  # pairs
    config.log_every = 10
    config.save_every = 50
    config.optim.lr = 3e-5
    config.optim.schedule = "constant"
    config.optim.min_lr_scale = 0.0
    config.optim.warmup_steps = 10
    config.rl.algorithm = DIRECT
    config.rl.std = 0.2
    config.rl.budget = 1.0
    return config
