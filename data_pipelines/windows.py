"""Which steps and actions a window holds: arithmetic only."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from data_pipelines.datasets.dataset import Dataset
from vla_jax.actions import ActionSpec

MOTION = frozenset(("x", "y", "z", "roll", "pitch", "yaw", "forward", "left"))
SIDES = ("left_", "right_")  # of a robot with two arms


def motion(dataset: Dataset) -> list[int]:
    """The action dims that are motion: at rest they are 0. All others (gripper, joint positions)
    stay where they are.

    Motion are "x" to "yaw" as the 7-D convention has them, of either arm ("left_x"), unless the
    actions are positions; those of a base ("forward", "base_turn", "linear_x", "angular_z",
    "joint_1_velocity"), and all in units a second ("rad/s").
    """
    names, units = dataset.action_names, dataset.action_units
    bare = [next((n.removeprefix(s) for s in SIDES if n.startswith(s)), n) for n in names]
    moving = [
        (name in MOTION and not dataset.positions)
        or name.startswith(("base_", "linear_", "angular_"))
        or name.endswith("_velocity")
        or units.get(own, "").endswith("/s")
        for own, name in zip(names, bare, strict=True)
    ]
    return [dim for dim, moves in enumerate(moving) if moves]


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
    motion: list[int],
) -> Float[np.ndarray, "b t k d"]:
    """The actions of windows in the robot's units, from a dataset's column and the rows where their
    episodes begin; `motion` are the dims that are 0 at rest.

    Outside the episode, where they are masked, stands the neutral action: no motion, everything
    else as it was last. It is neutral in the robot's units, before normalisation: there 0 is not
    rest unless the limits are symmetric.
    """
    out = np.array(column[first[:, None, None] + steps.actions])
    out[..., motion] *= steps.action_mask[..., None]
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
