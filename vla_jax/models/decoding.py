"""What a head sees of the tokens before its own: their keys and values; and tokens one by one
behind them.

Axes: f sequences, t window step, s tokens of a frame, u slots of the cache, c width, q tokens that
a head writes, n that it chooses from.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from vla_jax.models import sequence
from vla_jax.models.sequence import FrameTokens
from vla_jax.types import Array, Backbone, Prefix


def prefill(
    backbone: Backbone, frames: FrameTokens, t: int, room: int, behind: int = 0
) -> tuple[Float[Array, "f s c"], Prefix]:
    """Hidden states of the frames of windows of t, and their prefix with room for more tokens.

    With t = 1 every frame is a sequence of its own. The prefix ends `behind` tokens before a
    frame's end: with its last readout, where tasks have tokens that acting does not have.
    """
    frames = sequence.in_row(frames, t)
    f, slots = frames.valid.shape[0] // t, t * frames.valid.shape[1]
    x, mask = sequence.concat_frames(frames, t)
    positions = sequence.places(frames, t)
    media = sequence.media(frames, t)
    hidden, cache = backbone.decode(x, mask, positions, backbone.cache(f, slots + room), media)
    at = slots - 1 - behind  # its last token, which sees no other that is behind it
    seen = jnp.pad(mask.dense(t - 1, behind + 1)[:, 0], ((0, 0), (0, room)))
    last = None if media is None else media._replace(mask=media.mask[:, at : at + 1])
    # A word comes next, whose row and column are its time.
    newest = positions[:, at : at + 1]
    newest = newest if positions.ndim == 2 else newest[..., 0]
    return hidden, Prefix(cache, hidden[:, at], seen, newest, last)


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


def write(
    backbone: Backbone,
    prefix: Prefix,
    token_range: tuple[int, int],
    length: int,
    choose: Callable[[Float[Array, "f n"], Any], Int[Array, " f"]],
    end: int | None = None,
) -> tuple[Int[Array, "f q"], Float[Array, "f q n"]]:
    """Tokens of the ids in range(*token_range) behind a prefix, and the scores that each was chosen
    by.

    Args:
        length: q, tokens at most; the prefix has room for all but the last.
        choose: (scores, number of the token) -> ids.
        end: the id after which a sequence writes it alone. When all have written it nothing more is
            computed: the scores of later tokens are 0.
    """

    def written(now: Any) -> Any:
        number, prefix, ids, scores = now
        new = backbone.logits(prefix.hidden[:, None], token_range)[:, 0]
        chosen = choose(new, number)
        if end is not None:
            chosen = jnp.where(jnp.any(ids == end, axis=1), end, chosen)
        return number + 1, prefix, ids.at[:, number].set(chosen), scores.at[:, number].set(new)

    def goes_on(now: Any) -> Any:
        number, _, ids, _ = now
        more = number < length
        return more if end is None else more & ~jnp.all(jnp.any(ids == end, axis=1))

    def step(now: Any) -> Any:
        number, prefix, ids, scores = now
        last = jax.lax.dynamic_index_in_dim(ids, number - 1, 1, keepdims=False)
        return written((number, extend(backbone, prefix, last), ids, scores))

    f = prefix.hidden.shape[0]
    # No id of the range is -1: nothing is taken for written.
    ids = jnp.full((f, length), -1, jnp.int32)
    scores = jnp.zeros((f, length, token_range[1] - token_range[0]), jnp.float32)
    _, _, ids, scores = jax.lax.while_loop(
        goes_on, step, written((jnp.zeros((), jnp.int32), prefix, ids, scores))
    )
    return (ids if end is None else jnp.where(ids < 0, end, ids)), scores
