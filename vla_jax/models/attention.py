"""Attention itself: who may look at whom, the softmax, positions, and the keys and values kept
between calls.

Axes: f sequences, s tokens (queries), r the last of them, u tokens (keys), h heads, j key/value
heads, g = h / j queries per key/value head, e head dim, c width, x layers. Softmax and angles are
float32. Attention is one product per sequence and key/value head, with the grouped heads folded
into the query axis: XLA's CPU backend runs it 20-30% faster than the 5-D form, and other backends
do not care. Sequences and heads stay two axes: devices split both, and one axis of both could not
be split so.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from vla_jax.types import Array

EVERYWHERE = 2**30  # a window that limits nothing


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("valid", "order", "shared", "window"),
    meta_fields=("frame",),
)
@dataclasses.dataclass(frozen=True)
class FrameMask:
    """The mask of many frames in one sequence: three numbers a token, where a dense mask has one
    bit a pair of tokens.

    A sequence is `u / frame` frames of `frame` tokens each. A query sees a valid key of its own
    frame whose order is not above its own, and a valid, shared key of an earlier frame; and itself.
    Attention runs frame by frame over the keys up to that frame's end (`attend_frames`): half the
    work of a dense mask and a small part of its memory.
    """

    valid: Bool[Array, "f u"]
    order: Int[Array, "f u"]  # within its frame
    shared: Bool[Array, "f u"]  # False: later frames do not see it
    frame: int
    window: Int[Array, ""] | None = None  # tokens a query looks back at most, see `local_mask`

    def dense(self, number: int, num_queries: int) -> Bool[Array, "f r u"]:
        """Of the last `num_queries` tokens of frame `number`, over the keys up to its end."""
        end = (number + 1) * self.frame
        key, query = np.arange(end), np.arange(end - num_queries, end)
        same = (key >= end - self.frame)[None, None]
        order_q, order_k = self.order[:, end - num_queries : end, None], self.order[:, None, :end]
        seen = (
            jnp.where(same, order_k <= order_q, self.shared[:, None, :end])
            & self.valid[:, None, :end]
        )
        if self.window is not None:
            mutual = same & (order_q <= order_k) & (order_k <= order_q)
            seen = seen & (mutual | ((query[:, None] - key[None, :])[None] < self.window))
        return seen | (query[:, None] == key[None, :])[None]


Mask = Bool[Array, "f s u"] | FrameMask


class Cache(NamedTuple):
    """Keys and values of the tokens so far, for decoding a few tokens at a time. Slots from
    `length` on are free.
    """

    k: Float[Array, "x f u j e"]
    v: Float[Array, "x f u j e"]
    positions: Int[Array, "f u"]
    length: Int[Array, ""]

    @classmethod
    def empty(
        cls, layers: int, f: int, slots: int, heads: tuple[int, int], dtype: jax.typing.DTypeLike
    ) -> "Cache":
        """Room for `slots` tokens of f sequences; `heads` are the key/value heads and their dim."""
        blank = jnp.zeros((layers, f, slots, *heads), dtype)
        return cls(blank, blank, jnp.zeros((f, slots), jnp.int32), jnp.zeros((), jnp.int32))


class Context(NamedTuple):
    """What a layer must know of the sequence besides its tokens."""

    mask: Mask  # of the queries; with a dense mask those are the last r tokens
    positions: Int[Array, "f s *axes"]  # of the tokens given
    keys: Int[Array, "f u"]  # positions of all keys: those of a cache too
    length: Int[Array, ""] | None = None  # tokens in the cache; None without one
    condition: Float[Array, "f c"] | None = None  # what adaptive norms follow


def take_last_queries(
    x: Shaped[Array, "f s *c"], num_queries: int, mask: Mask
) -> Shaped[Array, "f r *c"]:
    """The last `num_queries` tokens: of the sequence, or of each frame under a FrameMask."""
    if not isinstance(mask, FrameMask):
        return x[:, x.shape[1] - num_queries :]
    f, s = x.shape[:2]
    framed = x.reshape(f, s // mask.frame, mask.frame, *x.shape[2:])[
        :, :, mask.frame - num_queries :
    ]
    return framed.reshape(f, -1, *x.shape[2:])


def attend(
    q: Float[Array, "f s h e"],
    k: Float[Array, "f u j e"],
    v: Float[Array, "f u j e"],
    mask: Bool[Array, "f s u"],
    softcap: float = 0.0,
    bias: Float[Array, "f h u"] | None = None,
) -> Float[Array, "f s h e"]:
    """softmax(q k + bias) v with j key/value heads, each shared by h / j query heads."""
    (f, s, h, e), (u, j) = q.shape, k.shape[1:3]
    g = h // j
    q = q.reshape(f, s, j, g, e).transpose(0, 2, 3, 1, 4).reshape(f, j, g * s, e)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))  # f j u e
    scores = jax.lax.dot_general(
        q, k, (((3,), (3,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores.reshape(f, j, g, s, u)
    if bias is not None:
        scores = scores + bias.reshape(f, j, g, 1, u)
    # The lowest finite number, not -inf: a row without any key stays finite, and nothing reads it.
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(f, j, g * s, u)
    out = jax.lax.dot_general(weights, v, (((3,), (2,)), ((0, 1), (0, 1))))
    return out.reshape(f, j, g, s, e).transpose(0, 3, 1, 2, 4).reshape(f, s, h, e)


def attend_frames(
    q: Float[Array, "f r h e"],
    k: Float[Array, "f u j e"],
    v: Float[Array, "f u j e"],
    mask: FrameMask,
    softcap: float = 0.0,
    bias: Float[Array, "f h u"] | None = None,
) -> Float[Array, "f r h e"]:
    """`attend` under a FrameMask; q holds the last r / frames tokens of each frame. Keys later than
    a frame are not touched, and the backward pass computes each frame's weights again, so one
    frame's are in memory at a time.
    """
    frames = k.shape[1] // mask.frame
    num_queries = q.shape[1] // frames

    @partial(jax.checkpoint, static_argnums=(4,))
    def attend_frame(
        q: Array, k: Array, v: Array, bias: Array | None, number: int, mask: FrameMask
    ) -> Array:
        return attend(q, k, v, mask.dense(number, num_queries), softcap, bias)

    parts = []
    for number in range(frames):
        end = (number + 1) * mask.frame
        added = None if bias is None else bias[:, :, :end]
        parts.append(
            attend_frame(
                q[:, number * num_queries : (number + 1) * num_queries],
                k[:, :end],
                v[:, :end],
                added,
                number,
                mask,
            )
        )
    return jnp.concatenate(parts, axis=1)


def local_mask(mask: Mask, window: int, tokens: int) -> Mask:
    """The mask limited to the last `window` of `tokens` tokens, except between tokens that see each
    other (the prefix).

    As in transformers' Gemma 2 under PaliGemma, where the bidirectional block is OR-ed in after the
    window.
    """
    if isinstance(mask, FrameMask):
        return dataclasses.replace(mask, window=jnp.asarray(window, jnp.int32))
    near = jnp.arange(tokens)[:, None] - jnp.arange(tokens)[None, :] < window  # s s
    mutual = mask & mask.swapaxes(1, 2)
    return mask & (near[None] | mutual)


def rope(
    x: Float[Array, "f s h e"],
    positions: Int[Array, "f s *axes"],
    theta: float,
    sections: tuple[int, ...] = (),
) -> Float[Array, "f s h e"]:
    """Rotary position embedding in the split-half layout (RoFormer, arXiv 2104.09864; the layout of
    Gemma and LLaMA), by one position a token, or by several; see `angles`.
    """
    half = x.shape[-1] // 2
    angle = angles(positions, half, theta, sections)
    cos, sin = (fn(angle)[:, :, None].astype(x.dtype) for fn in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def angles(
    positions: Int[Array, "f s *axes"], half: int, theta: float, sections: tuple[int, ...] = ()
) -> Float[Array, "f s half"]:
    """By how much each of `half` pairs of features is turned.

    One position a token turns all of them; row and column each a half of them, from the highest
    frequency down; time, row and column (M-RoPE, arXiv 2409.12191, interleaved as in Qwen3-VL)
    take turns: pair i is turned by axis i % 3 while i / 3 < sections[axis], else by time.
    """
    axes = positions.shape[2] if positions.ndim == 3 else 1
    place = positions.astype(jnp.float32)
    if axes == 2:
        each = half // 2
        frequency = theta ** -(jnp.arange(each, dtype=jnp.float32) / each)
        angle = place[..., None] * frequency[None, None, None]  # f s 2 each
        return angle.reshape(*positions.shape[:2], half)
    frequency = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    if axes == 1:
        return place.reshape(*positions.shape[:2], 1) * frequency[None, None]
    pair = np.arange(half)
    axis = np.where(pair // 3 < np.asarray(sections)[pair % 3], pair % 3, 0)
    return place[:, :, axis] * frequency[None, None]


def alibi(positions: Int[Array, "f u"], heads: int) -> Float[Array, "f h u"]:
    """Attention with linear biases (arXiv 2108.12409): slope times the key's distance from the last
    one.

    The same for every query, as in MPT: a softmax does not see a constant added to its row. Slopes
    are powers of two; when `heads` is none, those of the next power are taken, every second one
    first.
    """
    power = 2 ** int(np.ceil(np.log2(heads)))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    if power != heads:
        slopes = np.concatenate([slopes[1::2], slopes[0::2]])[:heads]
    distance = positions - jnp.max(positions, axis=1, keepdims=True)  # f u
    return jnp.asarray(slopes, jnp.float32)[None, :, None] * distance[:, None].astype(jnp.float32)


def sinusoid(positions: Int[Array, "f s"], width: int) -> Float[Array, "f s c"]:
    """[sin | cos] of the position at `width / 2` frequencies from 1 to 1e-4 (tensor2tensor's form,
    as in Kosmos-2).
    """
    half = width // 2
    frequency = jnp.exp(jnp.arange(half, dtype=jnp.float32) * -(np.log(1e4) / (half - 1)))
    angle = positions[:, :, None].astype(jnp.float32) * frequency[None, None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
