"""Which steps and actions a window holds: arithmetic only."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from data_pipelines.datasets.dataset import Dataset
from vla_jax.actions import ActionSpec

# Dims that are motion during a step, unless the actions are positions: at rest they are 0. All
# others (gripper, joint positions) stay where they are.
MOTION = frozenset(("x", "y", "z", "roll", "pitch", "yaw"))


class Steps(NamedTuple):
    """Steps inside their episodes, for windows of t steps, chunks of k actions and m future
    frames.
    """

    frames: Int64[np.ndarray, "b t"]  # the first step repeats before the beginning
    step_mask: Bool[np.ndarray, "b t"]  # False before the beginning
    actions: Int64[np.ndarray, "b t k"]  # clipped into the episode
    action_mask: Bool[np.ndarray, "b t k"]  # False outside the episode and wherever step_mask is
    future: Int64[np.ndarray, "b t m"]  # clipped into the episode
    future_mask: Bool[np.ndarray, "b t m"]  # as action_mask


def motion(dataset: Dataset) -> list[int]:
    """The action dims that are motion during a step."""
    names = () if dataset.positions else dataset.action_names
    return [i for i, name in enumerate(names) if name in MOTION]


def steps(
    newest: Int64[np.ndarray, " b"],
    length: Int64[np.ndarray, " b"],
    window: int,
    chunk: int,
    offsets: tuple[int, ...] = (),
) -> Steps:
    """The steps of windows that end at step `newest` of episodes of `length` steps; `offsets`: how
    far the future is, in steps.
    """
    at = newest[:, None] + np.arange(1 - window, 1)  # b t
    step_mask = at >= 0
    last = length[:, None, None] - 1

    def inside(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.clip(target, 0, last), step_mask[:, :, None] & (target <= last)

    action, action_mask = inside(at[:, :, None] + np.arange(chunk))  # b t k
    future, future_mask = inside(at[:, :, None] + np.array(offsets, np.int64))  # b t m
    return Steps(np.maximum(at, 0), step_mask, action, action_mask, future, future_mask)


def actions(
    column: Float[np.ndarray, "N d"],
    first: Int64[np.ndarray, " b"],
    steps: Steps,
    moving: list[int],
) -> Float[np.ndarray, "b t k d"]:
    """The actions of windows in the robot's units, from a dataset's column and the rows where their
    episodes begin. `moving` is of `motion`.

    Outside the episode, where they are masked, stands the neutral action: no motion, everything
    else as it was last. It is neutral in the robot's units, before normalisation: there 0 is not
    rest unless the limits are symmetric.
    """
    out = np.array(column[first[:, None, None] + steps.actions])
    out[..., moving] *= steps.action_mask[..., None]
    return out


def past_actions(
    column: Float[np.ndarray, "N d"],
    first: Int64[np.ndarray, " b"],
    steps: Steps,
    spec: ActionSpec,
    state: Float[np.ndarray, "b t p"],
) -> tuple[Float[np.ndarray, "b t d"], Bool[np.ndarray, "b t"]]:
    """The normalised action of the step before each frame, and whether there is one: else zeros
    stand there. Relative dims are seen from the frame's own `state`, as its chunk is.
    """
    mask = steps.step_mask & (steps.frames > 0)
    rows = first[:, None] + np.maximum(steps.frames - 1, 0)
    past = spec.normalise(np.asarray(column[rows]), state)
    return np.where(mask[..., None], past, np.float32(0)), mask
