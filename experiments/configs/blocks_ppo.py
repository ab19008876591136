"""A policy of blocks.py (or any that knows that robot) gets better at it by trial.

    python -m experiments.finetune_rl --config=blocks_ppo.py --config.model.start=RUN/checkpoints
    --workdir=DIR [--config.rl.algorithm=grpo --config.rl.trials=8 --config.rl.episodes=96]

What the policy is made of is RUN's. Rounds of 768 episodes, twelve tasks in turn, some 4,000
decisions, each looked at twice: of 192 episodes, four times, it learnt the noise by heart. The head
alone learns where it has parameters: README.md, "By trial", says what spoke for it. With adapters
(:lora), or --config.rl.head_only=False --config.optim.lr=2e-5, more does. A head that flows is told
by ten steps of every number: at the rate of the others one update goes 180 nats away.
"""

from ml_collections import ConfigDict

from experiments.configs import finetune


def get_config(arg: str = "") -> ConfigDict:
    """The config that goes on from a checkpoint by trial; `arg`: its folder, perhaps "lora"."""
    config = finetune.otherwise(arg)
    config.steps = 200
    config.batch_size = 1024
    config.save_every = 10
    config.log_every = 1
    config.rl.head_only = config.lora.rank == 0 and config.model.head != "discrete"
    config.optim.lr = 3e-4 if config.rl.head_only else 2e-5
    config.optim.schedule = "constant"
    config.optim.min_lr_scale = 0.0
    config.optim.warmup_steps = 0
    config.optim.clip = 0.5
    config.rl.algorithm = "ppo"
    config.rl.sim = "blocks"
    config.rl.episodes = 768
    config.rl.environments = 96
    config.rl.epochs = 2
    config.rl.std = 0.2
    config.rl.divergence = 0.0
    config.rl.update_limit = 0.1
    if config.model.head == "flow":
        config.optim.lr, config.rl.std = 1e-5, 0.5
    return config
