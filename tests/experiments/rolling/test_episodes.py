"""A policy in a world: what it is shown and told, and when."""

from typing import Any

import numpy as np
import pytest

from experiments.rolling.episodes import Orders, Played, Query, begin, play
from experiments.sims import Sim
from experiments.sims.navigation import Navigation


class Looking(Navigation):
    """Counts how often it is drawn."""

    looks = 0

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        self.looks += 1
        return super().observe()


class TwoParts(Looking):
    """Another instruction after five steps."""

    steps = 0

    def reset(self, task: str, wording: str, seed: tuple[int, int]) -> None:
        super().reset(task, wording, seed)
        self.steps = 0

    @property
    def stage(self) -> int:  # type: ignore[override]
        return int(self.steps >= 5)

    def step(self, action: np.ndarray) -> None:
        super().step(action)
        self.steps += 1
        self.instruction = f"part {self.stage}"


def played(sim: Any, orders: Orders, number: int, k: int = 3) -> tuple[Played, list[Query]]:
    """The episode of a policy that says the expert's next action `k` times, and its queries."""
    work, asked, chunk = play(sim, orders, number), list[Query](), None
    while True:
        try:
            query = work.send(chunk)  # type: ignore[arg-type]
        except StopIteration as end:
            return end.value, asked
        asked.append(query)
        chunk = np.stack([sim.expert()] * k)


@pytest.mark.parametrize(("execute", "steps_a_plan"), [(1, 1), (2, 2), (0, 3)])
def test_it_looks_when_it_plans_and_not_between(execute: int, steps_a_plan: int) -> None:
    sim = Looking()
    done, asked = played(sim, Orders(0, execute=execute), 5)
    assert done.row["outcome"] == "success"
    assert done.row["steps"] == len(done.actions)
    assert sim.looks == len(asked) == -(-len(done.actions) // steps_a_plan)
    assert asked[0].seen.images["primary"].shape == (64, 64, 3)
    np.testing.assert_array_equal(asked[0].seen.proprio, np.zeros(3))
    assert [query.instruction for query in asked] == [done.row["instruction"]] + [None] * (
        len(asked) - 1
    )
    assert asked[0].seen.executed is None
    for i, query in enumerate(asked[1:], 1):
        np.testing.assert_array_equal(query.seen.executed, done.actions[i * steps_a_plan - 1])


def test_it_begins_anew_with_the_next_instruction_in_the_middle_of_a_chunk() -> None:
    done, asked = played(TwoParts(), Orders(0), 5)
    told = [(i, query.instruction) for i, query in enumerate(asked) if query.instruction]
    assert told == [(0, done.row["instruction"]), (2, "part 1")]  # after 3 and 2 steps
    assert asked[2].seen.executed is None


def test_a_blanked_policy_is_told_nothing() -> None:
    done, asked = played(Navigation(), Orders(0, blank=True), 0)
    assert asked[0].instruction == ""
    assert done.row["instruction"]


def test_who_is_blind_costs_no_picture() -> None:
    sim = Looking()
    for script in ("expert", "random"):
        played(sim, Orders(0, script), 0)
    assert sim.looks == 0


def test_episodes_follow_from_seed_and_number() -> None:
    def actions(seed: int, number: int) -> np.ndarray:
        return played(Navigation(), Orders(seed, "random"), number)[0].actions

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
    work = play(Navigation(), Orders(0, execute=4), 2)
    next(work)
    with pytest.raises(ValueError, match=f"episode 2: .*{told}"):
        work.send(chunk)
