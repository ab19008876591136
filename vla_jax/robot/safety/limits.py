"""The file of limits: YAML in which every number carries its unit, and its reader.

pyyaml is imported when a file is read, so that limits built in code need none. A limit that is not
wanted is written `none`: nothing is unlimited because a line was forgotten. `limits_example.yaml`
is a complete, commented file; beside it are those of a mobile base and of two arms. A file of
version 1 has no dims: it is of an arm's deltas, bounds.ARM.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from .bounds import ARM, COMMANDS, FREE, GRIPPER, STOP_CAUSES, UNITS, Dim, Limits
from .cameras import CAUSES as CAMERA_CAUSES

IGNORE = "ignore"  # of a cause in cameras.latch_after: it is no stop
MAX_BYTES = 1 << 16
SECTIONS = ("collision", "cameras", "watchdog", "stop", "log")  # of every version
ARM_SECTIONS = (
    "velocity", "acceleration", "jerk", "workspace", "rotation", "gripper", "distribution",
)  # fmt: skip
OPEN = "open"  # the unit of a gripper's number

# With what every caller of the reader needs.
__all__ = ["STOP_CAUSES", "Limits", "load", "parse"]


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
    version = body.get("version", 2) if isinstance(body, dict) else 2
    if isinstance(version, bool) or version not in (1, 2):
        raise ValueError(f"{where}: version: expected 1 or 2, got {version!r}; see the examples")
    sections = ARM_SECTIONS if version == 1 else ("dims",)
    top = _keys(body, where, ("version", "control_rate", *sections, *SECTIONS))
    watchdog = _keys(top["watchdog"], f"{where}: watchdog", ("max_age", "jitter"))
    stop = _keys(top["stop"], f"{where}: stop", ("gripper", "clean_steps", "latch_after"))
    latch = _keys(stop["latch_after"], f"{where}: stop.latch_after", STOP_CAUSES)
    cameras = _keys(top["cameras"], f"{where}: cameras", ("frozen_after", "latch_after"))
    seen = _keys(cameras["latch_after"], f"{where}: cameras.latch_after", CAMERA_CAUSES)
    collision = _keys(top["collision"], f"{where}: collision", ("stop_distance",))["stop_distance"]
    rows = _arm(top, where) if version == 1 else _dims(top["dims"], f"{where}: dims")
    axes = [row for row in rows if row.dim.command != GRIPPER]
    free = all(row.expected == FREE for row in rows)
    try:
        return Limits(
            control_rate=_number(top["control_rate"], f"{where}: control_rate", "Hz"),
            velocity=tuple(row.velocity for row in axes),
            acceleration=tuple(row.acceleration for row in axes),
            jerk=tuple(row.jerk for row in axes),
            low=tuple(row.ends[0] for row in axes),
            high=tuple(row.ends[1] for row in axes),
            gripper_rate=tuple(row.velocity for row in rows if row.dim.command == GRIPPER),
            stop_distance=None if collision == "none" else _number(collision,
            f"{where}: collision.stop_distance", "m"),
            max_age=_number(watchdog["max_age"], f"{where}: watchdog.max_age", "s"),
            jitter=_number(watchdog["jitter"], f"{where}: watchdog.jitter", "period"),
            expected=None if free else tuple(row.expected for row in rows),
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
            dims=tuple(row.dim for row in rows),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(
            str(error) if str(error).startswith(where) else f"{where}: {error}"
        ) from None


class _Row(NamedTuple):
    """What a file says of a dim, in the units of bounds.Limits; of a gripper its rate as
    velocity.
    """

    dim: Dim
    velocity: float
    expected: tuple[float, float]
    acceleration: float = math.inf
    jerk: float = math.inf
    ends: tuple[float, float] = FREE


def _dims(body: Any, where: str) -> list[_Row]:
    """The dims of a file of version 2."""
    if not isinstance(body, dict) or not body:
        raise ValueError(
            f"{where}: expected a mapping with each dim of an action, in its order, got {body!r};"
            " see limits_example.yaml"
        )
    return [_row(str(name), values, f"{where}.{name}") for name, values in body.items()]


def _row(name: str, body: Any, where: str) -> _Row:
    command = body.get("command") if isinstance(body, dict) else None
    if command == GRIPPER:
        values = _keys(body, where, ("command", "rate", "distribution"))
        rate = _optional(values["rate"], f"{where}.rate", "1/s")
        return _Row(
            Dim(name, GRIPPER), rate, _range(values["distribution"], f"{where}.distribution", OPEN)
        )
    if command not in COMMANDS:
        raise ValueError(
            f"{where}.command: expected {' | '.join((*COMMANDS, GRIPPER))}, got {command!r}; see"
            " limits_example.yaml"
        )
    unit = body.get("unit")
    if unit not in UNITS:
        raise ValueError(f"{where}.unit: expected {' | '.join(UNITS)}, got {unit!r}")
    placed = command != "velocity"
    place = (("range", "wraps") if unit == "rad" else ("range",)) if placed else ()
    keys = ("command", "unit", "velocity", "acceleration", "jerk", *place, "distribution")
    values = _keys(body, where, keys)
    wraps = values.get("wraps", False)
    if not isinstance(wraps, bool):
        raise ValueError(f"{where}.wraps: expected true or false, got {wraps!r}")
    per = {"delta": "/step", "velocity": "/s", "position": ""}[command]
    return _Row(
        Dim(name, command, unit, wraps),
        _number(values["velocity"], f"{where}.velocity", unit + "/s"),
        _range(values["distribution"], f"{where}.distribution", unit + per),
        _optional(values["acceleration"], f"{where}.acceleration", unit + "/s^2"),
        _optional(values["jerk"], f"{where}.jerk", unit + "/s^3"),
        _range(values["range"], f"{where}.range", unit) if placed else FREE,
    )


def _arm(top: dict[str, Any], where: str) -> list[_Row]:
    """The dims of a file of version 1, which has a section for each limit."""
    axes = [dim for dim in ARM if dim.command != GRIPPER]
    names = tuple(dim.name for dim in axes)
    limit = {
        key: _keys(top[key], f"{where}: {key}", names)
        for key in ("velocity", "acceleration", "jerk")
    }
    workspace = tuple(dim.name for dim in axes if dim.unit == "m")
    rotation = tuple(dim.name for dim in axes if dim.unit == "rad")
    box = {
        "m": _keys(top["workspace"], f"{where}: workspace", workspace),
        "rad": _keys(top["rotation"], f"{where}: rotation", rotation),
    }
    expected = top["distribution"]
    if expected == "none":
        expected = dict.fromkeys((dim.name for dim in ARM), "none")
    expected = _keys(expected, f"{where}: distribution", tuple(dim.name for dim in ARM))
    rows = []
    for dim in axes:
        name, unit = dim.name, dim.unit
        place = "workspace" if unit == "m" else "rotation"
        rows.append(
            _Row(
                dim,
                _number(limit["velocity"][name], f"{where}: velocity.{name}", unit + "/s"),
                _range(expected[name], f"{where}: distribution.{name}", unit + "/step"),
                _optional(
                    limit["acceleration"][name], f"{where}: acceleration.{name}", unit + "/s^2"
                ),
                _optional(limit["jerk"][name], f"{where}: jerk.{name}", unit + "/s^3"),
                _range(box[unit][name], f"{where}: {place}.{name}", unit),
            )
        )
    gripper = ARM[-1]
    rate = _keys(top["gripper"], f"{where}: gripper", ("rate",))["rate"]
    ends = _range(expected[gripper.name], f"{where}: distribution.{gripper.name}", OPEN)
    return [*rows, _Row(gripper, _optional(rate, f"{where}: gripper.rate", "1/s"), ends)]


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


def _range(value: Any, where: str, unit: str) -> tuple[float, float]:
    if value == "none":
        return -math.inf, math.inf
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(
            f"{where}: expected [low {unit}, high {unit}] or none, got {value!r}; see"
            " limits_example.yaml"
        )
    return _signed(value[0], where, unit), _signed(value[1], where, unit)
