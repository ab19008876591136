"""PaliGemma-3B on Bridge V2: the RoboVLMs recipe for Open X-Embodiment on one robot (WidowX).

    python -m experiments.pretrain --config=bridge_paligemma.py
    python -m experiments.pretrain --config=bridge_paligemma.py:WORDS    # gpt, attention, flow,
                                                                         discrete, fast, oft; lora;
                                                                         tiny

Memory on each of 8 devices (--config.mesh.fsdp=8 --dry_run): 5.5 GiB of parameters, gradients and
Adam, and 0.32 GiB of activations per window, 20.6 GiB for its 64; ":lora" 0.9 and 0.31. What one
block computes comes on top. Data: `bridge`, the authors' release
(data_pipelines/datasets/bridge.py), not the older copy in the OXE bucket. Reference: RoboVLMs
(arXiv 2412.14058), its OXE configs with one dataset as the mixture. Theirs normalise twice:
`--config.data.normalise="('q99', ('bounds', -0.65, 0.65))"`.
"""

from ml_collections import ConfigDict

from experiments.composition import presets
from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py with this file's data; `arg` holds the words of
    experiments/composition/presets.py.
    """
    config = oxe_paligemma.get_config()
    config.data.mixture = "bridge"
    config.model.cameras = ("primary",)
    config.model.window = 8
    config.model.chunk = 10
    presets.apply(config, presets.parse(arg))
    return config
