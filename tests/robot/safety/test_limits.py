"""The file of limits, of version 1 and 2: the examples are complete, units are checked, and
mistakes are named with where they are.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.robot.safety.limits_of_tests import base_limits, bimanual_limits, make_limits
from vla_jax.robot.safety import limits
from vla_jax.robot.safety.bounds import ARM, Dim
from vla_jax.robot.safety.filter import Reading, SafetyFilter
from vla_jax.robot.safety.limits import STOP_CAUSES, load, parse

EXAMPLE, BASE, TWO_ARMS = (
    Path(limits.__file__).with_name(f"limits_{of}example.yaml") for of in ("", "base_", "two_arms_")
)
# The example as it was when files had no dims.
VERSION_1 = Path(__file__).with_name("limits_version_1.yaml")


def body(file: Path = VERSION_1) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", [VERSION_1, EXAMPLE], ids=["version 1", "version 2"])
def test_the_example_in_numbers(file: Path) -> None:
    got = load(file)
    assert got.dims == ARM
    assert got.names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert got.control_rate == 5
    assert got.velocity == (0.15, 0.15, 0.15, 0.5, 0.5, 0.5)
    assert got.acceleration == (0.5, 0.5, 0.5, 2, 2, 2)
    assert got.jerk == (5, 5, 5, 20, 20, 20)
    assert got.low == (0.2, -0.3, 0.02, -0.8, -0.8, -math.inf)
    assert got.high == (0.6, 0.3, 0.5, 0.8, 0.8, math.inf)
    assert (got.gripper_rate, got.stop_distance, got.max_age, got.jitter) == ((2,), None, 0.5, 0.5)
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


def test_a_robot_of_before_dims_had_names_has_the_same_digest() -> None:
    """Its client sends the digest of its own filter, with the code that it was copied with."""
    before = "a5f8b25c4d5a5b7451f501bd67fa9591d7039ee934586df60fdadd028adadeb7"
    assert load(VERSION_1).digest == load(EXAMPLE).digest == before
    before = "5d1dd8c3ee152d2d535c84089ff94fc01778d06c867cc175ece8a0a855aa276d"
    assert make_limits().digest == before
    others = {base_limits().digest, bimanual_limits().digest, before}
    assert len(others) == 3


def test_a_base_in_numbers() -> None:
    got = load(BASE)
    assert got.names == got.axes == ("linear_x", "linear_y", "angular_z")
    assert {dim.command for dim in got.dims} == {"velocity"}
    assert got.velocity == (0.5, 0.2, 1.0)
    assert got.grippers == got.gripper_rate == ()
    assert got.high == (math.inf,) * 3
    assert got.expected == ((-0.6, 0.6), (-0.3, 0.3), (-1.2, 1.2))
    np.testing.assert_allclose(got.per_step.velocity, [0.05, 0.02, 0.1])


def test_two_arms_in_numbers() -> None:
    got = load(TWO_ARMS)
    assert got.grippers == ("left_gripper", "right_gripper")
    assert got.at_grippers.tolist() == [6, 13]
    assert got.dims[0] == Dim("left_joint_1", "position", "rad", wraps=False)
    assert got.axes[6:8] == ("right_joint_1", "right_joint_2")
    assert (got.low[1], got.high[1]) == (-1.8, 1.9)
    assert got.gripper_rate == (2, 2)
    assert got.expected[0] == (-math.inf, math.inf)
    assert got.expected[6] == (-0.1, 1.1)


def test_the_base_example_drives_a_base() -> None:
    now = [9.0]
    safety = SafetyFilter(load(BASE), clock=lambda: now[0])
    safety.reset("test")
    safety.rest()
    now[0] = 9.1
    sent = safety.step([0.05, 0, -0.1], Reading(9.05, distance=2.0))
    np.testing.assert_array_equal(sent, [0.05, 0, -0.1])


def test_the_example_of_two_arms_drives_them() -> None:
    now, joints = [9.0], np.linspace(-1, 1, 12)
    grippers = {"left_gripper": 1, "right_gripper": 0}
    safety = SafetyFilter(load(TWO_ARMS), grippers, lambda: now[0], pose=joints)
    safety.reset("test")
    held = np.array([*joints[:6], 1, *joints[6:], 0])
    np.testing.assert_array_equal(safety.rest(), held)
    now[0] += 0.02
    wanted = held + 1e-4
    wanted[[6, 13]] = 0.99, 0.02
    np.testing.assert_array_equal(safety.step(wanted, Reading(now[0])), wanted)


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
    ("version", 3, "version: expected 1 or 2, got 3"),
    ("version", True, "version: expected 1 or 2, got True"),
    ("version", 2, "unknown: velocity, .* missing: dims"),
]  # fmt: skip
# Of the example of two arms, and of the base.
WRONG_DIMS = [
    (TWO_ARMS, "dims", {}, "dims: expected a mapping with each dim of an action"),
    (TWO_ARMS, "dims.left_joint_1", 3, "left_joint_1.command: expected delta | velocity |"),
    (TWO_ARMS, "dims.left_joint_1.command", "torque", "position | gripper, got 'torque'"),
    (TWO_ARMS, "dims.left_joint_1.unit", "deg", "left_joint_1.unit: expected m | rad, got 'deg'"),
    (TWO_ARMS, "dims.left_joint_1.unit", "m", "unknown: wraps"),
    (TWO_ARMS, "dims.left_joint_1.wraps", "no", "wraps: expected true or false, got 'no'"),
    (TWO_ARMS, "dims.left_joint_1.velocity", "1 m/s", "dims.left_joint_1.velocity: .* 0.5 rad/s"),
    (TWO_ARMS, "dims.left_joint_1.range", ["-1 m", "1 m"], "left_joint_1.range: .* 0.5 rad"),
    (TWO_ARMS, "dims.left_joint_1.distribution", ["-1 rad/step", "1 rad/step"], "such as 0.5 rad,"),
    (TWO_ARMS, "dims.left_joint_1.command", "velocity", "unknown: range, wraps"),
    (TWO_ARMS, "dims.left_gripper.unit", "m", "left_gripper: .* unknown: unit"),
    (TWO_ARMS, "dims.left_gripper.rate", "0 1/s", "left_gripper.rate: expected more than 0"),
    (BASE, "dims.linear_x.range", ["-1 m", "1 m"], "unknown: range"),
    (BASE, "dims.linear_x.distribution", ["0.1 m/s", "1 m/s"], "linear_x: .* around 0"),
    (BASE, "dims.angular_z.velocity", "none", "angular_z.velocity: expected a number"),
]  # fmt: skip


def changed(file: Path, key: str, value: Any) -> dict[str, Any]:
    """A file's content with one value changed."""
    wrong = body(file)
    *path, last = key.split(".")
    place = wrong
    for step in path:
        place = place[step]
    place[last] = value
    return wrong


