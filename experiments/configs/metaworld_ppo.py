"""A policy of metaworld.py (or any that knows that robot) gets better at it by trial.

    python -m experiments.finetune_rl --config=metaworld_ppo.py --config.model.start=RUN/checkpoints
    --workdir=DIR [--config.rl.sim=metaworld:button-press-topdown,window-open]
    [--config.rl.keep=metaworld:door-open,drawer-open]

blocks_ppo.py but for what this world needs: each of four worlds is a process, a failure takes 500
steps of a hundred that a success takes, and so rounds are of fewer episodes, 96 of the tasks in
turn, and updates are smaller (of one task, at 2e-4: README.md, "By trial"). What comes a control
step later, an eightieth of a second, counts nearly as much. What else it can do and is not to
lose are the tasks of rl.keep. It draws with the renderer that the policy's data were drawn with,
or not at all.
"""

from ml_collections import ConfigDict

from experiments.configs import blocks_ppo


def get_config(arg: str = "") -> ConfigDict:
    """The config that goes on from a checkpoint by trial; `arg`: its folder, perhaps "lora"."""
    config = blocks_ppo.get_config(arg)
    config.batch_size = 512
    config.save_every = 5
    config.optim.lr = min(config.optim.lr, 1e-4)
    config.rl.sim = "metaworld"
    config.rl.episodes = 96
    config.rl.environments = 4
    config.rl.discount = 0.998
    return config
