"""Stand-ins small enough for any test."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from tests.cheap_random import HASH
from vla_jax import params
from vla_jax.models.attention import Cache, FrameMask, take_last_queries
from vla_jax.types import Array, Batch, Media, Observation

# What runs longer than it compiles is compiled as users' programs are, not as conftest.py says.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


class FakeBackbone(nnx.Module):
    """One real attention layer over patches and words: masks, positions and pixels all matter.
    Meets types.Backbone.

    With `cross` it looks at images by a second attention instead, over media.
    """

    grid_positions = False

    def __init__(
        self,
        rngs: nnx.Rngs,
        width: int = 16,
        vocab: int = 32,
        patch: int = 4,
        image_size: int = 8,
        cross: bool = False,
    ) -> None:
        self.width, self.patch, self.cross_attends, self.text_scale = width, patch, cross, 2.0
        self.visual_width = 12 if cross else width
        self.tokens_per_image = (image_size // patch) ** 2

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape) * shape[0] ** -0.5)

        self.patches = normal(patch * patch * 3, self.visual_width)
        self.words = normal(vocab, width)
        self.qkv = normal(width, 3 * width)
        self.out = normal(width, width)
        self.media = normal(self.visual_width, width) if cross else None

    def embed_image(self, images: UInt8[Array, "f h w 3"]) -> Float[Array, "f v c"]:
        n, p = images.shape[0], self.patch
        side = images.shape[1] // p
        x = images.reshape(n, side, p, side, p, 3).swapaxes(2, 3).reshape(n, side * side, -1)
        return (x.astype(jnp.float32) / 127.5 - 1.0) @ self.patches[...]

    def embed_text(self, tokens: Int[Array, "f l"]) -> Float[Array, "f l c"]:
        return self.words[...][tokens] * self.text_scale

    def __call__(
        self,
        x: Float[Array, "f s c"],
        mask: Any,
        positions: Int[Array, "f s"],
        num_queries: int | None = None,
        media: Media | None = None,
    ) -> Float[Array, "f r c"]:
        allowed = mask if not isinstance(mask, FrameMask) else whole_mask(mask)
        out, _ = self._layer(x, allowed, positions, None, media)
        return out if num_queries is None else take_last_queries(out, num_queries, mask)

    def decode(
        self,
        x: Float[Array, "f s c"],
        mask: Any,
        positions: Int[Array, "f s"],
        cache: Cache,
        media: Media | None = None,
    ) -> tuple[Float[Array, "f s c"], Cache]:
        if isinstance(mask, FrameMask):
            slots = cache.k.shape[2]
            mask = jnp.pad(whole_mask(mask), ((0, 0), (0, 0), (0, slots - x.shape[1])))
        return self._layer(x, mask, positions, cache, media)

    def cache(self, f: int, slots: int) -> Cache:
        return Cache.empty(1, f, slots, (1, self.width), jnp.float32)

    def logits(
        self, hidden: Float[Array, "f s c"], token_range: tuple[int, int] | None = None
    ) -> Float[Array, "f s vocab"]:
        table = self.words[...]
        if token_range is not None:
            table = table[token_range[0] : token_range[1]]
        return hidden @ table.T

    def _layer(
        self, x: Array, mask: Array, positions: Array, cache: Cache | None, media: Media | None
    ) -> Any:
        if media is not None and self.media is not None:
            keys = media.tokens @ self.media[...]
            scores = jnp.where(
                media.mask, jnp.einsum("nqc,nkc->nqk", x, keys) * self.width**-0.5, -1e30
            )
            seen = jnp.any(media.mask, axis=-1, keepdims=True)
            x = x + jnp.where(
                seen, jnp.einsum("nqk,nkc->nqc", jax.nn.softmax(scores, axis=-1), keys), 0.0
            )
        angle = (
            positions[:, :, None] / jnp.asarray(10.0 ** np.linspace(0, 2, self.width))[None, None]
        )
        q, k, v = jnp.split((x + jnp.sin(angle)) @ self.qkv[...], 3, axis=-1)
        if cache is not None:
            at = (0, 0, cache.length, 0, 0)
            new = (
                jax.lax.dynamic_update_slice(old, y[None, :, :, None], at)
                for old, y in ((cache.k, k), (cache.v, v))
            )
            cache = Cache(*new, cache.positions, cache.length + x.shape[1])
            k, v = cache.k[0, :, :, 0], cache.v[0, :, :, 0]
        scores = jnp.where(mask, jnp.einsum("nqc,nkc->nqk", q, k) * self.width**-0.5, -jnp.inf)
        x = x + jnp.einsum("nqk,nkc->nqc", jax.nn.softmax(scores, axis=-1), v) @ self.out[...]
        return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6), cache


def whole_mask(mask: FrameMask) -> Bool[Array, "f s s"]:
    """A FrameMask as a dense one."""
    s, frame = mask.valid.shape[1], mask.frame
    parts = [
        jnp.pad(mask.dense(i, frame), ((0, 0), (0, 0), (0, s - (i + 1) * frame)))
        for i in range(s // frame)
    ]
    return jnp.concatenate(parts, axis=1)


def initialise(build: params.Build) -> tuple[nnx.GraphDef, params.Params]:
    """A module's graphdef and random parameters on one device, traced once."""
    graphdefs = []

    def made() -> params.Params:
        graphdef, flat = params.split(build(nnx.Rngs(jax.random.key(0, impl=HASH))))
        graphdefs.append(graphdef)
        return flat

    flat = jax.jit(made)()
    return graphdefs[0], flat


