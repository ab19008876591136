"""The broker round a fake client and a fake clock: when it asks, what it says, and that it never
waits.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_jax.robot.client import ChunkBroker, Client, Report, ServerError, Step, TooSlow, Waits
from vla_jax.robot.safety.filter import Reading

P, K = 0.1, 8
IMAGES = {"primary": np.zeros((2, 2, 3), np.uint8)}
NAMES = ["x", "gripper"]


class FakeClient(Client):
    """What is asked comes out of `asked`, what the test puts into `answers` is the answer, or is
    raised.
    """

    def __init__(self, filter: Any = None, **handshake: Any) -> None:
        self.now = 50.0
        self.waits = Waits(clock=lambda: self.now, sleep=lambda seconds: self.slept.append(seconds))
        self.handshake = {
            "chunk": K,
            "datasets": {"blocks": {"action": NAMES}},
            "limits": None,
            **handshake,
        }
        self.filter = filter
        self.reconnects, self.trouble = 0, ""
        self.slept: list[float] = []
        self.asked: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.answers: queue.Queue[Any] = queue.Queue()

    def connect(self) -> None:
        pass

    def close(self) -> None:
        self.answers.put(ConnectionError("closed"))

    def stop(self, why: str) -> None:
        self.asked.put(("stop", why))

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        self.asked.put(("reset", (instruction, dataset, seed)))
        self._answer()

    def act(
        self,
        images: Any,
        proprio: Any = None,
        observed_at: Any = None,
        report: Any = None,
        resend: bool = True,
        sensors: Any = None,
    ) -> Any:
        self.sensors = sensors
        self.asked.put(("act", (observed_at, images, proprio, report, resend)))
        answer = self._answer()
        return {"observed_at": observed_at, "safety": None, **answer}

    def _answer(self) -> Any:
        answer = self.answers.get(timeout=10)
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeFilter:
    """Of limits for the period P; a stop is 0, and it writes down what it is told."""

    limits = SimpleNamespace(control_rate=1 / P, digest="digest")
    new_reading = Reading

    def __init__(self) -> None:
        self.told: list[Any] = []

    def step(self, action: Any, reading: Any) -> np.ndarray:
        self.told.append(reading)
        return np.asarray(action) + 0.5

    def rest(self) -> np.ndarray:
        self.told.append("rest")
        return np.zeros(2)


class Robot:
    """A control loop one call at a time, and the server's side of it."""

    def __init__(self, client: FakeClient, **settings: Any) -> None:
        self.client, self.broker = client, ChunkBroker(client, **{"period": P, **settings})

    def begin(self) -> None:
        self.broker.reset("do it")
        assert self.request()[0] == "reset"
        self.client.answers.put(None)

    def tick(self, seconds: float = P) -> Step:
        self.client.now += seconds
        self.broker.observe(IMAGES)
        return self.broker.next()

    def request(self) -> tuple[str, Any]:
        return self.client.asked.get(timeout=10)

    def asks(self) -> bool:
        """Whether something is asked; it takes a moment of real time to be sure that nothing is."""
        try:
            self.asked = self.client.asked.get(timeout=0.05)
        except queue.Empty:
            return False
        return True

    def answer(self, value: float, **more: Any) -> None:
        rows = np.stack([value + np.arange(K), np.zeros(K)], 1).astype(np.float32)
        self.client.answers.put({"actions": rows, **more})

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not done():
            assert time.monotonic() < end
            time.sleep(0.001)

    def replied(self, value: float, **more: Any) -> None:
        """Answers, and waits until the broker has taken it in."""
        before = self.broker.counters["replies"]
        self.answer(value, **more)
        self.until(lambda: self.broker.counters["replies"] > before)


@pytest.fixture
def robot() -> Iterator[Robot]:
    robot = Robot(FakeClient())
    yield robot
    robot.broker.close()
    assert not robot.broker._thread.is_alive()


