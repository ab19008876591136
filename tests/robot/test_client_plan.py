"""Which action is due when: blending by its formulas, and the rules of dropping, without threads or
time.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.robot.client import Plan, ensemble, freeze

P = 0.1


def chunk(value: float, k: int = 4) -> np.ndarray:
    """Rows value, value + 1, ...: what is executed tells its chunk and its step. The second dim is
    a gripper.
    """
    return np.stack([value + np.arange(k), np.full(k, value // 100 % 2)], 1).astype(np.float32)


def taken(plan: Plan, now: float) -> float | None:
    action = plan.take(now).action
    return None if action is None else float(action[0])


def test_ensemble_is_the_formula_of_act() -> None:
    rows, m = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 1.0]]), 0.3
    weights = [math.exp(-m * i) for i in range(3)]
    expected = (1 * weights[0] + 2 * weights[1] + 4 * weights[2]) / sum(weights)
    np.testing.assert_allclose(ensemble(rows, m, [1]), [expected, 1.0])
    np.testing.assert_allclose(ensemble(rows[:1], m, [1]), rows[0])


def test_freeze_is_the_mask_of_real_time_chunking() -> None:
    k, n, d = 8, 6, 2  # horizon, overlap (H - s), delay
    c = [(n - i) / (n - d + 1) for i in range(d, n)]
    weight = [1.0] * d + [x * (math.exp(x) - 1) / (math.e - 1) for x in c] + [0.0] * (k - n)
    assert 1 > weight[d] > weight[n - 1] > 0
    blended = freeze(np.ones((n, 2)), np.zeros((k, 2)), d, [1])
    np.testing.assert_allclose(blended[:, 0], weight)
    np.testing.assert_array_equal(
        blended[:, 1], [1.0] * d + [0.0] * (k - d)
    )  # the gripper is never between


@pytest.mark.parametrize(("n", "delay"), [(0, 0), (0, 3), (2, 3), (4, 4), (4, 0)])
def test_freeze_without_a_soft_part(n: int, delay: int) -> None:
    blended = freeze(np.ones((n, 1)), np.zeros((4, 1)), delay)
    assert np.isfinite(blended).all()
    np.testing.assert_array_equal(blended[:, 0] == 1, np.arange(4) < min(n, delay))


def test_step_zero_belongs_to_the_frame_itself() -> None:
    plan = Plan(P, "newest")
    plan.add(chunk(0), 5.0, 5.01)
    assert [taken(plan, 5.02 + i * P) for i in range(5)] == [0, 1, 2, 3, None]
    assert plan.counts == {"used": 4, "dropped_late": 0, "starved": 1}


def test_actions_whose_time_has_passed_are_dropped() -> None:
    plan = Plan(P, "newest")
    plan.slot(5.0)
    plan.add(chunk(0), 5.0, 5.21)
    assert plan.left(5.21) == 2
    assert [taken(plan, 5.22), taken(plan, 5.31), taken(plan, 5.42)] == [2, 3, None]
    assert plan.counts["dropped_late"] == 2


def test_a_stalled_loop_goes_on_where_time_is() -> None:
    plan = Plan(P, "newest")
    plan.add(chunk(0, 8), 5.0, 5.0)
    assert [taken(plan, 5.0), taken(plan, 5.1), taken(plan, 5.5), taken(plan, 9.0)] == [
        0,
        1,
        5,
        None,
    ]


def test_jitter_neither_repeats_nor_skips_an_action() -> None:
    plan = Plan(P, "newest")
    plan.add(chunk(0, 8), 5.0, 5.0)
    assert [taken(plan, t) for t in (5.0, 5.19, 5.2, 5.39, 5.4, 5.59)] == [0, 1, 2, 3, 4, 5]


def test_a_step_that_was_missed_is_skipped() -> None:
    plan = Plan(P, "newest")
    plan.add(chunk(0, 8), 5.0, 5.0)
    assert [taken(plan, t) for t in (5.0, 5.21, 5.3)] == [0, 2, 3]


def test_a_loop_that_is_too_fast_is_told_so() -> None:
    plan = Plan(P, "newest")
    plan.add(chunk(0, 8), 5.0, 5.0)
    assert [taken(plan, 5.0), taken(plan, 5.03)] == [0, 1]
    early = plan.take(5.12)
    assert early.action is None
    assert early.why == "early: the next action is due in 80 ms; call once per period"
    assert plan.counts["starved"] == 0
    assert taken(plan, 5.13) == 2


def test_a_frame_a_little_before_its_step_belongs_to_it() -> None:
    plan = Plan(P, "newest")
    plan.add(chunk(0), 5.0, 5.0)
    assert taken(plan, 5.0) == 0
    plan.add(chunk(100), 5.08, 5.08)
    assert taken(plan, 5.09) == 100
    plan.add(
        chunk(200), 5.28, 5.28
    )  # the loop is late: step 2 is due, and there is an action for it
    assert [taken(plan, t) for t in (5.29, 5.3, 5.4)] == [200, 201, 202]


def test_a_reply_older_than_one_that_came_is_dropped() -> None:
    plan = Plan(P, "newest")
    plan.add(chunk(100), 5.1, 5.12)
    plan.add(chunk(0), 5.0, 5.13)
    assert taken(plan, 5.14) == 100
    assert plan.counts["dropped_order"] == 1


def test_a_reply_after_its_chunk_is_not_used_and_counted_in_a_row() -> None:
    plan = Plan(P, "newest")
    plan.slot(5.0)
    for i in range(3):
        plan.add(chunk(0), 5.0 + i, 5.5 + i)
        assert plan.too_late == i + 1
        assert taken(plan, 5.5 + i) is None
    plan.add(chunk(0), 8.0, 8.1)
    assert plan.too_late == 0


def test_freezing_goes_from_the_present_plan_to_the_new_one() -> None:
    plan = Plan(P, "freeze", keep=[1])
    plan.add(chunk(0, 8), 5.0, 5.01)
    assert taken(plan, 5.02) == 0
    plan.add(chunk(100, 8), 5.1, 5.33)  # steps 0 and 1 of it are past, step 2 is due
    executed = [plan.take(5.34 + i * P) for i in range(7)]
    expected = freeze(chunk(0, 8)[1:], chunk(100, 8), 2, [1])
    np.testing.assert_allclose([step.action for step in executed[:6]], expected[2:])
    assert executed[5].action[0] == 107  # past the old plan's end it is the new one's alone
    assert executed[6].action is None
    assert executed[0].observed_at == 5.1


def test_ensembling_averages_all_live_chunks() -> None:
    plan = Plan(P, "ensemble", 0.5, [1])
    plan.add(chunk(0), 5.0, 5.0)
    assert taken(plan, 5.0) == 0
    plan.add(chunk(100), 5.1, 5.1)
    plan.add(chunk(200), 5.2, 5.2)
    np.testing.assert_allclose(
        plan.take(5.2).action, ensemble(np.array([[2, 0], [101, 1], [200, 0]]), 0.5, [1])
    )
    assert plan.take(5.3).action is not None
    np.testing.assert_allclose(
        plan.take(5.4).action, ensemble(np.array([[103, 1], [202, 0]]), 0.5, [1])
    )


@pytest.mark.parametrize("blend", ["freeze", "ensemble"])
def test_a_chunk_that_limits_touched_replaces_the_plan(blend: str) -> None:
    plan = Plan(P, blend)
    plan.add(chunk(0), 5.0, 5.0)
    plan.add(np.zeros((4, 2)), 5.1, 5.1, whole=True)
    np.testing.assert_array_equal(plan.take(5.1).action, [0.0, 0.0])


def test_a_frame_of_the_future_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"observed_at: expected at most 5.0, which is now, got 5.1"
    ):
        Plan(P).add(chunk(0), 5.1, 5.0)


def test_an_action_knows_its_chunk_its_place_and_its_time() -> None:
    plan = Plan(P, "newest")
    plan.add(chunk(0, 8), 5.0, 5.2, number=4)
    step = plan.take(5.2)
    assert (step.chunk, step.row, step.observed_at) == (4, 2, 5.0)
    assert step.due == pytest.approx(5.0 + 2 * P)
    plan.add(chunk(100, 8), 5.3, 5.3, number=5)
    step = plan.take(5.3)
    assert (step.chunk, step.row, step.due) == (5, 0, 5.3)


EVENTS = st.lists(
    st.tuples(st.floats(0, 0.25), st.integers(0, 9), st.booleans()), min_size=1, max_size=60
)


@settings(max_examples=100, deadline=None)
@given(events=EVENTS, blend=st.sampled_from(["freeze", "ensemble", "newest"]), k=st.integers(1, 6))
def test_no_action_is_stale_and_none_is_executed_twice(
    events: list[tuple[float, int, bool]], blend: str, k: int
) -> None:
    """Whenever replies come, in whatever order, and however the loop jitters.

    Actions say when they are due, in periods, which a blend of actions that are due at the same
    time still does.
    """
    plan, now, frames, last = Plan(P, blend), 100.0, [100.0], -math.inf
    for wait, which, tick in events:
        now += wait
        frames.append(now)
        if not tick:
            observed_at = frames[-1 - min(which, len(frames) - 1)]
            plan.add((observed_at / P + np.arange(k))[:, None], observed_at, now)
            continue
        step = plan.take(now)
        if step.action is None:
            continue
        due = float(step.action[0])
        assert -1.75 - 1e-6 <= now / P - due <= 1.25 + 1e-6, "not within its time"
        assert due >= last - 1e-6, (
            "executed before"
        )  # frames are rounded to a step, half a period either way
        last = due
    assert plan.counts["used"] + plan.counts["starved"] <= sum(tick for _, _, tick in events)


@settings(max_examples=50, deadline=None)
@given(waits=st.lists(st.floats(0, 0.25), min_size=1, max_size=40))
def test_steps_of_one_chunk_are_executed_once_and_in_order(waits: list[float]) -> None:
    plan, now, done = Plan(P, "newest"), 7.0, []
    plan.add(chunk(0, 16), 7.0, 7.0)
    for wait in waits:
        now += wait
        done.append(taken(plan, now))
    executed = [step for step in done if step is not None]
    assert executed == sorted(set(executed))
