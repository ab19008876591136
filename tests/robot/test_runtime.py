"""The control loop's one call: what the policy says reaches the robot through the filter alone."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.export.test_export import BLOCKED, exported
from tests.robot.safety.limits_of_tests import HZ, base_limits, bimanual_limits, make_limits
from vla_jax.robot.events.trigger import Settings
from vla_jax.robot.runtime import Runtime
from vla_jax.robot.safety import bounds
from vla_jax.robot.safety.bounds import ARM, Limits
from vla_jax.robot.safety.filter import Reading, SafetyFilter
from vla_jax.robot.safety.limits import load

__all__ = ["exported"]  # the fixture
NAMES = tuple(dim.name for dim in ARM)
FRAME = {"primary": np.zeros((8, 8, 3), np.uint8)}


class Fake:
    """A policy whose chunks are given; an exception among them is raised."""

    def __init__(self, *chunks: Any, names: tuple[str, ...] = NAMES) -> None:
        self.chunks, self.given = list(chunks), []
        self.action_spec, self.camera_statistics = SimpleNamespace(names=names), None
        self.targets = ""

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        self.instruction = instruction

    def act(self, images: Any, proprio: Any = None, executed: Any = None) -> dict[str, Any]:
        self.given.append(executed)
        chunk = self.chunks.pop(0)
        if isinstance(chunk, Exception):
            raise chunk
        return {"actions": np.asarray(chunk, np.float32), "confidence": {"steps": None}}


class Loop:
    """A runtime with a clock that goes on by one period a step, begun at rest."""

    def __init__(
        self, policy: Fake, settings: Settings | None = None, limits: Limits | None = None
    ) -> None:
        self.now = 10.0
        safety = SafetyFilter(limits or make_limits(), gripper=1.0, clock=lambda: self.now)
        self.robot = Runtime(policy, safety, settings or Settings(horizon=1))
        self.robot.reset("push")
        safety.reset("test", pose=np.zeros(6))
        safety.rest()

    def step(self, age: float = 0.0, pose: np.ndarray | None = None) -> Any:
        self.now += 1 / HZ
        return self.robot.step(FRAME, Reading(self.now - age, pose))


@pytest.mark.parametrize(
    ("targets", "file", "message"),
    [
        ("absolute", "limits_example.yaml", "as positions.*got command: delta of x, y"),
        ("relative", "limits_example.yaml", "as positions.*got command: delta of x, y"),
        ("delta", "limits_two_arms_example.yaml", "as motions.*got command: position of left"),
        ("delta", "limits_example.yaml", None),
        ("absolute", "limits_two_arms_example.yaml", None),
        ("", "limits_two_arms_example.yaml", None),
    ],
)
def test_positions_are_not_bounded_as_motions(targets: str, file: str, message: Any) -> None:
    """What the policy's dataset says of its actions against what the limits take, names alike."""
    limits = load(Path(bounds.__file__).with_name(file))
    policy = Fake(names=limits.names)
    policy.targets = targets
    grippers = dict.fromkeys(limits.grippers, 1.0)
    pose = np.zeros(len(limits.axes))
    robot = Runtime(policy, SafetyFilter(limits, grippers, pose=pose), Settings(horizon=1))
    if message is None:
        robot.reset("push")
    else:
        with pytest.raises(ValueError, match=message):
            robot.reset("push")


def small(x: float) -> list[float]:
    return [x, 0, 0, 0, 0, 0, 1]


def test_a_chunk_goes_out_step_by_step_and_what_was_sent_comes_back() -> None:
    policy = Fake([small(0.001), small(0.002)], [small(0.5), small(0.5)])
    loop = Loop(policy, Settings(horizon=2))
    first, second, third = loop.step(), loop.step(), loop.step()
    assert [first.reason, second.reason, third.reason] == ["start", None, "chunk"]
    np.testing.assert_allclose([first.action[0], second.action[0]], [0.001, 0.002], rtol=1e-6)
    assert first.causes == second.causes == ()
    assert "velocity" in third.causes
    assert third.wanted[0] == 0.5
    assert third.action[0] < 0.02
    assert policy.given[0] is None
    np.testing.assert_array_equal(policy.given[1], second.action.astype(np.float32))


