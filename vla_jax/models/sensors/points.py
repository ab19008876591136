"""Points in any order as tokens: PointNet (arXiv 1612.00593) without its transforms of the input.
One small network for each point, the largest of every number over the points, a linear layer.

Axes: f frames, p points, i numbers of a point, n tokens, c width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from vla_jax.models.transformer import Linear
from vla_jax.robot.sensing import Sensor
from vla_jax.types import Array

HIDDEN = (64, 128)
LEAST = -1.0  # in place of points that are not there; GELU gives no less than -0.17


class PointSet(nnx.Module):
    """The points of a 3-D LiDAR, or of a depth camera."""

    def __init__(self, sensor: Sensor, width: int, rngs: nnx.Rngs) -> None:
        _, numbers = sensor.shape
        self.tokens = sensor.tokens
        self.first = Linear((numbers, HIDDEN[0]), (None, None), True, rngs)
        self.second = Linear(HIDDEN, (None, None), True, rngs)
        self.output = Linear((HIDDEN[1], self.tokens * width), (None, "embed"), True, rngs)

    def __call__(
        self, values: Float[Array, "f p i"], mask: Bool[Array, "f p"]
    ) -> Float[Array, "f n c"]:
        x = jax.nn.gelu(self.first(values), approximate=True)
        x = jax.nn.gelu(self.second(x), approximate=True)
        seen = jnp.max(jnp.where(mask[..., None], x, jnp.asarray(LEAST, x.dtype)), axis=1)
        return self.output(seen).reshape(x.shape[0], self.tokens, -1)
