"""The token sequence of a frame: what stands where, and who may look at whom. Pure functions of
embedded parts.

Layout "prefix" (ours), drawn for two cameras, a prompt of three tokens padded to four, a state
token and two readouts; v = tokens_per_image:

    tokens      [ primary 0..v | wrist 0..v | <bos> prompt \\n <pad> | state | readout readout ]
    valid         image_mask     image_mask   1     1      1  0        mask    1       1
    order         0 ................................................... 0      1       2
    positions     0 .. v-1       v .. 2v-1    2v    2v+1 2v+2 -        2v+3    2v+4    2v+5

A token sees the valid tokens whose order is not above its own: the prefix is bidirectional, the
readouts are causal and stand at the true end whatever the padding. A masked camera or pad token
takes no position and nobody looks at it.

Layout "robovlms" (for imported checkpoints; reference: base_backbone.py of RoboVLMs, its behaviour
with one row):

    tokens      [ prompt[0] | wrist 0..v | primary 0..v | prompt[1:-1] | state | readout readout ]

Causal throughout, cameras in reverse order, learned tokens scaled like words. RoboVLMs puts the
prompt's last token behind the readouts, where nothing of the same frame sees it: it is left out.

Layout "robovlms_pre" (RoboVLMs' history_type "pre", which is history "interleaved") keeps it, for
later frames see it. It stands where it is seen from, at the next frame's beginning, so that a frame
still ends with its readouts; in the first frame of a row it is not there:

    tokens      [ prompt[-1] | prompt[0] | wrist 0..v | primary 0..v | prompt[1:-1] | state |
                  readout readout ]

What `extra` holds (action tokens, queries for future frames) follows the readouts, causal. With
history "interleaved"
the frames stand in one row, and a frame sees the shared tokens of the earlier ones: all of a frame
but its extra tokens, and in layout "prefix" but its readouts too. What is not shared takes no
position from later frames, so that a rollout may leave it away. Frames before the episode began are
not valid.

Tokens of different width stand side by side with zeros behind the narrower. Where a backbone has
rows and columns in its positions (`places`), images of side r take r positions, not r * r.

Backbones that look at images by cross-attention get them as `media`, outside the sequence.

Axes: b batch, t window step, f = b * t frames, s tokens of a frame, c width, w width of visual
tokens, v visual tokens of a frame.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.models.attention import FrameMask
from vla_jax.types import Array, Media

LAYOUTS = ("prefix", "robovlms", "robovlms_pre")
FIRST_IMAGE = {"prefix": 0, "robovlms": 1, "robovlms_pre": 2}  # its token's place in a frame


class MaskedTokens(NamedTuple):
    """A run of tokens of every frame, and which of them are real."""

    tokens: Float[Array, "f p c"]
    valid: Bool[Array, "f p"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("tokens", "valid", "order", "media"),
    meta_fields=("num_unshared", "opens", "squares"),
)
@dataclass(frozen=True)
class FrameTokens:
    """The tokens of every frame. `num_unshared` counts those at its end that later frames do not
    see. `opens`: the first token belongs to the frame before, see `in_row`. `squares`: which tokens
    have a row and a column, as (the first, how many to a side); see `places`.
    """

    tokens: Float[Array, "f s c"]
    valid: Bool[Array, "f s"]
    order: Int[Array, "f s"]
    media: MaskedTokens | None
    num_unshared: int
    opens: bool = False
    squares: tuple[tuple[int, int], ...] = ()


def assemble(
    layout: str,
    cross: bool,
    cameras: list[MaskedTokens],
    words: MaskedTokens,
    before: list[MaskedTokens],
    after: tuple[MaskedTokens, MaskedTokens | None],
) -> FrameTokens:
    """The sequence of each frame.

    Args:
        layout: see LAYOUTS.
        cross: the backbone takes images as media.
        cameras: visual tokens of each camera in the config's order.
        words: the prompt, padded on the right; in layout "prefix" between its words too.
        before: what stands before the readouts (state, past action, sensors).
        after: the readouts, and what follows them.
    """
    readouts, extra = after
    media = concat_tokens(cameras if layout == "prefix" else cameras[::-1])
    images = [] if cross else [media]
    if layout == "robovlms_pre" and cross:
        raise ValueError(
            "model.layout: robovlms_pre is of backbones that have images in their sequence; this"
            " one looks at them by cross-attention: set model.layout=robovlms"
        )
    if layout == "prefix":
        prefix = [*images, words, *before]
    else:
        length = jnp.sum(words.valid, axis=1, keepdims=True)  # f 1
        first, rest = MaskedTokens(words.tokens[:, :1], words.valid[:, :1]), words.tokens[:, 1:]
        inner = words.valid[:, 1:] & (jnp.arange(1, words.valid.shape[1])[None] < length - 1)
        prefix = [first, *images, MaskedTokens(rest, inner), *before]
    if layout == "robovlms_pre":
        index = jnp.maximum(length - 1, 0)[..., None]  # f 1 1
        last = jnp.take_along_axis(words.tokens, index, axis=1)
        prefix = [MaskedTokens(last, length > 1), *prefix]
    whole = concat_tokens([*prefix, readouts] if extra is None else [*prefix, readouts, extra])
    behind = 0 if extra is None else extra.tokens.shape[1]
    causal = behind + readouts.tokens.shape[1]
    s = whole.tokens.shape[1]
    order = np.maximum(np.arange(s) - (s - causal) + 1, 0) if layout == "prefix" else np.arange(s)
    num_unshared = causal if layout == "prefix" else behind
    return FrameTokens(
        whole.tokens,
        whole.valid,
        jnp.broadcast_to(order[None], whole.valid.shape),
        media if cross else None,
        num_unshared,
        layout == "robovlms_pre",
    )


def mutual(sequence: FrameTokens, readouts: int, behind: int) -> FrameTokens:
    """The same with each frame's readouts, which `behind` tokens follow, seeing each other whatever
    their order.
    """
    s = sequence.order.shape[1]
    last = s - behind - 1
    inside = (np.arange(s) > last - readouts) & (np.arange(s) <= last)
    order = jnp.where(inside[None], sequence.order[:, last : last + 1], sequence.order)
    return dataclasses.replace(sequence, order=order)


def in_row(sequence: FrameTokens, t: int) -> FrameTokens:
    """Frames of windows of t, as they stand in a row: what opens one is there where the frame
    before is, of which the prompt's first token tells.
    """
    if not sequence.opens:
        return sequence
    there = sequence.valid[:, 1].reshape(-1, t)
    before = jnp.pad(there[:, :-1], ((0, 0), (1, 0))).reshape(-1, 1)
    valid = jnp.concatenate([sequence.valid[:, :1] & before, sequence.valid[:, 1:]], axis=1)
    return dataclasses.replace(sequence, valid=valid)


def of_text(
    layout: str, cross: bool, image: MaskedTokens, text: MaskedTokens, target: Bool[Array, "f l"]
) -> FrameTokens:
    """An image and a text of which `target` marks the tokens to be predicted: each sees only what
    comes before it.
    """
    media = image
    whole = text if cross else concat_tokens([image, text])
    pad = whole.tokens.shape[1] - text.tokens.shape[1]
    if layout != "prefix":
        order = jnp.broadcast_to(jnp.arange(whole.tokens.shape[1])[None], whole.valid.shape)
    else:
        order = jnp.pad(jnp.cumsum(target, axis=1), ((0, 0), (pad, 0)))
    return FrameTokens(whole.tokens, whole.valid, order, media if cross else None, 0)


def concat_tokens(parts: list[MaskedTokens]) -> MaskedTokens:
    """Parts one behind the other."""
    dtype, width = parts[0].tokens.dtype, max(part.tokens.shape[2] for part in parts)
    tokens = [
        jnp.pad(part.tokens.astype(dtype), ((0, 0), (0, 0), (0, width - part.tokens.shape[2])))
        for part in parts
    ]
    return MaskedTokens(
        jnp.concatenate(tokens, axis=1), jnp.concatenate([part.valid for part in parts], axis=1)
    )


def squared(frames: FrameTokens, first: int, cameras: list[MaskedTokens]) -> FrameTokens:
    """The frames with rows and columns in their places: the tokens of `cameras`, as they stand in
    the sequence from token `first` on, are squares in rows.
    """
    squares = []
    for camera in cameras:
        squares.append((first, math.isqrt(camera.tokens.shape[1])))
        first += camera.tokens.shape[1]
    return dataclasses.replace(frames, squares=tuple(squares))


def per_frame_mask(sequence: FrameTokens) -> Bool[Array, "f s s"]:
    """The mask of frames that are encoded each on its own.

    Every token sees itself, so that no softmax row of a pad token is empty: nothing reads that row,
    but NaN spreads.
    """
    allowed = sequence.order[:, None, :] <= sequence.order[:, :, None]
    return (sequence.valid[:, None, :] & allowed) | jnp.eye(sequence.valid.shape[1], dtype=bool)[
        None
    ]


def concat_frames(sequence: FrameTokens, t: int) -> tuple[Float[Array, "b n c"], FrameMask]:
    """The frames of each window as one sequence of n = t * s tokens, and its mask."""
    f, s, c = sequence.tokens.shape
    shared = jnp.broadcast_to(jnp.arange(s)[None] < s - sequence.num_unshared, (f, s))

    def flat(x: Array) -> Array:
        return x.reshape(f // t, t * s)

    mask = FrameMask(flat(sequence.valid), flat(sequence.order), flat(shared), s)
    return sequence.tokens.reshape(f // t, t * s, c), mask


def places(frames: FrameTokens, t: int = 1) -> Int[Array, "b n *axes"]:
    """`positions` of windows of t frames; with squares three of each token, time, row and column.

    These are M-RoPE's (arXiv 2409.12191): a word's three are equal; an image's tokens all have the
    time that its first word would have, and their row and column counted from it; what follows goes
    on behind the last row.
    """
    if not frames.squares:
        return positions(frames.valid, t, frames.num_unshared)
    taken = steps(frames)
    offsets = np.zeros((len(taken), 3), np.int32)
    for first, side in frames.squares:
        index = np.arange(side * side)
        place = np.stack([0 * index, index // side, index % side], axis=1)
        # What `positions` has counted at a token, itself too, is less what it begins at.
        offsets[first : first + side * side] = place + 1 - np.minimum(index + 1, side)[:, None]
    line = positions(frames.valid * taken[None], t, frames.num_unshared)
    return jnp.maximum(line[:, :, None] + np.tile(offsets, (t, 1))[None], 0)


def steps(frames: FrameTokens) -> Int[np.ndarray, " s"]:
    """How many positions each token of a frame takes if it is there: one, but of a square only as
    many of them as it has rows, the first ones.
    """
    taken = np.ones(frames.valid.shape[1], np.int32)
    for first, side in frames.squares:
        taken[first + side : first + side * side] = 0
    return taken


def positions(
    valid: Bool[Array, "f s"] | Int[Array, "f s"], t: int = 1, num_unshared: int = 0
) -> Int[Array, "b n"]:
    """The place of each token among the valid ones, over t frames in a row: masked tokens take no
    position, and the `num_unshared` ones at a frame's end none that a later frame would count from.
    """
    f, s = valid.shape
    framed = valid.reshape(f // t, t, s)
    inside = jnp.cumsum(framed, axis=2)
    counted = jnp.sum(framed[:, :, : s - num_unshared], axis=2)  # b t
    start = jnp.cumsum(counted, axis=1) - counted
    return jnp.maximum(start[:, :, None] + inside - 1, 0).reshape(f // t, t * s)


def media(sequence: FrameTokens, t: int = 1) -> Media | None:
    """The visual tokens beside the sequence, as its tokens see them: their own frame's and, in a
    row, earlier ones.
    """
    if sequence.media is None:
        return None
    tokens, valid = sequence.media
    (f, v, w), s = tokens.shape, sequence.valid.shape[1]
    b, step = f // t, np.arange(t)
    reach = (step[:, None] >= step[None, :])[
        None, :, None, :, None
    ]  # 1 t 1 t 1: the query's frame, the image's frame
    mask = jnp.broadcast_to(valid.reshape(b, 1, 1, t, v) & reach, (b, t, s, t, v))
    return Media(tokens.reshape(b, t * v, w), mask.reshape(b, t * s, t * v))
