"""The filter's causes one by one, the latch, the log, and what a gentle limit must still allow."""

import math
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.robot.safety.limits_of_tests import HZ, make_limits, violations
from vla_jax.robot.safety.filter import Reading, SafetyFilter
from vla_jax.robot.safety.limits import STOP_CAUSES, Limits

STILL = np.array([0.0, 0, 0, 0, 0, 0, 1])


class Arm:
    """A filter with a clock that goes on by one period a step, begun at rest with an open
    gripper.
    """

    def __init__(self, limits: Limits, pose: Any = (0, 0, 0.1, 0, 0, 0)) -> None:
        self.now, self._rests = 50.0, 0
        self.safety = SafetyFilter(limits, gripper=1.0, clock=lambda: self.now)
        self.reset("test", pose=np.array(pose))

    def reset(self, by: str, **where: Any) -> None:
        """A person's word, and the step after it, which commands rest."""
        self.safety.reset(by, **where)
        assert not self.safety.rest()[:6].any()
        self._rests += 1

    @property
    def counts(self) -> dict[str, int]:
        """Causes, less the rest after a reset."""
        return dict(Counter(self.safety.counts) - Counter(no_action=self._rests))

    def step(
        self, action: Any, age: float = 0.0, wait: float = 1 / HZ, **sensors: Any
    ) -> np.ndarray:
        self.now += wait
        return self.safety.step(action, Reading(self.now - age, **sensors))


def latching(**changes: int) -> dict[str, int | None]:
    return {**dict.fromkeys(STOP_CAUSES), **changes}


def test_a_safe_motion_passes_bit_for_bit() -> None:
    arm = Arm(make_limits())
    for t in range(40):
        action = np.array([0.003, 0.003, 0.001, 0.01, 0.01, 0.02, 0.5]) * math.sin(t / 5)
        action[6] = 0.5 + 0.1 * math.cos(t)
        if t == 0:
            action[6] = 0.9
            arm.step(action)
            arm.step([*action[:6], 0.75])
            arm.step([*action[:6], 0.6])
            continue
        np.testing.assert_array_equal(arm.step(action), action)
    assert arm.counts == {}


@pytest.mark.parametrize(
    ("action", "cause", "dims"),
    [
        ([0.5, 0, 0, 0, 0, 0, 1], "velocity", ("x",)),
        ([0, 0.015, 0, 0, 0, 0, 1], "acceleration", ("y",)),
        ([0, 0.009, 0, 0, 0, 0, 1], "jerk", ("y",)),
        ([0, 0, -0.5, 0, 0, 0, 1], "workspace", ("z",)),
        ([0, 0, 0, 9, -9, 0, 1], "rotation", ("roll", "pitch")),
        ([0, 0, 0, 0, 0, 0, 0], "gripper_rate", ("gripper",)),
        ([0, 0, 0, 0, 0, 0, 1.5], "gripper_range", ("gripper",)),
    ],
)  # fmt: skip
def test_each_limit_is_named_with_the_dims_it_changed(
    action: list[float], cause: str, dims: tuple[str, ...]
) -> None:
    arm = Arm(make_limits())
    sent = arm.step(np.array(action))
    event = arm.safety.events[-1]
    assert event.causes[cause] == dims
    assert not event.stopped
    assert event.requested == tuple(action)
    assert event.sent == tuple(sent)
    assert set(np.flatnonzero(sent != np.array(action))) == {
        ("x", "y", "z", "roll", "pitch", "yaw", "gripper").index(dim) for dim in dims
    }


def test_braking_before_the_wall_is_an_event_of_its_own_and_the_wall_is_reached() -> None:
    """A push at full speed is slowed within acceleration and jerk, and ends at the wall, not far
    from it.
    """
    limits = make_limits()
    arm = Arm(limits)
    sent = np.array([arm.step([0.02, 0, 0, 0, 0, 0, 1]) for _ in range(60)])
    assert violations(limits, sent, [False] * 60, 1.0) == []
    assert sent[:, 0].max() == 0.02  # full speed is reached: 0.2 m/s at 10 Hz
    reached = np.cumsum(sent[:, 0])
    assert 0.1 * 0.99 < reached[-1] <= 0.1
    assert arm.counts["braking"] >= 1
    assert "no_braking_room" not in arm.counts