def test_chunks_follow_each_other_without_a_gap(robot: Robot) -> None:
    robot.begin()
    assert robot.tick().action is None
    robot.request()
    robot.replied(0.0)
    assert [robot.tick().action[0] for _ in range(2)] == [1, 2]
    assert not robot.asks()  # five are left, half of a chunk is four
    assert robot.tick().action[0] == 3
    kind, (observed_at, _, _, report, resend) = robot.request()
    assert (kind, resend) == ("act", False)
    assert observed_at == robot.client.now
    np.testing.assert_array_equal(report.executed, [2, 0])  # what was done when the frame was taken
    assert [robot.tick().action[0] for _ in range(2)] == [4, 5]
    robot.replied(3.0)
    assert [robot.tick().action[0] for _ in range(5)] == pytest.approx([6, 7, 8, 9, 10])
    robot.request()
    robot.answer(8.0)
    counters = robot.broker.counters
    assert (
        counters["requested"],
        counters["used"],
        counters["starved"],
        counters["dropped_late"],
    ) == (3, 10, 1, 3)


def test_it_asks_earlier_where_replies_are_slow(robot: Robot) -> None:
    robot.begin()
    robot.tick()
    robot.request()
    robot.client.now += 0.55
    robot.replied(0.0)
    assert robot.broker.counters["latency_max"] == pytest.approx(0.55)
    robot.tick(0.05)  # step 6: two are left
    robot.request()
    robot.replied(0.0)
    robot.tick()
    assert robot.asks()  # seven are left, and a reply takes 5.5


def test_frames_and_states_are_copied(robot: Robot) -> None:
    robot.begin()
    image, proprio = np.zeros((2, 2, 3), np.uint8), np.zeros(3)
    robot.broker.observe({"primary": image}, proprio)
    image[:], proprio[:] = 9, 9
    _, (_, images, state, _, _) = robot.request()
    assert images["primary"].max() == 0
    assert state.max() == 0
    robot.answer(0.0)


def test_speech_of_a_frame_that_was_not_sent_goes_with_the_next(robot: Robot) -> None:
    """Copied; a reading of another frame is not."""
    robot.begin()
    robot.tick()
    robot.request()  # is being answered: what comes meanwhile waits
    sound, imu = np.arange(3), np.ones(2)
    for sensors in ({"command": (sound, 16000), "imu": imu}, {"imu": imu + 1}):
        robot.client.now += P / 4
        robot.broker.observe(IMAGES, sensors=sensors)
    sound[:], imu[:] = 9, 9
    robot.replied(0)
    robot.until(lambda: robot.asks() or robot.tick(P / 4) is None)
    sent = robot.client.sensors
    assert "imu" not in sent  # of the frames that came later
    assert (sent["command"][0].tolist(), sent["command"][1]) == ([0, 1, 2], 16000)


def test_times_that_go_backwards_are_refused_by_name(robot: Robot) -> None:
    robot.begin()
    robot.broker.observe(IMAGES, None, 49.5)
    with pytest.raises(
        ValueError, match=r"observed_at: expected 49.5 \(the last\) to 50.0 \(now\), got 49.4"
    ):
        robot.broker.observe(IMAGES, None, 49.4)
    with pytest.raises(ValueError, match=r"to 50.0 \(now\), got 51.0"):
        robot.broker.observe(IMAGES, None, 51.0)
    robot.broker.next()
    robot.client.now = 49.9
    with pytest.raises(ValueError, match=r"clock: expected at least 50.0, the last time, got 49.9"):
        robot.broker.next()
    robot.broker.reset("do it again")  # which forgets the last time
    robot.broker.observe(IMAGES, None, 40.0)
    robot.answer(0.0)


def test_without_a_reply_it_starves_and_says_why(robot: Robot) -> None:
    assert robot.broker.next().why == "stopped: before the first reset"
    robot.begin()
    robot.tick()
    robot.request()
    robot.replied(0.0)
    robot.client.answers.put(ConnectionError("cable"))
    steps = [robot.tick() for _ in range(9)]
    robot.until(lambda: bool(robot.client.slept))
    assert [step.action is None for step in steps] == [False] * 7 + [True] * 2
    why = robot.tick().why
    assert "the plan ended 2 steps ago" in why
    assert "a chunk lasts 800 ms" in why
    assert "cable" in why
    assert robot.broker.counters["starved"] == 4


