"""The one transformer block, and a stack of them. Vision towers and decoders are configurations of it.

Axes: n sequences, s tokens (queries), u tokens (keys), c width, g queries per key/value head. Matrix products run in
the parameters' dtype; norms, softmax and rotary angles in float32. Tokens are flattened to 2-D before every projection
and attention is a 3-D batched product with the grouped heads folded into the query axis: XLA's CPU backend runs both
20-30% faster than the 3-D and 5-D forms, and other backends do not care.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int

from vla_jax.types import Array

REMAT = ("none", "dots", "names", "full")
LAYERS = ("scan", "unroll")
NAMES = ("q", "kv", "attn")  # what remat "names" keeps


@dataclass(frozen=True)
class BlockConfig:
    """One block: norm -> attention -> (norm) -> residual -> norm -> mlp -> (norm) -> residual.

    Attributes:
        norm: "ln" (LayerNorm with bias) or "rms1" (Gemma's RMSNorm, gain 1 + scale).
        gated: act(gate(x)) * up(x) instead of act(up(x)). The activation is GELU in its tanh form.
        bias: linear layers have biases.
        q_scale: queries are multiplied by it before the product with the keys.
        softcap: scores become cap * tanh(scores / cap) before the mask; 0 is off.
        post_norms: a norm also after attention and after the MLP (Gemma 2).
        rope_theta: base of the rotary embedding; 0 is none.
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
    softcap: float = 0.0
    post_norms: bool = False
    rope_theta: float = 0.0
    window: int = 0
    axis: str = "embed"


@dataclass(frozen=True)
class StackConfig:
    """How a stack of blocks is run. `layers`: a loop in the program ("scan") or none ("unroll"), on the same
    parameters.
    """

    remat: str = "none"
    layers: str = "scan"

    def __post_init__(self) -> None:
        if self.remat not in REMAT or self.layers not in LAYERS:
            raise ValueError(
                f"expected model.remat in {REMAT} and model.layers in {LAYERS}, got {self.remat!r}, {self.layers!r}"
            )


class Linear(nnx.Module):
    """`x @ kernel + bias` on flattened tokens, kernel [in, out], truncated-normal fan-in initialisation.

    With a low-rank adapter (lora.attach): `x @ kernel + scale * (x @ lora_a) @ lora_b + bias`.
    """

    def __init__(
        self, sizes: tuple[int, int], logical: tuple[str | None, str | None], bias: bool, rngs: nnx.Rngs
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
    """LayerNorm or RMSNorm with gain 1 + scale, in float32, returned in the input's dtype."""

    def __init__(self, width: int, kind: str, eps: float, axis: str) -> None:
        if kind not in ("ln", "rms1"):
            raise ValueError(f"norm: expected 'ln' or 'rms1', got {kind!r}")
        self.eps = eps
        # rms1 keeps the gain's distance from 1, as Gemma's checkpoints do.
        self.scale = nnx.Param(jnp.ones(width) if kind == "ln" else jnp.zeros(width), logical=(axis,))
        self.bias = nnx.Param(jnp.zeros(width), logical=(axis,)) if kind == "ln" else None

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        y, scale = x.astype(jnp.float32), _row(self.scale[...], x.ndim)
        if self.bias is None:
            y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + self.eps) * (1 + scale)
        else:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
            y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + self.eps) * scale
            y = y + _row(self.bias[...], x.ndim)
        return y.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention of the last `r` tokens to all of them."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        c, axis, bias = config.width, config.axis, config.bias
        self.q = Linear((c, config.heads * config.head_dim), (axis, "heads"), bias, rngs)
        self.k = Linear((c, config.kv_heads * config.head_dim), (axis, "kv"), bias, rngs)
        self.v = Linear((c, config.kv_heads * config.head_dim), (axis, "kv"), bias, rngs)
        self.o = Linear((config.heads * config.head_dim, c), ("heads", axis), bias, rngs)

    def __call__(
        self, x: Float[Array, "n u c"], mask: Bool[Array, "n r u"], positions: Int[Array, "n u"]
    ) -> Float[Array, "n r c"]:
        config, (n, u, _), r = self.config, x.shape, mask.shape[1]
        q = self.q(x[:, u - r :]).reshape(n, r, config.heads, config.head_dim)
        k = self.k(x).reshape(n, u, config.kv_heads, config.head_dim)
        v = self.v(x).reshape(n, u, config.kv_heads, config.head_dim)
        if config.rope_theta:
            q = rope(q, positions[:, u - r :], config.rope_theta)
            k = rope(k, positions, config.rope_theta)
        q = checkpoint_name(q * jnp.asarray(config.q_scale, q.dtype), "q")
        k, v = checkpoint_name(k, "kv"), checkpoint_name(v, "kv")
        out = checkpoint_name(attend(q, k, v, mask, config.softcap), "attn")
        return self.o(out.reshape(n, r, -1))


