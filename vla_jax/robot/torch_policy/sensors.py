"""Sensors as tokens in torch, as in vla_jax/models/sensors/.

Axes: b episodes, r samples in a row, p points, i numbers of a sample, h w pixels, n tokens, c
width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import BlockConfig, Linear
from .vision import VisionConfig, ViT

HIDDEN, SHORT = 64, 8
POINT_HIDDEN, LEAST = (64, 128), -1.0


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class Series(nn.Module):
    """Samples in a row [b r i] -> [b n c]."""

    def __init__(self, body: dict[str, Any], width: int) -> None:
        super().__init__()
        (r, numbers), self.tokens = body["shape"], body["tokens"]
        self.input, layers = Linear(numbers + 1, HIDDEN), []
        while r > SHORT:
            r = -(-r // 2)
            layers.append(Linear(3 * HIDDEN, HIDDEN))
        self.halve = nn.ModuleList(layers)
        self.output = Linear(r * HIDDEN, self.tokens * width)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        x = gelu(self.input(torch.cat([values, mask[..., None].to(values.dtype)], -1)))
        for layer in self.halve:
            r = x.shape[1]
            half = -(-r // 2)
            padded = F.pad(x, (0, 0, 1, 2 * half - r))
            x = gelu(layer(torch.cat([padded[:, i : i + 2 * half : 2] for i in range(3)], -1)))
        return self.output(x.flatten(1)).unflatten(1, (self.tokens, -1))


class PointSet(nn.Module):
    """Points in any order [b p i] -> [b n c]."""

    def __init__(self, body: dict[str, Any], width: int) -> None:
        super().__init__()
        (_, numbers), self.tokens = body["shape"], body["tokens"]
        self.first, self.second = Linear(numbers, POINT_HIDDEN[0]), Linear(*POINT_HIDDEN)
        self.output = Linear(POINT_HIDDEN[1], self.tokens * width)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        x = gelu(self.second(gelu(self.first(values))))
        seen = x.masked_fill(~mask[..., None], LEAST).amax(1)
        return self.output(seen).unflatten(1, (self.tokens, -1))


class Picture(nn.Module):
    """A depth map [b h w 1] or uint8 RGB [b h w 3] -> [b n c]."""

    def __init__(self, body: dict[str, Any], width: int) -> None:
        super().__init__()
        tower = {**body["vision"], "block": BlockConfig(**body["vision"]["block"])}
        self.vision = ViT(VisionConfig(**tower))
        self.output = Linear(tower["width"], width)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        if values.shape[-1] == 3:
            return self.output(self.vision(values))
        there = 2.0 * mask[..., None].to(values.dtype) - 1.0
        return self.output(self.vision(127.5 * torch.cat([values, values, there], -1) + 127.5))


ENCODERS: dict[str, type[nn.Module]] = {
    "Series": Series,
    "PointSet": PointSet,
    "Picture": Picture,
}


class SensorTokens(nn.Module):
    """A reading [b ... i] with its mask [b ...] -> [b n c]; without a single sample the absent
    tokens.
    """

    def __init__(self, body: dict[str, Any], width: int) -> None:
        super().__init__()
        if body["encoder"] not in ENCODERS:
            raise ValueError(
                f"config.json: sensors: {body['name']}: expected one of {', '.join(ENCODERS)}, got"
                f" {body['encoder']!r}"
            )
        self.encoder = ENCODERS[body["encoder"]](body, width)
        self.absent = nn.Parameter(torch.empty(body["tokens"], width))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        tokens = self.encoder(values, mask)
        present = mask.flatten(1).any(1)[:, None, None]
        return torch.where(present, tokens, self.absent.to(tokens.dtype))
