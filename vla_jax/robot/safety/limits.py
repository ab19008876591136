"""What a robot may do: limits in SI units, and the reader of the YAML file that states them with
their units.

numpy and the standard library only; pyyaml is imported when a file is read. A limit that is not
wanted is written `none`: nothing is unlimited because a line was forgotten. `limits_example.yaml`
is a complete, commented file.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .cameras import CAUSES as CAMERA_CAUSES

AXES = ("x", "y", "z", "roll", "pitch", "yaw")
NAMES = (*AXES, "gripper")
# Why a step was answered by a stop; decision.py says when each occurs. "emergency" is not
# here: it latches always.
STOP_CAUSES = (
    "malformed", "not_finite", "distribution", "stale", "clock", "early", "collision", "pose",
    "no_braking_room",
)  # fmt: skip
GRIPPERS = ("hold", "open", "close")
IGNORE = "ignore"  # of a cause in cameras.latch_after: it is no stop
# A braking manoeuvre is simulated in every step, so that its length bounds the time of one; 1 s at
# 500 Hz.
MAX_BRAKING_STEPS = 500
MAX_BYTES = 1 << 16

Six = tuple[float, float, float, float, float, float]


class Bounds(NamedTuple):
    """Limits per step, [6] each: |delta|, |its change|, |change of that|, and the box."""

    velocity: np.ndarray
    change: np.ndarray
    ramp: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the actions of one robot: deltas (x y z in m, roll pitch yaw in rad) and a gripper,
    1 = open.

    Attributes:
        control_rate: steps per second (Hz). A delta d is the velocity d * control_rate.
        velocity: of each axis, m/s or rad/s; 0 locks an axis. acceleration, jerk: the same per s^2,
            s^3; inf is none.
        low, high: where the tool may be, per axis, m or rad (workspace box and rotation limits);
            -inf, inf is free.
        gripper_rate: full strokes per second; inf is none.
        stop_distance: least distance to an obstacle (m) that the caller's sensor must report; None
            without a sensor.
        max_age: of an observation, s. jitter: part of a period by which a step may come early.
        expected: per dim of NAMES the (low, high) of an action per step that the policy was trained
            on; None for all.
        gripper_at_stop: "hold", "open" or "close". latch_after: stops per cause until one latches;
            None is never.
        clean_steps: steps without a cause, at rest, before motion goes on. events: how many the log
            holds.
        cameras: of cameras.CAUSES those that are a stop, with the stops until one latches, as in
            latch_after; others are ignored. frozen_after: equal frames in a row.
    """

    control_rate: float
    velocity: Six
    acceleration: Six
    jerk: Six
    low: Six
    high: Six
    gripper_rate: float
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

    def __post_init__(self) -> None:
        _need(
            0 < self.control_rate < math.inf,
            "control_rate",
            "a positive finite rate in Hz",
            self.control_rate,
        )
        for axis in range(len(AXES)):
            self._check_axis(axis)
        _need(self.gripper_rate > 0, "gripper.rate", "more than 0, or none", self.gripper_rate)
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

    def _check_axis(self, axis: int) -> None:
        name, velocity = AXES[axis], self.velocity[axis]
        acceleration, jerk = self.acceleration[axis], self.jerk[axis]
        _need(0 <= velocity < math.inf, f"velocity.{name}", "a finite speed, 0 or more", velocity)
        _need(acceleration > 0, f"acceleration.{name}", "more than 0, or none", acceleration)
        _need(jerk > 0, f"jerk.{name}", "more than 0, or none", jerk)
        low, high = ends = self.low[axis], self.high[axis]
        _need(low < high, f"range of {name}", "[low, high] with low < high", ends)
        bounded = math.isfinite(low) and math.isfinite(high)
        free = ends == (-math.inf, math.inf)
        _need(free or bounded, f"range of {name}", "two finite ends, or none", ends)
        angle = axis >= 3
        _need(
            not (angle and bounded) or high - low < 2 * math.pi,
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
            self.gripper_at_stop in GRIPPERS,
            "stop.gripper",
            " | ".join(GRIPPERS),
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

    @functools.cached_property
    def patience(self) -> Mapping[str, int | None]:
        """Stops of each cause until one latches; None is never."""
        return {**self.latch_after, **self.cameras}

    @functools.cached_property
    def per_step(self) -> Bounds:
        """In robot units. What an axis cannot exceed anyway replaces infinity."""
        rate = self.control_rate
        velocity = np.array(self.velocity) / rate
        change = np.minimum(np.array(self.acceleration) / rate**2, 2 * velocity)
        ramp = np.minimum(np.array(self.jerk) / rate**3, 2 * change)
        return Bounds(velocity, change, ramp, np.array(self.low), np.array(self.high))

    @functools.cached_property
    def digest(self) -> str:
        """The same for the same limits: by it a server and a robot know that theirs are."""
        body = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()

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

    def _check_expected(self) -> None:
        if self.expected is None:
            return
        _need(
            len(self.expected) == len(NAMES),
            "distribution",
            f"a range for {', '.join(NAMES)}",
            self.expected,
        )
        for i, name in enumerate(NAMES):
            low, high = self.expected[i]
            # A range without 0 would refuse to stand still.
            _need(
                low <= high and (i == 6 or low <= 0 <= high),
                f"distribution.{name}",
                "[low, high] around 0",
                (low, high),
            )


def load(path: Path | str) -> Limits:
    """The limits of a YAML file. Raises ValueError naming the file, the key, what was expected and
    what was got.
    """
    import yaml  # only here: limits built in code need no YAML

    class Strict(yaml.SafeLoader):
        """YAML lets a second key of the same name win in silence; in a file of limits it is a
        mistake.
        """

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(
                    f"{path}: the key {key!r} stands there twice, near line"
                    f" {node.start_mark.line + 1}"
                )
        return dict(loader.construct_pairs(node, deep=True))

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    data = Path(path).read_bytes()
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: expected at most {MAX_BYTES} bytes of limits, got {len(data)}")
    try:
        body = yaml.load(data.decode("utf-8"), Strict)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a YAML file, got {error}") from error
    return parse(body, str(path))


def parse(body: Any, where: str = "limits") -> Limits:
    """The limits of a parsed file. `where` begins every message. Raises ValueError as
    `load` does.
    """
    top = _keys(body, where, (
        "version", "control_rate", "velocity", "acceleration", "jerk", "workspace", "rotation",
        "gripper", "collision",
        "cameras", "watchdog", "distribution", "stop", "log",
    ))  # fmt: skip
    _need(
        top["version"] == 1 and not isinstance(top["version"], bool),
        f"{where}: version",
        1,
        top["version"],
    )
    watchdog = _keys(top["watchdog"], f"{where}: watchdog", ("max_age", "jitter"))
    stop = _keys(top["stop"], f"{where}: stop", ("gripper", "clean_steps", "latch_after"))
    latch = _keys(stop["latch_after"], f"{where}: stop.latch_after", STOP_CAUSES)
    cameras = _keys(top["cameras"], f"{where}: cameras", ("frozen_after", "latch_after"))
    seen = _keys(cameras["latch_after"], f"{where}: cameras.latch_after", CAMERA_CAUSES)
    box = {
        **_ranges(top["workspace"], f"{where}: workspace", AXES[:3], "m"),
        **_ranges(top["rotation"], f"{where}: rotation", AXES[3:], "rad"),
    }
    gripper = _keys(top["gripper"], f"{where}: gripper", ("rate",))["rate"]
    collision = _keys(top["collision"], f"{where}: collision", ("stop_distance",))["stop_distance"]
    try:
        return Limits(
            control_rate=_number(top["control_rate"], f"{where}: control_rate", "Hz"),
            velocity=_six(top["velocity"], f"{where}: velocity", "/s", optional=False),
            acceleration=_six(top["acceleration"], f"{where}: acceleration", "/s^2", optional=True),
            jerk=_six(top["jerk"], f"{where}: jerk", "/s^3", optional=True),
            low=_per_axis(lambda axis: box[axis][0]),
            high=_per_axis(lambda axis: box[axis][1]),
            gripper_rate=_optional(gripper, f"{where}: gripper.rate", "1/s"),
            stop_distance=None if collision == "none" else _number(collision,
            f"{where}: collision.stop_distance", "m"),
            max_age=_number(watchdog["max_age"], f"{where}: watchdog.max_age", "s"),
            jitter=_number(watchdog["jitter"], f"{where}: watchdog.jitter", "period"),
            expected=_expected(top["distribution"], f"{where}: distribution"),
            gripper_at_stop=stop["gripper"],
            latch_after={
                cause: _steps(value, f"{where}: stop.latch_after.{cause}")
                for cause, value in latch.items()
            },
            clean_steps=_count(stop["clean_steps"], f"{where}: stop.clean_steps", "steps"),
            events=_count(_keys(top["log"], f"{where}: log", ("events",))["events"],
            f"{where}: log.events", "events"),
            cameras={
                cause: _steps(value, f"{where}: cameras.latch_after.{cause}")
                for cause, value in seen.items() if value != IGNORE
            },
            frozen_after=_count(cameras["frozen_after"], f"{where}: cameras.frozen_after",
            "frames"),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(
            str(error) if str(error).startswith(where) else f"{where}: {error}"
        ) from None


def _need(good: bool, where: str, expected: object, got: object) -> None:
    if not good:
        raise ValueError(f"{where}: expected {expected}, got {got!r}; correct the limits")


def _keys(body: Any, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    """`body`, a mapping with exactly these keys."""
    if not isinstance(body, dict):
        raise ValueError(
            f"{where}: expected a mapping with {', '.join(names)}, got {body!r}; see"
            " limits_example.yaml"
        )
    unknown = [str(key) for key in body if key not in names]
    missing = [name for name in names if name not in body]
    if unknown or missing:
        raise ValueError(
            f"{where}: expected the keys {', '.join(names)}; unknown:"
            f" {', '.join(unknown) or 'no key'}; missing: {', '.join(missing) or 'no key'}. Write"
            " `none` for a limit that you do not want"
        )
    return body


def _number(value: Any, where: str, unit: str) -> float:
    """The number of "0.25 m/s", which must be in exactly this unit, finite and not negative."""
    number = _signed(value, where, unit)
    if number < 0:
        raise ValueError(
            f"{where}: expected 0 {unit} or more, got {value!r}; limits are magnitudes"
        )
    return number


def _signed(value: Any, where: str, unit: str) -> float:
    words = value.split() if isinstance(value, str) else []
    if len(words) != 2 or words[1] != unit:
        hint = (
            "; 1 deg is 0.0174533 rad"
            if "rad" in unit
            else "; 1 mm is 0.001 m"
            if unit.startswith("m")
            else ""
        )
        raise ValueError(
            f"{where}: expected a number and its unit, such as 0.5 {unit}, got {value!r}{hint}"
        )
    try:
        number = float(words[0])
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in words[0]:
        raise ValueError(
            f"{where}: expected a finite number of {unit}, got {value!r}; write `none` for no limit"
        )
    return number


def _optional(value: Any, where: str, unit: str) -> float:
    return math.inf if value == "none" else _number(value, where, unit)


def _steps(value: Any, where: str) -> int | None:
    return None if value == "none" else _count(value, where, "steps")


def _count(value: Any, where: str, unit: str) -> int:
    number = _number(value, where, unit)
    if number != int(number):
        raise ValueError(f"{where}: expected a whole number of {unit}, got {value!r}; round it")
    return int(number)


def _per_axis(value: Callable[[str], float]) -> Six:
    x, y, z, roll, pitch, yaw = (value(axis) for axis in AXES)
    return x, y, z, roll, pitch, yaw


def _six(body: Any, where: str, per: str, optional: bool) -> Six:
    """A limit of each axis, in m or rad `per` time; `none` is inf where it is allowed."""
    values, read = _keys(body, where, AXES), _optional if optional else _number
    return _per_axis(
        lambda axis: read(
            values[axis], f"{where}.{axis}", ("m" if axis in AXES[:3] else "rad") + per
        )
    )


def _ranges(
    body: Any, where: str, axes: tuple[str, ...], unit: str
) -> dict[str, tuple[float, float]]:
    """[low, high] of each axis; `none` is free."""
    values = _keys(body, where, axes)
    return {axis: _range(values[axis], f"{where}.{axis}", unit) for axis in axes}


def _range(value: Any, where: str, unit: str) -> tuple[float, float]:
    if value == "none":
        return -math.inf, math.inf
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(
            f"{where}: expected [low {unit}, high {unit}] or none, got {value!r}; see"
            " limits_example.yaml"
        )
    return _signed(value[0], where, unit), _signed(value[1], where, unit)


def _expected(body: Any, where: str) -> tuple[tuple[float, float], ...] | None:
    if body == "none":
        return None
    values = _keys(body, where, NAMES)
    units = (*("m/step",) * 3, *("rad/step",) * 3, "open")
    return tuple(_range(values[name], f"{where}.{name}", units[i]) for i, name in enumerate(NAMES))
