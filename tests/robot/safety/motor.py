"""What a motor sees: a log of (time, command), judged by definitions of its own. Shares no code and
no idea of time with the filter.

A command is a displacement [6] and a gripper's place. Its velocity is the displacement over the
time since the command before it, whatever that was, and at most one period of the limits, as a
motor takes no longer for it. Acceleration and jerk are differences of that over the same time. Zero
displacement is a stop: it may break acceleration and jerk, and motion after it begins at rest.
After a pause the motor may still move as before (it coasts) or may stand (it had finished): a
command must keep the limits from both.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from vla_jax.robot.safety.limits import Limits

PAUSE = 1.5  # periods after which a motor that got nothing may have come to rest
CLOSE = 1 + 1e-6  # float32 on the wire


class Motor:
    """A robot that carries out whatever it is told, at once, and writes it down."""

    def __init__(self, pose: np.ndarray, gripper: float) -> None:
        self.start, self.gripper = np.array(pose, float), gripper
        self.pose = self.start.copy()
        self.times: list[float] = []
        self.commands: list[np.ndarray] = []

    def move(self, at: float, action: np.ndarray) -> None:
        """One command [7] at a true time, s."""
        action = np.asarray(action, np.float64)
        self.times.append(at)
        self.commands.append(action)
        self.pose = self.pose + action[:6]

    @property
    def holding(self) -> float:
        """Where the gripper is."""
        return float(self.commands[-1][6]) if self.commands else self.gripper

    @property
    def moved(self) -> int:
        """How many commands moved."""
        return sum(bool(command[:6].any()) for command in self.commands)


def violations(limits: Limits, motor: Motor) -> Counter[str]:
    """How many commands break each limit."""
    broken: Counter[str] = Counter()
    if not motor.commands:
        return broken
    period = 1 / limits.control_rate
    sent = np.array(motor.commands)
    since = np.diff(np.array(motor.times), prepend=-np.inf)
    took = np.minimum(np.maximum(since, 1e-9), period)[:, None]
    moves, grips = sent[:, :6], sent[:, 6]
    still = ~moves.any(1)
    broken["not finite"] = int((~np.isfinite(sent)).any(1).sum())
    velocity = moves / took
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
    poses = motor.start + np.cumsum(moves, 0)
    low, high = np.array(limits.low), np.array(limits.high)
    out = (poses < low - 1e-6) | (poses > high + 1e-6)
    broken["box"], broken["rotation"] = int(out[:, :3].any(1).sum()), int(out[:, 3:].any(1).sum())
    change = np.abs(np.diff(grips, prepend=motor.gripper)) / took[:, 0]
    fast = change > limits.gripper_rate * CLOSE + 1e-6
    broken["gripper"] = int((fast | (grips < 0) | (grips > 1)).sum())
    return +broken


def _before(value: np.ndarray) -> np.ndarray:
    """Of the command before; nothing moved before the first."""
    return np.vstack([np.zeros(6), value[:-1]])


def _rows(values: np.ndarray, limit: Any) -> int:
    """Rows [6 or several times 6] with any number above its limit."""
    bound = np.tile(np.array(limit), values.shape[1] // 6)
    return int((np.abs(values) > bound * CLOSE + 1e-9).any(1).sum())
