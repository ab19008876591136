"""The one transformer block, and a stack of them. Vision towers, text encoders and decoders are
configurations of it.

Axes: n sequences, s tokens (queries), u tokens (keys), r tokens read out, c width, x layers. Matrix
products run in the parameters' dtype; norms, softmax and rotary angles in float32. Tokens are
flattened to 2-D before every projection: XLA's CPU backend runs that 20-30% faster than the 3-D
form, and other backends do not care.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from vla_jax.models.attention import (
    EVERYWHERE,
    Cache,
    Context,
    FrameMask,
    Mask,
    alibi,
    attend,
    attend_frames,
    last,
    local_mask,
    rope,
)
from vla_jax.types import Array

REMAT = ("none", "dots", "names", "full")
LAYERS = ("scan", "unroll")
NAMES = ("q", "kv", "attn")  # what remat "names" keeps
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}
NORMS = ("ln", "rms", "rms1")

KeyValue = tuple[Any, Any]  # keys and values of one layer, [n u j e] each


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
        clip_qkv: queries, keys and values are clipped to +- this; 0 is off (MPT).
        rope_theta: base of the rotary embedding; 0 is none.
        alibi: linear attention biases (MPT).
        window: layers flagged local look back less than this many tokens; 0 is off.
        axis: logical name of the width.
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
    axis: str = "embed"

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS or self.norm not in NORMS:
            raise ValueError(
                f"BlockConfig: expected act in {tuple(ACTIVATIONS)} and norm in {NORMS}, got"
                f" {self.act!r}, {self.norm!r}"
            )


def plain_block(
    width: int, mlp: int, heads: int, eps: float, act: str = "gelu_tanh", axis: str = "embed"
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
        axis=axis,
    )


@dataclass(frozen=True)
class StackConfig:
    """How a stack of blocks is run. `layers`: a loop in the program ("scan") or none ("unroll"), on
    the same parameters.
    """

    remat: str = "none"
    layers: str = "scan"

    def __post_init__(self) -> None:
        if self.remat not in REMAT or self.layers not in LAYERS:
            raise ValueError(
                f"expected model.remat in {REMAT} and model.layers in {LAYERS}, got {self.remat!r},"
                f" {self.layers!r}"
            )


class Linear(nnx.Module):
    """`x @ kernel + bias` on flattened tokens, kernel [in, out], truncated-normal fan-in
    initialisation.

    With a low-rank adapter (lora.attach): `x @ kernel + scale * (x @ lora_a) @ lora_b + bias`.
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
        self.lora_a: nnx.Param | None = None  # in rank
        self.lora_b: nnx.Param | None = None  # rank out
        self.lora_scale = 0.0

    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        kernel = self.kernel[...]
        flat = x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
        out = flat @ kernel
        if self.lora_a is not None and self.lora_b is not None:
            out = out + self.lora_scale * ((flat @ self.lora_a[...]) @ self.lora_b[...])
        if self.bias is not None:
            out = out + self.bias[...][None]
        return out.reshape(*x.shape[:-1], kernel.shape[1])


