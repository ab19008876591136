"""A policy of blocks.py (or any that knows that robot) gets better at it by trial.

    python -m experiments.finetune_rl --config=blocks_ppo.py --config.model.start=RUN/checkpoints
    --workdir=DIR [--config.rl.algorithm=grpo --config.rl.trials=8 --config.rl.episodes=24]

What the policy is made of is RUN's. Rounds of 192 episodes, twelve tasks in turn.
"""

from ml_collections import ConfigDict

from experiments.configs import finetune


def get_config(arg: str = "") -> ConfigDict:
    """The config that goes on from a checkpoint by trial; `arg`: its folder, perhaps "lora"."""
    config = finetune.get_config(arg)
    finetune.same_robot(config)
    config.steps = 60
    config.epochs = 0.0
    config.early_stop = 0
    config.batch_size = 256
    config.save_every = 10
    config.log_every = 1
    config.eval_every = 0
    config.model.allow_missing = ("critic/*",)
    config.augment.crop_scale = (1.0, 1.0)
    config.augment.brightness = config.augment.hue = 0.0
    config.augment.contrast = config.augment.saturation = (1.0, 1.0)
    config.augment.shift = ()
    config.optim.lr = 1e-4
    config.optim.schedule = "constant"
    config.optim.min_lr_scale = 0.0
    config.optim.warmup_steps = 0
    config.optim.clip = 0.5
    config.rl.algorithm = "ppo"
    config.rl.sim = "blocks"
    config.rl.episodes = 192
    return config
