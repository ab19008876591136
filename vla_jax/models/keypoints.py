"""Where things are in a picture, in few tokens. Each token looks through some heat maps of its own
over the visual tokens: it is made of the place that each expects (a spatial softmax, arXiv
1504.00702) and of what is seen there, so that a token may be of one thing, as slots are (arXiv
2006.15055), and whoever is asked for that thing attends to it alone.

Axes: f images, v visual tokens of one image, q tokens, n heat maps of a token, c width.
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
    """Sizes: heat maps of a token, numbers of the layer between, tokens of an image."""

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
    """Visual tokens [f v c] in rows of a square -> [f q c], in the tokens' dtype; of one camera."""

    def __init__(self, width: int, config: KeypointsConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        maps, seen = config.latents * config.points, config.points * (2 + width)
        self.heat = Linear((width, maps), ("embed", None), False, rngs)
        self.sharp = nnx.Param(jnp.full((maps,), SHARP), logical=(None,))
        self.input = Linear((seen, config.hidden), (None, "mlp"), False, rngs)
        # Which token it is: all are made by the same two layers.
        self.which = nnx.Param(
            jax.random.normal(rngs.params(), (config.latents, config.hidden)), logical=(None, "mlp")
        )
        self.output = Linear((config.hidden, width), ("mlp", None), True, rngs)

    def __call__(self, tokens: Float[Array, "f v c"]) -> Float[Array, "f q c"]:
        f, v, _ = tokens.shape
        logits = self.heat(tokens) * self.sharp[...].astype(tokens.dtype)[None, None]
        heat = jax.nn.softmax(logits.astype(jnp.float32), axis=1)  # f v q*n
        side = jnp.linspace(-SPREAD, SPREAD, round(v**0.5))
        grid = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), axis=-1).reshape(v, 2)
        places = jnp.einsum("fvm,vp->fmp", heat, grid).astype(tokens.dtype)
        seen = jnp.einsum("fvm,fvc->fmc", heat.astype(tokens.dtype), tokens)
        each = jnp.concatenate([places, seen], axis=-1).reshape(f, self.config.latents, -1)
        hidden = self.input(each) + self.which[...].astype(tokens.dtype)[None]
        return self.output(jax.nn.gelu(hidden, approximate=True))