def test_replies_slower_than_a_chunk_are_an_error_with_numbers(robot: Robot) -> None:
    robot.begin()
    for i in range(3):
        robot.tick()
        robot.request()
        robot.client.now += 0.9
        robot.replied(0.0)
        if i < 2:
            why = robot.broker.next().why
            assert "a reply came 900 ms after its frame, and a chunk is 8 steps of 100 ms" in why
    with pytest.raises(
        TooSlow, match="900 ms after its frame, and a chunk is 8 steps of 100 ms, 3 times"
    ):
        robot.tick()
    robot.begin()  # which a new episode clears
    assert robot.tick().action is None
    robot.request()
    robot.answer(0.0)


@pytest.mark.parametrize(
    "error", [ServerError("bad_image", "too small"), ValueError("another artefact")]
)
def test_what_is_refused_for_good_comes_out_of_next(robot: Robot, error: Exception) -> None:
    robot.begin()
    robot.tick()
    robot.request()
    robot.client.answers.put(error)
    robot.until(lambda: bool(robot.client.slept))
    with pytest.raises(type(error), match=str(error)):
        robot.tick()
    assert not robot.asks()


@pytest.mark.parametrize("code", ["internal", "not_ready"])
def test_after_a_failure_of_the_server_the_episode_begins_again(robot: Robot, code: str) -> None:
    robot.begin()
    robot.tick()
    robot.request()
    robot.client.answers.put(ServerError(code, "it failed"))
    assert robot.request() == ("reset", ("do it", None, 0))
    robot.client.answers.put(None)
    assert "it failed" in robot.tick().why
    assert robot.request()[0] == "act"
    robot.replied(0.0)
    assert robot.tick().action is not None


def test_a_busy_server_is_asked_again_with_the_next_frame(robot: Robot) -> None:
    robot.begin()
    robot.tick()
    robot.request()
    robot.client.answers.put(ServerError("busy", "queue"))
    robot.until(lambda: bool(robot.client.slept))
    robot.tick()
    assert robot.request()[1][0] == robot.client.now
    robot.answer(0.0)


@pytest.fixture
def filtered() -> Iterator[Robot]:
    robot = Robot(FakeClient(FakeFilter(), limits="digest"))
    yield robot
    robot.broker.close()


def test_a_filter_runs_last_and_a_stop_is_its_action(filtered: Robot) -> None:
    robot, safety = filtered, filtered.client.filter
    robot.begin()
    robot.tick()
    robot.request()
    step = robot.tick()  # nothing has come yet
    assert step.action is not None
    assert not step.action.any()
    assert step.why.startswith("no chunk has arrived yet; a reply is outstanding for 100 ms")
    robot.replied(0.0, chunk=7)
    robot.client.now += P
    pose = np.ones(6)
    robot.broker.observe(IMAGES, None, robot.client.now - 0.02, Report(pose=pose, distance=0.3))
    step = robot.broker.next()
    assert (step.action[0], step.chunk, step.row) == (2.5, 7, 2)
    told = safety.told[-1]
    assert told.observed_at == pytest.approx(robot.client.now)  # the time that the action is for
    assert (told.distance, told.measured_at) == (0.3, robot.client.now - 0.02)
    np.testing.assert_array_equal(told.pose, pose)
    early = robot.broker.next()
    assert early.action is None
    assert "call once per period" in early.why
    assert safety.told[-1] is told


def test_a_chunk_that_the_server_stopped_is_a_stop(filtered: Robot) -> None:
    robot = filtered
    robot.begin()
    robot.tick()
    robot.request()
    robot.replied(5.0, safety={"latched": None, "causes": {"stale": 8}, "stopped": True})
    step = robot.tick()
    assert not step.action.any()
    assert step.why == "stopped by the server's limits"


def test_a_server_with_limits_wants_a_filter() -> None:
    with pytest.raises(ValueError, match="expected a client with a filter, since the server has"):
        ChunkBroker(FakeClient(limits="digest"))


