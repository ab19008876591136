"""The one transformer block. Vision towers, text encoders and decoders are stacks of it
(stack.py), in different configurations.

Axes: f sequences, s tokens (queries), u tokens (keys), r tokens read out, j key/value heads, e head
dim, c width, i and o features in and out. Matrix products run in the parameters' dtype; norms,
softmax and rotary angles in float32. Tokens are flattened to 2-D before every projection: XLA's CPU
backend runs that 20-30% faster than the 3-D form, and other backends do not care.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from vla_jax.models.attention import (
    Context,
    FrameMask,
    alibi,
    attend,
    attend_frames,
    rope,
    take_last_queries,
)
from vla_jax.models.eight_bits import product
from vla_jax.sharding import constrain, gathered
from vla_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}
NORMS = ("ln", "rms", "rms1")

KeyValue = tuple[Any, Any]  # keys and values of one layer, [f u j e] each


@dataclass(frozen=True)
class BlockConfig:
    """One block: norm -> attention -> (norm) -> residual -> norm -> mlp -> (norm) -> residual.

    Attributes:
        norm: "ln" (LayerNorm), "rms" (RMSNorm, gain scale) or "rms1" (Gemma's RMSNorm, gain 1 +
            scale).
        norm_bias: LayerNorms have biases.
        gated: act(gate(x)) * up(x) instead of act(up(x)).
        bias: linear layers have biases.
        q_scale: queries are multiplied by it before the product with the keys.
        act: the activation, see ACTIVATIONS.
        softcap: scores become cap * tanh(scores / cap) before the mask; 0 is off.
        post_norms: a norm also after attention and after the MLP (Gemma 2).
        sub_norms: a norm also before each output projection, of attention and of the MLP
            (Kosmos-2).
        qk_norm: LayerNorm over all heads of the queries and of the keys (MosaicGPT).
        head_norm: a norm also over each head's queries and keys, with one gain for all (Qwen3).
        clip_qkv: queries, keys and values are clipped to +- this; 0 is off (MPT).
        rope_theta: base of the rotary embedding; 0 is none.
        rope_sections: of a rotary embedding by time, row and column, see attention.angles.
        alibi: linear attention biases (MPT).
        window: layers flagged local look back less than this many tokens; 0 is off.
        adaptive: the two norms and the residual branches behind them follow a condition of each
            sequence, see AdaptiveNorm (pi0.5).
        width_logical_axis: logical name of the width.
    """

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
    act: str = "gelu_tanh"
    norm_bias: bool = True
    softcap: float = 0.0
    post_norms: bool = False
    sub_norms: bool = False
    qk_norm: bool = False
    clip_qkv: float = 0.0
    rope_theta: float = 0.0
    alibi: bool = False
    window: int = 0
    adaptive: bool = False
    width_logical_axis: str = "embed"
    head_norm: bool = False
    rope_sections: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS or self.norm not in NORMS:
            raise ValueError(
                f"BlockConfig: expected act in {tuple(ACTIVATIONS)} and norm in {NORMS}, got"
                f" {self.act!r}, {self.norm!r}"
            )


def plain_block(
    width: int,
    mlp: int,
    heads: int,
    eps: float,
    act: str = "gelu_tanh",
    width_logical_axis: str = "embed",
) -> BlockConfig:
    """The usual pre-norm block: LayerNorms, biases, heads that are not grouped, scores over the
    root of their dim.
    """
    dim = width // heads
    return BlockConfig(
        width=width,
        mlp=mlp,
        heads=heads,
        kv_heads=heads,
        head_dim=dim,
        norm="ln",
        eps=eps,
        gated=False,
        bias=True,
        q_scale=dim**-0.5,
        act=act,
        width_logical_axis=width_logical_axis,
    )


class Linear(nnx.Module):
    """`x @ kernel + bias` on flattened tokens, kernel [in, out], truncated-normal fan-in
    initialisation.

    With a low-rank adapter (lora.attach): `x @ kernel + scale * (x @ lora_a) @ lora_b + bias`. The
    product with the kernel may be computed in 8 bits.
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        logical: tuple[str | None, str | None],
        bias: bool,
        rngs: nnx.Rngs,
    ) -> None:
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), sizes, jnp.float32), logical=logical)
        self.bias = nnx.Param(jnp.zeros(sizes[1]), logical=logical[1:]) if bias else None
        self.logical = logical
        self.lora_a: nnx.Param | None = None  # in rank
        self.lora_b: nnx.Param | None = None  # rank out
        self.lora_scale = 0.0
        self.eight_bits = ""  # see eight_bits.product; stack.blocks_in_eight_bits sets it

    def __call__(self, x: Float[Array, "*f i"]) -> Float[Array, "*f o"]:
        kernel = gathered(self.kernel[...], *self.logical)
        flat = x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
        out = product(flat, kernel, self.eight_bits)
        if self.lora_a is not None and self.lora_b is not None:
            out = out + self.lora_scale * ((flat @ self.lora_a[...]) @ self.lora_b[...])
        if self.bias is not None:
            out = out + self.bias[...][None]
        return out.reshape(*x.shape[:-1], kernel.shape[1])


