"""Which window comes when, and what is in it: index arithmetic, no files.

Axes: b windows, t window step, k chunk step.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Window(NamedTuple):
    """Positions within the episode; what lies outside is clipped into it and masked."""

    frames: Int[np.ndarray, "b t"]
    step_mask: Bool[np.ndarray, "b t"]
    actions: Int[np.ndarray, "b t k"]
    action_mask: Bool[np.ndarray, "b t k"]


def order(lengths: Int[np.ndarray, " episodes"], seed: int, epoch: int, pool: int) -> Int[np.ndarray, " windows"]:
    """The order of all windows in one epoch: a pure function of its arguments, each window once.

    Windows are numbered through the episodes, one per frame. Episodes are shuffled; a window's key is its episode's rank plus
    a random number below `pool`, so at any time windows come from about `pool` neighbouring episodes, whose frames are decoded
    once. A pool of all episodes or more is a full shuffle.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    episode = np.repeat(np.arange(len(lengths)), lengths)
    jitter = rng.random(len(episode))
    if pool >= len(lengths):
        return np.argsort(jitter, kind="stable")
    rank = rng.permutation(len(lengths))
    return np.argsort(rank[episode] + jitter * pool, kind="stable")


def window(
    newest: Int[np.ndarray, " b"], lengths: Int[np.ndarray, " b"], window: int, chunk: int
) -> Window:
    """The windows that end at frame `newest` of episodes with `lengths` frames.

    Step t is frame newest - window + 1 + t; before the episode it repeats frame 0 and is masked. Action (t, k) is the one taken at
    that frame + k, the current one included; it is masked past the end, and wherever its step is.
    """
    steps = newest[:, None] - window + 1 + np.arange(window)[None]  # b t
    step_mask = steps >= 0
    actions = steps[:, :, None] + np.arange(chunk)[None, None]  # b t k
    inside = actions < lengths[:, None, None]
    return Window(
        frames=np.maximum(steps, 0),
        step_mask=step_mask,
        actions=np.clip(actions, 0, lengths[:, None, None] - 1),
        action_mask=inside & step_mask[:, :, None],
    )
