"""SmolVLM2 on Open X-Embodiment: a vision-language model for one small GPU, or for a robot's own.

    python -m experiments.pretrain --config=oxe_smolvlm.py          # SmolVLM2-500M, 512 px
    python -m experiments.pretrain --config=oxe_smolvlm.py:256m     # SmolVLM2-256M
    python -m experiments.pretrain --config=oxe_smolvlm.py:2.2b     # SmolVLM2-2.2B, 378 px
    python -m experiments.pretrain --config=oxe_smolvlm.py:WORDS    # gpt, attention, flow,
                                                                    # discrete; lora; tiny

One image per camera, whole, where the release cuts large ones into tiles. Smaller ones cost less:
--config.model.image_size, a multiple of 64 (":2.2b" 42). Memory on each of 8 devices
(--config.mesh.fsdp=8 --dry_run): 0.9 GiB of parameters, gradients and Adam, and 0.30 GiB of
activations per window; ":256m" 0.5 and 0.27; ":2.2b" 4.1 and 0.53. What one block computes comes on
top.
"""

from ml_collections import ConfigDict

from experiments.composition import presets
from experiments.configs import oxe_paligemma

SIZES = ("256m", "2.2b")


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py with this file's changes; `arg` holds a size or words of
    experiments/composition/presets.py. Raises ValueError for two sizes.
    """
    config, given = oxe_paligemma.get_config(), presets.parse(arg, SIZES)
    if len(given & {*SIZES, "tiny"}) > 1:
        raise ValueError(
            f"--config=oxe_smolvlm.py:WORDS: expected one of {', '.join(SIZES)} and tiny at most,"
            f" got {arg!r}"
        )
    size = next((word for word in SIZES if word in given), "500m")
    config.model.backbone = "smolvlm"
    config.model.variant = size
    kind = "Instruct" if size == "2.2b" else "Video-Instruct"
    config.model.weights = f"weights/SmolVLM2-{size.upper()}-{kind}"
    config.model.image_size = 378 if size == "2.2b" else 512
    presets.apply(config, given)
    return config