@pytest.mark.parametrize(("file", "key", "value", "message"), WRONG_DIMS)
def test_mistakes_of_dims_are_named(file: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as error:
        parse(changed(file, key, value), "robot.yaml")
    assert str(error.value).startswith("robot.yaml: ")


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_mistakes_are_named(key: str, value: Any, message: str) -> None:
    wrong = changed(VERSION_1, key, value)
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


@pytest.mark.parametrize("file", [VERSION_1, BASE, TWO_ARMS], ids=["arm", "base", "two arms"])
def test_no_key_has_a_silent_default(file: Path) -> None:
    named = body(file).get("dims", {})
    for path in leaves(body(file)):
        if path[0] == "dims" and (len(path) < 3 or path[1] not in list(named)[:7]):
            continue  # a dim that is not there is another space, and one of each kind is enough
        lacking = body(file)
        place = lacking
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]
        wanted = f"(missing: {re.escape(path[-1])}|{re.escape(path[-1])}: expected)"
        with pytest.raises(ValueError, match=wanted):
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
    with pytest.raises(ValueError, match=r"range of linear_x: expected none, since a velocity has"):
        base_limits(low=(-1.0, -math.inf, -math.inf), high=(1.0, math.inf, math.inf))
    with pytest.raises(ValueError, match="dims: expected names that differ"):
        base_limits(dims=(Dim("a", "velocity", "m"),) * 3)
    with pytest.raises(ValueError, match="velocity: expected a number for linear_x, linear_y, ang"):
        base_limits(velocity=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"stop\.latch_after"):
        make_limits(latch_after={"stale": 1})