def test_full_speed_is_reached_as_fast_as_jerk_and_acceleration_allow() -> None:
    """From rest at jerk 8, acceleration 1, velocity 0.2 (0.008, 0.01, 0.02 per step): 0.008, 0.018
    less the let-go.
    """
    arm = Arm(make_limits(low=(-math.inf,) * 6, high=(math.inf,) * 6))
    sent = [arm.step([1.0, 0, 0, 0, 0, 0, 1])[0] for _ in range(5)]
    assert sent[0] == pytest.approx(0.008, rel=1e-3)
    assert sent[1] > 0.0155
    assert sent[2] > 0.0195
    assert sent[4] == pytest.approx(0.02, rel=1e-2)


def test_axes_are_independent() -> None:
    """A push into the wall does not hold up the others: the tool slides along it."""
    arm = Arm(make_limits())
    for _ in range(80):
        sent = arm.step([0.02, -0.002, 0, 0, 0, 0, 1])
    assert abs(sent[0]) < 1e-3
    assert sent[1] == -0.002


def test_a_robot_pushed_out_of_the_box_may_only_come_back() -> None:
    arm = Arm(make_limits())
    out = np.array([0.15, 0, 0.1, 0, 0, 0])
    assert arm.step([0.005, 0, 0, 0, 0, 0, 1], pose=out)[0] == 0
    assert arm.safety.events[-1].causes == {"workspace": ("x",)}
    assert arm.step([-0.005, 0, 0, 0, 0, 0, 1], pose=out)[0] == -0.005


def test_a_robot_that_is_not_where_its_commands_say_stops_at_once() -> None:
    arm = Arm(make_limits(clean_steps=2))
    for _ in range(5):
        arm.step([0, 0.02, 0, 0, 0, 0, 1])
    sent = arm.step([0, 0.02, 0, 0, 0, 0, 1], pose=np.array([0, 0.1999, 0.1, 0, 0, 0]))
    assert not sent[:6].any()
    assert arm.safety.events[-1].causes == {"no_braking_room": ("y",)}
    away = [0, -0.005, 0, 0, 0, 0, 1]
    assert [arm.step(away)[1] for _ in range(3)] == [0, 0, -0.005]  # two steps of rest first
    assert arm.counts["resting"] == 2


def test_angles_are_taken_modulo_a_turn() -> None:
    """A range across pi, and a sensor that says -pi + 0.1 for pi + 0.1."""
    limits = make_limits(
        low=(-1.0, -1.0, -1.0, math.pi - 0.2, -1.0, -1.0),
        high=(1.0, 1.0, 1.0, math.pi + 0.2, 1.0, 1.0),
    )
    arm = Arm(limits, pose=(0, 0, 0, math.pi, 0, 0))
    action = [0, 0, 0, 0.02, 0, 0, 1]
    assert arm.step(action, pose=np.array([0, 0, 0, -math.pi + 0.05, 0, 0]))[3] == 0.02
    assert arm.step(action, pose=np.array([0, 0, 0, -math.pi + 0.19, 0, 0]))[3] < 0.02
    assert arm.counts == {"rotation": 1} or arm.counts == {"no_braking_room": 1}


STOPS = {
    "malformed": [(it, {}) for it in (np.zeros(6), np.zeros((1, 7)), "forward", None, [0j] * 7,
    [True] * 7, [[1], 2])],
    "not_finite": [([math.nan] * 7, {}), ([0, 0, 0, 0, 0, math.inf, 1], {}), ([0, 0, 0, 0, 0, 0,
    -math.inf], {})],
    "distribution": [([0.2, 0, 0, 0, 0, 0, 1], {}), ([0, 0, 0, 0, 0, 0, 3], {})],
    "stale": [(STILL, {"age": 0.51})],
    "clock": [(STILL, {"wait": -1.0}), (STILL, {"age": -0.2}), (STILL, {"age": math.nan}), (STILL,
    {"wait": math.nan})],
    "early": [(STILL, {"wait": 0.02})],
    "collision": [(STILL, {"distance": 0.049}), (STILL, {"distance": math.nan}), (STILL,
    {"distance": None})],
    "pose": [(STILL, {"pose": np.full(6, math.nan)}), (STILL, {"pose": np.zeros(3)}), (STILL,
    {"pose": "there"})],
}  # fmt: skip