class Norm(nnx.Module):
    """LayerNorm or RMSNorm, in float32, returned in the input's dtype."""

    def __init__(
        self, width: int, kind: str, eps: float, logical_axis: str | None, bias: bool = True
    ) -> None:
        self.kind, self.eps = kind, eps
        # rms1 keeps the gain's distance from 1, as Gemma's checkpoints do.
        self.scale = nnx.Param(
            jnp.zeros(width) if kind == "rms1" else jnp.ones(width), logical=(logical_axis,)
        )
        self.bias = (
            nnx.Param(jnp.zeros(width), logical=(logical_axis,)) if kind == "ln" and bias else None
        )

    def __call__(self, x: Float[Array, "*f c"]) -> Float[Array, "*f c"]:
        y, scale = x.astype(jnp.float32), _row(self.scale[...], x.ndim)
        if self.kind == "ln":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + self.eps)
        y = y * (1 + scale if self.kind == "rms1" else scale)
        if self.bias is not None:
            y = y + _row(self.bias[...], x.ndim)
        return y.astype(x.dtype)


class AdaptiveNorm(nnx.Module):
    """RMSNorm of which a linear layer of a condition says gain, shift and what the branch behind it
    is multiplied by (DiT's, arXiv 2212.09748; pi0.5's). That layer begins at zero, so that a new
    block changes nothing.
    """

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        width, logical = config.width, (config.width_logical_axis, None)
        self.eps = config.eps
        self.modulation = Linear((width, 3 * width), logical, True, rngs)
        self.modulation.kernel = nnx.Param(jnp.zeros((width, 3 * width)), logical=logical)

    def __call__(
        self, x: Float[Array, "f s c"], condition: Float[Array, "f c"]
    ) -> tuple[Float[Array, "f s c"], Float[Array, "f 1 c"]]:
        """The normed tokens and the factor of their branch, both in x's dtype."""
        changes = constrain(self.modulation(condition)[:, None], "batch").astype(jnp.float32)
        gain, shift, gate = jnp.split(changes, 3, axis=-1)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + self.eps)
        return (y * (1 + gain) + shift).astype(x.dtype), gate.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention of the last `r` tokens to all of them."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        c, axis, bias = config.width, config.width_logical_axis, config.bias
        inner, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = Linear((c, inner), (axis, "heads"), bias, rngs)
        self.k = Linear((c, kv), (axis, "kv"), bias, rngs)
        self.v = Linear((c, kv), (axis, "kv"), bias, rngs)
        self.o = Linear((inner, c), ("heads", axis), bias, rngs)
        self.q_norm = (
            Norm(inner, "ln", config.eps, "heads", config.norm_bias) if config.qk_norm else None
        )
        self.k_norm = Norm(kv, "ln", config.eps, "kv", config.norm_bias) if config.qk_norm else None
        self.sub_norm = (
            Norm(inner, "ln", config.eps, "heads", config.norm_bias) if config.sub_norms else None
        )
        self.q_head_norm = self._head_norm() if config.head_norm else None
        self.k_head_norm = self._head_norm() if config.head_norm else None

    def _head_norm(self) -> Norm:
        return Norm(self.config.head_dim, self.config.norm, self.config.eps, None)

    def __call__(
        self,
        x: Float[Array, "f s c"],
        num_queries: int,
        context: Context,
        past: KeyValue | None = None,
    ) -> tuple[Float[Array, "f r c"], KeyValue]:
        """The attention of the last `num_queries` tokens (of each frame under a FrameMask), and all
        keys and values.

        `past` holds those of earlier tokens, with room for these at `context.length`.
        """
        config, (f, s, _), mask = self.config, x.shape, context.mask
        read = take_last_queries(x, num_queries, mask)
        q, k, v = self.q(read), self.k(x), self.v(x)
        if config.clip_qkv:
            q, k, v = (jnp.clip(y, -config.clip_qkv, config.clip_qkv) for y in (q, k, v))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q = constrain(q.reshape(f, -1, config.heads, config.head_dim), "batch", None, "heads")
        k, v = (
            constrain(y.reshape(f, s, config.kv_heads, config.head_dim), "batch", None, "kv")
            for y in (k, v)
        )
        q = q if self.q_head_norm is None else self.q_head_norm(q)
        k = k if self.k_head_norm is None else self.k_head_norm(k)
        if config.rope_theta:
            read_at = take_last_queries(context.positions, num_queries, mask)
            q = rope(q, read_at, config.rope_theta, config.rope_sections)
            k = rope(k, context.positions, config.rope_theta, config.rope_sections)
        q = checkpoint_name(q * jnp.asarray(config.q_scale, q.dtype), "q")
        k, v = checkpoint_name(k, "kv"), checkpoint_name(v, "kv")
        kept: Any = (k, v)
        if past is not None:
            at: Any = (0, context.length, 0, 0)
            kept = tuple(
                jax.lax.dynamic_update_slice(old, new.astype(old.dtype), at)
                for old, new in zip(past, kept, strict=True)
            )
        if isinstance(mask, FrameMask):  # with a cache: it was empty, these are all keys
            bias = alibi(context.positions, config.heads) if config.alibi else None
            out = attend_frames(q, k, v, mask, config.softcap, bias)
        else:
            bias = alibi(context.keys, config.heads) if config.alibi else None
            out = attend(
                q, kept[0], kept[1], mask[:, mask.shape[1] - num_queries :], config.softcap, bias
            )
        out = checkpoint_name(out, "attn").reshape(f, -1, config.heads * config.head_dim)
        return self.o(out if self.sub_norm is None else self.sub_norm(out)), kept


