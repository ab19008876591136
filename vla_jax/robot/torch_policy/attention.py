"""Attention itself in torch: the softmax, positions, and the keys and values kept between calls.

Each function does what its namesake in vla_jax/models/attention.py does.

Axes: n sequences, s tokens (queries), u tokens (keys), h heads, j key/value heads, g = h / j, e
head dim, c width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Cache(NamedTuple):
    """Room for the keys and values of every layer, [n u j e] each, for the positions [n u] of their
    tokens, and how many tokens are there ([]). A pass over a Stack writes into it.
    """

    layers: list[tuple[Tensor, Tensor]]
    positions: Tensor
    length: Tensor

    def detached(self) -> "Cache":
        """The same room, for a pass that is differentiated on its own."""
        return self._replace(layers=[(k.detach(), v.detach()) for k, v in self.layers])


class LayerCache(NamedTuple):
    """A layer's part of a Cache: keys and values [n u j e], positions [n u] of all its tokens, and
    the slots [s] of the tokens that a pass adds.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    slots: Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """softmax(q k + bias) v: q[n s h e], k and v[n u j e], mask[n s u], bias[n h u] -> [n s h e].

    Scores with a softcap or a bias are float32.
    """
    (n, s, h, e), (u, j) = q.shape, k.shape[1:3]
    g = h // j
    q = q.view(n, s, j, g, e).permute(0, 2, 3, 1, 4).reshape(n, j, g * s, e)
    k, v = k.transpose(1, 2), v.transpose(1, 2)  # n j u e
    mask = mask[:, None, None].expand(n, j, g, s, u).reshape(n, j, g * s, u)
    if bias is not None:
        bias = bias.view(n, j, g, 1, u).expand(n, j, g, s, u).reshape(n, j, g * s, u)
    if softcap or bias is not None:
        scores = q.float() @ k.float().transpose(2, 3)  # n j g*s u
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        scores = scores if bias is None else scores + bias
        scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
        out = scores.softmax(-1).to(v.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)
    return out.view(n, j, g, s, e).permute(0, 3, 1, 2, 4).reshape(n, s, h, e)


def rope(x: Tensor, positions: Tensor, theta: float, sections: Sequence[int] = ()) -> Tensor:
    """Rotary position embedding, split-half layout: x[n s h e], positions[n s] or of several axes
    [n s 2 or 3] -> [n s h e].
    """
    half = x.shape[-1] // 2
    angle = angles(positions, half, theta, sections)  # n s half
    cos, sin = (f(angle)[:, :, None].to(x.dtype) for f in (torch.cos, torch.sin))
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def angles(positions: Tensor, half: int, theta: float, sections: Sequence[int] = ()) -> Tensor:
    """By how much each of `half` pairs of features is turned, float32 [n s half]."""
    axes = positions.shape[2] if positions.ndim == 3 else 1
    each = half // 2 if axes == 2 else half
    frequency = theta ** -(torch.arange(each, dtype=torch.float32, device=positions.device) / each)
    if axes == 2:
        return (positions[..., None].float() * frequency).flatten(2)
    if axes == 1:
        return positions.reshape(*positions.shape[:2], 1).float() * frequency
    turns = [pair % 3 if pair // 3 < sections[pair % 3] else 0 for pair in range(half)]
    axis = torch.tensor(turns, device=positions.device)
    return positions.index_select(2, axis).float() * frequency


def alibi(positions: Tensor, heads: int) -> Tensor:
    """Linear attention biases of positions[n u] -> float32 [n h u]: a head's slope times the
    key's distance from the last one.
    """
    power = 2 ** math.ceil(math.log2(heads))
    slopes = torch.exp2(
        torch.arange(1, power + 1, dtype=torch.float64, device=positions.device) * (-8.0 / power)
    )
    if power != heads:
        slopes = torch.cat([slopes[1::2], slopes[0::2]])[:heads]
    distance = positions - positions.amax(1, keepdim=True)
    return slopes.float()[:, None] * distance[:, None].float()


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """[sin | cos] of positions[n s] at `width / 2` frequencies 1 to 1e-4 -> float32 [n s c]."""
    half = width // 2
    frequency = torch.exp(
        torch.arange(half, dtype=torch.float32, device=positions.device)
        * -(math.log(1e4) / (half - 1))
    )
    angle = positions[:, :, None].float() * frequency
    return torch.cat([torch.sin(angle), torch.cos(angle)], -1)
