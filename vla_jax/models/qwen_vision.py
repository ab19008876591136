"""Qwen3-VL's image tower: learned positions of one grid for images of any size, a rotary embedding
by row and column, and features of inner layers beside the last one's (arXiv 2511.21631).

The release reads pairs of frames; an image is two equal ones, which a kernel summed over the two
sees as one.

Axes: f images, h and w their pixels, p patches, c width.
"""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Num

from vla_jax.models.stack import Stack, StackConfig
from vla_jax.models.transformer import BlockConfig, Linear, plain_block
from vla_jax.models.vision import SIGLIP_PIXELS
from vla_jax.types import Array
from vla_jax.weights import pretrained, transforms


@dataclass(frozen=True)
class QwenVisionConfig:
    """Sizes of the tower.

    Attributes:
        table: positions of a side of the learned grid.
        taps: layers, counted from 0, whose outputs are given beside the last one's.
        other_sizes: pixels of a side of images that it takes beside those of image_size.
    """

    image_size: int
    patch: int
    width: int
    mlp: int
    depth: int
    heads: int
    table: int
    taps: tuple[int, ...]
    other_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if list(self.taps) != sorted({*self.taps} & {*range(self.depth)}):
            raise ValueError(
                f"QwenVisionConfig: expected taps among the {self.depth} layers, ascending, got"
                f" {self.taps}"
            )

    @property
    def block(self) -> BlockConfig:
        """The block this tower is made of."""
        plain = plain_block(self.width, self.mlp, self.heads, 1e-6, "gelu_tanh", "vision")
        return dataclasses.replace(plain, rope_theta=1e4)


class QwenViT(nnx.Module):
    """uint8 images -> patches [f p c] in rows of each layer of `taps` and of the last, in the
    parameters' dtype.
    """

    def __init__(self, config: QwenVisionConfig, run: StackConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.patch = Linear((config.patch**2 * 3, config.width), (None, "vision"), True, rngs)
        init = nnx.initializers.normal(config.width**-0.5)  # as in vision.ViT
        self.positions = nnx.Param(
            init(rngs.params(), (config.table**2, config.width), jnp.float32),
            logical=(None, "vision"),
        )
        self.layers = Stack(config.block, config.depth, run, rngs)

    def __call__(self, images: Num[Array, "f h w 3"]) -> list[Float[Array, "f p c"]]:
        """Pixels are 0 to 255, of any type. Raises ValueError for a size that it does not take."""
        config, p = self.config, self.config.patch
        f, size = images.shape[:2]
        sizes = dict.fromkeys((config.image_size, *config.other_sizes))
        if size not in sizes or images.shape[2:] != (size, 3):
            expected = " or ".join(f"[n, {each}, {each}, 3]" for each in sizes)
            raise ValueError(
                f"images: expected {expected}, got {images.shape}; resize them in the data pipeline"
            )
        side = size // p
        mean, deviation = (255.0 * jnp.asarray(v)[None, None, None] for v in SIGLIP_PIXELS)
        x = (images.astype(jnp.float32) - mean) / deviation
        x = x.reshape(f, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.patch(x.reshape(f, side * side, p * p * 3)) + self._positions_of(side)[None]
        tokens = side * side
        index = np.arange(tokens)
        place = jnp.asarray(np.stack([index // side, index % side], axis=1))[None]
        mask = jnp.ones((f, tokens, tokens), bool)
        return self.layers.tapped(x, mask, jnp.broadcast_to(place, (f, tokens, 2)), config.taps)

    def _positions_of(self, side: int) -> Float[Array, "p c"]:
        """The grid's positions at `side` points a side, its corners at theirs."""
        table, own = self.positions[...], self.config.table
        along = linear(own, side)
        grid = table.astype(jnp.float32).reshape(own, own, -1)
        grid = jnp.einsum("ij,kl,jlc->ikc", along, along, grid, precision="highest")
        return grid.reshape(side * side, -1).astype(table.dtype)


def linear(before: int, after: int) -> np.ndarray:
    """float32 [after, before]: what each of the points takes of the old ones, of which the first
    and the last are where theirs are.
    """
    place = np.arange(after) * (before - 1) / max(after - 1, 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(before))).astype(np.float32)


def hf_vision_names(config: QwenVisionConfig, prefix: str) -> dict[str, pretrained.Entry]:
    """Our parameters, under "vision/" -> names of transformers' Qwen3VLVisionModel behind
    `prefix`, its mergers left out.
    """
    entry, plain, linear = pretrained.Entry, transforms.as_is, transforms.transposed
    table = {
        "vision/patch/kernel": entry(f"{prefix}patch_embed.proj.weight", transforms.conv_frames),
        "vision/patch/bias": entry(f"{prefix}patch_embed.proj.bias", plain),
        "vision/positions": entry(f"{prefix}pos_embed.weight", plain),
    }
    layer, ours = f"{prefix}blocks.{{}}.", "vision/layers/blocks/"
    for i, name in enumerate("qkv"):
        for leaf, theirs in (("kernel", "weight"), ("bias", "bias")):
            table[f"{ours}attn/{name}/{leaf}"] = entry(
                f"{layer}attn.qkv.{theirs}", transforms.fused(i, 3), config.depth
            )
    for name, theirs in (
        ("attn/o", "attn.proj"),
        ("mlp/up", "mlp.linear_fc1"),
        ("mlp/down", "mlp.linear_fc2"),
    ):
        table[f"{ours}{name}/kernel"] = entry(f"{layer}{theirs}.weight", linear, config.depth)
        table[f"{ours}{name}/bias"] = entry(f"{layer}{theirs}.bias", plain, config.depth)
    for name, theirs in (("norm_attn", "norm1"), ("norm_mlp", "norm2")):
        table[f"{ours}{name}/scale"] = entry(f"{layer}{theirs}.weight", plain, config.depth)
        table[f"{ours}{name}/bias"] = entry(f"{layer}{theirs}.bias", plain, config.depth)
    return table
