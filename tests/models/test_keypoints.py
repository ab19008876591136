"""Convolutions over a tower's patches, and tokens of heat maps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vla_jax.models.keypoints import SPREAD, Keypoints, KeypointsConfig
from vla_jax.models.stack import StackConfig
from vla_jax.models.vision import VisionConfig, ViT, neighbours, sines


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_one_product_of_neighbours(stride):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 6, 3)), rng.normal(size=(3, 3, 3, 5))
    ours = neighbours(jnp.asarray(x), stride) @ kernel.reshape(27, 5)
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
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
        32, patch=2, width=8, mlp=16, depth=0, heads=2, other_sizes=(48,), stem=(2, 1)
    )
    tower = ViT(config, StackConfig(), nnx.Rngs(0))
    assert config.patches == 64
    assert tower(jnp.zeros((2, 32, 32, 3), jnp.uint8)).shape == (2, 64, 8)
    assert tower(jnp.zeros((2, 48, 48, 3), jnp.uint8)).shape == (2, 144, 8)


def test_a_token_is_of_where_its_own_heat_map_is_hot_and_of_what_is_there():
    module = Keypoints(3, KeypointsConfig(points=1, hidden=5, latents=2), nnx.Rngs(0))
    module.heat.kernel[...] = jnp.array([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
    module.input = lambda seen: seen  # type: ignore[assignment]
    module.which[...] = jnp.zeros((2, 5))
    made = []
    module.output = lambda hidden: made.append(hidden[0]) or hidden[..., :3]  # type: ignore
    places = ((0, 0), (3, 1), (2, 3))
    for first, second in itertools.permutations(places, 2):
        tokens = jnp.zeros((1, 4, 4, 3)).at[0, *first, 0].set(1.0).at[0, *second, 1].set(1.0)
        module(tokens.reshape(1, 16, 3))
        where = np.array([first, second]) / 3 * 2 * SPREAD - SPREAD
        seen = np.eye(3)[:2]
        expected = jax.nn.gelu(np.concatenate([where, seen], axis=1), approximate=True)
        np.testing.assert_allclose(made[-1], expected, atol=1e-5)


def test_what_is_no_size_is_refused():
    with pytest.raises(ValueError, match=r"model\.keypoints: expected numbers of at least 1"):
        KeypointsConfig(4, 0, 2)