@pytest.mark.parametrize("period", [0.9 * P, 1.5 * P])
def test_a_loop_of_another_rate_than_the_filters_is_refused(period: float) -> None:
    with pytest.raises(ValueError, match=r"period: expected 0.1 s, for which the filter's limits"):
        ChunkBroker(FakeClient(FakeFilter()), period)


def test_a_stop_holds_until_a_reset(filtered: Robot) -> None:
    robot = filtered
    robot.begin()
    robot.tick()
    robot.request()
    robot.replied(0.0)
    robot.broker.stop("hand in the cell")
    step = robot.tick()
    assert step.why == "stopped: hand in the cell"
    assert not step.action.any()
    assert robot.request() == ("stop", "hand in the cell")
    assert not robot.asks()
    robot.begin()
    assert not robot.tick().action.any()  # nothing of the last episode
    robot.request()
    robot.replied(0.0)
    assert robot.tick().action.any()
    robot.broker.close()
    assert robot.broker.next().why == "stopped: closed"


def test_a_reply_to_the_last_episode_is_not_executed(robot: Robot) -> None:
    robot.begin()
    robot.tick()
    robot.request()
    robot.broker.reset("something else")
    robot.answer(0.0)
    assert robot.request()[0] == "reset"
    robot.client.answers.put(None)
    assert robot.tick().action is None
    assert robot.broker.counters["replies"] == 0
    robot.request()
    robot.replied(100.0)
    assert robot.tick().action[0] == 101


def test_a_reply_that_the_servers_limits_stopped_is_not_blended(robot: Robot) -> None:
    robot.begin()
    robot.tick()
    robot.request()
    robot.replied(0.0)
    for _ in range(3):
        robot.tick()
    robot.request()
    robot.replied(100.0, safety={"latched": None, "causes": {"stale": 8}, "stopped": True})
    assert robot.tick().action[0] == 101


def test_a_robot_that_the_servers_limits_hold_still_says_so(robot: Robot) -> None:
    robot.begin()
    robot.tick()
    robot.request()
    robot.replied(0.0, safety={"latched": "emergency", "causes": {"latched": 8}})
    step = robot.tick()
    assert step.action[0] == 1
    assert step.why == "held still by the server's limits: emergency; an operator resets them"
    for _ in range(2):
        robot.tick()
    robot.request()
    robot.replied(0.0, safety={"latched": None, "causes": {}})
    assert robot.tick().why == ""


def test_what_the_robot_really_did_is_sent(robot: Robot) -> None:
    robot.begin()
    robot.broker.observe(IMAGES, report=Report(executed=np.ones(2), pose=np.zeros(6), distance=0.5))
    report = robot.request()[1][3]
    assert report.distance == 0.5
    np.testing.assert_array_equal(report.executed, [1, 1])
    robot.answer(0.0)


@pytest.mark.parametrize(
    "settings",
    [{"period": 0.0}, {"period": float("nan")}, {"share": 1.5}, {"blend": "mean"}, {"decay": -1.0}],
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ChunkBroker: expected period > 0"):
        ChunkBroker(FakeClient(), **{"period": P, **settings})


def test_the_period_is_the_handshakes_unless_given() -> None:
    with pytest.raises(ValueError, match="period: expected seconds, got None"):
        ChunkBroker(FakeClient(control_hz=None))
    broker = ChunkBroker(FakeClient(control_hz=5.0))
    assert broker.period == 0.2
    broker.close()


def test_positions_of_an_angle_that_wraps_are_not_averaged() -> None:
    """3.1 and -3.1 are near to each other, and 0 is not between them."""
    safety = FakeFilter()
    wrist = SimpleNamespace(wraps=True, command="position")
    gripper = SimpleNamespace(wraps=False, command="gripper")
    safety.limits = SimpleNamespace(**vars(FakeFilter.limits), dims=(wrist, gripper))
    for filter, kept in ((None, [1]), (FakeFilter(), [1]), (safety, [0, 1])):
        robot = Robot(FakeClient(filter))
        robot.begin()
        assert robot.broker._plan.keep == kept
        robot.broker.close()
