"""The one transformer block in torch: inference only.

Each class does what its namesake in vla_jax/models/transformer.py does, on parameters of the same
names: kernels are [in, out], norms and softmax are float32, the rest runs in the parameters' dtype.

Axes: n sequences, s tokens (queries), u tokens (keys), r tokens read out, h heads, j key/value
heads, e head dim, c width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Cache, LayerCache, alibi, attend, rope

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}
NORMS = ("ln", "rms", "rms1")

PreLayerFn = Callable[[int, Tensor], Tensor]  # (layer, x[n s c]) -> x


@dataclass(frozen=True)
class BlockConfig:
    """The flags of a block; vla_jax.models.transformer.BlockConfig says what each means."""

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
    # Artefacts of before 2026-11-30 have none of these.
    adaptive: bool = False
    head_norm: bool = False
    rope_sections: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS or self.norm not in NORMS:
            raise ValueError(
                f"config.json: block: expected act in {tuple(ACTIVATIONS)} and norm in {NORMS}, got"
                f" {self.act!r}, {self.norm!r}"
            )


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


class AdaptiveNorm(nn.Module):
    """RMSNorm of which a linear layer of a condition says gain, shift and the branch's factor."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps, self.modulation = eps, Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """x[n s c], condition[n c] -> the normed tokens and the factor [n 1 c]."""
        gain, shift, gate = self.modulation(condition)[:, None].float().chunk(3, -1)
        y = x.float()
        y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + self.eps)
        return (y * (1 + gain) + shift).to(x.dtype), gate.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention of the last `num_queries` tokens to all of them, and to those in a
    cache.
    """

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
        dim, kind = config.head_dim, config.norm
        self.q_head_norm = Norm(dim, kind, config.eps) if config.head_norm else None
        self.k_head_norm = Norm(dim, kind, config.eps) if config.head_norm else None

    def forward(
        self,
        x: Tensor,
        num_queries: int,
        mask: Tensor,
        positions: Tensor,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x[n s c], positions[n s] or of several axes [n s a], mask[n s u] -> [n r c],
        r = num_queries.

        With a cache, keys and values go into its slots, and u counts all of its slots; otherwise
        u = s.
        """
        config, (n, s) = self.config, x.shape[:2]
        q, k, v = self.q(x[:, s - num_queries :]), self.k(x), self.v(x)
        if config.clip_qkv:
            q, k, v = (y.clamp(-config.clip_qkv, config.clip_qkv) for y in (q, k, v))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q = q.view(n, num_queries, config.heads, config.head_dim)
        k, v = (y.view(n, s, config.kv_heads, config.head_dim) for y in (k, v))
        q = q if self.q_head_norm is None else self.q_head_norm(q)
        k = k if self.k_head_norm is None else self.k_head_norm(k)
        if config.rope_theta:
            theta, sections = config.rope_theta, config.rope_sections
            q = rope(q, positions[:, s - num_queries :], theta, sections)
            k = rope(k, positions, theta, sections)
        q = scaled(q, config.q_scale)
        key_positions = positions
        if cache is not None:
            k = cache.keys.index_copy_(1, cache.slots, k)
            v = cache.values.index_copy_(1, cache.slots, v)
            key_positions = cache.positions
        bias = alibi(key_positions, config.heads) if config.alibi else None
        mask = mask[:, mask.shape[1] - num_queries :]
        out = attend(q, k, v, mask, config.softcap, bias)  # n r h e
        out = out.reshape(n, num_queries, config.heads * config.head_dim)
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

        def before() -> Norm | AdaptiveNorm:
            return AdaptiveNorm(config.width, config.eps) if config.adaptive else norm()

        self.norm_attn, self.norm_mlp = before(), before()
        self.post_attn = norm() if config.post_norms else None
        self.post_mlp = norm() if config.post_norms else None
        self.attn, self.mlp = Attention(config), MLP(config)

    def forward(
        self,
        x: Tensor,
        num_queries: int,
        mask: Tensor,
        positions: Tensor,
        cache: LayerCache | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """x[n s c] -> [n r c]; arguments as of Attention, the condition [n c] of adaptive norms."""
        inside, gate = normed(self.norm_attn, x, condition)
        y = self.attn(inside, num_queries, mask, positions, cache)
        y = y if self.post_attn is None else self.post_attn(y)
        x = x[:, x.shape[1] - num_queries :] + (y if gate is None else y * gate)
        inside, gate = normed(self.norm_mlp, x, condition)
        y = self.mlp(inside)
        y = y if self.post_mlp is None else self.post_mlp(y)
        return x + (y if gate is None else y * gate)


class Stack(nn.Module):
    """`depth` blocks; `pre_layer_fn`, where there is one, comes before each."""

    def __init__(self, config: BlockConfig, depth: int) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([Block(config) for _ in range(depth)])

    def empty_cache(self, x: Tensor, size: int) -> Cache:
        """With `size` slots, u, for each of the sequences x[n s c]."""
        shape = (len(x), size, self.config.kv_heads, self.config.head_dim)
        layers = [(x.new_zeros(shape), x.new_zeros(shape)) for _ in self.blocks]
        return Cache(
            layers, x.new_zeros(shape[:2], dtype=torch.int64), x.new_zeros((), dtype=torch.int64)
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        positions: Tensor,
        num_queries: int,
        pre_layer_fn: PreLayerFn | None = None,
        cache: Cache | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """x[n s c], mask[n s u], positions[n s] -> [n r c]: the last block's output at the last
        `num_queries` tokens.

        With a cache, x follows the tokens in it and is put there, and u counts all of its slots.
        Adaptive norms follow the condition [n c].
        """
        s, end = x.shape[1], len(self.blocks) - 1
        if cache is not None:
            slots = cache.length + torch.arange(s, device=x.device)
            line = positions if positions.ndim == 2 else positions[:, :, 0]
            cache.positions.index_copy_(1, slots, line)
            cache.length.add_(s)
        for i, block in enumerate(self.blocks):
            x = x if pre_layer_fn is None else pre_layer_fn(i, x)
            own = None if cache is None else LayerCache(*cache.layers[i], cache.positions, slots)
            read = num_queries if i == end else s
            x = block(x, read, self.mask(mask, i), positions, own, condition)
        return x

    def mask(self, mask: Tensor, layer: int) -> Tensor:
        """The mask [n s u] of a layer: layers 0, 2, ... look back less than `window` tokens, except
        between tokens that see each other (Gemma 2).
        """
        window, u = self.config.window, mask.shape[2]
        if layer % 2 or not 0 < window < u:
            return mask
        index = torch.arange(u, device=mask.device)
        near = index[:, None] - index[None] < window
        return mask & (near[None] | mask & mask.transpose(1, 2))


def normed(norm: nn.Module, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The normed tokens, and the factor of the branch behind an adaptive norm; None: of another."""
    return norm(x, condition) if isinstance(norm, AdaptiveNorm) else (norm(x), None)


def scaled(x: Tensor, factor: float) -> Tensor:
    """x of any shape times a number that is first rounded to x's dtype, as JAX does it: bfloat16
    rounds sqrt(2048) to 45.25.
    """
    return x * torch.full((), factor, dtype=x.dtype, device=x.device)
