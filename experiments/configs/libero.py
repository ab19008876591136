"""A policy for libero_object that a CPU trains: tiny, from nothing, on demonstrations of ours.

    python -m data_pipelines.builders.libero --out runs/libero/data --processes 2
    python -m experiments.pretrain --config=libero.py --workdir=runs/libero/policy
    python -m experiments.rollout --policy runs/libero/policy --sim libero:libero_object --out DIR

oxe_paligemma.py:tiny (words behind the colon, a head or lora, mean what they mean there) but for
what this task needs more of, as in metaworld.py and calvin_tiny.py: both cameras, larger pictures,
the state, which says whether the fingers hold something; one frame at a time, eight actions (0.4 s)
at once, an MLP. A run may be ended at any step: the rate stays, and what acts is an average.
"""

from ml_collections import ConfigDict

from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py:tiny with this file's data; `arg` holds the words of
    experiments/composition/presets.py, without sizes.
    """
    config = oxe_paligemma.tiny_mlp(arg)
    config.steps = 3_000
    config.batch_size = 32
    config.log_every = 100
    config.eval_every = config.save_every = 500
    config.optim.schedule = "constant"
    config.optim.min_lr_scale = 0.0
    config.optim.ema = 0.998
    config.optim.warmup_steps = 100
    config.data.root = "runs/libero/data"
    config.data.mixture = "libero_object_no_noops"
    config.data.ram_budget = 2**31
    config.augment.shift = (3, 2)
    config.loss.delta = 0.1
    config.loss.gripper = 0.1
    config.model.chunk = 8
    config.model.cameras = ("primary", "wrist")
    config.model.image_size = 96
    config.model.image_sizes = (96, 64)
    config.model.proprio = True
    config.model.head_hidden = 256
    config.model.head_mlp = (256, 128)
    return config
