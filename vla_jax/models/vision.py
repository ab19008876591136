"""The image tower: patches, learned positions, a stack of blocks (SigLIP and CLIP).

Axes: f images, h and w their pixels, v tokens of one image, c width.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Num

from vla_jax.models.stack import Stack, StackConfig
from vla_jax.models.transformer import BlockConfig, Linear, Norm, plain_block
from vla_jax.types import Array
from vla_jax.weights import pretrained, transforms

# RGB mean and standard deviation of the pixels in 0..1, as the towers were trained.
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a ViT. Linear layers have biases, heads are not grouped, norms are LayerNorms.

    Attributes:
        clip: CLIP's form: a class token, patches without bias, a norm before the first block,
            CLIP's pixels.
        class_token: the class token is among the tokens returned (CLIP only).
        final_norm: a norm after the last block, over all tokens.
        other_sizes: pixels of a side of images that it takes beside those of image_size, for which
            the positions are.
        stem: strides of convolutions over the patches, each of 3 x 3 of them: what a tower that
            starts from nothing learns to look by (arXiv 2106.14881), of patches so small that
            little is lost. Positions then begin as sines of rows and columns, and there may be no
            block (depth 0).
    """

    image_size: int
    patch: int
    width: int
    mlp: int
    depth: int
    heads: int
    eps: float = 1e-6
    act: str = "gelu_tanh"
    clip: bool = False
    class_token: bool = False
    final_norm: bool = True
    other_sizes: tuple[int, ...] = ()
    stem: tuple[int, ...] = ()

    def side(self, image_size: int) -> int:
        """Tokens of a side of an image of so many pixels a side."""
        return image_size // self.patch // math.prod(self.stem)

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return self.side(self.image_size) ** 2

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return self.patches + self.class_token

    @property
    def block(self) -> BlockConfig:
        """The block this tower is made of."""
        return plain_block(self.width, self.mlp, self.heads, self.eps, self.act, "vision")