class Norm(nnx.Module):
    """LayerNorm or RMSNorm, in float32, returned in the input's dtype."""

    def __init__(self, width: int, kind: str, eps: float, axis: str, bias: bool = True) -> None:
        self.kind, self.eps = kind, eps
        # rms1 keeps the gain's distance from 1, as Gemma's checkpoints do.
        self.scale = nnx.Param(
            jnp.zeros(width) if kind == "rms1" else jnp.ones(width), logical=(axis,)
        )
        self.bias = nnx.Param(jnp.zeros(width), logical=(axis,)) if kind == "ln" and bias else None

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        y, scale = x.astype(jnp.float32), _row(self.scale[...], x.ndim)
        if self.kind == "ln":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + self.eps)
        y = y * (1 + scale if self.kind == "rms1" else scale)
        if self.bias is not None:
            y = y + _row(self.bias[...], x.ndim)
        return y.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention of the last `r` tokens to all of them."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        c, axis, bias = config.width, config.axis, config.bias
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

    def __call__(
        self, x: Float[Array, "n s c"], rows: int, context: Context, past: KeyValue | None = None
    ) -> tuple[Float[Array, "n r c"], KeyValue]:
        """The attention of the last `rows` tokens (of each frame under a FrameMask), and all keys
        and values.

        `past` holds those of earlier tokens, with room for these at `context.length`.
        """
        config, (n, s, _), mask = self.config, x.shape, context.mask
        read = last(x, rows, mask)
        q, k, v = self.q(read), self.k(x), self.v(x)
        if config.clip_qkv:
            q, k, v = (jnp.clip(y, -config.clip_qkv, config.clip_qkv) for y in (q, k, v))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q = q.reshape(n, -1, config.heads, config.head_dim)
        k, v = (y.reshape(n, s, config.kv_heads, config.head_dim) for y in (k, v))
        if config.rope_theta:
            q = rope(q, last(context.positions, rows, mask), config.rope_theta)
            k = rope(k, context.positions, config.rope_theta)
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
            out = attend(q, kept[0], kept[1], mask[:, mask.shape[1] - rows :], config.softcap, bias)
        out = checkpoint_name(out, "attn").reshape(n, -1, config.heads * config.head_dim)
        return self.o(out if self.sub_norm is None else self.sub_norm(out)), kept


