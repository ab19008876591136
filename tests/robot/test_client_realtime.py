"""Real-time chunking over the wire: the client says what it goes on with and for how long, the
server passes it on, and who cannot is refused by name.
"""

import contextlib
from typing import Any

import numpy as np
import pytest

from tests.robot.fake_server import IMAGES, QUICK, K, Server
from tests.robot.serving.fake_policy import CHUNK, Log
from tests.robot.serving.serving import robot as connected
from tests.robot.serving.serving import run, serving
from tests.robot.test_client_broker import FakeClient, FakeFilter, Robot
from vla_jax.robot.client import ChunkBroker, Client, Plan, Report

PLAN = np.arange(4.0).reshape(2, 2)


def test_a_plan_is_said_to_a_server_that_knows_of_plans_alone() -> None:
    with (
        contextlib.closing(Server(realtime=True, limits=None)) as new,
        contextlib.closing(Server(limits=None)) as old,
        Client(new.url, waits=QUICK) as client,
        Client(old.url, waits=QUICK) as other,
    ):
        for each in (client, other):
            each.reset("go")
            each.act(IMAGES)
        client.act(IMAGES, report=Report(plan=PLAN, delay=1))
        with pytest.raises(ValueError, match="realtime: expected a server whose policy flows"):
            other.act(IMAGES, report=Report(plan=PLAN, delay=1))
        with pytest.raises(ValueError, match="realtime: expected a server whose policy flows"):
            ChunkBroker(other, period=0.1, blend="realtime")
        said = new.received[2]
        np.testing.assert_array_equal(said["plan"], PLAN)
        assert said["delay"] == 1
        assert not {"plan", "delay"} & {*new.received[1], *old.received[1]}
        assert len(old.received) == 2


def test_what_is_underway_is_the_plan_from_the_frames_step_on() -> None:
    plan = Plan(0.1, "realtime")
    assert plan.underway(10.0) == (None, None)
    plan.slot(10.0)
    for late, begin in ((1, 10.0), (3, 10.5)):
        rows = np.stack([10 * begin + np.arange(K), np.zeros(K)], 1)
        plan.add(rows, begin, begin + 0.1 * late + 0.01)
    assert list(plan.delays) == [1, 3]
    left, delay = plan.underway(10.6)
    assert left is not None
    np.testing.assert_array_equal(left[:, 0], [106, 107, 108])
    assert delay == 3
    assert plan.underway(10.8)[1] == 1  # no longer than the plan is
    assert plan.underway(10.9) == (None, None)
    assert float(plan.take(10.81).action[0]) == 108  # type: ignore[index]


@pytest.mark.parametrize("with_filter", [False, True])
def test_a_broker_says_its_plan_and_its_own_delay(with_filter: bool) -> None:
    safety: Any = FakeFilter() if with_filter else None
    robot = Robot(FakeClient(safety, realtime=True), blend="realtime")
    try:
        robot.begin()
        robot.tick()
        report = robot.request()[1][3]
        assert (report.plan, report.delay) == (None, None)  # nothing goes on
        robot.tick()
        robot.tick()
        robot.replied(0.0)  # two steps after its frame
        assert robot.broker.counters["delay_p95"] == 2
        done = [robot.tick().action]
        report = robot.request()[1][3]
        np.testing.assert_array_equal(report.plan[:, 0], [3, 4, 5, 6, 7])
        assert report.delay == 2
        done += [robot.tick().action for _ in range(2)]
        robot.replied(100.0)
        done.append(robot.tick().action)
        shift = 0.5 if with_filter else 0.0  # what is carried out has passed the filter
        assert [float(a[0]) - shift for a in done] == [3, 4, 5, 103]
    finally:
        robot.broker.close()


@run
async def test_a_server_passes_it_on_and_names_what_is_none() -> None:
    log = Log()
    plan = np.zeros((CHUNK - 1, 7), np.float32)
    async with serving(log) as served, connected(served) as bot:
        await bot.begin("push the block")
        answer = await bot.ask(bot.act(plan=plan, delay=1))
        assert answer["code"] == "bad_request"
        assert "underway: real-time chunking: expected a policy that flows" in answer["message"]
        log.inpaints = True
        answer = await bot.ask(bot.act(plan=plan, delay=CHUNK))
        assert answer["code"] == "bad_request"
        assert "delay: expected 0 to 3 control steps, fewer than a chunk has" in answer["message"]
        assert (await bot.ask(bot.act(plan=plan, delay=2)))["type"] == "actions"
        assert (await bot.ask(bot.act()))["type"] == "actions"
    first, second = log.underway
    assert first is not None
    np.testing.assert_array_equal(first.actions, plan)
    assert (first.delay, second) == (2, None)
