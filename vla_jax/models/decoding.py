"""Action tokens one by one, behind the keys and values of what comes before.

Axes: b batch, t window step, s tokens of a frame, q action tokens of a chunk, k chunk step, d
action dim, n tokens that stand for an action.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from vla_jax.models import sequence
from vla_jax.models.heads.discrete import DiscreteHead
from vla_jax.models.sequence import Sequence
from vla_jax.types import Array, Backbone


def decode_actions(
    backbone: Backbone, head: DiscreteHead, frames: Sequence, t: int, key: jax.Array
) -> Float[Array, "b k d"]:
    """The newest frame's normalised actions, given the frames of windows of t; a binary dim holds
    the probability of 1.
    """
    return head.actions(*decode_tokens(backbone, head, frames, t, key))


def decode_tokens(
    backbone: Backbone, head: DiscreteHead, frames: Sequence, t: int, key: jax.Array
) -> tuple[Int[Array, "b q"], Float[Array, "b q n"]]:
    """The newest frame's action tokens, and the scores each was chosen by. What stands before them
    is computed once.
    """
    config, s = head.config, frames.valid.shape[1]
    b, q = frames.valid.shape[0] // t, config.tokens
    x, mask = sequence.in_a_row(frames, t)
    places, media = sequence.positions(frames.valid, t, frames.private), sequence.media(frames, t)
    hidden, cache = backbone.decode(x, mask, places, backbone.cache(b, t * s + q - 1), media)
    seen = jnp.pad(
        mask.dense(t - 1, 1)[:, 0], ((0, 0), (0, q - 1))
    )  # b slots: what the last token sees
    last = None if media is None else media._replace(mask=media.mask[:, -1:])

    def step(carry: Any, i: Any) -> tuple[Any, Any]:
        logits, cache, seen = carry
        chosen = head.choose(logits, jax.random.fold_in(key, i))
        seen = seen.at[:, t * s + i].set(True)
        token = backbone.embed_text(chosen[:, None])
        hidden, cache = backbone.decode(token, seen[:, None], places[:, -1:] + 1 + i, cache, last)
        return (backbone.logits(hidden, config.rows)[:, 0], cache, seen), (chosen, logits)

    first = (backbone.logits(hidden[:, -1:], config.rows)[:, 0], cache, seen)
    (logits, _, _), (ids, scores) = jax.lax.scan(step, first, jnp.arange(q - 1))
    chosen = head.choose(logits, jax.random.fold_in(key, q - 1))
    ids, scores = (
        jnp.concatenate([x, y[None]]).swapaxes(0, 1) for x, y in ((ids, chosen), (scores, logits))
    )
    return ids, scores
