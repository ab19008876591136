"""Qwen3-VL on Open X-Embodiment: the 2B model, or 4B.

    python -m experiments.pretrain --config=oxe_qwen3vl.py          # Qwen3-VL-2B-Instruct
    python -m experiments.pretrain --config=oxe_qwen3vl.py:4b       # Qwen3-VL-4B-Instruct
    python -m experiments.pretrain --config=oxe_qwen3vl.py:WORDS    # gpt, attention, flow,
                                                                    # discrete; lora; tiny

The tower takes any size that is a multiple of 32 pixels (--config.model.image_size); 256, the
smallest that the release's processor makes, are 64 tokens. Memory on each of 8 devices
(--config.mesh.fsdp=8 --dry_run): 4.0 GiB of parameters, gradients and Adam, and 0.37 GiB of
activations per window; ":4b" 8.3 and 0.43. What one block computes comes on top.
"""

from ml_collections import ConfigDict

from experiments.composition import presets
from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py with this file's changes; `arg` holds 4b or words of
    experiments/composition/presets.py.
    """
    config, given = oxe_paligemma.get_config(), presets.parse(arg, ("4b",))
    size = "4b" if "4b" in given else "2b"
    config.model.backbone = "qwen3vl"
    config.model.variant = size
    config.model.weights = f"weights/Qwen3-VL-{size.upper()}-Instruct"
    config.model.image_size = 256
    presets.apply(config, given)
    return config
