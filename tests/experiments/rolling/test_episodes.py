"""A policy in a world: what it is shown and told, and when."""

from typing import Any

import numpy as np
import pytest

from experiments.rolling.episodes import Actor, Expert, Random, begin, play
from experiments.sims import Sim
from experiments.sims.navigation import Navigation


class Looking(Navigation):
    """Counts how often it is drawn."""

    looks = 0

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        self.looks += 1
        return super().observe()


class Chunks:
    """The expert's next action, `k` times, and what it was told and shown."""

    def __init__(self, sim: Navigation, k: int) -> None:
        self._sim, self._k = sim, k
        self.told: list[str] = []
        self.shown: list[Any] = []

    def reset(self, instruction: str) -> None:
        self.told.append(instruction)

    def act(self, images: dict[str, np.ndarray], proprio: np.ndarray | None = None) -> np.ndarray:
        self.shown.append((images["primary"].shape, proprio))
        return np.stack([self._sim.expert()] * self._k)


class Fixed:
    """A policy that says one thing."""

    def __init__(self, chunk: np.ndarray) -> None:
        self._chunk = chunk

    def reset(self, instruction: str) -> None:
        pass

    def act(self, images: dict[str, np.ndarray], proprio: np.ndarray | None = None) -> np.ndarray:
        return self._chunk


@pytest.mark.parametrize(("execute", "steps_a_plan"), [(1, 1), (2, 2), (0, 3)])
def test_it_looks_when_it_plans_and_not_between(execute: int, steps_a_plan: int) -> None:
    sim = Looking()
    policy = Chunks(sim, 3)
    row, actions = play(sim, Actor(lambda number: policy, execute), 0, 5)
    assert row["outcome"] == "success"
    assert row["steps"] == len(actions)
    assert sim.looks == len(policy.shown) == -(-len(actions) // steps_a_plan)
    assert len(row["milliseconds"]) == sim.looks
    assert policy.shown[0][0] == (64, 64, 3)
    np.testing.assert_array_equal(policy.shown[0][1], np.zeros(3))
    assert policy.told == [row["instruction"]]


def test_a_blanked_policy_is_told_nothing() -> None:
    sim = Navigation()
    policy = Chunks(sim, 3)
    row, _ = play(sim, Actor(lambda number: policy, 0, blank=True), 0, 0)
    assert policy.told == [""]
    assert row["instruction"]


def test_who_is_blind_costs_no_picture() -> None:
    sim = Looking()
    for policy in (Expert(sim), Random(sim, 0, 0)):
        play(sim, Actor(lambda number, policy=policy: policy, 0, looks=False), 0, 0)
    assert sim.looks == 0


def test_episodes_follow_from_seed_and_number() -> None:
    def actions(seed: int, number: int) -> np.ndarray:
        sim = Navigation()
        random = Actor(lambda number: Random(sim, seed, number), 0, looks=False)
        return np.stack(play(sim, random, seed, number)[1])

    np.testing.assert_array_equal(actions(3, 1), actions(3, 1))
    assert not np.array_equal(actions(3, 1)[0], actions(3, 2)[0])
    assert not np.array_equal(actions(3, 1)[0], actions(4, 1)[0])


def test_tasks_come_in_turn_and_then_wordings() -> None:
    sim: Sim = Navigation()
    rows = [begin(sim, 0, number) for number in range(16)]
    assert [row["task"] for row in rows] == [*sim.tasks, *sim.tasks]
    assert [row["wording"] for row in rows] == ["seen"] * 8 + ["held out"] * 8


@pytest.mark.parametrize(
    ("chunk", "told"),
    [
        (np.zeros((4, 7)), r"4 actions or more of 3 numbers each, got \[4, 7\]"),
        (np.zeros((2, 3)), r"4 actions or more of 3 numbers each, got \[2, 3\]"),
        (np.zeros(3), r"got \[3\]"),
        (np.full((4, 3), np.nan), "finite actions"),
    ],
)
def test_what_no_robot_could_carry_out_is_refused(chunk: np.ndarray, told: str) -> None:
    sim = Navigation()
    with pytest.raises(ValueError, match=f"episode 2: .*{told}"):
        play(sim, Actor(lambda number: Fixed(chunk), 4), 0, 2)
