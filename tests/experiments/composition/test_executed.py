"""The figures of executed actions, of any action space: by the names of its dims."""

import numpy as np
import pytest

from experiments.composition.executed import Tally
from tests.robot.safety.limits_of_tests import BASE, BIMANUAL
from vla_jax.actions import ActionSpec
from vla_jax.robot.safety.bounds import Dim


def spec(dims: tuple[Dim, ...]) -> ActionSpec:
    """From -2 to 2 in each dim, so that 1 in network units is 2 of the robot's."""
    d = len(dims)
    ends = {"min": -2.0, "q01": -2.0, "max": 2.0, "q99": 2.0, "mean": 0.0, "std": 1.0}
    binary = [i for i, dim in enumerate(dims) if dim.command == "gripper"]
    stats = {name: np.full(d, value) for name, value in ends.items()}
    return ActionSpec.fit([dim.name for dim in dims], binary, stats, ("q99",))


def told(dims: tuple[Dim, ...], off: dict[str, float]) -> dict[str, object]:
    """Of 5 windows of 3 steps in which a policy is off by so much in some dims."""
    own = spec(dims)
    true = np.zeros((5, 3, len(dims)), np.float32)
    said = true.copy()
    for name, by in off.items():
        said[..., own.names.index(name)] += by
    tally = Tally(own)
    tally.add(said, true, np.ones((5, 3), bool), np.zeros((5, 0), np.float32))
    return tally.figures()


def test_a_base_has_no_gripper_to_be_right() -> None:
    body = told(BASE, {"angular_z": 0.5})
    assert body["gripper_accuracy"] is None
    assert body["l1"] == pytest.approx({"linear_x": 0, "linear_y": 0, "angular_z": 0.5})
    assert body["arm_error"] == pytest.approx(0.5 * 0.25**2 / 3)


def test_two_grippers_count_apart_from_the_joints_around_them() -> None:
    body = told(BIMANUAL, {"right_gripper": 1.0, "left_waist": -0.2})
    assert body["gripper_accuracy"] == 0.5
    assert body["arm_error"] == pytest.approx(0.5 * 0.1**2 / 12)
    l1 = {name: value for name, value in body["l1"].items() if value}
    assert l1 == pytest.approx({"left_waist": 0.2, "right_gripper": 1.0})
