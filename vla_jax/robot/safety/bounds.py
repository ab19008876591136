"""What a robot may do: the numbers of its action by name, and their limits in SI units. numpy and
the standard library only; limits.py reads them from a file.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .cameras import CAUSES as CAMERA_CAUSES

# What a number commands: a motion per step, a speed until the next command, a place.
COMMANDS = ("delta", "velocity", "position")
UNITS = ("m", "rad")
GRIPPER = "gripper"
# Why a step was answered by a stop; decision.py says when each occurs. "emergency" is not
# here: it latches always.
STOP_CAUSES = (
    "malformed", "not_finite", "distribution", "stale", "clock", "early", "collision", "pose",
    "no_braking_room",
)  # fmt: skip
AT_STOP = ("hold", "open", "close")
# A braking manoeuvre is simulated in every step, so that its length bounds the time of one; 1 s at
# 500 Hz.
MAX_BRAKING_STEPS = 500
MAX_DIMS = 64

FREE = -math.inf, math.inf  # no range


class Dim(NamedTuple):
    """What one number of an action is.

    Attributes:
        name: the policy's word for it.
        command: one of COMMANDS, or GRIPPER: 0 (closed) to 1 (open).
        unit: one of UNITS; "" of a gripper.
        wraps: whether places a turn apart are the same, as of a tool's yaw and not of a joint.
    """

    name: str
    command: str
    unit: str = ""
    wraps: bool = False


# The dims of a file of version 1.
ARM = (
    *(Dim(name, "delta", "m") for name in ("x", "y", "z")),
    *(Dim(name, "delta", "rad", wraps=True) for name in ("roll", "pitch", "yaw")),
    Dim("gripper", GRIPPER),
)


class Bounds(NamedTuple):
    """Limits per step, [n] each: |motion|, |its change|, |change of that|, and the box."""

    velocity: np.ndarray
    change: np.ndarray
    ramp: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the actions of one robot. An action has the d numbers of `dims`, g of them grippers
    and n others, the axes.

    Attributes:
        control_rate: steps per second (Hz). A delta d is the velocity d * control_rate, and so is a
            position of which the last command was d away.
        velocity: of each axis, m/s or rad/s; 0 locks an axis. acceleration, jerk: the same per s^2,
            s^3; inf is none.
        low, high: where an axis may be, m or rad (a tool's box and rotation, a joint's limits);
            -inf, inf is free. Axes that are commanded by velocity are: what theirs add up to, in
            whose frame, is not known here.
        gripper_rate: of each gripper, full strokes per second; inf is none.
        stop_distance: least distance to an obstacle (m) that the caller's sensor must report; None
            without a sensor.
        max_age: of an observation, s. jitter: part of a period by which a step may come early.
        expected: per dim the (low, high) of its number that the policy was trained on, -inf and inf
            for any; None for any of all.
        gripper_at_stop: "hold", "open" or "close". latch_after: stops per cause until one latches;
            None is never.
        clean_steps: steps without a cause, at rest, before motion goes on. events: how many the log
            holds.
        cameras: of cameras.CAUSES those that are a stop, with the stops until one latches, as in
            latch_after; others are ignored. frozen_after: equal frames in a row.
        dims: of the action, in its order.
    """

    control_rate: float
    velocity: tuple[float, ...]
    acceleration: tuple[float, ...]
    jerk: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    gripper_rate: tuple[float, ...]
    stop_distance: float | None
    max_age: float
    jitter: float
    expected: tuple[tuple[float, float], ...] | None
    gripper_at_stop: str
    latch_after: Mapping[str, int | None]
    clean_steps: int
    events: int
    cameras: Mapping[str, int | None]
    frozen_after: int
    dims: tuple[Dim, ...] = ARM

    def __post_init__(self) -> None:
        rate = self.control_rate
        _need(0 < rate < math.inf, "control_rate", "a positive finite rate in Hz", rate)
        self._check_dims()
        for axis in range(len(self.axes)):
            self._check_axis(axis)
        for name, speed in zip(self.grippers, self.gripper_rate, strict=True):
            _need(speed > 0, f"{name}.rate", "more than 0, or none", speed)
        _need(
            self.stop_distance is None or 0 <= self.stop_distance < math.inf,
            "collision.stop_distance", "a finite distance, 0 or more, or none", self.stop_distance,
        )  # fmt: skip
        _need(
            0 < self.max_age < math.inf, "watchdog.max_age", "a positive finite time", self.max_age
        )
        _need(
            0 <= self.jitter < 1,
            "watchdog.jitter",
            "a part of the period, from 0 to less than 1",
            self.jitter,
        )
        self._check_expected()
        self._check_stop()
        _need(1 <= self.events <= 1_000_000, "log.events", "1 to 1000000 events", self.events)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """[d], of the action's numbers."""
        return tuple(dim.name for dim in self.dims)

    @functools.cached_property
    def moving(self) -> tuple[Dim, ...]:
        """[n], the dims that are no grippers."""
        return tuple(dim for dim in self.dims if dim.command != GRIPPER)

    @functools.cached_property
    def axes(self) -> tuple[str, ...]:
        """[n], their names: of the numbers of a pose, and of all limits but the gripper's."""
        return tuple(dim.name for dim in self.moving)

    @functools.cached_property
    def grippers(self) -> tuple[str, ...]:
        """[g], the others' names."""
        return tuple(dim.name for dim in self.dims if dim.command == GRIPPER)

    @functools.cached_property
    def at_axes(self) -> np.ndarray:
        """[n], where the axes stand in an action."""
        return np.array([i for i, dim in enumerate(self.dims) if dim.command != GRIPPER], int)

    @functools.cached_property
    def at_grippers(self) -> np.ndarray:
        """[g], where the grippers do."""
        return np.array([i for i, dim in enumerate(self.dims) if dim.command == GRIPPER], int)

    @functools.cached_property
    def by(self) -> Mapping[str, np.ndarray]:
        """Of each of COMMANDS which axes are commanded so, bool [n]."""
        return {
            command: np.array([dim.command == command for dim in self.moving], bool)
            for command in COMMANDS
        }

    @functools.cached_property
    def patience(self) -> Mapping[str, int | None]:
        """Stops of each cause until one latches; None is never."""
        return {**self.latch_after, **self.cameras}

    @functools.cached_property
    def per_step(self) -> Bounds:
        """In m and rad a step. What an axis cannot exceed anyway replaces infinity."""
        rate = self.control_rate
        velocity = np.array(self.velocity) / rate
        change = np.minimum(np.array(self.acceleration) / rate**2, 2 * velocity)
        ramp = np.minimum(np.array(self.jerk) / rate**3, 2 * change)
        return Bounds(velocity, change, ramp, np.array(self.low), np.array(self.high))

    @functools.cached_property
    def digest(self) -> str:
        """The same for the same limits: by it a server and a robot know that theirs are."""
        body = dataclasses.asdict(self)
        if self.dims == ARM:  # as it was before dims had names: older robots send that
            del body["dims"]
            body["gripper_rate"] = self.gripper_rate[0]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Raises ValueError, which begins with `where`, for a policy whose actions are not the
        numbers that these limits are of.
        """
        if tuple(names) != self.names:
            raise ValueError(
                f"{where}: expected actions of {', '.join(self.names)}, as the limits have, got"
                f" {', '.join(names)}; write limits with the policy's dims, in their order"
            )

    def check_policy(self, policy: Any, where: str) -> None:
        """Raises ValueError, which begins with `where`, for a policy whose actions are not the
        numbers that these limits are of, or that says (`targets`) that they are positions where
        these take motions, or the other way round.
        """
        self.check_names(policy.action_spec.names, where)
        targets = getattr(policy, "targets", "")  # "": nobody said
        kinds = {"absolute": "delta", "relative": "delta", "delta": "position"}
        wrong = [dim.name for dim in self.moving if dim.command == kinds.get(targets)]
        if wrong:
            raise ValueError(
                f"{where}: expected limits of what the policy's actions are ({targets} targets,"
                f" which reach the robot as {'motions' if targets == 'delta' else 'positions'}),"
                f" got command: {kinds[targets]} of {', '.join(wrong)}; write limits for such"
                " actions"
            )

    def braking_steps(self, axis: int) -> int:
        """A bound on the steps that the jerk-limited stop of `axis` takes from any
        permitted speed.
        """
        rate = self.control_rate
        speed = self.velocity[axis] / rate
        change = min(self.acceleration[axis] / rate**2, 2 * speed)
        ramp = min(self.jerk[axis] / rate**3, 2 * change)
        if speed == 0:
            return 1
        ratios = speed / max(change, 1e-300) + 3 * change / max(ramp, 1e-300)
        return 2 * math.ceil(min(ratios, 1e9)) + 4

    def _check_dims(self) -> None:
        _need(1 <= len(self.dims) <= MAX_DIMS, "dims", f"1 to {MAX_DIMS} dims", len(self.dims))
        _need(len(set(self.names)) == len(self.dims), "dims", "names that differ", self.names)
        for name, command, unit, wraps in self.dims:
            known = (*COMMANDS, GRIPPER)
            _need(command in known, f"{name}.command", " | ".join(known), command)
            units = ("",) if command == GRIPPER else UNITS
            _need(unit in units, f"{name}.unit", " | ".join(units), unit)
            turns = unit == "rad" and command != "velocity"
            _need(turns or not wraps, f"{name}.wraps", "false, but of an angle's place", wraps)
        for field in ("velocity", "acceleration", "jerk", "low", "high", "gripper_rate"):
            names = self.grippers if field == "gripper_rate" else self.axes
            values = getattr(self, field)
            _need(len(values) == len(names), field, f"a number for {', '.join(names)}", values)

    def _check_axis(self, axis: int) -> None:
        dim, velocity = self.moving[axis], self.velocity[axis]
        name, acceleration, jerk = dim.name, self.acceleration[axis], self.jerk[axis]
        _need(0 <= velocity < math.inf, f"velocity.{name}", "a finite speed, 0 or more", velocity)
        _need(acceleration > 0, f"acceleration.{name}", "more than 0, or none", acceleration)
        _need(jerk > 0, f"jerk.{name}", "more than 0, or none", jerk)
        low, high = ends = self.low[axis], self.high[axis]
        _need(low < high, f"range of {name}", "[low, high] with low < high", ends)
        bounded = math.isfinite(low) and math.isfinite(high)
        _need(ends == FREE or bounded, f"range of {name}", "two finite ends, or none", ends)
        _need(
            ends == FREE or dim.command != "velocity",
            f"range of {name}",
            "none, since a velocity has no place here",
            ends,
        )
        _need(
            not (dim.wraps and bounded) or high - low < 2 * math.pi,
            f"rotation.{name}",
            "less than a turn",
            ends,
        )
        _need(
            self.braking_steps(axis) <= MAX_BRAKING_STEPS,
            name,
            f"a stop from full speed within {MAX_BRAKING_STEPS} steps (raise acceleration or jerk)",
            self.braking_steps(axis),
        )

    def _check_stop(self) -> None:
        _need(
            self.gripper_at_stop in AT_STOP,
            "stop.gripper",
            " | ".join(AT_STOP),
            self.gripper_at_stop,
        )
        _need(
            set(self.latch_after) == set(STOP_CAUSES),
            "stop.latch_after",
            sorted(STOP_CAUSES),
            sorted(self.latch_after),
        )
        unknown = sorted(self.cameras.keys() - set(CAMERA_CAUSES))
        _need(not unknown, "cameras", f"some of {', '.join(CAMERA_CAUSES)}", unknown)
        _need(self.frozen_after >= 2, "cameras.frozen_after", "2 frames or more", self.frozen_after)
        for cause, count in self.patience.items():
            where = "cameras.latch_after" if cause in CAMERA_CAUSES else "stop.latch_after"
            _need(count is None or count >= 1, f"{where}.{cause}", "1 step or more, or none", count)
        _need(self.clean_steps >= 0, "stop.clean_steps", "0 steps or more", self.clean_steps)

    def _check_expected(self) -> None:
        if self.expected is None:
            return
        _need(
            len(self.expected) == len(self.dims),
            "distribution",
            f"a range for {', '.join(self.names)}",
            self.expected,
        )
        for dim, (low, high) in zip(self.dims, self.expected, strict=True):
            # A range without 0 would refuse to stand still.
            rests = dim.command in (GRIPPER, "position") or low <= 0 <= high
            wanted = "[low, high]" if dim.command == "position" else "[low, high] around 0"
            _need(low <= high and rests, f"distribution.{dim.name}", wanted, (low, high))


def _need(good: bool, where: str, expected: object, got: object) -> None:
    if not good:
        raise ValueError(f"{where}: expected {expected}, got {got!r}; correct the limits")
