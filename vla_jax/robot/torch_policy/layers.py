"""The one transformer block in torch, the image tower and the resampler: inference only.

Each class does what its namesake in vla_jax/models/transformer.py, vision.py or resampler.py does,
on parameters of the same names: kernels are [in, out], norms and softmax are float32, the rest runs
in the parameters' dtype.

Axes: n sequences, s tokens (queries), u tokens (keys), r tokens read out, h heads, j key/value
heads, g = h / j, e head dim, v visual tokens of an image, w width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}
NORMS = ("ln", "rms", "rms1")
# RGB mean and standard deviation of the pixels in 0..1, as the towers were trained.
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

Before = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class BlockConfig:
    """The flags of a block; vla_jax.transformer.BlockConfig says what each means."""

    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: str
    eps: float
    gated: bool
    bias: bool
    q_scale: float
    act: str
    norm_bias: bool
    softcap: float
    post_norms: bool
    sub_norms: bool
    qk_norm: bool
    clip_qkv: float
    rope_theta: float
    alibi: bool
    window: int

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS or self.norm not in NORMS:
            raise ValueError(
                f"config.json: block: expected act in {tuple(ACTIVATIONS)} and norm in {NORMS}, got"
                f" {self.act!r}, {self.norm!r}"
            )


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a ViT; vla_jax.vision.VisionConfig says what each means."""

    image_size: int
    patch: int
    width: int
    depth: int
    clip: bool
    class_token: bool
    final_norm: bool
    block: BlockConfig


@dataclass(frozen=True)
class ResamplerConfig:
    """Sizes of a perceiver resampler; its heads and their dim are Flamingo's
    cross-attention's too.
    """

    depth: int
    heads: int
    dim_head: int
    latents: int


class Cache(NamedTuple):
    """Room for the keys and values of every layer, [n u j e] each, for the positions [n u] of their
    tokens, and how many tokens are there ([]). A pass over a Stack writes into it.
    """

    layers: list[tuple[Tensor, Tensor]]
    positions: Tensor
    length: Tensor


Written = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # a layer's keys and values, all positions, the new tokens' slots


class Linear(nn.Module):
    """`x @ kernel + bias` in the kernel's dtype."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        out = x.to(self.kernel.dtype) @ self.kernel
        return out if self.bias is None else out + self.bias


class Norm(nn.Module):
    """LayerNorm or RMSNorm, in float32, returned in the input's dtype."""

    def __init__(self, width: int, kind: str, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.scale = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if kind == "ln" and bias else None

    def forward(self, x: Tensor) -> Tensor:
        y, scale = x.float(), self.scale.float()
        if self.kind == "ln":
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + self.eps)
        y = y * (1 + scale if self.kind == "rms1" else scale)
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention of the last `rows` tokens to all of them, and to those in a cache."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        inner, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim

        def norm(width: int, wanted: bool) -> Norm | None:
            return Norm(width, "ln", config.eps, config.norm_bias) if wanted else None

        self.q = Linear(config.width, inner, config.bias)
        self.k = Linear(config.width, kv, config.bias)
        self.v = Linear(config.width, kv, config.bias)
        self.o = Linear(inner, config.width, config.bias)
        self.q_norm, self.k_norm = norm(inner, config.qk_norm), norm(kv, config.qk_norm)
        self.sub_norm = norm(inner, config.sub_norms)

    def forward(
        self, x: Tensor, rows: int, mask: Tensor, positions: Tensor, written: Written | None = None
    ) -> Tensor:
        """[n rows c]. With a cache, keys and values go into its slots, and mask[n s u] is over all
        of them.
        """
        config, (n, s) = self.config, x.shape[:2]
        q, k, v = self.q(x[:, s - rows :]), self.k(x), self.v(x)
        if config.clip_qkv:
            q, k, v = (y.clamp(-config.clip_qkv, config.clip_qkv) for y in (q, k, v))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q = q.view(n, rows, config.heads, config.head_dim)
        k, v = (y.view(n, s, config.kv_heads, config.head_dim) for y in (k, v))
        if config.rope_theta:
            q = rope(q, positions[:, s - rows :], config.rope_theta)
            k = rope(k, positions, config.rope_theta)
        q = scaled(q, config.q_scale)
        keys = positions
        if written is not None:
            all_k, all_v, keys, slots = written
            k, v = all_k.index_copy_(1, slots, k), all_v.index_copy_(1, slots, v)
        bias = alibi(keys, config.heads) if config.alibi else None
        out = attend(q, k, v, mask[:, mask.shape[1] - rows :], config.softcap, bias)
        out = out.reshape(n, rows, config.heads * config.head_dim)
        return self.o(out if self.sub_norm is None else self.sub_norm(out))


