"""Samples in a row as tokens: convolutions that halve the row until it is short, then a linear
layer over all of it.

Axes: f frames, r samples in a row, i numbers of a sample, n tokens, c width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from vla_jax.models.transformer import Linear
from vla_jax.robot.sensing import Sensor
from vla_jax.types import Array

HIDDEN = 64
SHORT = 8  # samples that the linear layer takes


def rows(r: int) -> list[int]:
    """How many samples there are after each halving of r."""
    out = []
    while r > SHORT:
        r = -(-r // 2)
        out.append(r)
    return out


class Series(nnx.Module):
    """A vector over time, the beams of a scan, the bands of sound. Whether a sample is there is one
    more number of it.
    """

    def __init__(self, sensor: Sensor, width: int, rngs: nnx.Rngs) -> None:
        r, numbers = sensor.shape
        self.tokens = sensor.tokens
        self.input = Linear((numbers + 1, HIDDEN), (None, None), True, rngs)
        self.halve = nnx.List(
            [Linear((3 * HIDDEN, HIDDEN), (None, None), True, rngs) for _ in rows(r)]
        )
        last = [r, *rows(r)][-1]
        self.output = Linear((last * HIDDEN, self.tokens * width), (None, "embed"), True, rngs)

    def __call__(
        self, values: Float[Array, "f r i"], mask: Bool[Array, "f r"]
    ) -> Float[Array, "f n c"]:
        x = jnp.concatenate([values, mask[..., None].astype(values.dtype)], axis=-1)
        x = jax.nn.gelu(self.input(x), approximate=True)
        for layer in self.halve:
            x = jax.nn.gelu(layer(_neighbours(x)), approximate=True)
        return self.output(x.reshape(x.shape[0], -1)).reshape(x.shape[0], self.tokens, -1)


def _neighbours(x: Float[Array, "f r i"]) -> Float[Array, "f half three_i"]:
    """Every second sample with the ones beside it, zeros beyond the ends: a convolution of width 3
    and stride 2 is a linear layer over these.
    """
    r = x.shape[1]
    half = -(-r // 2)
    padded = jnp.pad(x, ((0, 0), (1, 2 * half - r), (0, 0)))
    return jnp.concatenate([padded[:, i : i + 2 * half : 2] for i in range(3)], axis=-1)
