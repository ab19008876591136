"""What chunks amount to when a robot carries them out: the figures of evaluation and of replay.

An action counts as it leaves the policy for the robot, after ActionSpec.unnormalise: dims that are
constant in the training data are held in their range, binary ones are 0 or 1. It is compared with
the recorded action, in the robot's units, or for the arm error in network units: normalised, where
1 is half of a dim's range in the training data (q99) and what lies outside counts as the limit.

Relative targets are compared as positions in the robot's units, and in network units as seen from
the state where the chunk starts; angles differ by the shorter way. Motions per step and speeds are
also added up over a chunk: how far off the robot is at its end (small angles as if they commuted).

Axes: n windows (a policy's newest frame each), k chunk step, d action dim, p state dim.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from data_pipelines import windows
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.names import POSE
from data_pipelines.index import Split
from data_pipelines.mixture import Member
from vla_jax.actions import ActionSpec
from vla_jax.robot.held import at_rest
from vla_jax.robot.relative import errors

DELTA = 1.0  # of the Huber error, in network units: that of the arm loss in all our configs


class Tally:
    """Sums over windows, of which none is kept: as small after a billion as after one."""

    def __init__(self, spec: ActionSpec, motion: Float[np.ndarray, " d"] | None = None) -> None:
        """`motion` is that of the dataset (see `motion`), for what errors of a chunk add up to;
        without it that is not among the figures.
        """
        self._spec, self._motion = spec, motion
        self._windows = self._whole = self._right = self._held = 0
        self._errors = self._steps = np.zeros(0)  # by chunk step
        self._l1, self._drift = np.zeros(len(spec.names)), np.zeros(len(spec.names))

    def add(
        self,
        chunks: Float[np.ndarray, "n k d"],
        true: Float[np.ndarray, "n k d"],
        within: Bool[np.ndarray, "n k"],
        state: Float[np.ndarray, "n p"],
        none: int = 0,
    ) -> None:
        """Counts chunks beside the recorded actions, both in robot units; steps that are not
        `within` the episode do not count. `state` is that of the frames, p is 0 without one. `none`
        of the chunks hold the robot, see `carried_out`.
        """
        self._held += none
        error = arm_error(self._spec, chunks, true, state[:, None]).astype(np.float64)
        if not self._windows:
            self._errors = self._steps = np.zeros(chunks.shape[1])
        self._windows += len(chunks)
        self._steps = self._steps + within.sum(0)
        self._errors = self._errors + np.where(within, error, 0.0).sum(0)
        self._l1 += np.abs(errors(self._spec.relative, chunks[:, 0], true[:, 0])).sum(0)
        self._right += int(right(self._spec, chunks[:, 0], true[:, 0]).sum())
        if self._motion is not None:
            whole = within[:, -1]
            off = errors(self._spec.relative, chunks[whole], true[whole])
            moved = np.where(self._motion, off.sum(1) * self._motion, off[:, -1])
            self._drift += np.abs(moved).sum(0)
            self._whole += int(whole.sum())

    def arm_loss(self) -> float:
        """Mean arm error over all planned steps that lie within their episodes."""
        return float(self._errors.sum() / self._steps.sum())

    def figures(self) -> dict[str, Any]:
        """All figures, JSON-able: arm_loss of whole chunks, by chunk step too; drift, in robot
        units, of where a robot is after a whole chunk; where there was any, `held`, the share of
        windows for which the policy had no chunk. The others are of the next action, the one
        carried out where a robot plans at each step; `l1` is in robot units.
        """
        binary = len(self._spec.binary) * self._windows
        body = {
            "windows": self._windows,
            "arm_loss": self.arm_loss(),
            "arm_error": float(self._errors[0] / self._windows),
            "gripper_accuracy": self._right / binary if binary else None,
            "l1": dict(zip(self._spec.names, (self._l1 / self._windows).tolist(), strict=True)),
            "arm_error_by_step": (self._errors / np.maximum(self._steps, 1)).tolist(),
        }
        if self._held:
            body["held"] = self._held / self._windows
        if self._motion is not None:
            mean = (self._drift / self._whole).tolist() if self._whole else [None] * len(self._l1)
            body["drift"] = dict(zip(self._spec.names, mean, strict=True))
        return body


def together(tallies: Sequence[Tally]) -> dict[str, float]:
    """The figures of several datasets by flat names, each window counted once: executed_arm
    and executed_at/STEP in network units; in robot units executed/DIM of the next action and
    drift/DIM after a whole chunk, of datasets where the dim varies. A drift needs a dim that is not
    binary and an episode as long as a chunk. executed_held, where there was any, is the share of
    windows without a chunk.
    """
    tallies = [tally for tally in tallies if tally._windows]
    wrong, steps = sum(each._errors for each in tallies), sum(each._steps for each in tallies)
    sums: dict[str, np.ndarray] = {}  # name -> [sum, weight]
    for tally in tallies:
        for dim, name in enumerate(tally._spec.names):
            if dim in tally._spec.constant:
                continue
            pairs = {f"executed/{name}": (tally._l1[dim], tally._windows)}
            if dim not in tally._spec.binary:
                pairs[f"drift/{name}"] = (tally._drift[dim], tally._whole)
            for key, pair in pairs.items():
                sums[key] = sums.get(key, 0) + np.array(pair)
    none, of = sum(each._held for each in tallies), sum(each._windows for each in tallies)
    return {
        "executed_arm": float(np.sum(wrong) / np.sum(steps)),
        **({"executed_held": none / of} if none else {}),
        **{f"executed_at/{step}": float(x) for step, x in enumerate(wrong / np.maximum(steps, 1))},
        **{key: float(total / weight) for key, (total, weight) in sums.items() if weight},
    }


def motion(dataset: Dataset) -> Float[np.ndarray, " d"]:
    """How far a robot gets in one step for 1 of each action dim: motions add up over a chunk,
    speeds times the length of a step. 0: a position, or nobody says.
    """
    out = np.zeros(len(dataset.action_names))
    for dim, name in enumerate(dataset.action_names):
        speed = _speed(dataset, name)
        moves = dataset.targets == "delta" or (not dataset.targets and (name in POSE or speed))
        if moves and dim not in dataset.binary:
            out[dim] = 1 / dataset.control_hz if speed and dataset.control_hz else 1.0
    return out


def drift_unit(dataset: Dataset, name: str) -> str:
    """The unit of the drift of an action dim; "" where nobody says."""
    unit = dataset.action_units.get(name, "")
    timed = _speed(dataset, name) and dataset.control_hz and not dataset.positions
    return unit.removesuffix("/s") if timed else unit


def _speed(dataset: Dataset, name: str) -> bool:
    return dataset.action_units.get(name, "").endswith("/s")


def carried_out(
    member: Member, said: Float[np.ndarray, "n k d"], rows: Int64[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n k d"], int]:
    """What a robot does with a policy's chunks, in network units and of the dataset's dims, at the
    steps `rows` of the member's split, in robot units; and how many of them are none (NaN): there
    it is held, after the recorded action.
    """
    spec, split = member.action_spec, member.index.splits[member.split]
    state, none = np.asarray(split.state[rows]), np.isnan(said).all((1, 2))
    out = np.zeros(said.shape, np.float32)
    out[~none] = spec.unnormalise(said[~none], state[~none, None])
    for i in np.flatnonzero(none):
        row = rows[i]
        before = None if row in split.first else np.asarray(split.actions[row - 1])
        moves = windows.motion(member.index.dataset)
        out[i] = at_rest(spec, moves, said.shape[1], before, state[i])
    return out, int(none.sum())


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
