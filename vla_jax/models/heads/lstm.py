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
        w_hh = self.w_hh[...]
        # One large product for all steps; only the recurrent product stays in the loop.
        projected = matmul(x, self.w_ih[...]) + expand(self.bias[...], x)  # b t 4h

        def step(
            carry: tuple[jax.Array, jax.Array], gates: Any
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            h, c = carry
            i, f, g, o = jnp.split(gates + matmul(h, w_hh), 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((x.shape[0], w_hh.shape[0]), x.dtype)
        _, out = jax.lax.scan(step, (zero, zero), projected.swapaxes(0, 1))  # t b h
        return out.swapaxes(0, 1)


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
