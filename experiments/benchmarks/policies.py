"""The policies that are measured: their configs, and weights for them, random but not degenerate.

It imports no torch: experiments.benchmarks.train_ours must not pay for it.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict

from experiments.composition import presets, spaces
from experiments.configs import oxe_paligemma
from vla_jax import params as flat

VARIANTS = {"tiny": "tiny", "100m": "100m", "3b": "3b-pt-224"}


def configuration(size: str, head: str = "lstm") -> ConfigDict:
    """The demo's config, or the default one on a smaller or the released backbone; in float32."""
    words = ["tiny"] * (size == "tiny") + [head] * (head != "lstm")
    config = oxe_paligemma.get_config(",".join(words))
    model = config.model
    model.variant, model.weights = VARIANTS[size], "none"
    model.dtype, model.layers, model.remat = "float32", "unroll", "none"
    if size == "100m":
        model.head_hidden, model.head_layers, model.head_mlp = 512, 2, (512, 256)
        if head == "expert":
            model.head_hidden = presets.EXPERT["base"]
    if head == "fast":  # one frame, as openpi's
        model.history, model.window = "one_step", 1
    return spaces.resolve(config)


def random_params(make: flat.Build, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """float32 weights of a PaliGemma policy, by name: activations keep their scale."""
    shapes = flat.abstract(make)[1]

    def drawn(name: str, own: np.random.Generator) -> np.ndarray:
        shape = shapes[name].shape
        value = own.standard_normal(shape, np.float32)
        value *= np.float32(shape[-2] ** -0.5 if len(shape) > 1 else 0.02)
        if name.endswith("scale") and "decoder" not in name:  # a gain of Gemma's is 1 + scale
            value += 1
        return value

    with ThreadPoolExecutor() as pool:  # 3 billion numbers take one core half a minute
        return dict(zip(shapes, pool.map(drawn, shapes, rng.spawn(len(shapes))), strict=True))
