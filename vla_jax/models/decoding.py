"""What a head sees of the tokens before its own: their keys and values; and tokens one by one
behind them.

Axes: f sequences, t window step, s tokens of a frame, u slots of the cache, c width.
"""

import jax.numpy as jnp
from jaxtyping import Float, Int

from vla_jax.models import sequence
from vla_jax.models.sequence import FrameTokens
from vla_jax.types import Array, Backbone, Prefix


def prefill(
    backbone: Backbone, frames: FrameTokens, t: int, room: int, behind: int = 0
) -> tuple[Float[Array, "f s c"], Prefix]:
    """Hidden states of the frames of windows of t, and their prefix with room for more tokens.

    With t = 1 every frame is a sequence of its own. `behind` are tokens at a frame's end that are
    no part of the prefix: an auxiliary task's, which acting does not have.
    """
    frames = sequence.in_row(frames, t)
    f, slots = frames.valid.shape[0] // t, t * frames.valid.shape[1]
    x, mask = sequence.concat_frames(frames, t)
    positions = sequence.positions(frames.valid, t, frames.num_unshared)
    media = sequence.media(frames, t)
    hidden, cache = backbone.decode(x, mask, positions, backbone.cache(f, slots + room), media)
    seen = jnp.pad(mask.dense(t - 1, 1)[:, 0], ((0, 0), (0, room)))  # what the last token sees
    last = None if media is None else media._replace(mask=media.mask[:, -1:])
    prefix = Prefix(cache, hidden[:, -1 - behind], seen, positions[:, -1:], last)
    return hidden, without_last(prefix, behind)


def without_last(prefix: Prefix, count: int) -> Prefix:
    """What a token sees that stands in the place of the last `count` tokens, all of which are
    valid: their keys and values stay where they are, unseen.
    """
    slots = jnp.arange(prefix.seen.shape[1])[None]
    end = jnp.max(jnp.where(prefix.seen, slots + 1, 0), axis=1, keepdims=True)
    return prefix._replace(
        seen=prefix.seen & (slots < end - count), position=prefix.position - count
    )


def extend(backbone: Backbone, prefix: Prefix, ids: Int[Array, " f"]) -> Prefix:
    """The prefix with one more token."""
    seen = jnp.asarray(prefix.seen).at[:, prefix.cache.length].set(True)
    position = prefix.position + 1
    token = backbone.embed_text(ids[:, None])
    hidden, cache = backbone.decode(token, seen[:, None], position, prefix.cache, prefix.media)
    return Prefix(cache, hidden[:, 0], seen, position, prefix.media)
