"""The filter for robots that are no arm driven by deltas: velocities of a base, positions of
joints, several grippers, angles that wrap.
"""

import math
from typing import Any

import numpy as np
import pytest

from tests.robot.safety.limits_of_tests import (
    BIMANUAL,
    HZ,
    base_limits,
    bimanual_limits,
    make_limits,
)
from vla_jax.robot.safety.bounds import Dim, Limits
from vla_jax.robot.safety.filter import Reading, SafetyFilter

OPEN = {"left_gripper": 1.0, "right_gripper": 1.0}


class Robot:
    """A filter with a clock that goes on by one period a step, begun at rest."""

    def __init__(self, limits: Limits, gripper: Any = None, pose: Any = None) -> None:
        self.now, self.limits = 50.0, limits
        self.safety = SafetyFilter(limits, gripper, lambda: self.now, pose=pose)
        self.safety.reset("test")
        self.begun = self.safety.rest()

    def step(self, action: Any, wait: float = 1 / HZ, **sensors: Any) -> np.ndarray:
        self.now += wait
        return self.safety.step(action, Reading(self.now, **sensors))


def base(**changes: Any) -> Robot:
    return Robot(base_limits(**changes))


def two_arms(pose: Any = (0.0,) * 12, **changes: Any) -> Robot:
    return Robot(bimanual_limits(**changes), OPEN, np.array(pose))


def targets(robot: Robot, joints: Any, left: float = 1.0, right: float = 1.0) -> np.ndarray:
    """An action of two arms."""
    out = np.zeros(len(robot.limits.dims))
    out[robot.limits.at_axes] = joints
    out[robot.limits.at_grippers] = left, right
    return out


def one_joint(**changes: Any) -> Robot:
    """At 0, of a joint whose angle wraps: up to 1 rad/s at 10 Hz, at once."""
    body = {
        "dims": (Dim("turn", "position", "rad", wraps=True),), "velocity": (1.0,),
        "acceleration": (math.inf,), "jerk": (math.inf,), "low": (-math.inf,), "high": (math.inf,),
        "gripper_rate": (),
    }  # fmt: skip
    pose = changes.pop("pose", 0.0)
    return Robot(make_limits(**{**body, **changes}), pose=np.array([pose]))


def test_a_gentle_velocity_passes_bit_for_bit() -> None:
    robot = base()
    np.testing.assert_array_equal(robot.begun, [0, 0, 0])
    for t in range(40):
        action = np.array([0.3, 0.1, 0.7]) * math.sin(t / 8)
        if t > 2:
            np.testing.assert_array_equal(robot.step(action), action)
        else:
            robot.step(action * t / 3)
    assert set(robot.safety.counts) == {"no_action"}


def test_a_velocity_rises_as_acceleration_and_jerk_allow_and_a_stop_is_one_step() -> None:
    """1 m/s^2 and 8 m/s^3 at 10 Hz: 0.08, less than 0.1 more, to 0.5 m/s."""
    robot = base()
    sent = np.array([robot.step([9.0, 0, 0])[0] for _ in range(12)])
    assert sent[0] == pytest.approx(0.08, rel=1e-3)
    assert (np.diff(sent) <= 0.1 * (1 + 1e-9)).all()
    assert sent[-1] == pytest.approx(0.5)
    assert sent.max() <= 0.5
    assert robot.safety.events[-1].causes["velocity"] == ("linear_x",)
    np.testing.assert_array_equal(robot.step([math.nan, 0, 0]), [0, 0, 0])
    assert robot.step([0.5, 0, 0])[0] == pytest.approx(0.08, rel=1e-3)  # from rest


def test_an_early_step_may_change_a_velocity_by_less_and_keep_it() -> None:
    """0.6 of a period after the last: the same velocity goes on, and a change of it is smaller."""
    robot = base(jerk=(math.inf,) * 3)
    robot.step([0.1, 0, 0])
    assert robot.step([0.1, 0, 0], wait=0.06)[0] == 0.1
    assert robot.step([0.5, 0, 0], wait=0.14)[0] == pytest.approx(0.2)
    assert robot.step([0.5, 0, 0], wait=0.06)[0] == pytest.approx(0.26)


def test_a_velocity_needs_no_pose_and_none_is_looked_at() -> None:
    robot = base()
    for pose in (None, np.array([7.0, -7.0, 1e6]), np.full(3, math.nan)):
        assert robot.step([0.05, 0, 0], pose=pose)[0] == 0.05
    robot.step([0.05, 0, 0], pose=np.zeros(6))  # of another robot
    assert robot.safety.events[-1].causes == {"pose": ()}