@pytest.mark.parametrize(
    ("cause", "action", "how"), [(cause, *case) for cause, cases in STOPS.items() for case in cases]
)
def test_each_cause_stops_in_its_own_step_and_latches_when_it_may(
    cause: str, action: Any, how: dict[str, Any]
) -> None:
    expected = ((-0.1, 0.1),) * 6 + ((-0.5, 1.5),)
    arm = Arm(
        make_limits(stop_distance=0.05, expected=expected, latch_after=latching(**{cause: 2}))
    )
    arm.step([0, 0.008, 0, 0, 0, 0, 0.9], distance=math.inf)
    for again in (False, True):
        sent = arm.step(action, **{"distance": 1.0, **how})
        np.testing.assert_array_equal(sent, [0, 0, 0, 0, 0, 0, 0.9])
        assert (arm.safety.latched is not None) == again
        assert arm.counts[cause] == 1 + again
    assert cause in arm.safety.latched.causes
    arm.now = 90.0
    np.testing.assert_array_equal(
        arm.step([0, 0.001, 0, 0, 0, 0, 1], distance=1.0), [0, 0, 0, 0, 0, 0, 0.9]
    )
    arm.reset("Ada", pose=np.zeros(6))
    assert arm.step([0, 0.001, 0, 0, 0, 0, 1], distance=1.0)[1] == 0.001


def test_after_a_clock_that_went_back_motion_goes_on_at_the_new_time() -> None:
    arm = Arm(make_limits(clean_steps=1))
    moving = [0, 0.001, 0, 0, 0, 0, 1]
    sent = [arm.step(moving, wait=wait)[1] for wait in (0.1, -40.0, 0.1, 0.1, 0.1)]
    assert sent == [0.001, 0, 0, 0.001, 0.001]
    assert arm.counts == {"clock": 1, "resting": 1}


def test_every_cause_has_a_case() -> None:
    """no_braking_room has a test of its own above."""
    assert {*STOPS, "no_braking_room"} == set(STOP_CAUSES)


def test_alternating_causes_neither_move_nor_escape_the_latch() -> None:
    arm = Arm(make_limits(clean_steps=3, latch_after=latching(stale=4)))
    moving = [0, 0.001, 0, 0, 0, 0, 1]
    sent = [arm.step(moving, age=9 * (t % 2 == 0)) for t in range(8)]
    assert not np.array(sent)[:, :6].any()
    assert arm.safety.latched.causes == {"latch": (), "stale": ()}


def test_a_rest_forgets_earlier_stops() -> None:
    arm = Arm(make_limits(clean_steps=1, latch_after=latching(stale=2)))
    for _ in range(5):
        arm.step(STILL, age=9)
        arm.step(STILL)
    assert arm.safety.latched is None


def test_a_filter_begins_stopped_and_reset_checks_what_it_is_told() -> None:
    now = [1.0]
    safety = SafetyFilter(make_limits(), gripper=0.3, clock=lambda: now[0])
    moving = np.array([0, 0.001, 0, 0, 0, 0, 0.3])
    np.testing.assert_array_equal(safety.step(moving, Reading(1.0)), [0, 0, 0, 0, 0, 0, 0.3])
    for wrong in (np.zeros(5), np.full(6, math.nan)):
        with pytest.raises(ValueError, match="expected a pose of 6 finite numbers"):
            safety.reset("Ada", pose=wrong)
    with pytest.raises(ValueError, match=r"0 \(closed\) to 1 \(open\), got 2\.0"):
        safety.reset("Ada", gripper=2.0)
    assert safety.latched.causes == {"latch": (), "start": ()}
    safety.reset("Ada", pose=np.zeros(6))
    assert safety.events[-1].causes == {"reset": ()}
    assert safety.events[-1].note == "Ada"
    np.testing.assert_array_equal(safety.step(moving, Reading(1.0)), [0, 0, 0, 0, 0, 0, 0.3])
    assert safety.events[-1].causes == {"pause": ()}  # rest is commanded first
    now[0] += 1 / HZ
    np.testing.assert_array_equal(safety.step(moving, Reading(now[0])), moving)


