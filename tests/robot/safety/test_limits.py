"""The file of limits: the example is complete, units are checked, and mistakes are named with where
they are.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.robot.safety.limits_of_tests import make_limits
from vla_jax.robot.safety import limits
from vla_jax.robot.safety.filter import Reading, SafetyFilter
from vla_jax.robot.safety.limits import STOP_CAUSES, load, parse

EXAMPLE = Path(limits.__file__).with_name("limits_example.yaml")


def body() -> dict[str, Any]:
    return yaml.safe_load(EXAMPLE.read_text())


def test_the_example_in_numbers() -> None:
    got = load(EXAMPLE)
    assert got.control_rate == 5
    assert got.velocity == (0.15, 0.15, 0.15, 0.5, 0.5, 0.5)
    assert got.acceleration == (0.5, 0.5, 0.5, 2, 2, 2)
    assert got.jerk == (5, 5, 5, 20, 20, 20)
    assert got.low == (0.2, -0.3, 0.02, -0.8, -0.8, -math.inf)
    assert got.high == (0.6, 0.3, 0.5, 0.8, 0.8, math.inf)
    assert (got.gripper_rate, got.stop_distance, got.max_age, got.jitter) == (2, None, 0.5, 0.5)
    assert got.expected is not None
    assert got.expected[6] == (-0.1, 1.1)
    assert got.gripper_at_stop == "hold"
    assert got.latch_after["stale"] == 10
    assert (got.clean_steps, got.events) == (3, 1000)
    assert got.cameras == {"frozen": 1, "blank": 3, "swapped": 3, "unlike": 10}
    assert got.frozen_after == 10


def test_a_cause_of_cameras_may_be_ignored() -> None:
    some = body()
    some["cameras"]["latch_after"] |= {"frozen": "ignore", "unlike": "none"}
    assert parse(some).cameras == {"blank": 3, "swapped": 3, "unlike": None}


def test_the_example_drives_a_robot() -> None:
    now = [9.0]
    safety = SafetyFilter(load(EXAMPLE), gripper=1.0, clock=lambda: now[0])
    safety.reset("test", pose=np.array([0.4, 0, 0.2, 0, 0, 0]))
    safety.rest()
    now[0] = 9.2
    np.testing.assert_array_equal(
        safety.step([0.01, 0, 0, 0, 0, 0, 1], Reading(9.1)), [0.01, 0, 0, 0, 0, 0, 1]
    )


WRONG = [
    ("velocity.x", 0.15, "velocity.x: expected a number and its unit, such as 0.5 m/s, got 0.15"),
    ("velocity.x", "15 cm/s", "such as 0.5 m/s, got '15 cm/s'"),
    ("velocity.roll", "30 deg/s", "1 deg is 0.0174533 rad"),
    ("velocity.x", "0.15 m", "such as 0.5 m/s"),
    ("velocity.x", "-0.15 m/s", "expected 0 m/s or more, got '-0.15 m/s'"),
    ("velocity.x", "none", "velocity.x: expected a number"),
    ("velocity.x", "nan m/s", "expected a finite number of m/s"),
    ("velocity.x", "inf m/s", "write `none` for no limit"),
    ("velocity.x", "1_0 m/s", "expected a finite number"),
    ("velocity.speed", "1 m/s", "unknown: speed"),
    ("acceleration.x", "0 m/s^2", "acceleration.x: expected more than 0, or none"),
    ("acceleration.x", "0.001 m/s^2", "x: expected a stop from full speed within 500 steps"),
    ("jerk.yaw", "5 m/s^3", "such as 0.5 rad/s^3"),
    ("workspace.x", ["0.6 m", "0.2 m"], "range of x: expected .low, high. with low < high"),
    ("workspace.x", ["0.2 m"], "expected .low m, high m. or none"),
    ("workspace.x", ["0.2 m", "0.6 rad"], "such as 0.5 m, got '0.6 rad'"),
    ("rotation.roll", ["-4 rad", "4 rad"], "rotation.roll: expected less than a turn"),
    ("control_rate", "0 Hz", "control_rate: expected a positive finite rate"),
    ("gripper.rate", "0 1/s", "gripper.rate: expected more than 0"),
    ("collision.stop_distance", "-0.1 m", "expected 0 m or more"),
    ("watchdog.max_age", "0 s", "watchdog.max_age: expected a positive"),
    ("watchdog.jitter", "1 period", "from 0 to less than 1"),
    ("distribution.x", ["0.1 m/step", "0.2 m/step"], 
     "distribution.x: expected .low, high. around 0"),
    ("stop.gripper", "drop", "stop.gripper: expected hold | open | close, got 'drop'"),
    ("stop.clean_steps", "1.5 steps", "expected a whole number of steps"),
    ("stop.latch_after.stale", "0 steps", "expected 1 step or more, or none"),
    ("stop.latch_after.fire", "1 steps", "unknown: fire"),
    ("cameras.frozen_after", "1 frames", "frozen_after: expected 2 frames or more"),
    ("cameras.latch_after.blank", "0 steps", "cameras.latch_after.blank: expected 1 step or more"),
    ("cameras.latch_after.dark", "1 steps", "unknown: dark"),
    ("log.events", "0 events", "1 to 1000000 events"),
    ("version", 2, "version: expected 1, got 2"),
    ("version", True, "version: expected 1, got True"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_mistakes_are_named(key: str, value: Any, message: str) -> None:
    wrong = body()
    *path, last = key.split(".")
    place = wrong
    for step in path:
        place = place[step]
    place[last] = value
    with pytest.raises(ValueError, match=message.replace("|", r"\|").replace("^", r"\^")) as error:
        parse(wrong, "arm.yaml")
    assert str(error.value).startswith("arm.yaml: ")


def leaves(place: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(place, dict):
        return []
    return [
        path_
        for key, value in place.items()
        for path_ in [(*path, key), *leaves(value, (*path, key))]
    ]


def test_no_key_has_a_silent_default() -> None:
    for path in leaves(body()):
        lacking = body()
        place = lacking
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]
        with pytest.raises(ValueError, match=f"missing: {re.escape(path[-1])}"):
            parse(lacking)


def test_what_may_be_none() -> None:
    free = body()
    for section in ("acceleration", "jerk", "workspace", "rotation"):
        free[section] = dict.fromkeys(free[section], "none")
    free["gripper"]["rate"] = free["distribution"] = "none"
    free["stop"]["latch_after"] = dict.fromkeys(STOP_CAUSES, "none")
    got = parse(free)
    assert got.acceleration == got.jerk == got.high == (math.inf,) * 6
    assert got.expected is None
    assert set(got.latch_after.values()) == {None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "the key 'a' stands there twice"),
        ("{", "expected a YAML file"),
        ("- 1\n", "expected a mapping with version"),
        ("!!python/object/apply:os.getcwd []", "expected a YAML file"),
        ("#" * 70_000, "at most 65536 bytes"),
        ("a: \xff", "expected"),
        ("[" * 600, "expected a YAML file"),
    ],
)
def test_bad_files_are_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"limits.yaml: .*{message}"):
        load(tmp_path / "limits.yaml")


def test_limits_made_in_code_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"velocity\.y: expected a finite speed"):
        make_limits(velocity=(1.0, math.nan, 1.0, 1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="range of x: expected two finite ends"):
        make_limits(low=(-math.inf, 0.0, 0.0, 0.0, 0.0, 0.0), high=(1.0,) * 6)
    with pytest.raises(ValueError, match=r"stop\.latch_after"):
        make_limits(latch_after={"stale": 1})
