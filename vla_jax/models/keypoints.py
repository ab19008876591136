"""Where things are in a picture, in few tokens: each of some heat maps over the visual tokens has a
place that it expects (a spatial softmax, arXiv 1504.00702), and a layer makes tokens of the places
and of the mean of all visual tokens.

Axes: f images, v visual tokens of one image, n heat maps, c width, q tokens.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from vla_jax.models.transformer import Linear
from vla_jax.types import Array

SHARP = 3.0  # what logits are multiplied by at the start
SPREAD = 2.0  # places are between -2 and 2


@dataclass(frozen=True)
class KeypointsConfig:
    """Sizes: heat maps, numbers of the layer between, tokens of an image."""

    points: int
    hidden: int
    latents: int

    def __post_init__(self) -> None:
        if min(self.points, self.hidden, self.latents) < 1:
            raise ValueError(
                "model.keypoints: expected numbers of at least 1 (points 0 turns it off), got"
                f" {self}"
            )


class Keypoints(nnx.Module):
    """Visual tokens [f v c] in rows of a square -> [f q c], in the tokens' dtype."""

    def __init__(self, width: int, config: KeypointsConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.heat = Linear((width, config.points), ("embed", None), False, rngs)
        self.sharp = nnx.Param(jnp.full((config.points,), SHARP), logical=(None,))
        places = 2 * config.points + width
        self.input = Linear((places, config.hidden), (None, "mlp"), True, rngs)
        self.output = Linear((config.hidden, config.latents * width), ("mlp", None), True, rngs)

    def __call__(self, tokens: Float[Array, "f v c"]) -> Float[Array, "f q c"]:
        f, v, width = tokens.shape
        logits = self.heat(tokens) * self.sharp[...].astype(tokens.dtype)[None, None]  # f v n
        heat = jax.nn.softmax(logits.astype(jnp.float32), axis=1)
        side = jnp.linspace(-SPREAD, SPREAD, round(v**0.5))
        grid = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), axis=-1).reshape(v, 2)
        places = jnp.einsum("fvn,vp->fnp", heat, grid).reshape(f, -1).astype(tokens.dtype)
        hidden = self.input(jnp.concatenate([places, jnp.mean(tokens, axis=1)], axis=-1))
        out = self.output(jax.nn.gelu(hidden, approximate=True))
        return out.reshape(f, self.config.latents, width)
