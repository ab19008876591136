"""The image tower and the resampler in torch: inference only.

Each class does what its namesake in vla_jax/models/vision.py or resampler.py does, on parameters of
the same names; see layers.py.

Axes: n images, h w pixels, v visual tokens of an image, c width, q latents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .layers import BlockConfig, Linear, Norm, Stack, scaled

# RGB mean and standard deviation of the pixels in 0..1, as the towers were trained.
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a ViT; vla_jax.models.vision.VisionConfig says what each means."""

    image_size: int
    patch: int
    width: int
    depth: int
    clip: bool
    class_token: bool
    final_norm: bool
    block: BlockConfig
    stem: Sequence[int] = ()

    def side(self, image_size: int) -> int:
        """Tokens of a side of an image of so many pixels a side."""
        return image_size // self.patch // math.prod(self.stem)


@dataclass(frozen=True)
class ResamplerConfig:
    """Sizes of a perceiver resampler; its heads and their dim are Flamingo's
    cross-attention's too.
    """

    depth: int
    heads: int
    dim_head: int
    latents: int


@dataclass(frozen=True)
class KeypointsConfig:
    """Sizes; vla_jax.models.keypoints.KeypointsConfig says what each means."""

    points: int
    hidden: int
    latents: int


class ViT(nn.Module):
    """uint8 images [n h w 3] -> tokens [n v c]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = config.width, config.block.eps
        patches = config.side(config.image_size) ** 2
        self.patch = Linear(config.patch**2 * 3, width, not config.clip)
        self.stem = nn.ModuleList([Linear(9 * width, width) for _ in config.stem])
        self.positions = nn.Parameter(torch.empty(patches + config.clip, width))
        self.class_token = nn.Parameter(torch.empty(1, width)) if config.clip else None
        self.norm_input = Norm(width, "ln", eps) if config.clip else None
        self.layers = Stack(config.block, config.depth) if config.depth else None
        self.norm = Norm(width, "ln", eps) if config.final_norm else None

    def forward(self, images: Tensor) -> Tensor:
        config, p, n = self.config, self.config.patch, images.shape[0]
        side, grid = config.side(images.shape[1]), images.shape[1] // p
        pixels = CLIP_PIXELS if config.clip else SIGLIP_PIXELS
        mean, deviation = (
            255.0 * torch.tensor(rgb, dtype=torch.float32, device=images.device) for rgb in pixels
        )
        x = (images.float() - mean) / deviation
        x = x[:, : grid * p, : grid * p].reshape(n, grid, p, grid, p, 3).permute(0, 1, 3, 2, 4, 5)
        x = self.patch(x.reshape(n, grid * grid, p * p * 3))  # n v c
        for convolution, stride in zip(self.stem, config.stem, strict=True):
            x = F.gelu(x, approximate="tanh").reshape(n, grid, grid, config.width)
            grid //= stride
            x = convolution(neighbours(x, stride).reshape(n, grid * grid, -1))
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(n, 1, -1), x], 1)
        x = x + self._positions_of(side)
        x = x if self.norm_input is None else self.norm_input(x)
        tokens = x.shape[1]
        mask = torch.ones(n, tokens, tokens, dtype=torch.bool, device=x.device)
        positions = torch.zeros(n, tokens, dtype=torch.int64, device=x.device)
        # The class token stands first: where it is not wanted, the tokens behind it are read out.
        num_queries = tokens - 1 if config.clip and not config.class_token else tokens
        if self.layers is not None:
            x = self.layers(x, mask, positions, num_queries)
        return x if self.norm is None else self.norm(x)

    def _positions_of(self, side: int) -> Tensor:
        """The positions for images of `side` patches a side, interpolated where those of image_size
        have more or fewer; a class token's stays.
        """
        table, own = self.positions, self.config.side(self.config.image_size)
        if side == own:
            return table
        extra = int(self.config.clip)
        grid = table[extra:].float().T.reshape(1, -1, own, own)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic").flatten(2)[0].T
        return torch.cat([table[:extra], grid.to(table.dtype)])


def neighbours(x: Tensor, stride: int) -> Tensor:
    """[n h w c] -> the 3 x 3 around every stride-th place of every stride-th row [n h/stride
    w/stride 9*c].
    """
    (h, w), before = x.shape[1:3], 2 - stride
    x = F.pad(x, (0, 0, before, 1, before, 1))
    parts = [x[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
    return torch.cat(parts, -1)


@dataclass(frozen=True)
class QwenVisionConfig:
    """Sizes of Qwen3-VL's tower; vla_jax.models.qwen_vision.QwenVisionConfig says what each
    means.
    """

    image_size: int
    patch: int
    width: int
    depth: int
    table: int
    taps: Sequence[int]
    block: BlockConfig


class QwenViT(nn.Module):
    """uint8 images [n h w 3] -> patches [n p c] in rows, of each layer of `taps` and of the
    last.
    """

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = Linear(config.patch**2 * 3, config.width)
        self.positions = nn.Parameter(torch.empty(config.table**2, config.width))
        self.layers = Stack(config.block, config.depth)

    def forward(self, images: Tensor) -> list[Tensor]:
        p, n, side = self.config.patch, images.shape[0], images.shape[1] // self.config.patch
        x = images.float() / 127.5 - 1
        x = x.reshape(n, side, p, side, p, 3).permute(0, 1, 3, 2, 4, 5)
        x = self.patch(x.reshape(n, side * side, p * p * 3)) + self._positions_of(side)
        tokens = side * side
        index = torch.arange(tokens, device=x.device)
        place = torch.stack([index // side, index % side], 1)[None].expand(n, -1, -1)
        mask = torch.ones(n, tokens, tokens, dtype=torch.bool, device=x.device)
        kept: list[Tensor] = []

        def keep(layer: int, x: Tensor) -> Tensor:
            if layer - 1 in self.config.taps:
                kept.append(x)
            return x

        last = self.layers(x, mask, place, tokens, keep)
        return [*kept, *[last] * (self.config.depth - 1 in self.config.taps), last]

    def _positions_of(self, side: int) -> Tensor:
        """The grid's positions [p c] at `side` points a side, its corners at theirs."""
        table, own = self.positions, self.config.table
        grid = table.float().T.reshape(1, -1, own, own)
        grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=True)
        return grid.flatten(2)[0].T.to(table.dtype)


