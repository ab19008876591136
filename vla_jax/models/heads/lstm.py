"""The LSTM head, RoboVLMs' default: a stack of LSTM layers over the window's readouts, then the
output MLPs.

Every call starts from a zero state, so the head is a pure function of its window. A rollout keeps
the last `window` readouts and runs them again at each step: cheap beside the backbone, and equal to
what was trained.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from vla_jax.models.heads.outputs import (
    ActionOutputs,
    ContinuousHead,
    HeadConfig,
    expand,
    flatten,
    matmul,
)
from vla_jax.sharding import constrain, gathered
from vla_jax.types import Array


class LSTMLayer(nnx.Module):
    """One layer, with PyTorch's gate order i, f, g, o and one bias where PyTorch has the sum of
    two.
    """

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs) -> None:
        bound = hidden**-0.5

        def uniform(*shape: int) -> jax.Array:
            return jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)

        self.w_ih = nnx.Param(uniform(width, 4 * hidden), logical=("embed", "mlp"))
        self.w_hh = nnx.Param(uniform(hidden, 4 * hidden), logical=("embed", "mlp"))
        self.bias = nnx.Param(uniform(4 * hidden), logical=("mlp",))

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t h"]:
        """The hidden state after each step, from a zero state."""
        # One large product for all steps; only the recurrent product stays in the loop.
        w_ih = gathered(self.w_ih[...], "embed", "mlp")
        projected = matmul(constrain(x, "batch"), w_ih) + expand(self.bias[...], x)
        # Before the loop: inside it would be gathered at every step.
        w_hh = gathered(self.w_hh[...], "embed", "mlp").astype(x.dtype)
        return _recur(projected.swapaxes(0, 1), w_hh).swapaxes(0, 1)  # b t 4h -> b t h


@jax.custom_vjp
def _recur(projected: Float[Array, "t b i"], w_hh: Float[Array, "h i"]) -> Float[Array, "t b h"]:
    """The hidden states; i = 4h. Its gradient takes the one of w_hh as one product behind the loop:
    inside, a sharded program would add it up between devices at every step.
    """
    return _forward(projected, w_hh)[0]


def _forward(projected: Array, w_hh: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    def step(carry: Any, gates: Any) -> Any:
        h, c = carry
        after = _cell(_gates(gates, h, w_hh), c)
        return after, (after[0], *carry)

    zero = jnp.zeros((projected.shape[1], w_hh.shape[0]), projected.dtype)
    _, (hidden, *before) = jax.lax.scan(step, (zero, zero), projected)
    return hidden, (projected, w_hh, *before)


def _backward(kept: tuple[Array, Array, Array, Array], d_hidden: Array) -> tuple[Array, Array]:
    projected, w_hh, hidden, cells = kept

    def step(carry: Any, each: Any) -> Any:
        (d_h, d_c), (gates, h, c, d_out) = carry, each
        _, pull = jax.vjp(_cell, _gates(gates, h, w_hh), c)
        d_gates, d_before = pull((d_h + d_out, d_c))
        d_gates = constrain(d_gates, "batch", "mlp")
        return (constrain(matmul(d_gates, w_hh.T), "batch"), d_before), d_gates

    zero = jnp.zeros_like(hidden[0])
    each = (projected, hidden, cells, d_hidden)
    _, d_gates = jax.lax.scan(step, (zero, zero), each, reverse=True)
    d_w = jnp.einsum("tbh,tbi->hi", hidden, d_gates, precision=jax.lax.Precision.HIGHEST)
    return d_gates, d_w


_recur.defvjp(_forward, _backward)


def _gates(projected: Float[Array, "b i"], h: Float[Array, "b h"], w_hh: Array) -> Array:
    return constrain(projected + matmul(h, w_hh), "batch", "mlp")


def _cell(gates: Float[Array, "b i"], c: Float[Array, "b h"]) -> tuple[Array, Array]:
    """(hidden state, cell) from the gates before their nonlinearities and the cell before."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


class LSTMHead(ContinuousHead):
    """Readouts [b t n c] -> `layers` LSTM layers of size hidden*n over t -> arm and gripper
    MLPs.
    """

    def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs) -> None:
        hidden = config.hidden * config.tokens
        inputs = [width * config.tokens] + [hidden] * (
            config.layers - 1
        )  # the first layer differs, so no stacking
        self.layers = nnx.List([LSTMLayer(size, hidden, rngs) for size in inputs])
        self.outputs = ActionOutputs(hidden, config, rngs)

    def features(self, readouts: Float[Array, "b t n c"]) -> Float[Array, "b t h"]:
        """The last layer's hidden state at every window step."""
        x = flatten(readouts)
        for layer in self.layers:
            x = layer(x)
        return x
