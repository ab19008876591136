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
    backbone: Backbone, frames: FrameTokens, t: int, room: int
) -> tuple[Float[Array, "f s c"], Prefix]:
    """Hidden states of the frames of windows of t, and their prefix with room for more tokens.

    With t = 1 every frame is a sequence of its own.
    """
    frames = sequence.in_row(frames, t)
    f, slots = frames.valid.shape[0] // t, t * frames.valid.shape[1]
    x, mask = sequence.concat_frames(frames, t)
    positions = sequence.places(frames, t)
    media = sequence.media(frames, t)
    hidden, cache = backbone.decode(x, mask, positions, backbone.cache(f, slots + room), media)
    seen = jnp.pad(mask.dense(t - 1, 1)[:, 0], ((0, 0), (0, room)))  # what the last token sees
    last = None if media is None else media._replace(mask=media.mask[:, -1:])
    # A word comes next, whose row and column are its time.
    newest = positions[:, -1:] if positions.ndim == 2 else positions[:, -1:, 0]
    return hidden, Prefix(cache, hidden[:, -1], seen, newest, last)


def extend(backbone: Backbone, prefix: Prefix, ids: Int[Array, " f"]) -> Prefix:
    """The prefix with one more token."""
    seen = jnp.asarray(prefix.seen).at[:, prefix.cache.length].set(True)
    position = prefix.position + 1
    token = backbone.embed_text(ids[:, None])
    hidden, cache = backbone.decode(token, seen[:, None], position, prefix.cache, prefix.media)
    return Prefix(cache, hidden[:, 0], seen, position, prefix.media)