def test_a_target_far_away_is_reached_within_the_limits_and_held_in_a_stop() -> None:
    robot = two_arms()
    wanted, sent = np.linspace(-1, 1, 12), []
    for _ in range(30):
        sent.append(robot.step(targets(robot, wanted)))
    joints = np.array(sent)[:, robot.limits.at_axes]
    ways = np.diff(np.vstack([np.zeros(12), joints]), axis=0)
    assert abs(ways).max() <= 0.1 * (1 + 1e-9)  # 1 rad/s
    assert abs(np.diff(ways, axis=0)).max() <= 0.04 * (1 + 1e-9)
    np.testing.assert_array_equal(joints[-1], wanted)
    assert (abs(joints) <= abs(wanted)).all()  # and not passed
    assert robot.safety.latched is None
    robot.step(targets(robot, -wanted))
    held = robot.step(targets(robot, -wanted))
    np.testing.assert_array_equal(robot.step(np.full(14, math.nan)), held)
    robot.safety.emergency_stop("button")
    np.testing.assert_array_equal(robot.step(targets(robot, -wanted)), held)
    np.testing.assert_array_equal(robot.safety.rest(), held)
    robot.safety.reset("Ada")  # where it was commanded last
    np.testing.assert_array_equal(robot.safety.rest(), held)


def test_a_gentle_path_of_positions_passes_bit_for_bit_from_its_second_step_on() -> None:
    """Each target is passed at the speed of the path; where the path ends it is braked, and what
    the end is passed by is made good without going back and forth.
    """
    robot = two_arms()
    path = [targets(robot, 0.6 * (1 - math.cos(t / 8))) for t in range(14)]
    for wanted in path:
        np.testing.assert_array_equal(robot.step(wanted), wanted)
    assert set(robot.safety.counts) == {"no_action"}
    sent = np.array([robot.step(path[-1])[0] for _ in range(12)]) - path[-1][0]
    assert sent[0] > 0.02  # 0.075 a step cannot end in one
    assert sent[-1] == 0
    assert (np.diff(np.sign(sent[sent != 0])) == 0).all()


def test_a_joint_stops_before_its_limit_and_reaches_it() -> None:
    robot = two_arms()
    joints = np.array([robot.step(targets(robot, 9.0))[robot.limits.at_axes] for _ in range(60)])
    free = np.array([dim.wraps for dim in robot.limits.moving])
    assert (joints[:, ~free] <= 1.5).all()
    assert (joints[-1, ~free] > 1.49).all()
    named = robot.safety.events[-1].causes["rotation"]
    assert "left_waist" in named
    assert "left_wrist_turn" not in named


def test_a_measured_pose_does_not_move_what_is_commanded_by_position() -> None:
    """Joints lag behind their commands, and hang below them."""
    robot = two_arms()
    for _ in range(5):
        robot.step(targets(robot, 0.2))
    before = robot.step(targets(robot, 0.2))
    lagging = np.full(12, -0.1)
    np.testing.assert_array_equal(robot.step(before, pose=lagging), before)
    robot.safety.emergency_stop("button")
    np.testing.assert_array_equal(robot.step(before, pose=lagging), before)


def test_positions_need_a_pose_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=r"expected a pose, of left_waist, .* since positions are"):
        SafetyFilter(bimanual_limits(), OPEN)
    where = np.linspace(-0.5, 0.5, 12)
    safety = SafetyFilter(bimanual_limits(), OPEN, lambda: 1.0, pose=where)
    sent = safety.step(np.zeros(14), Reading(1.0))  # latched since the start
    np.testing.assert_array_equal(sent[bimanual_limits().at_axes], where)
    moved = where + 0.3  # by hand, with the motors off; a person says so
    safety.reset("Ada", pose=moved)
    np.testing.assert_array_equal(safety.rest()[bimanual_limits().at_axes], moved)


def test_each_gripper_has_its_own_rate_and_is_named() -> None:
    robot = two_arms()
    sent = robot.step(targets(robot, 0.0, left=0.0, right=0.0))
    np.testing.assert_allclose(sent[robot.limits.at_grippers], [0.8, 0.9])
    both = ("left_gripper", "right_gripper")
    assert robot.safety.events[-1].causes == {"gripper_rate": both}
    sent = robot.step(targets(robot, 0.0, left=0.7, right=1.5))
    np.testing.assert_allclose(sent[robot.limits.at_grippers], [0.7, 1.0])
    assert robot.safety.events[-1].causes == {"gripper_range": ("right_gripper",)}


