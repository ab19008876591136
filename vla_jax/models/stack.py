"""A stack of blocks, run in a loop or unrolled, whole or token by token behind a cache.

Axes: f sequences, s tokens (queries), u slots of a cache, r tokens read out, c width, x layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from vla_jax.models import eight_bits
from vla_jax.models.attention import EVERYWHERE, Cache, Context, FrameMask, Mask, local_mask
from vla_jax.models.transformer import Block, BlockConfig, KeyValue, Linear
from vla_jax.params import Build
from vla_jax.types import Array

REMAT = ("none", "dots", "names", "full")
LAYERS = ("scan", "unroll")
NAMES = ("q", "kv", "attn")  # what remat "names" keeps


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


@dataclass(frozen=True)
class PreLayers:
    """What comes before some layers: `call(modules[i], x)` before the last of every `every` layers.
    The modules have one structure, so that a loop may run them.
    """

    modules: Sequence[Any]
    every: int
    call: Callable[[Any, Array], Array]

    def __call__(self, layer: int, x: Array) -> Array:
        """What layer `layer` gets."""
        number, rest = divmod(layer + 1, self.every)
        return x if rest else self.call(self.modules[number - 1], x)


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
        x: Float[Array, "f s c"],
        mask: Mask,
        positions: Int[Array, "f s *axes"],
        num_queries: int | None = None,
        before: PreLayers | None = None,
        added: Sequence[Float[Array, "f s c"]] = (),
    ) -> Float[Array, "f r c"]:
        """The last block's output, only at the last `num_queries` tokens (of each frame under a
        FrameMask) if given: it then skips the rest of its work. `added` comes to the outputs of the
        first blocks, of each its own; not together with `before`.
        """
        s, end = x.shape[1], self.depth - 1
        num_tokens = mask.frame if isinstance(mask, FrameMask) else s
        contexts = self._contexts(mask, positions, positions, s)
        # Outside a loop XLA would find the second computation equal to the first and keep the
        # activations after all.
        body = rematerialised(self.run.remat, prevent_cse=True)
        for layer, more in enumerate(added):
            x = body(_layer(self.blocks, layer), x, num_tokens, contexts(layer)) + more
        first, every = len(added), 1 if before is None else before.every
        groups = 0 if self.run.layers == "unroll" else (end - first) // every
        if groups:
            x = self._loop(x, (first, groups), num_tokens, contexts, before)
        for layer in range(first + groups * every, self.depth):
            x = x if before is None else before(layer, x)
            read = num_tokens if layer < end or num_queries is None else num_queries
            x = body(_layer(self.blocks, layer), x, read, contexts(layer))
        return x

    def tapped(
        self,
        x: Float[Array, "f s c"],
        mask: Mask,
        positions: Int[Array, "f s *axes"],
        taps: Sequence[int],
    ) -> list[Float[Array, "f s c"]]:
        """The output of each of the layers `taps`, which ascend, and of the last."""
        contexts, outputs, first = self._contexts(mask, positions, positions, x.shape[1]), [], 0
        body = rematerialised(self.run.remat, prevent_cse=True)
        for end in (*(tap + 1 for tap in taps), self.depth):
            if self.run.layers == "scan":
                x = self._loop(x, (first, end - first), x.shape[1], contexts, None)
            else:
                for layer in range(first, end):
                    x = body(_layer(self.blocks, layer), x, x.shape[1], contexts(layer))
            outputs.append(x)
            first = end
        return outputs

    def _loop(
        self,
        x: Float[Array, "f s c"],
        part: tuple[int, int],
        num_tokens: int,
        contexts: Callable[[Any], Context],
        before: PreLayers | None,
    ) -> Float[Array, "f s c"]:
        """The layers from part[0] on, part[1] groups of them, one after the other in a loop: a
        group is one layer, or as many as there are to a module of `before`.
        """
        every, (first, groups) = 1 if before is None else before.every, part
        looped = rematerialised(self.run.remat, prevent_cse=False)
        blocks = jax.tree.map(
            lambda leaf: leaf[first : first + groups * every].reshape(
                groups, every, *leaf.shape[1:]
            ),
            self.blocks,
        )
        modules = None
        if before is not None:
            modules = jax.tree.map(lambda *parts: jnp.stack(parts), *before.modules[:groups])

        def one(x: Array, each: tuple[Any, Any, Any]) -> tuple[Array, None]:
            group, blocks, module = each
            for i in range(every):
                if before is not None and i == every - 1:
                    x = before.call(module, x)
                x = looped(_layer(blocks, i), x, num_tokens, contexts(first + group * every + i))
            return x, None

        return jax.lax.scan(one, x, (jnp.arange(groups), blocks, modules))[0]

    def decode(
        self,
        x: Float[Array, "f s c"],
        mask: Mask,
        positions: Int[Array, "f s *axes"],
        cache: Cache,
        before: PreLayers | None = None,
        added: Sequence[Float[Array, "f s c"]] = (),
        condition: Float[Array, "f c"] | None = None,
    ) -> tuple[Float[Array, "f s c"], Cache]:
        """The last block's output for tokens that follow those in the cache, and the cache with
        them. `added` as in __call__.

        mask[f, s, u] is over the cache's slots; the new tokens take those from `cache.length` on. A
        FrameMask is for the first tokens of all, into an empty cache. With `before` or `added` the
        layers are unrolled. `condition` is what adaptive norms follow.
        """
        line = positions if positions.ndim == 2 else positions[:, :, 0]  # keys are turned already
        keys = jax.lax.dynamic_update_slice(
            cache.positions, line.astype(jnp.int32), (0, cache.length)
        )
        shared = self._contexts(mask, positions, keys, keys.shape[1], cache.length)
        s, kept = x.shape[1], []

        def contexts(layer: Any) -> Context:
            return shared(layer)._replace(condition=condition)

        unrolled = self.run.layers == "unroll" or before is not None or bool(added)
        body = rematerialised(self.run.remat, unrolled, keeping=True)
        if unrolled:
            for layer in range(self.depth):
                x = x if before is None else before(layer, x)
                past = (cache.k[layer], cache.v[layer])
                x, kv = body(_layer(self.blocks, layer), x, s, contexts(layer), past)
                x = x + added[layer] if layer < len(added) else x
                kept.append(kv)
            k, v = (jnp.stack(part) for part in zip(*kept, strict=True))
        else:

            def one(x: Array, each: tuple[Any, Any, Any, Any]) -> tuple[Array, KeyValue]:
                layer, block, k, v = each
                return body(block, x, s, contexts(layer), (k, v))

            x, (k, v) = jax.lax.scan(
                one, x, (jnp.arange(self.depth), self.blocks, cache.k, cache.v)
            )
        return x, Cache(k, v, keys, cache.length + s)

    def cache(self, f: int, slots: int, dtype: jax.typing.DTypeLike) -> Cache:
        """An empty cache for `slots` tokens of f sequences."""
        return Cache.empty(
            self.depth, f, slots, (self.config.kv_heads, self.config.head_dim), dtype
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


def blocks_in_eight_bits(build: Build, kind: str) -> Build:
    """`build` with the products of the kernels of the backbone's blocks computed as `kind` says,
    one of eight_bits.KINDS; `build` itself for "". The parameters are the same.

    Raises ValueError as eight_bits.check does.
    """
    eight_bits.check(kind)
    if not kind:
        return build

    def changed(rngs: nnx.Rngs) -> nnx.Module:
        module = build(rngs)
        for path, stack in nnx.iter_modules(module):
            if path[:1] == ("backbone",) and isinstance(stack, Stack):
                for _, part in nnx.iter_modules(stack):
                    if isinstance(part, Linear):
                        part.eight_bits = kind
        return module

    return changed


def rematerialised(remat: str, prevent_cse: bool, keeping: bool = False) -> Callable[..., Any]:
    """The block's call under a remat policy: what the backward pass keeps of a layer and what it
    computes again. With `keeping` behind a cache, and with its keys and values.
    """

    def call(block: Block, x: Array, num_queries: int, context: Context, *past: KeyValue) -> Any:
        out = block(x, num_queries, context, *past)
        return out if keeping else out[0]

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
