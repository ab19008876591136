"""What chunks amount to when a robot carries them out: the figures of evaluation and of replay.

An action counts as it leaves the policy for the robot, after ActionSpec.unnormalise: dims that are
constant in the training data are held in their range, binary ones are 0 or 1. It is compared with
the recorded action, in the robot's units, or for the arm error in network units: normalised, where
1 is half of a dim's range in the training data (q99) and what lies outside counts as the limit.

Relative targets are compared as positions in the robot's units, and in network units as seen from
the state where the chunk starts; angles differ by the shorter way.

Axes: n windows (a policy's newest frame each), k chunk step, d action dim, p state dim.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from data_pipelines.index import Split
from vla_jax.actions import ActionSpec
from vla_jax.robot.relative import errors

DELTA = 1.0  # of the Huber error, in network units: that of the arm loss in all our configs


class Tally:
    """Sums over windows, of which none is kept: as small after a billion as after one."""

    def __init__(self, spec: ActionSpec) -> None:
        self._spec = spec
        self._windows = self._steps = self._right = 0
        self._chunk = self._next = 0.0
        self._l1 = np.zeros(len(spec.names))

    def add(
        self,
        chunks: Float[np.ndarray, "n k d"],
        true: Float[np.ndarray, "n k d"],
        within: Bool[np.ndarray, "n k"],
        state: Float[np.ndarray, "n p"],
    ) -> None:
        """Counts chunks beside the recorded actions, both in robot units; steps that are not
        `within` the episode do not count. `state` is that of the frames, p is 0 without one.
        """
        error = arm_error(self._spec, chunks, true, state[:, None]).astype(np.float64)
        self._windows += len(chunks)
        self._steps += int(within.sum())
        self._chunk += float(error[within].sum())
        self._next += float(error[:, 0].sum())
        self._l1 += np.abs(errors(self._spec.relative, chunks[:, 0], true[:, 0])).sum(0)
        self._right += int(right(self._spec, chunks[:, 0], true[:, 0]).sum())

    def arm_loss(self) -> float:
        """Mean arm error over all planned steps that lie within their episodes."""
        return self._chunk / self._steps

    def figures(self) -> dict[str, Any]:
        """All figures, JSON-able: arm_loss of whole chunks; the others are of the next action, the
        one carried out where a robot plans at each step. `l1` is in robot units.
        """
        binary = len(self._spec.binary) * self._windows
        return {
            "windows": self._windows,
            "arm_loss": self.arm_loss(),
            "arm_error": self._next / self._windows,
            "gripper_accuracy": self._right / binary if binary else None,
            "l1": dict(zip(self._spec.names, (self._l1 / self._windows).tolist(), strict=True)),
        }


def huber(error: np.ndarray) -> np.ndarray:
    """The arm loss of training, of an error in network units."""
    size = np.abs(error)
    return np.where(size < DELTA, 0.5 * error**2, DELTA * (size - 0.5 * DELTA))


def arm(spec: ActionSpec) -> list[int]:
    """The dims that are not binary."""
    return [i for i in range(len(spec.names)) if i not in spec.binary]


def arm_error(
    spec: ActionSpec, actions: np.ndarray, true: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """[... d] in robot units, and the states [... p] of their frames -> [...]: mean Huber error of
    the arm in network units.
    """
    error = spec.normalise(actions, state) - spec.normalise(true, state)
    return huber(error)[..., arm(spec)].mean(-1)


def right(spec: ActionSpec, actions: np.ndarray, true: np.ndarray) -> np.ndarray:
    """[... d] -> [... g]: which of the binary numbers are right."""
    binary = list(spec.binary)
    return (actions > 0.5)[..., binary] == (true > 0.5)[..., binary]


def recorded(
    split: Split, rows: Int64[np.ndarray, " n"], k: int
) -> tuple[Float[np.ndarray, "n k d"], Bool[np.ndarray, "n k"]]:
    """The k actions from each of the steps `rows` of a split on, in robot units, and which of them
    lie within the episode; beyond its end stands its last.
    """
    episode = np.searchsorted(split.first, rows, side="right") - 1
    last = split.first[episode].astype(np.int64) + split.length[episode] - 1
    at = rows[:, None] + np.arange(k)
    return np.asarray(split.actions[np.minimum(at, last[:, None])]), at <= last[:, None]
