"""Which steps and actions a window holds: arithmetic only."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from vla_jax.actions import ActionSpec

# Dims that are motion during a step: at rest they are 0. All others (gripper, joint positions) stay where they are.
MOTION = frozenset(("x", "y", "z", "roll", "pitch", "yaw"))


class Steps(NamedTuple):
    """Steps inside their episodes, for windows of t steps and chunks of k actions."""

    frames: Int64[np.ndarray, "b t"]  # the first step repeats before the beginning
    step_mask: Bool[np.ndarray, "b t"]  # False before the beginning
    actions: Int64[np.ndarray, "b t k"]  # clipped into the episode
    action_mask: Bool[np.ndarray, "b t k"]  # False outside the episode and wherever step_mask is


def steps(t: Int64[np.ndarray, " b"], length: Int64[np.ndarray, " b"], window: int, chunk: int) -> Steps:
    """The steps of windows that end at step `t` of episodes of `length` steps."""
    at = t[:, None] + np.arange(1 - window, 1)  # b t
    step_mask = at >= 0
    target = at[:, :, None] + np.arange(chunk)  # b t k
    last = length[:, None, None] - 1
    return Steps(np.maximum(at, 0), step_mask, np.clip(target, 0, last), step_mask[:, :, None] & (target <= last))


def actions(
    column: Float[np.ndarray, "n d"], first: Int64[np.ndarray, " b"], at: Steps, spec: ActionSpec
) -> Float[np.ndarray, "b t k d"]:
    """The actions of windows in the robot's units, from a dataset's column and the rows where their episodes begin.

    Outside the episode, where they are masked, stands the neutral action: no motion, everything else as it was last.
    It is neutral in the robot's units, before normalisation: there 0 is not rest unless the limits are symmetric.
    """
    out = np.array(column[first[:, None, None] + at.actions])
    motion = [i for i, name in enumerate(spec.names) if name in MOTION]
    out[..., motion] *= at.action_mask[..., None]
    return out
