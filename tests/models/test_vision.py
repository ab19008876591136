"""The tower: images of other sizes than the one its positions are for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fakes import initialise
from vla_jax import params
from vla_jax.models.stack import StackConfig
from vla_jax.models.vision import VisionConfig, ViT, clip_tower
from vla_jax.weights.transforms import Positions

SIZES = (8, 24, 40)
SIGLIP = VisionConfig(image_size=32, patch=8, width=16, mlp=24, depth=2, heads=2)
CLIP = clip_tower(image_size=32, patch=8, width=16, depth=2, heads=2)
TOWERS = {
    "siglip": SIGLIP,
    "clip": CLIP,
    "clip, class token kept": dataclasses.replace(CLIP, class_token=True),
}


def tower(config: VisionConfig) -> params.Build:
    return lambda rngs: ViT(config, StackConfig(), rngs)


@functools.cache
def made(config: VisionConfig) -> tuple[nnx.GraphDef, params.Params]:
    return initialise(tower(config))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TOWERS)
def test_another_size_is_seen_as_by_a_tower_of_that_size(name: str, size: int) -> None:
    """As by one that read the same weights, whose positions are interpolated there."""
    graphdef, flat = made(dataclasses.replace(TOWERS[name], other_sizes=SIZES))
    alone = dataclasses.replace(TOWERS[name], image_size=size)
    read = Positions(alone.patches, alone.clip)(np.asarray(flat["positions"]))
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)

    @jax.jit
    def tokens(graphdef, flat):
        return params.merge(graphdef, flat)(images)

    expected = tokens(params.abstract(tower(alone))[0], {**flat, "positions": jnp.asarray(read)})
    assert expected.shape == (2, alone.tokens, 16)
    np.testing.assert_allclose(tokens(graphdef, flat), expected, atol=1e-5)


def test_a_size_that_no_camera_has_is_refused() -> None:
    model = params.merge(*made(dataclasses.replace(SIGLIP, other_sizes=(16,))))
    with pytest.raises(ValueError, match=r"\[n, 32, 32, 3\] or \[n, 16, 16, 3\], got \(1, 24"):
        model(jnp.zeros((1, 24, 24, 3), jnp.uint8))
