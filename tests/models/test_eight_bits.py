"""Products in 8 bits: which ones, how far they are off, and what is said without the library."""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fakes import initialise
from vla_jax import params
from vla_jax.models import eight_bits
from vla_jax.models.eight_bits import product
from vla_jax.models.stack import Stack, StackConfig, blocks_in_eight_bits
from vla_jax.models.transformer import Linear, plain_block

N, S, WIDTH = 3, 5, 32
# Relative to the norm. Rounding to 127 steps of the largest magnitude is off by 1/254 of it at
# most; e4m3 has 3 bits behind the point: 1/16; e5m2, of the gradients, 1/8.
OFF = {"int8": (0.01, 0.02), "float8": (0.05, 0.08)}


def apart(got: Any, want: Any) -> float:
    got, want = (np.asarray(each, np.float32) for each in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def close(got: Any, want: Any, bound: float) -> None:
    assert 1e-4 < apart(got, want) < bound  # it does round


@pytest.mark.parametrize("kind", eight_bits.KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_and_its_gradients_are_near(kind: str, dtype: Any) -> None:
    x, kernel, out = (
        jax.random.normal(jax.random.key(i), shape, dtype)
        for i, shape in enumerate(((64, WIDTH), (WIDTH, 48), (64, 48)))
    )

    @partial(jax.jit, static_argnums=0)
    def run(kind: str) -> Any:
        made, back = jax.vjp(lambda *a: product(*a, kind), x, kernel)
        return made, *back(out)

    got, dx, dkernel = jax.device_get(run(kind))
    want, dx_want, dkernel_want = jax.device_get(run(""))
    assert got.dtype == dtype
    close(got, want, OFF[kind][0])
    close(dx, dx_want, OFF[kind][1])
    # The kernel's gradient sums over tokens, in the compute type, but its x was rounded forward.
    assert apart(dkernel, dkernel_want) < OFF[kind][1]


class Policy(nnx.Module):
    """A backbone of a stack and a layer beside it, and a head with a stack."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        block = plain_block(WIDTH, 2 * WIDTH, 2, eps=1e-6)
        self.backbone = nnx.Module()
        self.backbone.layers = Stack(block, 2, StackConfig(layers="scan", remat="full"), rngs)
        self.backbone.adapter = Linear((WIDTH, WIDTH), (None, None), False, rngs)
        self.head = Stack(block, 1, StackConfig(layers="unroll"), rngs)

    def __call__(self, x: Any) -> Any:
        mask, positions = jnp.ones((N, S, S), bool), jnp.tile(jnp.arange(S)[None], (N, 1))
        x = self.backbone.adapter(self.backbone.layers(x, mask, positions))
        return self.head(x, mask, positions)


@pytest.mark.slow
def test_the_backbones_blocks_alone_are_changed() -> None:
    x = jax.random.normal(jax.random.key(0), (N, S, WIDTH))
    graphdef, flat = initialise(Policy)
    changed, same = initialise(blocks_in_eight_bits(Policy, "int8"))
    jax.tree.map(np.testing.assert_array_equal, flat, same)  # the parameters are those

    def loss(graphdef: Any) -> Any:
        return lambda flat: jnp.mean(params.merge(graphdef, flat)(x) ** 2)

    want, got = (jax.jit(jax.value_and_grad(loss(each)))(flat) for each in (graphdef, changed))
    close(
        *(
            np.concatenate([np.ravel(each) for each in jax.device_get(one[1]).values()])
            for one in (got, want)
        ),
        0.05,
    )
    text = jax.jit(loss(changed)).lower(flat).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    # q k v o up down, of the loop and of the last layer; the head's and the adapter's are as ever.
    assert sum("xi8>" in line for line in products) == 12
    assert sum("xi8>" not in line for line in products) == 1 + 6 + 3 * 2  # and attention's


def test_what_is_unknown_or_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks_in_eight_bits(Policy, "") is Policy
    with pytest.raises(ValueError, match=r'model.eight_bits: expected "", int8 or float8, got'):
        blocks_in_eight_bits(Policy, "int4")
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ValueError, match=r'pip install "vla_jax\[eight_bits\]"'):
        blocks_in_eight_bits(Policy, "int8")