class MLP(nn.Module):
    """act(up(x)), or act(gate(x)) * up(x); then down."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.act]
        self.gate = Linear(config.width, config.mlp, config.bias) if config.gated else None
        self.up = Linear(config.width, config.mlp, config.bias)
        self.down = Linear(config.mlp, config.width, config.bias)
        self.sub_norm = (
            Norm(config.mlp, "ln", config.eps, config.norm_bias) if config.sub_norms else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        return self.down(y if self.sub_norm is None else self.sub_norm(y))


class Block(nn.Module):
    """norm -> attention -> (norm) -> residual -> norm -> mlp -> (norm) -> residual."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()

        def norm() -> Norm:
            return Norm(config.width, config.norm, config.eps, config.norm_bias)

        self.norm_attn, self.norm_mlp = norm(), norm()
        self.post_attn = norm() if config.post_norms else None
        self.post_mlp = norm() if config.post_norms else None
        self.attn, self.mlp = Attention(config), MLP(config)

    def forward(
        self, x: Tensor, rows: int, mask: Tensor, positions: Tensor, written: Written | None = None
    ) -> Tensor:
        y = self.attn(self.norm_attn(x), rows, mask, positions, written)
        x = x[:, x.shape[1] - rows :] + (y if self.post_attn is None else self.post_attn(y))
        y = self.mlp(self.norm_mlp(x))
        return x + (y if self.post_mlp is None else self.post_mlp(y))


