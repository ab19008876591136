"""What a motor sees: a log of (time, command), judged by definitions of its own. Shares no code and
no idea of time with the filter.

A command is an action by the dims of the limits: displacements (of positions, from the last one on;
of an angle that wraps the shorter way), velocities, and places of grippers. The velocity of a
displacement is it over the time since the command before it, whatever that was, and at most one
period of the limits, as a motor takes no longer for it. Acceleration and jerk are differences of
velocities over the same time. Zero motion is a stop: it may break acceleration and jerk, and motion
after it begins at rest. After a pause the motor may still move as before (it coasts) or may stand
(it had finished): a command must keep the limits from both.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from vla_jax.robot.safety.bounds import Limits

PAUSE = 1.5  # periods after which a motor that got nothing may have come to rest
CLOSE = 1 + 1e-6  # float32 on the wire


def places(limits: Limits, command: str) -> list[int]:
    """Where in an action stand the numbers of a kind."""
    return [i for i, dim in enumerate(limits.dims) if dim.command == command]


class Motor:
    """A robot that carries out whatever it is told, at once, and writes it down."""

    def __init__(self, limits: Limits, pose: np.ndarray, grippers: Any) -> None:
        """`pose` [n] of what is no gripper, `grippers` [g], each in the order of the dims."""
        grip = places(limits, "gripper")
        self.start = np.zeros(len(limits.dims))
        self.start[grip] = grippers
        self.start[[i for i in range(len(limits.dims)) if i not in grip]] = pose
        self._limits, self._at = limits, self.start.copy()
        self.times: list[float] = []
        self.commands: list[np.ndarray] = []

    def move(self, at: float, action: np.ndarray) -> None:
        """One command [d] at a true time, s."""
        action = np.asarray(action, np.float64)
        self.times.append(at)
        self.commands.append(action)
        for i, dim in enumerate(self._limits.dims):
            if dim.command == "delta":
                self._at[i] += action[i]
            elif dim.command != "velocity":
                self._at[i] = action[i]

    @property
    def pose(self) -> np.ndarray:
        """Where it is, [n]; what is commanded by velocity has no place."""
        grip = places(self._limits, "gripper")
        return np.array([self._at[i] for i in range(len(self._at)) if i not in grip])

    @property
    def holding(self) -> Any:
        """Where the gripper is; of several by name, of none None."""
        grip = places(self._limits, "gripper")
        said = {self._limits.dims[i].name: float(self._at[i]) for i in grip}
        return said if len(said) > 1 else next(iter(said.values()), None)

    @property
    def moved(self) -> int:
        """How many commands moved."""
        return int(displacements(self._limits, self).any(1).sum()) if self.commands else 0


def displacements(limits: Limits, motor: Motor) -> np.ndarray:
    """[t n]: what each command moves, of velocities they themselves."""
    sent = np.array(motor.commands)
    before = np.vstack([motor.start, sent[:-1]])
    out = []
    for i, dim in enumerate(limits.dims):
        way = sent[:, i] - before[:, i] if dim.command == "position" else sent[:, i]
        if dim.command == "position" and dim.wraps:
            way = way - 2 * np.pi * np.round(way / (2 * np.pi))
        if dim.command != "gripper":
            out.append(way)
    return np.stack(out, 1)


def violations(limits: Limits, motor: Motor) -> Counter[str]:
    """How many commands break each limit."""
    broken: Counter[str] = Counter()
    if not motor.commands:
        return broken
    period = 1 / limits.control_rate
    sent = np.array(motor.commands)
    since = np.diff(np.array(motor.times), prepend=-np.inf)
    took = np.minimum(np.maximum(since, 1e-9), period)[:, None]
    moves = displacements(limits, motor)
    moving = [dim for dim in limits.dims if dim.command != "gripper"]
    still = ~moves.any(1)
    broken["not finite"] = int((~np.isfinite(sent)).any(1).sum())
    velocity = moves / np.where([dim.command == "velocity" for dim in moving], 1.0, took)
    broken["velocity"] = _rows(velocity, limits.velocity)
    # Of each command, if the motor coasted up to it, and if it stood.
    paused = (since > PAUSE * period)[:, None]
    coasted = np.where(still[:, None], 0.0, (velocity - _before(velocity)) / took)
    stood = np.where(paused & ~still[:, None], velocity / took, coasted)
    broken["acceleration"] = _rows(np.hstack([coasted, stood]), limits.acceleration)
    jerk = [
        (coasted - _before(coasted)) / took,
        (coasted - _before(stood)) / took,
        np.where(paused, stood / took, 0.0),
    ]
    broken["jerk"] = _rows(np.hstack(jerk)[~still], limits.jerk)
    out = np.zeros((len(sent), 2), bool)
    for i, (dim, low, high) in enumerate(zip(moving, limits.low, limits.high, strict=True)):
        if dim.command != "velocity" and np.isfinite(low):
            begin = motor.start[limits.dims.index(dim)]
            place = begin + np.cumsum(moves[:, i])
            middle = (low + high) / 2
            if dim.wraps:
                place = middle + np.remainder(place - middle + np.pi, 2 * np.pi) - np.pi
            out[:, int(dim.unit == "rad")] |= (place < low - 1e-6) | (place > high + 1e-6)
    broken["box"], broken["rotation"] = out.sum(0).tolist()
    grip = places(limits, "gripper")
    grips = sent[:, grip]
    change = np.abs(np.diff(grips, axis=0, prepend=motor.start[None, grip])) / took
    fast = change > np.array(limits.gripper_rate) * CLOSE + 1e-6
    broken["gripper"] = int((fast | (grips < 0) | (grips > 1)).any(1).sum())
    return +broken


def _before(value: np.ndarray) -> np.ndarray:
    """Of the command before; nothing moved before the first."""
    return np.vstack([np.zeros(value.shape[1]), value[:-1]])


def _rows(values: np.ndarray, limit: Any) -> int:
    """Rows [n or several times n] with any number above its limit."""
    bound = np.tile(np.array(limit), values.shape[1] // len(limit))
    return int((np.abs(values) > bound * CLOSE + 1e-9).any(1).sum())
