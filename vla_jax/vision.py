"""The image tower: patches, learned positions, a stack of blocks, a norm over all tokens (SigLIP).

Axes: n images, v tokens of one image, c width.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, UInt8

from vla_jax.transformer import BlockConfig, Linear, Norm, Stack, StackConfig
from vla_jax.types import Array


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a ViT. Linear layers have biases, heads are not grouped, norms are LayerNorms with eps 1e-6 (SigLIP)."""

    image_size: int
    patch: int
    width: int
    mlp: int
    depth: int
    heads: int
    eps: float = 1e-6

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return (self.image_size // self.patch) ** 2

    @property
    def block(self) -> BlockConfig:
        """The block this tower is made of."""
        head_dim = self.width // self.heads
        return BlockConfig(
            width=self.width,
            mlp=self.mlp,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=head_dim,
            norm="ln",
            eps=self.eps,
            gated=False,
            bias=True,
            q_scale=head_dim**-0.5,
            axis="vision",
        )


class ViT(nnx.Module):
    """uint8 images -> tokens [n v c], in the parameters' dtype."""

    def __init__(self, config: VisionConfig, run: StackConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.patch = Linear((config.patch**2 * 3, config.width), (None, "vision"), bias=True, rngs=rngs)
        init = nnx.initializers.normal(
            config.width**-0.5
        )  # as big_vision; smaller, and training from scratch starts blind
        shape = (config.tokens, config.width)
        self.positions = nnx.Param(init(rngs.params(), shape, jnp.float32), logical=(None, "vision"))
        self.layers = Stack(config.block, config.depth, run, rngs)
        self.norm = Norm(config.width, "ln", config.eps, "vision")

    def __call__(self, images: UInt8[Array, "n h w 3"]) -> Float[Array, "n v c"]:
        """Pixels 0..255 become -1..1. Raises ValueError for another size."""
        size, p = self.config.image_size, self.config.patch
        if images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images: expected [n, {size}, {size}, 3], got {images.shape}; resize them in the data pipeline"
            )
        n, side, tokens = images.shape[0], size // p, self.config.tokens
        x = images.astype(jnp.float32) / 127.5 - 1.0
        # Patches in rows, pixels of a patch in (row, column, channel) order: the convolution as one product.
        x = x.reshape(n, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, tokens, p * p * 3)
        x = self.patch(x) + self.positions[...][None]
        mask = jnp.ones((n, tokens, tokens), bool)
        return self.norm(self.layers(x, mask, jnp.zeros((n, tokens), jnp.int32)))
