"""CALVIN as a world: its protocol, on what was recorded in the simulator; with the clones of
CALVIN_ROOT and CALVIN_ENV_ROOT also the simulator, where they are.
"""

import os
from typing import Any

import numpy as np
import pytest

from data_pipelines.builders import calvin_clones
from data_pipelines.builders.calvin_chains import Chain
from data_pipelines.builders.calvin_world import Scene, World
from experiments.rolling.episodes import Orders, play
from experiments.sims import calvin
from experiments.sims.calvin import STEPS, Calvin, Official
from tests.experiments import calvin_recorded

RECORDED = {solved.task: solved for solved in calvin_recorded.read()}
with_clones = pytest.mark.skipif(
    not os.environ.get("CALVIN_ROOT"), reason="needs CALVIN_ROOT, CALVIN_ENV_ROOT and pybullet"
)
OPEN, CLOSED = 1.0, 0.0  # the gripper in an action of the data set


class Played:
    """The simulator: each task of a chain is solved after so many steps, as it was recorded."""

    facts = {"renderer": "none"}  # noqa: RUF012

    def __init__(self, chain: Chain, after: tuple[int, ...]) -> None:
        self._tasks, self._after = chain.tasks, after
        self.actions: list[np.ndarray] = []
        self.drawn = 0

    def reset(self, robot: np.ndarray, scene: np.ndarray) -> None:
        self.began, self._at, self._steps = (robot, scene), 0, 0

    def step(self, action: np.ndarray) -> dict[str, Any]:
        self.actions.append(action)
        self._steps += 1
        if self._steps < self._after[self._at]:
            return RECORDED[self._tasks[self._at]].start
        info = RECORDED[self._tasks[self._at]].end
        self._at, self._steps = self._at + 1, 0
        return info

    def info(self) -> dict[str, Any]:
        return RECORDED[self._tasks[min(self._at, len(self._tasks) - 1)]].start

    def solved(self, task: str, start: dict[str, Any], now: dict[str, Any]) -> bool:
        """What the oracle said of these two; what it was not asked then it is not asked now."""
        (seen,) = [one for one in RECORDED.values() if one.start is start]
        assert now is seen.start or now is seen.end
        return now is seen.end and task in seen.verdict

    def observe(self) -> dict[str, Any]:
        self.drawn += 1
        pictures = {
            "rgb_static": np.zeros((200, 200, 3), np.uint8),
            "rgb_gripper": np.ones((84, 84, 3), np.uint8),
        }
        return {"rgb_obs": pictures, "robot_obs": np.array([0.5] * 14 + [-1.0])}

    def scene(self) -> Scene:
        raise AssertionError("nobody asked the expert")

    def close(self) -> None:
        pass


TASKS = ("turn_on_led", "open_drawer", "lift_red_block_table", "place_in_drawer", "close_drawer")
CHAIN = Chain({"led": 0}, TASKS)


def opened(*after: int) -> tuple[Calvin, Played]:
    simulator = Played(CHAIN, after)
    said = {task: [f"please {task}", "another sentence"] for task in CHAIN.tasks}
    official = Official([CHAIN], said, lambda initial: (np.zeros(15), np.array([initial["led"]])))
    sim = Calvin(simulator=simulator, official=official)
    sim.reset("chain", "held out", (3, 0))
    return sim, simulator


def act(sim: Calvin, steps: int, gripper: float = OPEN) -> None:
    for _ in range(steps):
        sim.step(np.array([0.5, -2.0, 0, 0, 0, 0, gripper]))


def test_a_chain_goes_from_task_to_task_as_each_is_solved() -> None:
    after = (2, 1, 360, 5, 3)
    sim, simulator = opened(*after)
    assert simulator.began[1].tolist() == [0]
    for stage, (task, steps) in enumerate(zip(CHAIN.tasks, after, strict=True)):
        assert (sim.stage, sim.instruction, sim.outcome) == (stage, f"please {task}", "")
        act(sim, steps - 1)
        assert (sim.stage, sim.outcome) == (stage, "")
        act(sim, 1)
    assert (sim.stage, sim.outcome) == (5, "success")
    assert sim.report() == {"solved": 5, "chain": list(CHAIN.tasks)}
    assert simulator.drawn == 0  # nothing is drawn that nobody looks at


