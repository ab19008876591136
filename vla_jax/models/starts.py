"""The beginning of an episode, where a window reaches back before its first frame
(`model.history_start`):

    repeat   the head reads the first frame in the place of those that are not there
    grow     the head reads the frames that are there: one at first, then two, up to the window
             (as RoboVLMs at rollout)

Shapes stay fixed with "grow": the frames that are there move to the window's beginning, the others
behind them, where a head, being causal, does not look. A head's own positions then count from the
first frame of the episode, as in a shorter window.

Axes: b batch, t window step, k chunk step, d action dim.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from vla_jax.types import Array, HeadContext

STARTS = ("repeat", "grow")


def num_absent(present: Bool[Array, "b t"]) -> Int[Array, " b"]:
    """How many frames are not there; they are the window's first ones."""
    return jnp.sum(~present, axis=1)


def present_first(x: Array, present: Bool[Array, "b t"]) -> Array:
    """`x`[b t ...] with the frames that are there first."""
    t = present.shape[1]
    index = (jnp.arange(t)[None] + num_absent(present)[:, None]) % t
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def newest(x: Array, present: Bool[Array, "b t"]) -> Array:
    """Of what `present_first` gave, [b t ...], the last frame that is there, [b ...]."""
    last = jnp.maximum(present.shape[1] - 1 - num_absent(present), 0)
    return jnp.take_along_axis(x, last.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]


def grown(
    context: HeadContext,
    actions: Float[Array, "b t k d"],
    mask: Bool[Array, "b t k d"],
    present: Bool[Array, "b t"],
) -> tuple[HeadContext, Float[Array, "b t k d"], Bool[Array, "b t k d"]]:
    """What a head that trains on readouts is given with "grow"."""
    read, actions, mask = (present_first(x, present) for x in (context.readouts, actions, mask))
    return context._replace(readouts=read), actions, mask