class ViT(nnx.Module):
    """uint8 images -> tokens [f v c], in the parameters' dtype."""

    def __init__(self, config: VisionConfig, run: StackConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.patch = Linear(
            (config.patch**2 * 3, config.width), (None, "vision"), not config.clip, rngs
        )
        sizes = (9 * config.width, config.width)
        self.stem = nnx.List([Linear(sizes, (None, "vision"), True, rngs) for _ in config.stem])
        # As big_vision; smaller, and training from scratch starts blind.
        init = nnx.initializers.normal(config.width**-0.5)

        def table(entries: int) -> nnx.Param:
            return nnx.Param(
                init(rngs.params(), (entries, config.width), jnp.float32), logical=(None, "vision")
            )

        self.positions = table(config.patches + config.clip)
        if config.stem:
            self.positions[...] = sines(config.side(config.image_size), config.width)
        self.class_token = table(1) if config.clip else None
        self.norm_input = Norm(config.width, "ln", config.eps, "vision") if config.clip else None
        self.layers = Stack(config.block, config.depth, run, rngs) if config.depth else None
        self.norm = Norm(config.width, "ln", config.eps, "vision") if config.final_norm else None

    def __call__(self, images: Num[Array, "f h w 3"]) -> Float[Array, "f v c"]:
        """Tokens in rows of patches, behind the class token if it is kept; pixels are 0 to 255, of
        any type. Raises ValueError for a size that it does not take.
        """
        config, p = self.config, self.config.patch
        f, size = images.shape[:2]
        sizes = dict.fromkeys((config.image_size, *config.other_sizes))
        if size not in sizes or images.shape[2:] != (size, 3):
            expected = " or ".join(f"[n, {each}, {each}, 3]" for each in sizes)
            raise ValueError(
                f"images: expected {expected}, got {images.shape}; resize them in the data pipeline"
            )
        side, grid = config.side(size), size // p
        mean, deviation = (255.0 * jnp.asarray(v)[None, None, None] for v in _pixels(config))
        x = (images.astype(jnp.float32) - mean) / deviation
        # Patches in rows, pixels of a patch in (row, column, channel) order: the convolution as one
        # product. A tower whose patches do not divide the image leaves out the last pixels, as a
        # convolution does.
        x = x[:, : grid * p, : grid * p].reshape(f, grid, p, grid, p, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.patch(x.reshape(f, grid * grid, p * p * 3))
        for convolution, stride in zip(self.stem, config.stem, strict=True):
            x = jax.nn.gelu(x, approximate=True).reshape(f, grid, grid, config.width)
            grid //= stride
            x = convolution(neighbours(x, stride).reshape(f, grid * grid, -1))
        if self.class_token is not None:
            first = jnp.broadcast_to(
                self.class_token[...][None].astype(x.dtype), (f, 1, config.width)
            )
            x = jnp.concatenate([first, x], axis=1)
        x = x + self._positions_of(side)[None]
        if self.norm_input is not None:
            x = self.norm_input(x)
        tokens = x.shape[1]
        mask, positions = jnp.ones((f, tokens, tokens), bool), jnp.zeros((f, tokens), jnp.int32)
        dropped = config.clip and not config.class_token
        # The last block computes only what is returned.
        if self.layers is not None:
            x = self.layers(x, mask, positions, tokens - 1 if dropped else None)
        return x if self.norm is None else self.norm(x)

    def _positions_of(self, side: int) -> Float[Array, "_ c"]:
        """The positions for images of `side` patches a side: of another size than image_size what
        transforms.Positions would have made of them.
        """
        table, own = self.positions[...], self.config.side(self.config.image_size)
        if side == own:
            return table
        extra, along = int(self.config.clip), transforms.bicubic(own, side)
        grid = table[extra:].astype(jnp.float32).reshape(own, own, -1)
        grid = jnp.einsum("ij,kl,jlc->ikc", along, along, grid, precision="highest")
        return jnp.concatenate([table[:extra], grid.reshape(side * side, -1).astype(table.dtype)])


def neighbours(x: Float[Array, "f h w c"], stride: int) -> Float[Array, "f _ _ d"]:
    """The 3 x 3 around every stride-th (1 or 2) place of every stride-th row, in rows: [f h/stride
    w/stride 9*c]. Outside are zeros, before the first row and column if the stride is 1: a
    convolution ("SAME") is one product of these.
    """
    _, h, w, _ = x.shape
    before = 2 - stride
    x = jnp.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    return jnp.concatenate(
        [x[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)], axis=-1
    )


def sines(side: int, width: int) -> Float[Array, "v c"]:
    """Sines and cosines of columns and rows, of wavelengths from 2 pi to 200 pi places (as MoCo v3,
    arXiv 2104.02057, which has longer ones).
    """
    rows, columns = (x.reshape(-1, 1) for x in jnp.indices((side, side), jnp.float32))
    rate = 100.0 ** -(jnp.arange(width // 4) / (width // 4))[None]
    parts = [jnp.sin(columns * rate), jnp.cos(columns * rate), jnp.sin(rows * rate)]
    return jnp.concatenate([*parts, jnp.cos(rows * rate)], axis=1)


def shuffle(x: Float[Array, "f p w"], scale: int) -> Float[Array, "f v d"]:
    """Patches of square images, in rows -> their squares of `scale` a side, in rows: one vector of
    the square's patches in rows.
    """
    f, p, width = x.shape
    side = round(p**0.5) // scale
    x = x.reshape(f, side, scale, side, scale, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(f, side * side, scale * scale * width)


def _pixels(config: VisionConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return CLIP_PIXELS if config.clip else SIGLIP_PIXELS


def clip_tower(image_size: int, patch: int, width: int, depth: int, heads: int) -> VisionConfig:
    """A CLIP tower without its class token, ending at layer `depth`."""
    return VisionConfig(
        image_size,
        patch,
        width,
        4 * width,
        depth,
        heads,
        eps=1e-5,
        act="quick_gelu",
        clip=True,
        final_norm=False,
    )


def hf_clip_config(body: dict[str, Any]) -> VisionConfig:
    """The whole tower of a "vision_config" of transformers' CLIP, without its class token. Raises
    ValueError naming what is not ours.
    """
    kind = body.get("model_type", "clip_vision_model")
    pretrained.expect("vision_config.model_type", kind, ("clip_vision_model",))
    act = body.get("hidden_act", "quick_gelu")
    pretrained.expect("vision_config.hidden_act", act, ("quick_gelu", "gelu"))
    size, patch = body.get("image_size", 224), body.get("patch_size", 32)
    width, depth = body.get("hidden_size", 768), body.get("num_hidden_layers", 12)
    tower = clip_tower(size, patch, width, depth, body.get("num_attention_heads", 12))
    mlp, eps = body.get("intermediate_size", 3072), body.get("layer_norm_eps", 1e-5)
    return dataclasses.replace(tower, mlp=mlp, eps=eps, act=act)


def hf_vision_names(config: VisionConfig, prefix: str) -> dict[str, pretrained.Entry]:
    """Our parameters, under "vision/" -> names of transformers' SigLIP and CLIP towers behind
    `prefix`.
    """
    entry, plain, linear = pretrained.Entry, transforms.as_is, transforms.transposed
    table = {
        "vision/patch/kernel": entry(
            f"{prefix}embeddings.patch_embedding.weight", transforms.conv_patches
        ),
        "vision/positions": entry(
            f"{prefix}embeddings.position_embedding.weight",
            transforms.Positions(config.patches, config.clip),
        ),
    }
    norms = {"norm": "post_layernorm"} if config.final_norm else {}
    if config.clip:
        table["vision/class_token"] = entry(f"{prefix}embeddings.class_embedding", transforms.row)
        norms["norm_input"] = "pre_layrnorm"  # the release's own spelling
    else:
        table["vision/patch/bias"] = entry(f"{prefix}embeddings.patch_embedding.bias", plain)
    for ours, theirs in norms.items():
        table[f"vision/{ours}/scale"] = entry(f"{prefix}{theirs}.weight", plain)
        table[f"vision/{ours}/bias"] = entry(f"{prefix}{theirs}.bias", plain)
    layer = f"{prefix}encoder.layers.{{}}."
    for ours, theirs in (("norm_attn", "layer_norm1"), ("norm_mlp", "layer_norm2")):
        table[f"vision/layers/blocks/{ours}/scale"] = entry(
            f"{layer}{theirs}.weight", plain, config.depth
        )
        table[f"vision/layers/blocks/{ours}/bias"] = entry(
            f"{layer}{theirs}.bias", plain, config.depth
        )
    pairs = [(f"attn/{x}", f"self_attn.{x}_proj") for x in "qkv"] + [
        ("attn/o", "self_attn.out_proj")
    ]
    for ours, theirs in [*pairs, ("mlp/up", "mlp.fc1"), ("mlp/down", "mlp.fc2")]:
        table[f"vision/layers/blocks/{ours}/kernel"] = entry(
            f"{layer}{theirs}.weight", linear, config.depth
        )
        table[f"vision/layers/blocks/{ours}/bias"] = entry(
            f"{layer}{theirs}.bias", plain, config.depth
        )
    return table