class MLP(nnx.Module):
    """act(up(x)), or act(gate(x)) * up(x); then down."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        c, axis, bias = config.width, config.width_logical_axis, config.bias
        self.act = config.act
        self.gate = Linear((c, config.mlp), (axis, "mlp"), bias, rngs) if config.gated else None
        self.up = Linear((c, config.mlp), (axis, "mlp"), bias, rngs)
        self.down = Linear((config.mlp, c), ("mlp", axis), bias, rngs)
        self.sub_norm = (
            Norm(config.mlp, "ln", config.eps, "mlp", config.norm_bias)
            if config.sub_norms
            else None
        )

    def __call__(self, x: Float[Array, "f s c"]) -> Float[Array, "f s c"]:
        up, act = self.up(x), ACTIVATIONS[self.act]
        inner = act(up) if self.gate is None else act(self.gate(x)) * up
        inner = constrain(inner, "batch", None, "mlp")
        return self.down(inner if self.sub_norm is None else self.sub_norm(inner))


class Block(nnx.Module):
    """See BlockConfig."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        def norm() -> Norm:
            return Norm(
                config.width, config.norm, config.eps, config.width_logical_axis, config.norm_bias
            )

        def before() -> Norm | AdaptiveNorm:
            return AdaptiveNorm(config, rngs) if config.adaptive else norm()

        self.norm_attn, self.norm_mlp = before(), before()
        self.post_attn = norm() if config.post_norms else None
        self.post_mlp = norm() if config.post_norms else None
        self.attn = Attention(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x: Float[Array, "f s c"],
        num_queries: int,
        context: Context,
        past: KeyValue | None = None,
    ) -> tuple[Float[Array, "f r c"], KeyValue]:
        """The block's output at the last `num_queries` tokens (of each frame under a FrameMask),
        and its keys and values.
        """
        # Between the products, which split heads and mlp, devices along tensor split the tokens: no
        # one then holds the whole residual stream, which waits for the backward pass. Products get
        # all tokens.
        x = constrain(x, "batch", "tokens")
        inside, gate = normed(self.norm_attn, x, context.condition)
        y, kept = self.attn(constrain(inside, "batch"), num_queries, context, past)
        y = constrain(y, "batch", "tokens")
        y = y if self.post_attn is None else self.post_attn(y)
        x = take_last_queries(x, num_queries, context.mask) + (y if gate is None else y * gate)
        x = constrain(x, "batch", "tokens")
        inside, gate = normed(self.norm_mlp, x, context.condition)
        y = constrain(self.mlp(constrain(inside, "batch")), "batch", "tokens")
        y = y if self.post_mlp is None else self.post_mlp(y)
        x = x + (y if gate is None else y * gate)
        return constrain(x, "batch", "tokens"), kept


def normed(
    norm: Norm | AdaptiveNorm, x: Float[Array, "f s c"], condition: Float[Array, "f c"] | None
) -> tuple[Float[Array, "f s c"], Float[Array, "f 1 c"] | None]:
    """The normed tokens, and the factor of the branch behind an adaptive norm; None: of another."""
    if isinstance(norm, Norm):
        return norm(x), None
    if condition is None:
        raise ValueError("AdaptiveNorm: expected a condition of each sequence, got None")
    return norm(x, condition)


def _row(vector: Array, ndim: int) -> Array:
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)
