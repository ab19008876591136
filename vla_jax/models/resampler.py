"""Perceiver resampler: the visual tokens of an image become a fixed, small number (Flamingo, arXiv
2204.14198).

The arithmetic of RoboVLMs' PerceiverResampler: learned latents attend to the image's tokens and to
themselves, layer by layer, each followed by a GELU feed-forward; no biases but in the norms, no
position or frame embeddings.

Axes: f images, v tokens of one image, q latents, c width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from vla_jax.models.attention import attend
from vla_jax.models.transformer import Linear, Norm
from vla_jax.types import Array

EPS = 1e-5


@dataclass(frozen=True)
class ResamplerConfig:
    """Sizes. RoboVLMs': depth 6, 8 heads of 64, 64 latents."""

    depth: int
    heads: int
    dim_head: int
    latents: int

    def __post_init__(self) -> None:
        if min(self.depth, self.heads, self.dim_head, self.latents) < 1:
            raise ValueError(
                "model.resampler: expected numbers of at least 1 (depth 0 turns it off), got"
                f" {self}"
            )


class Layer(nnx.Module):
    """Latents += attention to tokens and latents; latents += feed-forward."""

    def __init__(self, width: int, config: ResamplerConfig, rngs: nnx.Rngs) -> None:
        inner = config.heads * config.dim_head
        self.config = config
        self.norm_media, self.norm_latents, self.norm_mlp = (
            Norm(width, "ln", EPS, "embed") for _ in range(3)
        )
        self.q = Linear((width, inner), ("embed", "heads"), False, rngs)
        self.k = Linear((width, inner), ("embed", "kv"), False, rngs)
        self.v = Linear((width, inner), ("embed", "kv"), False, rngs)
        self.o = Linear((inner, width), ("heads", "embed"), False, rngs)
        self.up = Linear((width, 4 * width), ("embed", "mlp"), False, rngs)
        self.down = Linear((4 * width, width), ("mlp", "embed"), False, rngs)

    def __call__(
        self, latents: Float[Array, "f q c"], tokens: Float[Array, "f v c"]
    ) -> Float[Array, "f q c"]:
        config, (f, q, _) = self.config, latents.shape
        normed = self.norm_latents(latents)
        seen = jnp.concatenate([self.norm_media(tokens), normed], axis=1)  # f v+q c
        split = (config.heads, config.dim_head)
        queries = self.q(normed).reshape(f, q, *split) * jnp.asarray(
            config.dim_head**-0.5, latents.dtype
        )
        keys, values = (
            linear(seen).reshape(f, seen.shape[1], *split) for linear in (self.k, self.v)
        )
        out = attend(queries, keys, values, jnp.ones((f, q, seen.shape[1]), bool))
        latents = latents + self.o(out.reshape(f, q, -1))
        return latents + self.down(jax.nn.gelu(self.up(self.norm_mlp(latents)), approximate=False))


class Resampler(nnx.Module):
    """Visual tokens [f v c] -> latents [f q c], in the tokens' dtype."""

    def __init__(self, width: int, config: ResamplerConfig, rngs: nnx.Rngs) -> None:
        self.latents = nnx.Param(
            jax.random.normal(rngs.params(), (config.latents, width)), logical=(None, "embed")
        )
        self.layers = nnx.List([Layer(width, config, rngs) for _ in range(config.depth)])
        self.norm = Norm(width, "ln", EPS, "embed")

    def __call__(self, tokens: Float[Array, "f v c"]) -> Float[Array, "f q c"]:
        latents = self.latents[...].astype(tokens.dtype)
        x: Array = jnp.broadcast_to(latents[None], (tokens.shape[0], *latents.shape))
        for layer in self.layers:
            x = layer(x, tokens).astype(tokens.dtype)
        return self.norm(x)
