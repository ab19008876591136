"""A policy for CALVIN's scene D that a CPU trains, from nothing, on demonstrations of ours.

    python -m data_pipelines.builders.calvin_demonstrations --out runs/calvin/data --processes 2
    python -m experiments.pretrain --config=calvin_tiny.py --workdir=runs/calvin/policy
    python -m experiments.rollout --policy runs/calvin/policy --sim calvin --episodes 100 --out DIR

oxe_paligemma.py:tiny (words behind the colon, a head or lora, mean what they mean there) but for
what this task needs more of. It has to learn to see: both cameras, through convolutions and heat
maps of where things are, and beside the actions it says where the blocks are (`calvin_scene`; in
acting nothing of that is there). Chunks of 10 as RoboVLMs has them on CALVIN; one frame at a time
and an MLP, as in navigation.py: a policy that carries out whole chunks sees no two frames in a row.
The state says what pictures this small do not: whether the fingers hold something.
"""

from ml_collections import ConfigDict

from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py:tiny with this file's data and model; `arg` holds the words of
    experiments/composition/presets.py, without sizes.
    """
    config = oxe_paligemma.tiny_mlp(arg)
    config.steps = 11_000
    config.batch_size = 64
    config.log_every = 100
    config.eval_every = config.save_every = 1_000
    config.optim.min_lr_scale = 0.02
    config.optim.ema = 0.998
    config.optim.warmup_steps = 200
    config.data.root = "runs/calvin/data"
    config.data.mixture = "calvin_scene"
    config.data.ram_budget = 6 * 2**30  # all windows of 816 sequences
    config.data.stride = 5
    config.augment.shift = (1, 1)
    config.loss.gripper = 0.1
    config.objectives.sensed.weight = 1.0
    config.objectives.sensed.sensor = "scene=vector:4x8"
    config.model.variant = "seeing"
    config.model.cameras = ("primary", "wrist")
    config.model.image_sizes = (128, 64)
    config.model.keypoints.points = 4
    config.model.readouts = 4
    config.model.prompt_length = 20
    config.model.chunk = 10
    config.model.proprio = True
    config.model.head_hidden = 384
    config.model.head_mlp = (384, 384)
    return config
