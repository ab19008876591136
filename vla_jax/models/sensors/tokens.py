"""The tokens of one sensor: of what its encoder makes, or the learned tokens of "nothing there".

Axes: b batch, t window step, f = b * t frames, n tokens, c width; "..." those of a reading.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from vla_jax.types import Array, SensorReading

# (values [f ... numbers], mask [f ...]) -> [f n c], of which numbers that are not there are 0
Encode = Callable[[Array, Array], Array]
MakeEncoder = Callable[[int, nnx.Rngs], Any]  # (width, rngs) -> a module that is an Encode


class SensorTokens(nnx.Module):
    """A sensor's readings as n tokens of every frame."""

    def __init__(self, width: int, tokens: int, make: MakeEncoder, rngs: nnx.Rngs) -> None:
        self.encoder = make(width, rngs)
        absent = width**-0.5 * jax.random.normal(rngs.params(), (tokens, width))
        self.absent = nnx.Param(absent, logical=(None, "embed"))

    def __call__(self, reading: SensorReading) -> Float[Array, "f n c"]:
        """A frame without a single sample has the absent tokens: its dataset lacks the sensor, or
        nothing came.
        """
        values, mask = (x.reshape(-1, *x.shape[2:]) for x in reading)
        present = jnp.any(mask.reshape(mask.shape[0], -1), axis=1)
        tokens = self.encoder(values, mask)
        return jnp.where(
            present[:, None, None], tokens, self.absent[...].astype(tokens.dtype)[None]
        )