def test_a_failed_camera_is_a_stop() -> None:
    loop = Loop(Fake(*[[small(0.001)]] * 3), limits=make_limits(cameras={"blank": 2}))
    for latched in (False, True, True):
        command = loop.step()
        assert not command.action[:6].any()
        assert (command.error, loop.robot.safety.latched is not None) == (None, latched)
    assert loop.robot.safety.counts == {"no_action": 1, "blank": 2, "latched": 1}


def test_a_robot_that_is_not_where_it_was_sent_plans_anew() -> None:
    """Chunks of five steps of 1 mm along x, yaw about half a turn; something holds the robot at the
    fourth step.
    """
    policy = Fake(*[[small(0.001)] * 5] * 3)
    loop = Loop(policy, Settings(5, tracking=(0.0015, None, None, None, None, 0.01)))
    said = []
    for t, x in enumerate((0.0, 0.001, 0.002, 0.002, 0.002, 0.003)):
        yaw = math.pi if t % 2 else -math.pi
        said.append(loop.step(pose=np.array([x, 0.01 * t, 0, 0, 0, yaw])).reason)
    assert said == ["start", None, None, None, "tracking", None]
    assert loop.step(pose=np.array([0.004, 0, 0, 0, 0, math.nan])).reason == "tracking"


def test_tracking_is_against_what_the_filter_let_through() -> None:
    """The policy wants half a metre, the filter sends what the limits allow."""
    loop = Loop(Fake([small(0.5)] * 5), Settings(5, tracking=(1e-6,) * 6))
    pose, reasons = np.zeros(6), []
    for _ in range(3):
        command = loop.step(pose=pose)
        reasons.append(command.reason)
        pose = pose + command.action[:6]
    assert reasons == ["start", None, None]
    assert 0 < pose[0] < 0.1


def test_without_a_pose_there_is_no_tracking_error() -> None:
    loop = Loop(Fake([small(0.001)] * 3), Settings(3, tracking=(0.0,) * 6))
    assert [loop.step().reason for _ in range(3)] == ["start", None, None]


@pytest.mark.parametrize("pose", [np.zeros(7), [[0.0], [0.0, 1.0]], "here"])
def test_a_pose_that_is_none_stops_the_robot_and_breaks_nothing(pose: Any) -> None:
    loop = Loop(Fake([small(0.001)] * 3), Settings(3, tracking=(0.1,) * 6))
    for _ in range(2):
        command = loop.step(pose=pose)
        assert not command.action[:6].any()
        assert "pose" in command.causes


def test_tolerances_are_of_the_pose() -> None:
    with pytest.raises(ValueError, match="expected 6 tolerances, of x, y, z, roll, pitch, yaw"):
        Runtime(Fake(), SafetyFilter(make_limits(), gripper=1.0), Settings(1, tracking=(0.1,) * 7))


@pytest.mark.parametrize(
    "failure", [ValueError("images: expected"), RuntimeError("CUDA out of memory")]
)
def test_a_policy_that_fails_stops_the_robot_in_that_step_and_says_why(failure: Exception) -> None:
    loop = Loop(Fake([small(0.001)], failure, [small(0.001)]))
    assert loop.step().action[0] > 0
    command = loop.step()
    assert not command.action[:6].any()
    assert command.wanted is None
    assert command.error == f"{type(failure).__name__}: {failure}"
    assert command.causes == ("latched",)
    assert loop.robot.safety.latched is not None
    assert str(failure) in loop.robot.safety.latched.note
    assert not loop.step().action[:6].any()  # until a person resets it


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_do_not_reach_the_robot(bad: float) -> None:
    command = Loop(Fake([small(bad)])).step()
    assert not command.action[:6].any()
    assert command.causes == ("not_finite",)


def test_a_frame_that_took_too_long_is_a_stop() -> None:
    command = Loop(Fake([small(0.001)])).step(age=0.6)
    assert not command.action[:6].any()
    assert command.causes == ("stale",)


