"""A policy for CALVIN's scene D that a CPU trains: tiny, from nothing, on demonstrations of ours.

    python -m data_pipelines.builders.calvin_demonstrations --out runs/calvin/data --processes 2
    python -m experiments.pretrain --config=calvin_tiny.py --workdir=runs/calvin/policy
    python -m experiments.rollout --policy runs/calvin/policy --sim calvin --episodes 100 --out DIR

oxe_paligemma.py:tiny (words behind the colon, a head or lora, mean what they mean there) but for
what this task needs more of. Both cameras, the static one at 96 pixels, where a block is 6 wide,
and chunks of 10 as RoboVLMs has them on CALVIN. One frame at a time and an MLP, as in
navigation.py: a policy that carries out whole chunks sees no two frames in a row. The state says
what pictures this small do not: whether the fingers hold something. It also keeps a policy from
looking: begin with model.proprio=False, and let a second run go on with it (experiments/README.md).
A run may be ended at any step: the rate stays, and what acts is an average.
"""

from ml_collections import ConfigDict

from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py:tiny with this file's data; `arg` holds the words of
    experiments/composition/presets.py, without sizes.
    """
    config = oxe_paligemma.tiny_mlp(arg)
    config.steps = 8_000
    config.batch_size = 32
    config.log_every = 100
    config.eval_every = config.save_every = 500
    config.optim.lr = 7e-4
    config.optim.schedule = "constant"
    config.optim.min_lr_scale = 0.0
    config.optim.ema = 0.998
    config.optim.warmup_steps = 200
    config.data.root = "runs/calvin/data"
    config.data.mixture = "calvin"
    config.data.ram_budget = 2**31
    config.augment.shift = (2, 1)
    config.loss.gripper = 0.1
    config.model.cameras = ("primary", "wrist")
    config.model.image_sizes = (96, 48)
    config.model.chunk = 10
    config.model.proprio = True
    config.model.head_hidden = 256
    config.model.head_mlp = (256, 128)
    return config
