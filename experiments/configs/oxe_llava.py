"""LLaVA on Open X-Embodiment: LLaVA-1.5-7B (LLaMA decoder, 336 px), or the MPT-7B decoder that
RoboVLMs has.

    python -m experiments.pretrain --config=oxe_llava.py
    python -m experiments.pretrain --config=oxe_llava.py:mpt      # LLaVA-Lightning-MPT-7B, 224 px
    python -m experiments.pretrain --config=oxe_llava.py:WORDS    # gpt, attention, flow, discrete,
                                                                  fast, oft, expert; lora; tiny

Memory on each of 8 devices (--config.mesh.fsdp=8 --dry_run): 13.0 GiB of parameters, gradients and
Adam, and 1.64 GiB of activations per window, 26.2 GiB for the 16 that are run at once; ":mpt" 13.0
and 0.72; ":lora" 2.0 and 1.54. What one block computes comes on top. Reference: RoboVLMs (arXiv
2412.14058), its LLaVA config, which is for the MPT decoder.
"""

from ml_collections import ConfigDict

from experiments.composition import presets
from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py with this file's changes; `arg` holds mpt or words of
    experiments/composition/presets.py.
    """
    config, given = oxe_paligemma.get_config(), presets.parse(arg, ("mpt",))
    config.accum = 4  # as in RoboVLMs, one window at once on each device there
    config.model.backbone = "llava"
    config.model.variant = "1.5-7b"
    config.model.weights = "weights/llava-1.5-7b-hf"
    config.model.image_size = 336
    if "mpt" in given:
        config.model.variant = "mpt-7b"
        config.model.weights = "weights/LLaVA-Lightning-MPT-7B-preview"
        config.model.image_size = 224
    presets.apply(config, given)
    if given >= {"mpt", "tiny"}:
        config.model.variant = "tiny-mpt"
    return config
