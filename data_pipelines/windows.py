"""Which window comes when, and which steps a window holds: arithmetic only.

A window is named by the flat index of its newest step in the split's concatenated steps.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64


class Steps(NamedTuple):
    """Steps inside their episodes, for windows of t steps and chunks of k actions."""

    frames: Int64[np.ndarray, "b t"]  # the first step repeats before the beginning
    step_mask: Bool[np.ndarray, "b t"]  # False before the beginning
    actions: Int64[np.ndarray, "b t k"]  # clipped into the episode
    action_mask: Bool[np.ndarray, "b t k"]  # False outside the episode and wherever step_mask is


def order(lengths: Int64[np.ndarray, " e"], seed: int, epoch: int, pool: int) -> Int64[np.ndarray, " n"]:
    """All windows of the episodes, each once, in the order of one epoch: a pure function of its arguments.

    Episodes are shuffled; then each window is delayed by up to `pool` episodes. So windows of about `pool` episodes are
    mixed at any time, and no more than those need to be decoded; with `pool` of several times the number of episodes it
    comes close to a full shuffle.
    """
    draw = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)))
    rank = draw.permutation(len(lengths))
    key = np.repeat(rank, lengths) + draw.random(int(lengths.sum())) * pool
    return np.argsort(key, kind="stable").astype(np.int64)


def steps(t: Int64[np.ndarray, " b"], length: Int64[np.ndarray, " b"], window: int, chunk: int) -> Steps:
    """The steps of windows that end at step `t` of episodes of `length` steps."""
    at = t[:, None] + np.arange(1 - window, 1)  # b t
    step_mask = at >= 0
    target = at[:, :, None] + np.arange(chunk)  # b t k
    last = length[:, None, None] - 1
    return Steps(np.maximum(at, 0), step_mask, np.clip(target, 0, last), step_mask[:, :, None] & (target <= last))