def shuffle(x: Tensor, scale: int) -> Tensor:
    """Patches [n p c] of square images, in rows -> their squares of `scale` a side, in rows: one
    vector of the square's patches in rows.
    """
    side = round(x.shape[1] ** 0.5) // scale
    x = x.unflatten(1, (side, scale, side, scale)).transpose(2, 3)
    return x.flatten(3).flatten(1, 2)


class ResamplerLayer(nn.Module):
    """Latents [n q c] += attention to tokens [n v c] and latents; latents += feed-forward."""

    def __init__(self, width: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.config, inner = config, config.heads * config.dim_head
        self.norm_media, self.norm_latents, self.norm_mlp = (
            Norm(width, "ln", 1e-5) for _ in range(3)
        )
        self.q, self.k, self.v = (Linear(width, inner, False) for _ in range(3))
        self.o, self.up = Linear(inner, width, False), Linear(width, 4 * width, False)
        self.down = Linear(4 * width, width, False)

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        context = torch.cat([self.norm_media(tokens), normed], 1)  # n v+q c
        q, k, v = (
            y.unflatten(-1, (self.config.heads, -1))
            for y in (self.q(normed), self.k(context), self.v(context))
        )
        mask = torch.ones(len(q), q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        out = attend(scaled(q, self.config.dim_head**-0.5), k, v, mask)
        latents = latents + self.o(out.flatten(2))
        return latents + self.down(F.gelu(self.up(self.norm_mlp(latents))))


class Keypoints(nn.Module):
    """Visual tokens [n v c] in rows of a square -> [n q c]; vla_jax.models.keypoints."""

    def __init__(self, width: int, config: KeypointsConfig) -> None:
        super().__init__()
        self.config = config
        maps = config.latents * config.points
        self.heat = Linear(width, maps, False)
        self.sharp = nn.Parameter(torch.empty(maps))
        self.input = Linear(config.points * (2 + width), config.hidden, False)
        self.which = nn.Parameter(torch.empty(config.latents, config.hidden))
        self.output = Linear(config.hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        n, v, _ = tokens.shape
        heat = torch.softmax((self.heat(tokens) * self.sharp.to(tokens.dtype)).float(), 1)
        side = torch.linspace(-2.0, 2.0, round(v**0.5), device=tokens.device)
        grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(v, 2)
        places = torch.einsum("nvm,vp->nmp", heat, grid).to(tokens.dtype)
        seen = torch.einsum("nvm,nvc->nmc", heat.to(tokens.dtype), tokens)
        each = torch.cat([places, seen], -1).reshape(n, self.config.latents, -1)
        hidden = self.input(each) + self.which.to(tokens.dtype)
        out: Tensor = self.output(F.gelu(hidden, approximate="tanh"))
        return out


class Resampler(nn.Module):
    """Visual tokens [n v c] -> latents [n q c]."""

    def __init__(self, width: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(config.latents, width))
        self.layers = nn.ModuleList([ResamplerLayer(width, config) for _ in range(config.depth)])
        self.norm = Norm(width, "ln", 1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.latents.to(tokens.dtype)[None].expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, tokens)
        return self.norm(x)