def jittered(build: params.Build, size: float) -> tuple[nnx.GraphDef, params.Params]:
    """`initialise` with random numbers added to all, so that no part is at a value that hides it.
    Added in numpy, which compiles nothing.
    """
    graphdef, flat = initialise(build)
    rng = np.random.default_rng(0)
    return graphdef, {
        name: jnp.asarray(np.asarray(x) + np.float32(size * rng.normal(size=x.shape)))
        for name, x in flat.items()
    }


def random_frame_mask(rng: np.random.Generator, n: int, frame: int, frames: int) -> FrameMask:
    """A mask with invalid tokens, tokens that see each other, and one at each frame's end that no
    later frame sees.
    """
    valid = rng.random((n, frame * frames)) < 0.8
    order = np.tile([*[0] * (frame - 2), 1, 2], (n, frames))
    shared = np.tile([*[True] * (frame - 1), False], (n, frames))
    return FrameMask(jnp.asarray(valid), jnp.asarray(order), jnp.asarray(shared), frame)


def dense_by_hand(mask: FrameMask, window: int | None = None) -> Bool[np.ndarray, "f u u"]:
    """What FrameMask's docstring says, one pair of tokens at a time; `window` as
    local_mask's says.
    """
    valid, order, shared = (np.asarray(x) for x in (mask.valid, mask.order, mask.shared))
    n, u = valid.shape
    dense = np.zeros((n, u, u), bool)
    for i, q, k in np.ndindex(dense.shape):
        same, earlier = q // mask.frame == k // mask.frame, k // mask.frame < q // mask.frame
        seen = valid[i, k] and ((same and order[i, k] <= order[i, q]) or (earlier and shared[i, k]))
        mutual = same and order[i, k] == order[i, q]
        far = window is not None and q - k >= window and not mutual
        dense[i, q, k] = q == k or (seen and not far)
    return dense


def make_batch(
    *,
    b: int = 2,
    t: int = 3,
    k: int = 2,
    d: int = 7,
    cameras: int = 2,
    image_size: int = 8,
    vocab: int = 32,
) -> Batch:
    """A random batch with every kind of mask: a prompt with padding, a missing camera, a late
    start, an early end.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (cameras, b, t, image_size, image_size, 3), dtype=np.uint8)
    image_mask = np.ones((b, t, cameras), bool)
    image_mask[-1, :, -1] = False
    step_mask = np.ones((b, t), bool)
    step_mask[0, : t - 1] = False
    for image in images:
        image[0, : t - 1] = image[0, t - 1]  # the padded slots repeat the first frame
    prompt_mask = np.ones((b, 5), bool)
    prompt_mask[0, 3:] = False
    action_mask = np.ones((b, t, k, d), bool)
    action_mask[-1, -1, -1] = False
    actions = rng.uniform(-1, 1, (b, t, k, d)).astype(np.float32)
    actions[..., -1] = actions[..., -1] > 0
    obs = Observation(
        images=tuple(images),
        image_mask=image_mask,
        proprio=np.zeros((b, t, 0), np.float32),
        proprio_mask=np.zeros((b, 0), bool),
        prompt=(rng.integers(1, vocab, (b, 5)) * prompt_mask).astype(np.int32),
        prompt_mask=prompt_mask,
        step_mask=step_mask,
    )
    return Batch(obs, actions, action_mask, np.zeros(b, np.int32))
