"""Depth maps and pictures of touch as tokens: a small ViT, one token for each of its patches.

Axes: f frames, h w pixels, n tokens, c width.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Num

from vla_jax.models.stack import StackConfig
from vla_jax.models.transformer import Linear
from vla_jax.models.vision import VisionConfig, ViT
from vla_jax.robot.sensing import Sensor
from vla_jax.types import Array

WIDTH, DEPTH, HEADS = 64, 2, 2


def vision(sensor: Sensor) -> VisionConfig:
    """The ViT that has as many patches as the sensor has tokens. Raises ValueError where that
    does not go.
    """
    size, side = sensor.shape[0], math.isqrt(sensor.tokens)
    if side * side != sensor.tokens or size % side:
        raise ValueError(
            f"model.sensors: {sensor.name}: expected as many tokens as there are squares in"
            f" {size} x {size} pixels (1, 4, 16, ...), got {sensor.tokens}"
        )
    return VisionConfig(size, size // side, WIDTH, 2 * WIDTH, DEPTH, HEADS)


class Picture(nnx.Module):
    """A depth map [h w 1], or uint8 RGB [h w 3]."""

    def __init__(self, sensor: Sensor, width: int, rngs: nnx.Rngs) -> None:
        self.vision = ViT(vision(sensor), StackConfig(), rngs)
        self.output = Linear((WIDTH, width), (None, "embed"), True, rngs)

    def __call__(
        self, values: Num[Array, "f h w _"], mask: Bool[Array, "f h w"]
    ) -> Float[Array, "f n c"]:
        if values.shape[-1] == 3:
            return self.output(self.vision(values))
        # Depth twice and whether it is there, on the scale on which a ViT takes pixels.
        there = 2.0 * mask[..., None].astype(values.dtype) - 1.0
        pixels = 127.5 * jnp.concatenate([values, values, there], axis=-1) + 127.5
        return self.output(self.vision(pixels))
