"""What is carried out of one chunk after the other, where a plan takes a while to come: `delay`
control steps from the picture that it is made of.

    wait      the robot stands still meanwhile, and begins with the chunk's first action
    newest    it goes on with the chunk that it has; then it is where the new one would be, and goes
              on with that
    freeze    the same, and where both say something they are averaged (client.freeze)
    realtime  the same as newest, and the policy is told what goes on, so that its chunk begins like
              that (vla_jax/robot/realtime.py)

An episode's first chunk comes before anything moves.

Axes: k chunk step, d action dim, n steps that are left of a chunk.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines.datasets import DATASETS, Dataset
from data_pipelines.windows import motion
from vla_jax.robot.client import freeze
from vla_jax.robot.realtime import Underway

KINDS = ("wait", "newest", "freeze", "realtime")


class Chunking(NamedTuple):
    """How chunks follow each other.

    Attributes:
        kind: of KINDS.
        delay: control steps until a plan is there.
        execute: control steps from one picture to the next, those of the delay included but where
            the robot waits; 0: as many as can be.
    """

    kind: str = "wait"
    delay: int = 0
    execute: int = 0


class Following:
    """The chunks of one instruction."""

    def __init__(self, chunking: Chunking, dataset: Dataset) -> None:
        self._chunking, self._dataset = chunking, dataset
        self._left: np.ndarray | None = None  # of the last chunk, from the next picture on [n d]

    def underway(self, d: int) -> Underway | None:
        """What the policy is told of the plan that goes on; None: nothing, it is not to know."""
        if self._chunking.kind != "realtime":
            return None
        return Underway(
            np.zeros((0, d)) if self._left is None else self._left, self._chunking.delay
        )

    def next(self, chunk: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """What is carried out until the next picture [n d], of a chunk [k d] that was planned from
        the last one. `before` is the action carried out last.

        Raises ValueError where the chunk would be over before the next one is there.
        """
        kind, delay, execute = self._chunking
        if kind == "wait":
            first, self._left = self._left is None, chunk
            still = chunk[:0] if first or before is None else self._at_rest(before, delay)
            return np.concatenate([still, chunk[: execute or None]])
        k = len(chunk)
        steps = execute or k - delay
        if not max(1, delay) <= steps <= k - delay:
            raise ValueError(
                f"--delay={delay} --chunking={kind}: expected a delay of at most half a chunk of"
                f" {k} control steps, and --execute of {max(1, delay)} to {k - delay}, got"
                f" --execute={steps}: what is left of a chunk has to last until the next one is"
                " there; give a policy with longer chunks, or --chunking=wait"
            )
        left = self._left
        if left is not None and kind == "freeze":
            chunk = freeze(left, chunk, delay, self._dataset.binary)
        elif left is not None:
            chunk = np.concatenate([left[:delay], chunk[delay:]])
        self._left = chunk[steps:]
        return chunk[:steps]

    def _at_rest(self, before: np.ndarray, steps: int) -> np.ndarray:
        """Actions [n d] that leave a robot where it is: no motion, all else as it was told."""
        rest = np.array(before, np.float64)
        rest[motion(self._dataset)] = 0.0
        return np.tile(rest, (steps, 1))


def jerk(dataset: Dataset, actions: np.ndarray, control_hz: float) -> dict[str, float]:
    """How much the acceleration of what was carried out [n d] changes, by unit: the root mean
    square over steps and dims of motion, in the unit per s^3. {} of fewer than three actions.

    The rate of the data is f. A motion per step (a delta) is a velocity a f, and its second
    difference in time (a[t+1] - 2 a[t] + a[t-1]) f^3; of what is a velocity, in a unit per second,
    it is (...) f^2. Dims that are no motion, grippers and positions, are left out.
    """
    if len(actions) < 3:
        return {}
    change = np.diff(np.asarray(actions, np.float64), 2, axis=0)
    by_unit: dict[str, list[np.ndarray]] = {}
    for dim in motion(dataset):
        unit = dataset.action_units.get(dataset.action_names[dim], "")
        rate = control_hz ** (2 if unit.endswith("/s") else 3)
        by_unit.setdefault(unit.removesuffix("/s"), []).append(change[:, dim] * rate)
    return {
        f"{unit or 'unit'}/s^3": round(float(np.sqrt(np.mean(np.square(parts)))), 6)
        for unit, parts in by_unit.items()
    }


def robot_of(datasets: tuple[str, ...]) -> Dataset:
    """The data set of a world's robot."""
    return DATASETS[datasets[0]]
