"""Flamingo's gated cross-attention (arXiv 2204.14198): tokens of the text look at those of images.

Axes: f sequences, s tokens, v media tokens of all images, c width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from vla_jax.models.attention import attend
from vla_jax.models.resampler import EPS, ResamplerConfig
from vla_jax.models.transformer import Linear, Norm
from vla_jax.types import Array, Media


class GatedCrossAttention(nnx.Module):
    """x += tanh(gate) * attention of its norm to the media, which are not normed; x += tanh(gate) *
    feed-forward.

    Both gates start at 0: the decoder begins as it was before it saw images. Heads and their dim
    are those of the perceiver (`config`) that makes the media.
    """

    def __init__(self, width: int, media: int, config: ResamplerConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        inner = config.heads * config.dim_head
        self.norm_attn, self.norm_mlp = (Norm(width, "ln", EPS, "embed") for _ in range(2))
        self.q = Linear((width, inner), ("embed", "heads"), False, rngs)
        self.k = Linear((media, inner), ("vision", "kv"), False, rngs)
        self.v = Linear((media, inner), ("vision", "kv"), False, rngs)
        self.o = Linear((inner, width), ("heads", "embed"), False, rngs)
        self.up = Linear((width, 4 * width), ("embed", "mlp"), False, rngs)
        self.down = Linear((4 * width, width), ("mlp", "embed"), False, rngs)
        self.attn_gate, self.mlp_gate = (nnx.Param(jnp.zeros(1), logical=(None,)) for _ in range(2))

    def __call__(self, x: Float[Array, "f s c"], media: Media) -> Float[Array, "f s c"]:
        heads, size = self.config.heads, self.config.dim_head
        q, k, v = self.q(self.norm_attn(x)), self.k(media.tokens), self.v(media.tokens)
        q, k, v = (
            y.reshape(*y.shape[:2], heads, size)
            for y in (q * jnp.asarray(size**-0.5, q.dtype), k, v)
        )
        out = attend(q, k, v, media.mask)
        # The softmax of a token that sees nothing is a mean of everything: it gets nothing instead.
        out = jnp.where(jnp.any(media.mask, axis=2)[:, :, None, None], out, 0)
        x = x + _tanh(self.attn_gate, x) * self.o(out.reshape(*x.shape[:2], heads * size))
        inside = jax.nn.gelu(self.up(self.norm_mlp(x)), approximate=False)
        return x + _tanh(self.mlp_gate, x) * self.down(inside)


def _tanh(gate: nnx.Param, x: Array) -> Array:
    return jnp.tanh(gate[...].astype(jnp.float32)).astype(x.dtype)[None, None]