class MLP(nnx.Module):
    """act(up(x)), or act(gate(x)) * up(x); then down."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        c, axis, bias = config.width, config.axis, config.bias
        self.act = config.act
        self.gate = Linear((c, config.mlp), (axis, "mlp"), bias, rngs) if config.gated else None
        self.up = Linear((c, config.mlp), (axis, "mlp"), bias, rngs)
        self.down = Linear((config.mlp, c), ("mlp", axis), bias, rngs)
        self.sub_norm = (
            Norm(config.mlp, "ln", config.eps, "mlp", config.norm_bias)
            if config.sub_norms
            else None
        )

    def __call__(self, x: Float[Array, "n s c"]) -> Float[Array, "n s c"]:
        up, act = self.up(x), ACTIVATIONS[self.act]
        inner = act(up) if self.gate is None else act(self.gate(x)) * up
        return self.down(inner if self.sub_norm is None else self.sub_norm(inner))


class Block(nnx.Module):
    """See BlockConfig."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        def norm() -> Norm:
            return Norm(config.width, config.norm, config.eps, config.axis, config.norm_bias)

        self.norm_attn, self.norm_mlp = norm(), norm()
        self.post_attn = norm() if config.post_norms else None
        self.post_mlp = norm() if config.post_norms else None
        self.attn = Attention(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(
        self, x: Float[Array, "n s c"], rows: int, context: Context, past: KeyValue | None = None
    ) -> tuple[Float[Array, "n r c"], KeyValue]:
        """The block's output at the last `rows` tokens (of each frame under a FrameMask), and its
        keys and values.
        """
        y, kept = self.attn(self.norm_attn(x), rows, context, past)
        x = last(x, rows, context.mask) + (y if self.post_attn is None else self.post_attn(y))
        y = self.mlp(self.norm_mlp(x))
        return x + (y if self.post_mlp is None else self.post_mlp(y)), kept


Before = Callable[[int, Array], Array]


class Stack(nnx.Module):
    """`depth` blocks with their parameters stacked on a leading axis."""

    def __init__(self, config: BlockConfig, depth: int, run: StackConfig, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs)

        self.blocks = make(rngs)
        self.config, self.depth, self.run = config, depth, run

    def __call__(
        self,
        x: Float[Array, "n s c"],
        mask: Mask,
        positions: Int[Array, "n s"],
        readout: int | None = None,
        before: Before | None = None,
    ) -> Float[Array, "n r c"]:
        """The last block's output, only at the last `readout` tokens (of each frame under a
        FrameMask) if given: it then skips the rest of its work. `before(layer, x)` comes before
        each layer, which are then unrolled.
        """
        s, end = x.shape[1], self.depth - 1
        every = mask.frame if isinstance(mask, FrameMask) else s
        contexts = self._contexts(mask, positions, positions, s)
        # Outside a loop XLA would find the second computation equal to the first and keep the
        # activations after all.
        body = rematerialised(self.run.remat, prevent_cse=True)
        if self.run.layers == "unroll" or before is not None:
            for layer in range(end):
                x = x if before is None else before(layer, x)
                x = body(_layer(self.blocks, layer), x, every, contexts(layer))
            x = x if before is None else before(end, x)
        else:
            first, looped = (
                jax.tree.map(lambda leaf: leaf[:end], self.blocks),
                rematerialised(self.run.remat, False),
            )

            def one(x: Array, each: tuple[Any, Any]) -> tuple[Array, None]:
                return looped(each[1], x, every, contexts(each[0])), None

            x, _ = jax.lax.scan(one, x, (jnp.arange(end), first))
        return body(
            _layer(self.blocks, end), x, every if readout is None else readout, contexts(end)
        )

    def decode(
        self,
        x: Float[Array, "n s c"],
        mask: Mask,
        positions: Int[Array, "n s"],
        cache: Cache,
        before: Before | None = None,
    ) -> tuple[Float[Array, "n s c"], Cache]:
        """The last block's output for tokens that follow those in the cache, and the cache with
        them.

        mask[n, q, u] is over the cache's slots; the new tokens take those from `cache.length` on. A
        FrameMask is for the first tokens of all, into an empty cache.
        """
        keys = jax.lax.dynamic_update_slice(
            cache.positions, positions.astype(jnp.int32), (0, cache.length)
        )
        contexts = self._contexts(mask, positions, keys, keys.shape[1], cache.length)
        s, kept = x.shape[1], []
        if self.run.layers == "unroll" or before is not None:
            for layer in range(self.depth):
                x = x if before is None else before(layer, x)
                past = (cache.k[layer], cache.v[layer])
                x, kv = _layer(self.blocks, layer)(x, s, contexts(layer), past)
                kept.append(kv)
            k, v = (jnp.stack(part) for part in zip(*kept, strict=True))
        else:

            def one(x: Array, each: tuple[Any, Any, Any, Any]) -> tuple[Array, KeyValue]:
                layer, block, k, v = each
                return block(x, s, contexts(layer), (k, v))

            x, (k, v) = jax.lax.scan(
                one, x, (jnp.arange(self.depth), self.blocks, cache.k, cache.v)
            )
        return x, Cache(k, v, keys, cache.length + s)

    def cache(self, n: int, slots: int, dtype: jax.typing.DTypeLike) -> Cache:
        """An empty cache for `slots` tokens of n sequences."""
        return Cache.empty(
            self.depth, n, slots, (self.config.kv_heads, self.config.head_dim), dtype
        )

    def _contexts(
        self, mask: Mask, positions: Array, keys: Array, tokens: int, length: Array | None = None
    ) -> Callable[[Any], Context]:
        """layer -> its context: with a window, layers 0, 2, ... are local (Gemma 2)."""
        window = self.config.window
        if not 0 < window < tokens:
            return lambda layer: Context(mask, positions, keys, length)
        if length is not None:
            raise ValueError(
                f"decode: expected at most window = {window} tokens in the cache, got room for"
                f" {tokens}"
            )
        local = local_mask(mask, window, tokens)
        whole = local_mask(mask, EVERYWHERE, tokens) if isinstance(mask, FrameMask) else mask

        def context(layer: Any) -> Context:
            is_local = jnp.asarray(layer) % 2 == 0
            chosen = jax.tree.map(lambda a, b: jnp.where(is_local, a, b), local, whole)
            return Context(chosen, positions, keys)

        return context


def rematerialised(remat: str, prevent_cse: bool) -> Callable[[Block, Array, int, Context], Array]:
    """The block's call under a remat policy: what the backward pass keeps of a layer and what it
    computes again.
    """

    def call(block: Block, x: Array, rows: int, context: Context) -> Array:
        return block(x, rows, context)[0]

    if remat == "none":
        return call
    policies = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "names": jax.checkpoint_policies.save_only_these_names(*NAMES),
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    return partial(
        jax.checkpoint, policy=policies[remat], prevent_cse=prevent_cse, static_argnums=(2,)
    )(call)


def _layer(blocks: Block, layer: int) -> Block:
    return jax.tree.map(lambda leaf: leaf[layer], blocks)


def _row(vector: Array, ndim: int) -> Array:
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)