def test_a_box_needs_a_pose() -> None:
    arm = Arm(make_limits())
    arm.reset("Ada")
    moving = [0, 0.001, 0, 0, 0, 0, 1]
    assert not arm.step(moving)[:6].any()
    assert "pose" in arm.counts
    assert arm.step(moving, pose=np.zeros(6))[1] == 0.001
    assert arm.step(moving)[1] == 0.001  # from there on commands are summed up


@pytest.mark.parametrize(("policy", "then"), [("hold", 0.5), ("open", 1.0), ("close", 0.0)])
def test_the_gripper_in_a_stop(policy: str, then: float) -> None:
    arm = Arm(make_limits(gripper_at_stop=policy))
    arm.reset("Ada", gripper=0.5, pose=np.zeros(6))
    arm.safety.emergency_stop("test")
    sent = [arm.step(STILL)[6] for _ in range(6)]
    assert abs(sent[0] - 0.5) <= 0.2
    assert sent[-1] == then


def test_a_button_pressed_during_a_step_wins_over_it() -> None:
    """As a signal handler would: the clock presses it while the step runs."""
    presses: list[SafetyFilter] = []

    def clock() -> float:
        if presses:
            presses.pop().emergency_stop("handler")
        return 1.0

    safety = SafetyFilter(make_limits(), gripper=1.0, clock=clock)
    safety.reset("Ada", pose=np.zeros(6))
    presses.append(safety)
    assert not safety.step([0, 0.001, 0, 0, 0, 0, 1], Reading(1.0))[:6].any()
    assert safety.latched.note == "handler"


def test_a_button_pressed_by_another_thread_is_never_lost() -> None:
    arm = Arm(make_limits())
    pressed = threading.Event()

    def press() -> None:
        arm.safety.emergency_stop("thread")
        pressed.set()

    thread = threading.Thread(target=press)
    thread.start()
    for _ in range(100):
        was = pressed.is_set()
        sent = arm.step([0, 0.001, 0, 0, 0, 0, 1])
        assert not (was and sent[:6].any())
    thread.join()
    assert not arm.step([0, 0.001, 0, 0, 0, 0, 1])[:6].any()


def test_the_log_is_bounded_merges_runs_and_counts_what_it_drops() -> None:
    arm = Arm(make_limits(events=5))
    for _ in range(30):
        arm.step(STILL, age=9)
    assert [event.steps for event in arm.safety.events] == [
        1,
        1,
        1,
        30,
    ]  # start, reset, rest, one run of stale steps
    for t in range(40):
        arm.step(STILL, age=9 * (t % 2))
    assert len(arm.safety.events) == 5
    assert arm.safety.dropped == 4 + 20 - 1 - 5 + 1
    assert arm.counts == {"stale": 50}
    arm.safety.emergency_stop("w" * 10_000)
    assert len(arm.safety.latched.note) == 200


def test_objects_that_raise_are_malformed() -> None:
    class Trap:
        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            raise RuntimeError("no")

        def __float__(self) -> float:
            raise RuntimeError("no")

    arm = Arm(make_limits(stop_distance=0.1))
    assert not arm.step(Trap(), distance=Trap(), pose=Trap())[:6].any()
    assert set(arm.counts) == {"malformed", "collision", "pose"}


def test_a_clock_that_raises_stops_the_robot_and_does_not_hinder_the_button() -> None:
    arm = Arm(make_limits())

    def broken() -> float:
        raise OSError("no clock")

    arm.safety._clock = broken
    assert not arm.step([0, 0.001, 0, 0, 0, 0, 1])[:6].any()
    assert arm.counts == {"clock": 1}
    arm.safety.emergency_stop("button")
    assert arm.safety.latched.causes == {"latch": (), "emergency": ()}


def test_after_a_pause_the_first_step_is_rest_and_motion_begins_from_it() -> None:
    arm = Arm(make_limits())
    push = [0, 0.02, 0, 0, 0, 0, 1]
    first = [arm.step(push)[1] for _ in range(3)]
    assert first[2] > 0.0195
    again = [arm.step(push, wait=3.0)[1], *(arm.step(push)[1] for _ in range(3))]
    assert again == [0, *first]
    assert arm.counts["pause"] == 1
    # Half a period late is no pause.
    assert arm.step(push, wait=1.49 / HZ)[1] == pytest.approx(0.02, rel=1e-2)


