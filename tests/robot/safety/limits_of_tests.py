"""Limits, and an oracle in SI units that shares no code with the filter."""

import math
from typing import Any

import numpy as np

from vla_jax.robot.safety.limits import STOP_CAUSES, Limits

HZ = 10.0


def make_limits(**changes: Any) -> Limits:
    """A plausible arm at 10 Hz that latches nothing and rests no step after a stop."""
    body: dict[str, Any] = {
        "control_rate": HZ,
        "velocity": (0.2, 0.2, 0.1, 1.0, 1.0, 1.0),
        "acceleration": (1.0, 1.0, 0.5, 4.0, 4.0, 4.0),
        "jerk": (8.0, 8.0, 4.0, 30.0, 30.0, 30.0),
        "low": (-0.1, -0.2, 0.0, -0.5, -0.5, -math.inf),
        "high": (0.1, 0.2, 0.3, 0.5, 0.5, math.inf),
        "gripper_rate": 2.0,
        "stop_distance": None,
        "max_age": 0.5,
        "jitter": 0.5,
        "expected": None,
        "gripper_at_stop": "hold",
        "latch_after": dict.fromkeys(STOP_CAUSES),
        "clean_steps": 0,
        "events": 1000,
        "cameras": {},
        "frozen_after": 10,
    }
    return Limits(**{**body, **changes})


def violations(limits: Limits, sent: np.ndarray, stopped: list[bool], gripper: float) -> list[str]:
    """Every limit that a run of actions [t 7] from rest breaks, by the definitions in SI units.

    A stop must be zero motion; it ends the history of velocities, so that motion after it begins at
    rest.
    """
    broken, hz, close = [], limits.control_rate, 1 + 1e-9
    before, change = np.zeros(6), np.zeros(6)
    for t, action in enumerate(sent):
        if not np.isfinite(action).all():
            broken.append(f"{t}: not finite")
        if not 0 <= action[6] <= 1 or abs(action[6] - gripper) * hz > limits.gripper_rate * close:
            broken.append(f"{t}: gripper {gripper} -> {action[6]}")
        gripper = action[6]
        velocity = action[:6] * hz
        if stopped[t]:
            if velocity.any():
                broken.append(f"{t}: motion {velocity} in a stop")
            before, change = np.zeros(6), np.zeros(6)
            continue
        acceleration = (velocity - before) * hz
        jerk = (acceleration - change) * hz
        for name, value, limit in (
            ("velocity", velocity, limits.velocity),
            ("acceleration", acceleration, limits.acceleration),
            ("jerk", jerk, limits.jerk),
        ):
            if (abs(value) > np.array(limit) * close).any():
                broken.append(f"{t}: {name} {value} above {limit}")
        before, change = velocity, acceleration
    return broken


def outside(limits: Limits, pose: np.ndarray) -> np.ndarray:
    """How far outside of the box each axis of a pose [6] is."""
    return np.maximum(0, np.maximum(np.array(limits.low) - pose, pose - np.array(limits.high)))