@pytest.mark.parametrize(("policy", "then"), [("hold", [0.3, 0.6]), ("open", 1), ("close", 0)])
def test_grippers_in_a_stop(policy: str, then: Any) -> None:
    robot = two_arms(gripper_at_stop=policy)
    robot.safety.emergency_stop("button")
    robot.safety.reset("Ada", {"left_gripper": 0.3, "right_gripper": 0.6})
    robot.safety.emergency_stop("button")
    sent = [robot.step(np.zeros(14))[robot.limits.at_grippers] for _ in range(20)]
    np.testing.assert_array_equal(sent[-1], np.broadcast_to(then, 2))


@pytest.mark.parametrize("wrong", [1.0, None, {}, {"left_gripper": 1.0}, {**OPEN, "tail": 1.0},
    {"left_gripper": 1.0, "right_gripper": math.nan}])  # fmt: skip
def test_several_grippers_are_told_by_name(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"gripper: .* for left_gripper, right_gripper, got"):
        SafetyFilter(bimanual_limits(), wrong, pose=np.zeros(12))


def test_where_there_is_no_gripper_none_is_told() -> None:
    SafetyFilter(base_limits(), {})
    with pytest.raises(ValueError, match=r"gripper: .* for no gripper, got 1\.0"):
        SafetyFilter(base_limits(), 1.0)
    one = make_limits()
    SafetyFilter(one, {"gripper": 0.5})
    with pytest.raises(ValueError, match=r"gripper: .* got None"):
        SafetyFilter(one)


def test_an_angle_that_wraps_goes_the_short_way() -> None:
    robot = one_joint(pose=3.1)
    sent = robot.step([-3.1])  # 0.083 further on
    assert sent[0] == pytest.approx(2 * math.pi - 3.1)
    sent = robot.step([-2.0])
    assert sent[0] == pytest.approx(2 * math.pi - 3.0)  # 0.1 rad a step
    assert robot.step([2 * math.pi + sent[0]])[0] == pytest.approx(sent[0])  # a turn away: there


def test_a_joint_that_does_not_wrap_goes_the_long_way() -> None:
    dims = (Dim("turn", "position", "rad"),)
    robot = one_joint(dims=dims, low=(-3.2,), high=(3.2,), pose=3.1)
    assert robot.step([-3.1])[0] == pytest.approx(3.0)


def test_a_bounded_angle_that_wraps_is_taken_within_its_range() -> None:
    """A range across pi, the target on its other side by a number of the turn before."""
    robot = one_joint(low=(math.pi - 0.3,), high=(math.pi + 0.3,), pose=math.pi)
    assert robot.step([-math.pi + 0.05])[0] == pytest.approx(math.pi + 0.05)
    for _ in range(9):
        sent = robot.step([-math.pi + 0.5])
    assert math.pi + 0.29 < sent[0] <= math.pi + 0.3


def test_a_robot_of_positions_and_velocities_has_both() -> None:
    """A joint on a base: the joint is held in a stop, the base stands."""
    dims = (Dim("lift", "position", "m"), Dim("drive", "velocity", "m"), Dim("hand", "gripper"))
    limits = make_limits(
        dims=dims, velocity=(0.1, 0.5), acceleration=(math.inf,) * 2, jerk=(math.inf,) * 2,
        low=(0.0, -math.inf), high=(1.0, math.inf),
    )  # fmt: skip
    robot = Robot(limits, 1.0, np.array([0.5, math.nan]))
    np.testing.assert_array_equal(robot.step([0.505, 0.3, 0.9]), [0.505, 0.3, 0.9])
    np.testing.assert_allclose(robot.step([0.9, 0.6, 0.9]), [0.515, 0.5, 0.9])
    np.testing.assert_allclose(robot.step([math.inf, 0, 0]), [0.515, 0, 0.9])
    assert robot.safety.events[-1].causes == {"not_finite": ("lift",)}


def test_a_pause_commands_the_last_position_first() -> None:
    robot = two_arms()
    for _ in range(4):
        before = robot.step(targets(robot, 1.0))
    np.testing.assert_array_equal(robot.step(targets(robot, 1.0), wait=3.0), before)
    assert robot.safety.counts["pause"] == 1
    again = robot.step(targets(robot, 1.0))[robot.limits.at_axes] - before[robot.limits.at_axes]
    np.testing.assert_allclose(again, 0.03, rtol=1e-3)  # as from rest: 30 rad/s^3


def test_the_dims_of_two_arms_have_their_grippers_between_them() -> None:
    assert [dim.name for dim in BIMANUAL][6::7] == ["left_gripper", "right_gripper"]
