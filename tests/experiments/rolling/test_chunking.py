"""Chunks one after the other, where a plan takes a while to come."""

from typing import Any

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from experiments.rolling.chunking import Chunking, Following, jerk
from experiments.rolling.episodes import Orders, play
from experiments.sims.navigation import Navigation
from vla_jax.robot.client import freeze

BLOCKS, K = DATASETS["blocks"], 8


def chunk_of(number: int, begin: int) -> np.ndarray:
    """A chunk whose actions say from which it is, 100 each, and for which control step."""
    return np.tile(100.0 * number + np.arange(begin, begin + K)[:, None], (1, 7))


def carried_out(chunking: Chunking, count: int = 3) -> np.ndarray:
    """The first number of what is carried out of `count` chunks [steps]."""
    following, done = Following(chunking, BLOCKS), np.zeros((0, 7))
    for number in range(count):
        before = done[-1] if len(done) else None
        done = np.concatenate([done, following.next(chunk_of(number, len(done)), before)])
    return done


@pytest.mark.parametrize("kind", ["newest", "realtime"])
def test_the_running_chunk_goes_on_until_the_next_one_is_there(kind: str) -> None:
    done = carried_out(Chunking(kind, delay=2, execute=3))[:, 0]
    #                              its picture, two steps of delay, and its own third step
    np.testing.assert_array_equal(done, [0, 1, 2, 3, 4, 105, 106, 107, 208])
    whole = carried_out(Chunking(kind, delay=2))[:, 0]
    np.testing.assert_array_equal(whole[:12], [0, 1, 2, 3, 4, 5, 6, 7, 108, 109, 110, 111])


def test_what_overlaps_is_averaged_as_in_the_client_but_for_the_gripper() -> None:
    done = carried_out(Chunking("freeze", delay=1, execute=3), 2)
    expected = freeze(chunk_of(0, 0)[3:], chunk_of(1, 3), 1, (6,))
    np.testing.assert_array_equal(done[3:], expected[:3])
    np.testing.assert_array_equal(done[3:, 6], [3, 104, 105])
    assert 5 < done[5, 0] < 105


def test_who_waits_stands_still_and_begins_with_the_first_action() -> None:
    done = carried_out(Chunking("wait", delay=2, execute=3), 2)
    np.testing.assert_array_equal(done[:, 0], [0, 1, 2, 0, 0, 103, 104, 105])
    np.testing.assert_array_equal(done[3:5, 6], [2, 2])  # the gripper is where it was
    np.testing.assert_array_equal(carried_out(Chunking(), 2)[:, 0], [*range(8), *range(108, 116)])


def test_the_policy_is_told_what_is_then_carried_out() -> None:
    following = Following(Chunking("realtime", delay=2, execute=4), BLOCKS)
    first = following.underway(7)
    assert first is not None
    assert first.actions.shape == (0, 7)
    following.next(chunk_of(0, 0), None)
    told = following.underway(7)
    assert told is not None
    assert told.delay == 2
    np.testing.assert_array_equal(told.actions, chunk_of(0, 0)[4:])
    done = following.next(chunk_of(1, 4), None)
    np.testing.assert_array_equal(done[:2], told.actions[:2])
    for kind in ("wait", "newest", "freeze"):
        assert Following(Chunking(kind, delay=2), BLOCKS).underway(7) is None


@pytest.mark.parametrize("kind", ["newest", "freeze", "realtime"])
@pytest.mark.parametrize(("delay", "execute"), [(K, 0), (K + 3, 0), (5, 0), (3, 2), (2, 7)])
def test_a_delay_that_the_chunk_does_not_last_for_is_refused(
    kind: str, delay: int, execute: int
) -> None:
    told = f"--delay={delay} --chunking={kind}: expected a delay of at most half a chunk of 8"
    with pytest.raises(ValueError, match=told):
        carried_out(Chunking(kind, delay, execute))


def test_an_episode_goes_on_while_its_policy_thinks() -> None:
    sim: Any = Navigation()
    work, asked, chunk = play(sim, Orders(0, execute=3, chunking="realtime", delay=2), 5), [], None
    while True:
        try:
            query = work.send(chunk)  # type: ignore[arg-type]
        except StopIteration as end:
            done = end.value
            break
        asked.append(query.seen.underway)
        chunk = np.stack([sim.expert()] * 6) + 1e-6 * len(asked)
    assert len(asked) == -(-len(done.actions) // 3)
    assert len(asked[0].actions) == 0
    for i, told in enumerate(asked[1:], 1):
        then = done.actions[3 * i : 3 * i + 2]
        np.testing.assert_array_equal(told.actions[: len(then)], then)
    assert done.row["jerk"].keys() == {"m/s^3", "rad/s^3"}


def test_jerk_is_the_second_difference_of_velocity_in_time() -> None:
    """x = t^3 / 6 has the jerk 1: as motions of a step, and as velocities."""
    hz = 5.0
    t = np.arange(12) / hz
    deltas = np.zeros((11, 7))
    deltas[:, 0] = np.diff(t**3 / 6)
    deltas[:, 6] = np.arange(11) % 2  # a gripper has none
    got = jerk(BLOCKS, deltas, hz)
    assert got == {
        "table widths/s^3": pytest.approx(np.sqrt(1 / 3), abs=1e-6), "rad/s^3": 0.0
    }  # fmt: skip
    velocities = np.zeros((12, 3))
    velocities[:, 2] = t**2 / 2
    got = jerk(DATASETS["navigation"], velocities, hz)
    assert got == {"m/s^3": 0.0, "rad/s^3": pytest.approx(1.0, abs=1e-6)}
    assert jerk(BLOCKS, deltas[:2], hz) == {}
