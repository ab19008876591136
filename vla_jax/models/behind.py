"""What stands behind a frame's readouts in training and is not there in acting:

    [ readouts | the head's tokens | queries of tasks | strings of tasks ]

The head's tokens and a task's string are tokens of the language model that are taught: the last
readout predicts the first of them, and each but the last, which is left out, the next. All of it is
causal, so a string stands where no query of another task reads the answer; and none is part of the
prefix that a head attends to (decoding.prefill).

Axes: b batch, t window step, f = b * t frames, n the last readouts and all parts, c width.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from vla_jax.models.sequence import MaskedTokens, concat_tokens
from vla_jax.types import Array

HEAD = "action"  # the name of the head's part; the others have their task's

Parts = Mapping[str, MaskedTokens]
Strings = Mapping[str, tuple[Int[Array, "f _"], Bool[Array, "f _"]]]  # ids, which are there


def arranged(
    embed: Callable[[Int[Array, "f _"]], Array], strings: Strings, queries: Parts
) -> dict[str, MaskedTokens]:
    """The parts in the order in which they stand. `embed` is the backbone's embed_text."""
    written = {
        name: MaskedTokens(embed(ids[:, :-1]), there[:, :-1])
        for name, (ids, there) in strings.items()
    }
    own = {name: part for name, part in written.items() if name == HEAD}
    return {**own, **queries, **{name: part for name, part in written.items() if name != HEAD}}


def joined(parts: Parts) -> MaskedTokens | None:
    """All of them in a row; None without any."""
    return concat_tokens(list(parts.values())) if parts else None


def count(parts: Parts) -> int:
    """Tokens of a frame."""
    return sum(part.tokens.shape[1] for part in parts.values())


def hidden_of(
    hidden: Float[Array, "b t n c"], readouts: int, parts: Parts, strings: Strings
) -> dict[str, Float[Array, "b t _ c"]]:
    """Hidden states at the queries of each part, and at what predicts each string; `hidden` are
    those at the last so many readouts and at all parts.
    """
    out, start = {}, readouts
    for name, part in parts.items():
        stop = start + part.tokens.shape[1]
        out[name], start = hidden[:, :, start:stop], stop
        if name in strings:
            last = hidden[:, :, readouts - 1 : readouts]
            out[name] = jnp.concatenate([last, out[name]], axis=2)
    return out
