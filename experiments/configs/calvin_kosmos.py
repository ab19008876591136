"""Kosmos-2 on CALVIN ABCD with both cameras: RoboVLMs' default backbone, an LSTM over 16 frames.

    python -m experiments.pretrain --config=calvin_kosmos.py
    python -m experiments.pretrain --config=calvin_kosmos.py:WORDS    # gpt, attention, flow,
                                                                      discrete, fast, oft; lora;
                                                                      tiny

Memory on each of 8 devices (--config.mesh.fsdp=8 --dry_run): 3.2 GiB of parameters, gradients and
Adam, and 1.31 GiB of activations per window of 16 frames and two cameras, 5.3 GiB for its 4;
":lora" 0.7 and 1.18. What one block computes comes on top. Data: `calvin_play`, written from
task_ABCD_D by data_pipelines/builders/calvin.py. Reference: RoboVLMs (arXiv 2412.14058), its CALVIN
config for Kosmos with the wrist camera. There: 4 windows per GPU, 5 epochs, a constant rate after
the warm-up, no clipping of gradients, however it was configured (here 1.0), fp16 (here bfloat16),
dropout of 0.1 in the decoder (here none). Its exact token order is --config.model.layout=robovlms,
its episodes begin with --config.model.history_start=grow, its images are model.resize=bicubic.
"""

from ml_collections import ConfigDict

from experiments.composition import presets
from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py with this file's changes; `arg` holds the words of
    experiments/composition/presets.py.
    """
    config = oxe_paligemma.get_config()
    calvin(config)
    config.model.backbone = "kosmos2"
    config.model.variant = "2-patch14-224"
    config.model.weights = "weights/kosmos-2-patch14-224"
    config.model.window = 16
    presets.apply(config, presets.parse(arg))
    return config


def calvin(config: ConfigDict) -> None:
    """What all policies on CALVIN share: the data and how it is augmented, the batch, the losses,
    the rate.
    """
    config.batch_size = 32  # 4 on each of 8 devices
    # 5 of RoboVLMs' epochs: 22,966 annotations of 59 frames, their last 15 no starts
    config.steps = 160_000

    config.data.mixture = "calvin_play"
    config.data.normalise = (("bounds", -0.65, 0.65),)

    config.model.cameras = ("primary", "wrist")  # static and gripper
    config.model.chunk = 10
    config.model.dtype = "bfloat16"

    config.augment.crop_scale = (1.0, 1.0)
    config.augment.brightness = config.augment.hue = 0.0
    config.augment.contrast = config.augment.saturation = (1.0, 1.0)
    config.augment.shift = (10, 4)

    config.loss.arm = 1.0
    config.loss.gripper = 0.01

    config.optim.lr = 2e-5
    config.optim.warmup_epochs = 0.25