def test_zero_motion_that_was_asked_for_is_a_rest_too() -> None:
    """0.008 of jerk a step: from -0.008 over 0 to more than 0.008 would need no more, but whether
    the motors came to rest in between nobody knows.
    """
    arm = Arm(make_limits())
    sent = [arm.step([0, y, 0, 0, 0, 0, 1])[1] for y in (-0.008, -0.008, 0, 0.02)]
    assert sent[:3] == [-0.008, -0.008, 0]
    assert 0.0079 < sent[3] <= 0.008


def test_a_loop_that_is_slower_than_its_limits_does_not_move() -> None:
    arm = Arm(make_limits())
    assert not np.array([arm.step([0, 0.001, 0, 0, 0, 0, 1], wait=0.2)[1] for _ in range(9)]).any()
    assert arm.counts == {"pause": 9}


def test_an_early_step_may_do_as_much_less() -> None:
    """0.02 a period, and 0.2 of the gripper's stroke: what comes after 0.6 of a period gets 0.6 of
    it.
    """
    arm = Arm(make_limits())
    for _ in range(6):
        arm.step([0, 0.02, 0, 0, 0, 0, 1])
    sent = arm.step([0, 0.02, 0, 0, 0, 0, 0], wait=0.06)
    assert sent[1] == pytest.approx(0.012)
    assert sent[6] == pytest.approx(1 - 0.12)
    assert arm.counts["velocity"] == 1


def test_a_loop_that_wakes_up_a_little_late_never_has_to_stop() -> None:
    """Full speed, turns and walls, each step up to 2% of a period late."""
    arm, rng = Arm(make_limits()), np.random.default_rng(0)
    top, begun = np.array([0.02, 0.02, 0.01, 0.1, 0.1, 0.1]), arm.now
    for t in range(200):
        if t % 10 == 0:
            way = rng.choice([-1, 0, 1], 6)
        late = rng.uniform(0, 0.02)
        arm.step([*(way * top), 1], wait=begun + (t + 1 + late) / HZ - arm.now)
    assert not set(arm.counts) & {*STOP_CAUSES, "pause"}


def test_a_stop_moves_the_gripper_no_faster_however_often_it_is_asked_for() -> None:
    arm = Arm(make_limits(gripper_at_stop="close"))
    arm.safety.emergency_stop("test")
    sent = [arm.step(STILL, wait=0.005)[6] for _ in range(20)]
    assert sent[-1] == pytest.approx(1 - 2.0 * 0.1)


def test_a_pose_may_lack_what_was_sent_since() -> None:
    """A pose measured 0.3 s ago: the commands since then count on top of it."""
    fresh, late = Arm(make_limits()), Arm(make_limits())
    push, pose = [0.02, 0, 0, 0, 0, 0, 1], np.array([0, 0, 0.1, 0, 0, 0])
    x, poses = 0.0, [pose] * 4
    for _ in range(40):
        before = poses[-4]
        sent = late.step(push, pose=before, measured_at=late.now + 1 / HZ - 0.3)
        assert sent[0] == pytest.approx(fresh.step(push)[0], abs=1e-9)
        x += sent[0]
        poses.append(pose + np.array([x, 0, 0, 0, 0, 0]))
    assert 0.099 < x <= 0.1 + 1e-12
    assert "no_braking_room" not in late.counts


def test_a_reset_of_a_robot_that_moves_commands_rest_first() -> None:
    arm = Arm(make_limits())
    push = [0, 0.02, 0, 0, 0, 0, 1]
    for _ in range(4):
        arm.step(push)
    arm.safety.emergency_stop("test")
    arm.safety.reset("Ada", pose=np.zeros(6))
    assert [arm.step(push)[1] for _ in range(2)] == [0, pytest.approx(0.008, rel=1e-3)]


def test_the_same_limits_have_the_same_digest() -> None:
    one = make_limits()
    assert one.digest == make_limits(latch_after=dict(reversed(one.latch_after.items()))).digest
    assert one.digest != make_limits(jitter=0.4).digest