class Stack(nn.Module):
    """`depth` blocks. `before(layer, x)` comes before each."""

    def __init__(self, config: BlockConfig, depth: int) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([Block(config) for _ in range(depth)])

    def cache(self, x: Tensor, room: int) -> Cache:
        """An empty one for at most `room` tokens of each of the sequences x[n s c]."""
        shape = (len(x), room, self.config.kv_heads, self.config.head_dim)
        layers = [(x.new_zeros(shape), x.new_zeros(shape)) for _ in self.blocks]
        return Cache(
            layers, x.new_zeros(shape[:2], dtype=torch.int64), x.new_zeros((), dtype=torch.int64)
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        positions: Tensor,
        readout: int,
        before: Before | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """[n r c]: the last block's output at the last `readout` tokens.

        With a cache, x follows the tokens in it and is put there; mask[n s u] is over its room.
        """
        s, end = x.shape[1], len(self.blocks) - 1
        if cache is not None:
            slots = cache.length + torch.arange(s, device=x.device)
            cache.positions.index_copy_(1, slots, positions)
            cache.length.add_(s)
        for i, block in enumerate(self.blocks):
            x = x if before is None else before(i, x)
            written = None if cache is None else (*cache.layers[i], cache.positions, slots)
            x = block(x, readout if i == end else s, self.mask(mask, i), positions, written)
        return x

    def mask(self, mask: Tensor, layer: int) -> Tensor:
        """Layers 0, 2, ... look back less than `window` tokens, except between tokens that see each
        other (Gemma 2).
        """
        window, tokens = self.config.window, mask.shape[2]
        if layer % 2 or not 0 < window < tokens:
            return mask
        place = torch.arange(tokens, device=mask.device)
        near = place[:, None] - place[None] < window
        return mask & (near[None] | mask & mask.transpose(1, 2))


class ViT(nn.Module):
    """uint8 images [n h w 3] -> tokens [n v w]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width, eps, patches = (
            config.width,
            config.block.eps,
            (config.image_size // config.patch) ** 2,
        )
        self.patch = Linear(config.patch**2 * 3, width, not config.clip)
        self.positions = nn.Parameter(torch.empty(patches + config.clip, width))
        self.class_token = nn.Parameter(torch.empty(1, width)) if config.clip else None
        self.norm_input = Norm(width, "ln", eps) if config.clip else None
        self.layers = Stack(config.block, config.depth)
        self.norm = Norm(width, "ln", eps) if config.final_norm else None

    def forward(self, images: Tensor) -> Tensor:
        config, p, n = self.config, self.config.patch, images.shape[0]
        side = config.image_size // p
        pixels = CLIP_PIXELS if config.clip else SIGLIP_PIXELS
        mean, deviation = (
            255.0 * torch.tensor(v, dtype=torch.float32, device=images.device) for v in pixels
        )
        x = (images.float() - mean) / deviation
        x = x[:, : side * p, : side * p].reshape(n, side, p, side, p, 3).permute(0, 1, 3, 2, 4, 5)
        x = self.patch(x.reshape(n, side * side, p * p * 3))
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(n, 1, -1), x], 1)
        x = x + self.positions
        x = x if self.norm_input is None else self.norm_input(x)
        tokens = x.shape[1]
        mask = torch.ones(n, tokens, tokens, dtype=torch.bool, device=x.device)
        positions = torch.zeros(n, tokens, dtype=torch.int64, device=x.device)
        x = self.layers(
            x, mask, positions, tokens - 1 if config.clip and not config.class_token else tokens
        )
        return x if self.norm is None else self.norm(x)


class ResamplerLayer(nn.Module):
    """Latents += attention to tokens and latents; latents += feed-forward."""

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
        seen = torch.cat([self.norm_media(tokens), normed], 1)
        q, k, v = (
            y.unflatten(-1, (self.config.heads, -1))
            for y in (self.q(normed), self.k(seen), self.v(seen))
        )
        mask = torch.ones(len(q), q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        latents = latents + self.o(
            attend(scaled(q, self.config.dim_head**-0.5), k, v, mask).flatten(2)
        )
        return latents + self.down(F.gelu(self.up(self.norm_mlp(latents))))


class Resampler(nn.Module):
    """Visual tokens [n v w] -> latents [n q w]."""

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


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """softmax(q k + bias) v with q[n s h e], k and v[n u j e], mask[n s u] and bias[n h u] -> [n s
    h e].
    """
    (n, s, h, e), (u, j) = q.shape, k.shape[1:3]
    g = h // j
    q = q.view(n, s, j, g, e).permute(0, 2, 3, 1, 4).reshape(n, j, g * s, e)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    seen = mask[:, None, None].expand(n, j, g, s, u).reshape(n, j, g * s, u)
    added = None
    if bias is not None:
        added = bias.view(n, j, g, 1, u).expand(n, j, g, s, u).reshape(n, j, g * s, u)
    if softcap or bias is not None:  # in float32: what is added or capped is too
        scores = q.float() @ k.float().transpose(2, 3)
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        scores = scores if added is None else scores + added
        scores = scores.masked_fill(~seen, torch.finfo(torch.float32).min)
        out = scores.softmax(-1).to(v.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, seen, scale=1.0)
    return out.view(n, j, g, s, e).permute(0, 3, 1, 2, 4).reshape(n, s, h, e)


def scaled(x: Tensor, by: float) -> Tensor:
    """x times a number that is first rounded to x's dtype, as JAX does it: bfloat16 rounds
    sqrt(2048) to 45.25.
    """
    return x * torch.full((), by, dtype=x.dtype, device=x.device)


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary position embedding in the split-half layout. x[n s h e], positions[n s]."""
    half = x.shape[-1] // 2
    frequency = theta ** -(torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = positions[:, :, None].float() * frequency
    cos, sin = (f(angle)[:, :, None].to(x.dtype) for f in (torch.cos, torch.sin))
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def alibi(positions: Tensor, heads: int) -> Tensor:
    """Linear attention biases [n h u]: slope times the key's distance from the last one."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = torch.exp2(
        torch.arange(1, power + 1, dtype=torch.float64, device=positions.device) * (-8.0 / power)
    )
    if power != heads:
        slopes = torch.cat([slopes[1::2], slopes[0::2]])[:heads]
    distance = positions - positions.amax(1, keepdim=True)
    return slopes.float()[:, None] * distance[:, None].float()


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """[sin | cos] of the position at `width / 2` frequencies from 1 to 1e-4, float32 [n s c]."""
    half = width // 2
    frequency = torch.exp(
        torch.arange(half, dtype=torch.float32, device=positions.device)
        * -(math.log(1e4) / (half - 1))
    )
    angle = positions[:, :, None].float() * frequency
    return torch.cat([torch.sin(angle), torch.cos(angle)], -1)
