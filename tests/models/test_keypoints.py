"""Convolutions before a tower's patches, and places of heat maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vla_jax.models.keypoints import SPREAD, Keypoints, KeypointsConfig
from vla_jax.models.stack import StackConfig
from vla_jax.models.vision import VisionConfig, ViT, neighbours, sines


def test_a_convolution_is_one_product_of_neighbours():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 6, 3)), rng.normal(size=(3, 3, 3, 5))
    ours = neighbours(jnp.asarray(x)) @ kernel.reshape(27, 5)
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_places_differ_and_neighbours_are_alike():
    table = np.asarray(sines(16, 64)).reshape(16, 16, 64)
    away = np.linalg.norm(table - table[5, 9], axis=-1)
    assert away[5, 9] == 0
    assert away[5, 10] == pytest.approx(away[6, 9], rel=1e-4)
    assert away[5, 10] < away[5, 12] < away[5, 15]
    assert np.sort(away.ravel())[1] > 0.5


def test_a_tower_with_a_stem_takes_images_of_several_sizes():
    config = VisionConfig(
        32, patch=1, width=8, mlp=16, depth=0, heads=2, other_sizes=(48,), stem=(4, 6)
    )
    tower = ViT(config, StackConfig(), nnx.Rngs(0))
    assert config.patches == 64
    assert tower(jnp.zeros((2, 32, 32, 3), jnp.uint8)).shape == (2, 64, 8)
    assert tower(jnp.zeros((2, 48, 48, 3), jnp.uint8)).shape == (2, 144, 8)


def test_a_heat_map_says_where_it_is_hot():
    config = KeypointsConfig(points=1, hidden=4, latents=2)
    module = Keypoints(3, config, nnx.Rngs(0))
    module.heat.kernel[...] = jnp.array([[9.0], [0.0], [0.0]])
    seen = {}
    module.input = lambda x: seen.setdefault("places", x[:, :2]) @ jnp.zeros((2, 4))  # type: ignore[assignment]
    for row, column in ((0, 0), (3, 1), (2, 3)):
        tokens = jnp.zeros((1, 4, 4, 3)).at[0, row, column, 0].set(1.0)
        seen.clear()
        assert module(tokens.reshape(1, 16, 3)).shape == (1, 2, 3)
        expected = np.array([row, column]) / 3 * 2 * SPREAD - SPREAD
        np.testing.assert_allclose(seen["places"][0], expected, atol=1e-6)


def test_what_is_no_size_is_refused():
    with pytest.raises(ValueError, match=r"model\.keypoints: expected numbers of at least 1"):
        KeypointsConfig(4, 0, 2)