def attend(
    q: Float[Array, "n s h e"],
    k: Float[Array, "n u j e"],
    v: Float[Array, "n u j e"],
    mask: Bool[Array, "n s u"],
    softcap: float,
) -> Float[Array, "n s h e"]:
    """softmax(q k) v with j key/value heads, each shared by h / j query heads."""
    (n, s, h, e), (u, j) = q.shape, k.shape[1:3]
    g = h // j
    q = q.reshape(n, s, j, g, e).transpose(0, 2, 3, 1, 4).reshape(n * j, g * s, e)
    k, v = (x.transpose(0, 2, 1, 3).reshape(n * j, u, e) for x in (k, v))
    scores = jax.lax.dot_general(q, k, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    # The lowest finite number, not -inf: a row without any key stays finite, and nothing reads it.
    scores = jnp.where(mask[:, None, None], scores.reshape(n, j, g, s, u), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(n * j, g * s, u)
    out = jax.lax.dot_general(weights, v, (((2,), (1,)), ((0,), (0,))))
    return out.reshape(n, j, g, s, e).transpose(0, 3, 1, 2, 4).reshape(n, s, h, e)


class MLP(nnx.Module):
    """act(up(x)), or act(gate(x)) * up(x); then down."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        c, axis, bias = config.width, config.axis, config.bias
        self.gate = Linear((c, config.mlp), (axis, "mlp"), bias, rngs) if config.gated else None
        self.up = Linear((c, config.mlp), (axis, "mlp"), bias, rngs)
        self.down = Linear((config.mlp, c), ("mlp", axis), bias, rngs)

    def __call__(self, x: Float[Array, "n s c"]) -> Float[Array, "n s c"]:
        up = self.up(x)
        if self.gate is None:
            return self.down(jax.nn.gelu(up, approximate=True))
        return self.down(jax.nn.gelu(self.gate(x), approximate=True) * up)


class Block(nnx.Module):
    """See BlockConfig."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        def norm() -> Norm:
            return Norm(config.width, config.norm, config.eps, config.axis)

        self.norm_attn, self.norm_mlp = norm(), norm()
        self.post_attn = norm() if config.post_norms else None
        self.post_mlp = norm() if config.post_norms else None
        self.attn = Attention(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(
        self, x: Float[Array, "n u c"], mask: Bool[Array, "n r u"], positions: Int[Array, "n u"]
    ) -> Float[Array, "n r c"]:
        """The block's output at the last `r` tokens, r being the mask's number of query rows."""
        y = self.attn(self.norm_attn(x), mask, positions)
        x = x[:, x.shape[1] - mask.shape[1] :] + (y if self.post_attn is None else self.post_attn(y))
        y = self.mlp(self.norm_mlp(x))
        return x + (y if self.post_mlp is None else self.post_mlp(y))


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
        mask: Bool[Array, "n s s"],
        positions: Int[Array, "n s"],
        readout: int | None = None,
    ) -> Float[Array, "n r c"]:
        """The last block's output, only at the last `readout` tokens if given: it then skips the rest of its work."""
        s = x.shape[1]
        local = local_mask(mask, self.config.window) if 0 < self.config.window < s else mask
        body = rematerialised(self.run.remat)

        def one(x: Array, layer: int | jax.Array, block: Block, rows: int) -> Array:
            allowed = mask[:, s - rows :]
            if local is not mask:  # Gemma 2: layers 0, 2, ... are local
                allowed = jnp.where(jnp.asarray(layer) % 2 == 0, local[:, s - rows :], allowed)
            return body(block, x, allowed, positions)

        last, rows = self.depth - 1, s if readout is None else readout
        if self.run.layers == "unroll":
            for layer in range(last):
                x = one(x, layer, _layer(self.blocks, layer), s)
        else:
            first = jax.tree.map(lambda leaf: leaf[:last], self.blocks)
            x, _ = jax.lax.scan(lambda x, each: (one(x, each[0], each[1], s), None), x, (jnp.arange(last), first))
        return one(x, last, _layer(self.blocks, last), rows)


def rematerialised(remat: str) -> Callable[[Block, Array, Array, Array], Array]:
    """The block's call under a remat policy: what the backward pass keeps of a layer and what it computes again."""

    def call(block: Block, x: Array, mask: Array, positions: Array) -> Array:
        return block(x, mask, positions)

    if remat == "none":
        return call
    policies = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "names": jax.checkpoint_policies.save_only_these_names(*NAMES),
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    return partial(jax.checkpoint, policy=policies[remat], prevent_cse=False)(call)


def local_mask(mask: Bool[Array, "n s s"], window: int) -> Bool[Array, "n s s"]:
    """The mask limited to the last `window` tokens, except between tokens that see each other (the prefix).

    As in transformers' Gemma 2 under PaliGemma, where the bidirectional block is OR-ed in after the window.
    """
    s = mask.shape[1]
    near = jnp.arange(s)[:, None] - jnp.arange(s)[None, :] < window  # s s
    mutual = mask & mask.swapaxes(1, 2)
    return mask & (near[None] | mutual)


def rope(x: Float[Array, "n s h e"], positions: Int[Array, "n s"], theta: float) -> Float[Array, "n s h e"]:
    """Rotary position embedding in the split-half layout (RoFormer, arXiv 2104.09864; the layout of Gemma and
    LLaMA).
    """
    half = x.shape[-1] // 2
    frequency = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, :, None].astype(jnp.float32) * frequency[None, None]  # n s half
    cos, sin = (f(angle)[:, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _layer(blocks: Block, layer: int) -> Block:
    return jax.tree.map(lambda leaf: leaf[layer], blocks)


def _row(vector: Array, ndim: int) -> Array:
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)
