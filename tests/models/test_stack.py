"""A stack of rotary blocks: positions are those of the tokens, read out, cached or whole."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fakes import initialise
from vla_jax import params, sharding
from vla_jax.models.stack import Stack, StackConfig
from vla_jax.models.transformer import plain_block

N, S, WIDTH, DEPTH = 2, 6, 16, 2
POSITIONS = np.array([[0, 1, 2, 3, 5, 9], [0, 2, 3, 4, 5, 6]], np.int32)  # gaps: masked tokens
CAUSAL = np.tile(np.tril(np.ones((S, S), bool)), (N, 1, 1))


def make(layers: str, rope_theta: float) -> Any:
    block = dataclasses.replace(plain_block(WIDTH, 32, 2, eps=1e-6), rope_theta=rope_theta)
    run = StackConfig(layers=layers)
    graphdef, flat = initialise(lambda rngs: Stack(block, DEPTH, run, rngs))
    rng = np.random.default_rng(0)
    for name, value in sorted(flat.items()):
        moved = np.asarray(value) + np.float32(0.1 * rng.normal(size=value.shape))
        flat[name] = jnp.asarray(moved)
    return params.merge(graphdef, flat)


@pytest.fixture(scope="module", params=["scan", "unroll"])
def stack(request: pytest.FixtureRequest) -> Any:
    return make(request.param, 100.0)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, S, WIDTH)).astype(np.float32)


def test_positions_matter_and_only_their_distances(stack: Any, x: np.ndarray) -> None:
    run = jax.jit(lambda positions: stack(x, CAUSAL, positions))
    whole = run(POSITIONS)
    np.testing.assert_allclose(run(POSITIONS + 7), whole, atol=1e-5)
    assert np.abs(run(2 * POSITIONS) - whole).max() > 1e-3
    one = POSITIONS.copy()
    one[:, -1] += 1  # of the last token alone, query and key
    assert np.abs(run(one) - whole)[:, -1].max() > 1e-4
    np.testing.assert_array_equal(run(one)[:, :-1], whole[:, :-1])


def test_where_no_token_is_behind_another_nothing_is_turned(x: np.ndarray) -> None:
    nowhere = np.zeros((N, S), np.int32)
    turned, plain = (
        jax.jit(lambda stack: stack(x, CAUSAL, nowhere))(make("unroll", theta))
        for theta in (9.0, 0.0)
    )
    np.testing.assert_allclose(turned, plain, atol=1e-5)


@pytest.mark.parametrize("num_queries", [1, 3])
def test_what_is_read_out_has_the_positions_of_its_tokens(
    stack: Any, x: np.ndarray, num_queries: int
) -> None:
    whole = jax.jit(lambda: stack(x, CAUSAL, POSITIONS))()
    read = jax.jit(lambda: stack(x, CAUSAL, POSITIONS, num_queries))()
    np.testing.assert_allclose(read, whole[:, -num_queries:], atol=1e-5)


def test_a_token_behind_the_cache_equals_the_whole(stack: Any, x: np.ndarray) -> None:
    whole = jax.jit(lambda: stack(x, CAUSAL, POSITIONS))()

    @jax.jit
    def decode() -> jax.Array:
        cache, parts = stack.cache(N, S, jnp.float32), []
        for start, stop in ((0, 3), (3, 4), (4, 6)):
            tokens = slice(start, stop)
            y, cache = stack.decode(x[:, tokens], CAUSAL[:, tokens], POSITIONS[:, tokens], cache)
            parts.append(y)
        return jnp.concatenate(parts, axis=1)

    np.testing.assert_allclose(decode(), whole, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "split"), [(16, ("tensor",)), (15, ())])
def test_devices_along_tensor_split_the_tokens_between_products(
    tokens: int, split: tuple[str, ...]
) -> None:
    """The residual stream, which waits for the backward pass: where tensor divides its tokens no
    device holds it whole, and the numbers are those of one device.
    """
    mesh = sharding.make_mesh(2, 2, 2)
    block = plain_block(16, 32, 4, eps=1e-5)
    stack: Any = params.merge(*initialise(lambda rngs: Stack(block, 2, StackConfig(), rngs)))
    x = np.random.default_rng(0).standard_normal((8, tokens, 16), np.float32)
    mask, places = np.ones((8, tokens, tokens), bool), np.zeros((8, tokens), np.int32)

    @jax.jit
    def run(stack: Any, x: jax.Array) -> jax.Array:
        with sharding.activations_over(mesh):
            return stack(x, mask, places)

    placed = jax.device_put(stack, sharding.replicated(mesh))
    out = run(placed, jax.device_put(x, sharding.batch_sharding(mesh)))
    spec = jax.sharding.PartitionSpec(("data", "fsdp"), *split)
    assert out.sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, spec), 3)
    np.testing.assert_allclose(out, stack(x, mask, places), atol=1e-5)