def test_it_stands_still_before_a_person_resets_it() -> None:
    robot = Runtime(
        Fake([small(0.001)]), SafetyFilter(make_limits(), gripper=1.0), Settings(horizon=1)
    )
    robot.reset("push")
    command = robot.step(FRAME, Reading(0.0))
    assert not command.action[:6].any()
    assert command.causes == ("latched",)


def test_actions_that_the_limits_do_not_bound_are_refused() -> None:
    robot = Runtime(
        Fake(names=("x", "y")), SafetyFilter(make_limits(), gripper=1.0), Settings(horizon=1)
    )
    with pytest.raises(
        ValueError, match=r"expected actions of x, y, z, .*, got x, y; write limits"
    ):
        robot.reset("push")


def test_a_policy_of_a_base_drives_it_behind_its_limits() -> None:
    limits, now = base_limits(), [10.0]
    policy = Fake([[0.05, 0.01, -0.1], [0.05, 9.0, 0]], names=limits.names)
    safety = SafetyFilter(limits, clock=lambda: now[0])
    robot = Runtime(policy, safety, Settings(horizon=2))
    robot.reset("drive to the cup")
    safety.reset("test")
    safety.rest()
    sent = []
    for _ in range(2):
        now[0] += 1 / HZ
        sent.append(robot.step(FRAME, Reading(now[0])))
    np.testing.assert_allclose(sent[0].action, [0.05, 0.01, -0.1], rtol=1e-6)
    assert sent[0].causes == ()
    assert 0 < sent[1].action[1] < 0.2
    assert "velocity" in sent[1].causes


def test_a_velocity_has_no_place_to_be_tracked() -> None:
    safety = SafetyFilter(base_limits())
    Runtime(Fake(), safety, Settings(1, tracking=(None,) * 3))
    with pytest.raises(ValueError, match=r"3 tolerances, of null \(linear_x\), null"):
        Runtime(Fake(), safety, Settings(1, tracking=(0.1, None, None)))


def test_two_arms_that_do_not_follow_their_positions_plan_anew() -> None:
    """What is commanded is where they should be, whatever they did before; a wrist may be read a
    turn away.
    """
    limits, now = bimanual_limits(), [10.0]
    grippers = {"left_gripper": 1.0, "right_gripper": 1.0}
    rows = np.zeros((5, 14))
    rows[:, [6, 13]] = 1
    rows[:, 0] = 0.01 * np.arange(1, 6)
    policy = Fake(rows, rows, names=limits.names)
    safety = SafetyFilter(limits, grippers, lambda: now[0], pose=np.zeros(12))
    tracking = (0.015, *(None,) * 10, 0.01)
    robot = Runtime(policy, safety, Settings(5, tracking=tracking))
    robot.reset("fold the shirt")
    safety.reset("test")
    safety.rest()
    reasons = []
    for waist in (0.0, 0.01, 0.02, 0.01):
        now[0] += 1 / HZ
        pose = np.array([waist, *(0.0,) * 10, 2 * math.pi])
        reasons.append(robot.step(FRAME, Reading(now[0], pose)).reason)
    assert reasons == ["start", None, None, "tracking"]


IN_ARTEFACT = """
import numpy as np, time
from policy_torch import limits, load, runtime, safety, trigger
policy = load(".")
filter = safety.SafetyFilter(limits.load("policy_torch/limits_example.yaml"), gripper=1.0)
robot = runtime.Runtime(policy, filter, trigger.Settings(horizon=1))
robot.reset("push the red block", "blocks")
filter.reset("test", pose=np.array([0.4, 0, 0.2, 0, 0, 0]))
filter.rest()
time.sleep(0.2)
images = {name: np.zeros((32, 32, 3), np.uint8) for name in policy.cameras}
command = robot.step(images, safety.Reading(time.monotonic()))
assert command.reason == "start" and command.error is None and command.wanted.shape == (7,), command
assert abs(command.action[:3]).max() <= 0.15 / 5, command
"""


@pytest.mark.slow
def test_an_artefact_has_it_with_it(exported) -> None:
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED + IN_ARTEFACT], cwd=exported, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
