"""OpenFlamingo-3B on CALVIN ABCD with both cameras: the RoboFlamingo line, as RoboVLMs trains it.

    python -m experiments.pretrain --config=calvin_flamingo.py
    python -m experiments.pretrain --config=calvin_flamingo.py:WORDS    # gpt, attention, flow,
                                                                        discrete, fast, oft; lora;
                                                                        tiny

Memory on each of 8 devices (--config.mesh.fsdp=8 --dry_run): 4.8 GiB of parameters, gradients and
Adam, and 1.31 GiB of activations per window of 8 frames and two cameras, 5.2 GiB for its 4; ":lora"
0.9 and 0.91. What one block computes comes on top. Data: `calvin_play`, as calvin_kosmos.py. The
weights are three: OpenFlamingo's own, CLIP and the decoder (`open_weights` in
vla_jax/models/backbones/flamingo.py says where they go). Reference: RoboVLMs (arXiv 2412.14058),
its Flamingo config on CALVIN: rate 1e-4, decay 0.1, gradients clipped. The window of 8 is that of
most of its configs. There the head reads the largest of all hidden states, here a readout token. To
freeze CLIP and the language model:
--config.optim.freeze=backbone/vision/*,backbone/decoder/*,backbone/embed/*
"""

from ml_collections import ConfigDict

from experiments.composition import presets
from experiments.configs import calvin_kosmos, oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py with this file's changes; `arg` holds the words of
    experiments/composition/presets.py.
    """
    config = oxe_paligemma.get_config()
    calvin_kosmos.calvin(config)
    config.model.backbone = "flamingo"
    config.model.variant = "3b"
    config.model.weights = "weights/OpenFlamingo-3B-vitl-mpt1b-langinstruct"
    config.model.window = 8
    config.optim.lr = 1e-4
    config.optim.weight_decay = 0.1
    presets.apply(config, presets.parse(arg))
    return config
