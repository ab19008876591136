"""Limits, and an oracle in SI units that shares no code with the filter."""

import math
from typing import Any

import numpy as np

from vla_jax.robot.safety.bounds import GRIPPER, STOP_CAUSES, Dim, Limits

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
        "gripper_rate": (2.0,),
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


BASE = tuple(
    Dim(name, "velocity", unit)
    for name, unit in (("linear_x", "m"), ("linear_y", "m"), ("angular_z", "rad"))
)
JOINTS = ("waist", "shoulder", "elbow", "forearm", "wrist_angle", "wrist_turn")
# Two arms of six joints, the last of which turns without an end, each with a gripper behind them.
BIMANUAL = tuple(
    dim
    for side in ("left", "right")
    for dim in (
        *(Dim(f"{side}_{joint}", "position", "rad", joint == JOINTS[-1]) for joint in JOINTS),
        Dim(f"{side}_gripper", GRIPPER),
    )
)


def base_limits(**changes: Any) -> Limits:
    """A mobile base at 10 Hz: 0.5 m/s forward, 0.2 m/s to the side, 1 rad/s."""
    free = (math.inf,) * len(BASE)
    body = {
        "velocity": (0.5, 0.2, 1.0), "acceleration": (1.0, 1.0, 4.0), "jerk": (8.0, 8.0, 30.0),
        "low": tuple(-end for end in free), "high": free, "gripper_rate": (), "dims": BASE,
    }  # fmt: skip
    return make_limits(**{**body, **changes})


def bimanual_limits(**changes: Any) -> Limits:
    """Two arms at 10 Hz: joints up to 1 rad/s within 1.5 rad of 0, but for those without an end."""
    high = (*(1.5,) * (len(JOINTS) - 1), math.inf) * 2
    n = len(high)
    body = {
        "velocity": (1.0,) * n, "acceleration": (4.0,) * n, "jerk": (30.0,) * n,
        "low": tuple(-end for end in high), "high": high, "gripper_rate": (2.0, 1.0),
        "dims": BIMANUAL,
    }  # fmt: skip
    return make_limits(**{**body, **changes})


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
        if (
            not 0 <= action[6] <= 1
            or abs(action[6] - gripper) * hz > limits.gripper_rate[0] * close
        ):
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
