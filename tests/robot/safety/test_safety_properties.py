"""Hypothesis: whatever comes in, no limit is broken on the way out, and a stop takes one step."""

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.robot.safety.limits_of_tests import make_limits, outside, violations
from vla_jax.robot.safety.filter import Reading, SafetyFilter
from vla_jax.robot.safety.limits import STOP_CAUSES, Limits

# The fast lane runs a few; SAFETY_EXAMPLES=5000 is for a night or a release.
property_test = settings(
    max_examples=int(os.environ.get("SAFETY_EXAMPLES", "20")), deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], database=None,
)  # fmt: skip

factors = st.sampled_from([0.1, 0.3, 1.0, 3.0, math.inf])


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Any mix of tight and absent limits, locked and free axes, at any rate."""
    hz = draw(st.sampled_from([3.0, 10.0, 30.0]))
    velocity = tuple(draw(st.sampled_from([0.0, 0.05, 0.2, 1.0])) for _ in range(6))
    # In units that make a stop from full speed a few steps long, whatever the rate.
    acceleration = tuple((v or 1.0) * hz * draw(factors) for v in velocity)
    jerk = tuple(
        min(a, 2 * (v or 1.0) * hz) * hz * draw(factors)
        for a, v in zip(acceleration, velocity, strict=True)
    )
    high = tuple(draw(st.sampled_from([0.01, 0.1, 0.6, math.inf])) for _ in range(6))
    return {
        "control_rate": hz, "velocity": velocity, "acceleration": acceleration, "jerk": jerk,
        "low": tuple(-h for h in high), "high": high,
        "gripper_rate": (draw(st.sampled_from([0.1, 2.0, math.inf])),),
        "gripper_at_stop": draw(st.sampled_from(["hold", "open", "close"])),
        "clean_steps": draw(st.integers(0, 2)),
    }  # fmt: skip


@st.composite
def actions(draw: st.DrawFn, limits: Limits, steps: int = 25, bad: bool = True) -> np.ndarray:
    """[t 7]: pushes held for some steps, jitter around the limits, and with `bad` anything that a
    float can be.
    """
    scale = np.array([*(max(v, 0.01) / limits.control_rate for v in limits.velocity), 1.0])
    values = draw(
        hnp.arrays(
            np.float64,
            (steps, 7),
            elements=st.floats(-2, 2, width=32),
            fill=st.sampled_from([1.0, -1.0]),
        )
    )
    hold = draw(st.integers(1, steps))
    values = np.repeat(values, hold, axis=0)[:steps] * scale
    places = st.tuples(
        st.integers(0, steps - 1), st.integers(0, 6), st.floats(allow_subnormal=True)
    )
    for t, j, value in draw(st.lists(places, max_size=8)) if bad else []:
        values[t, j] = value
    return values


def run(
    limits: Limits, actions: np.ndarray, poses: Iterable[np.ndarray | None] | None = None
) -> tuple[SafetyFilter, np.ndarray, list[bool]]:
    """A filter driven at its rate from an open gripper at the origin: it, what it sent [t 7], which
    were stops.
    """
    clock = Clock()
    safety = SafetyFilter(limits, gripper=1.0, clock=clock)
    safety.reset("test", pose=np.zeros(6))
    safety.rest()
    sent, stopped = [], []
    for action, pose in zip(actions, poses or [None] * len(actions), strict=True):
        clock.now += 1 / limits.control_rate
        before = safety.counts
        sent.append(safety.step(action, Reading(clock.now, pose)))
        new = {cause for cause, n in safety.counts.items() if n > before.get(cause, 0)}
        stopped.append(bool(new & {*STOP_CAUSES, "resting", "latched", "pause"}))
    return safety, np.array(sent), stopped


@property_test
@given(st.data())
def test_no_output_breaks_a_limit(data: st.DataObject) -> None:
    """Velocity, acceleration, jerk, gripper, and the box of the poses summed up; gentle braking is
    always possible.
    """
    bounds = make_limits(**data.draw(changes()))
    wanted = data.draw(actions(bounds))
    safety, sent, stopped = run(bounds, wanted)
    assert violations(bounds, sent, stopped, 1.0) == []
    for pose in np.cumsum(sent[:, :6], 0):
        assert (outside(bounds, pose) <= 1e-12).all()
    assert "no_braking_room" not in safety.counts
    bad = ~np.isfinite(wanted).all(1)
    assert np.array(stopped)[bad].all()
    assert not sent[bad, :6].any()


@property_test
@given(st.data())
def test_with_any_measured_pose_motion_never_leads_further_out(data: st.DataObject) -> None:
    bounds = make_limits(**data.draw(changes()))
    wanted = data.draw(actions(bounds))
    near = hnp.arrays(np.float64, 6, elements=st.floats(-1, 1))
    poses = data.draw(
        st.lists(st.one_of(near, hnp.arrays(np.float64, 6)), min_size=25, max_size=25)
    )
    _, sent, stopped = run(bounds, wanted, poses)
    assert violations(bounds, sent, stopped, 1.0) == []
    before = np.zeros(7)  # may not be in the measured pose yet
    for action, pose in zip(sent, poses, strict=True):
        if not np.isfinite(pose).all():
            assert not action[:6].any()
            continue
        place = pose[:3] + action[:3]
        assert (
            outside(bounds, np.array([*place, 0, 0, 0]))[:3]
            <= outside(bounds, np.array([*pose[:3], 0, 0, 0]))[:3] + abs(before[:3]) + 1e-12
        ).all()
        before = action


@property_test
@given(st.data())
def test_what_was_sent_passes_unchanged(data: st.DataObject) -> None:
    """No limit is left that a second filter would still have to enforce: filters do not undo each
    other.
    """
    bounds = make_limits(**data.draw(changes()))
    _, sent, stopped = run(bounds, data.draw(actions(bounds, bad=False)))
    assert not any(stopped)
    again, same, _ = run(bounds, sent)
    np.testing.assert_array_equal(same, sent)
    assert set(again.counts) <= {"latched", "no_action"}


@property_test
@given(st.data())
def test_a_stop_takes_one_step_and_lasts_until_reset(data: st.DataObject) -> None:
    bounds = make_limits(**data.draw(changes()))
    wanted = data.draw(actions(bounds))
    pressed = data.draw(st.integers(0, 20))
    clock = Clock()
    safety = SafetyFilter(bounds, gripper=0.5, clock=clock)
    safety.reset("test", pose=np.zeros(6))
    gripper = 0.5
    for t, action in enumerate(wanted):
        clock.now += data.draw(st.sampled_from([1 / bounds.control_rate, 0.0, 5.0, -3.0]))
        if t == pressed:
            safety.emergency_stop("button")
        sent = safety.step(
            action, Reading(data.draw(st.sampled_from([clock.now, 0.0, math.nan, 1e9])))
        )
        if t >= pressed:
            assert not sent[:6].any()
            assert safety.latched is not None
            if bounds.gripper_at_stop == "hold":
                assert sent[6] == gripper
        gripper = sent[6]
    safety.reset("a person", pose=np.zeros(6))
    clock.now = 1000.0
    safety.step(np.zeros(7), Reading(clock.now))
    assert safety.latched is None


@pytest.mark.slow
@property_test
@given(st.data())
def test_the_same_input_gives_the_same_output_and_log(data: st.DataObject) -> None:
    bounds = make_limits(**data.draw(changes()))
    wanted = data.draw(actions(bounds))
    (one, first, _), (two, second, _) = run(bounds, wanted.copy()), run(bounds, wanted.copy())
    assert first.tobytes() == second.tobytes()
    assert repr(one.events) == repr(two.events)
    assert one.counts == two.counts


@property_test
@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=60))
def test_motion_is_never_faster_than_the_control_rate(waits: list[float]) -> None:
    """Between any two moving steps lies a period for each step from one to the other, less the
    permitted jitter.
    """
    bounds = make_limits()
    clock = Clock()
    safety = SafetyFilter(bounds, gripper=1.0, clock=clock)
    safety.reset("test", pose=np.zeros(6))
    moved = []
    for wait in waits:
        clock.now += wait
        if safety.step(np.array([0, 0, 0, 0, 0, 0.01, 1]), Reading(clock.now))[:6].any():
            moved.append(clock.now)
    for i, begin in enumerate(moved):
        for j in range(i + 1, len(moved)):
            assert moved[j] - begin >= (j - i - bounds.jitter) / bounds.control_rate - 1e-9