def test_a_task_has_360_steps_of_its_own() -> None:
    sim, _ = opened(300, 361, 1, 1, 1)
    act(sim, 300 + STEPS - 1)
    assert (sim.stage, sim.outcome) == (1, "")
    act(sim, 1)
    assert sim.outcome == "subtask 2: open_drawer"
    assert sim.report()["solved"] == 1
    sim.reset("chain", "held out", (0, 0))  # nothing is left of it
    assert (sim.stage, sim.outcome, sim.instruction) == (0, "", "please turn_on_led")


def test_the_environment_gets_its_own_gripper_and_the_rest_as_it_is() -> None:
    sim, simulator = opened(360, 1, 1, 1, 1)
    for gripper, theirs in ((OPEN, 1.0), (0.51, 1.0), (0.5, -1.0), (CLOSED, -1.0)):
        act(sim, 1, gripper)
        assert simulator.actions[-1].tolist() == [0.5, -2.0, 0, 0, 0, 0, theirs]
    images, state = sim.observe()
    assert {name: image.shape for name, image in images.items()} == {
        "primary": (200, 200, 3), "wrist": (84, 84, 3)
    }  # fmt: skip
    assert state.tolist() == [0.5] * 7 + [CLOSED]
    with pytest.raises(ValueError, match="expected 7 finite numbers"):
        sim.step(np.full(7, np.nan))


def test_a_policy_begins_anew_with_each_task_and_hears_the_first_sentence() -> None:
    sim, simulator = opened(2, 3, 4, 5, 6)
    work, told, chunk = play(sim, Orders(0), 0), [], None
    while True:
        try:
            told.append(work.send(chunk).instruction)  # type: ignore[arg-type]
        except StopIteration as end:
            row, actions, _ = end.value
            break
        chunk = np.zeros((10, 7))
    assert told == [f"please {task}" for task in CHAIN.tasks]
    assert (row["outcome"], row["solved"], row["steps"], len(actions)) == ("success", 5, 20, 20)
    assert simulator.drawn == 5  # a chunk that a task's end cuts off is not gone on with


def test_there_are_no_more_chains_than_official_ones() -> None:
    sim, _ = opened(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"one of 1 chains, got 1; ask for --episodes 1 at most"):
        sim.reset("chain", "held out", (0, 1))


def test_every_task_was_recorded_with_its_own_verdict() -> None:
    assert len(RECORDED) == 34
    assert all(task in solved.verdict for task, solved in RECORDED.items())


@with_clones
def test_their_oracle_says_of_what_was_recorded_what_it_said() -> None:
    clones = calvin_clones.located()
    yaml = calvin_clones.imported(clones.env, "omegaconf").OmegaConf
    rules = clones.models / "conf/callbacks/rollout/tasks/new_playtable_tasks.yaml"
    oracle = calvin_clones.imported(clones.env, "calvin_env.envs.tasks").Tasks(
        yaml.load(rules).tasks
    )
    for solved in RECORDED.values():
        assert oracle.get_task_info(solved.start, solved.end) == set(solved.verdict)
        assert not oracle.get_task_info(solved.start, solved.start)


@pytest.mark.slow
@with_clones
def test_the_installation_is_sound_and_an_episode_does_not_depend_on_the_one_before() -> None:
    lines, works = calvin.check()
    assert works, lines
    world = World(calvin_clones.located())
    try:
        sim = Calvin(simulator=world)
        first, other = list(calvin.GOLDEN)[:2]
        ends = {}
        for number in (first, other, first):
            with pytest.raises(StopIteration) as end:
                next(play(sim, Orders(0, "expert"), number))
            row = end.value.value.row
            now = (row["outcome"], row["steps"], *(x.tolist() for x in world.state()))
            assert ends.setdefault(number, now) == now
        assert ends[first] != ends[other]
        with pytest.raises(ValueError, match="expected one world in a process, got a second"):
            World(calvin_clones.located())
    finally:
        world.close()
