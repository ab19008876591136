"""Demonstrations of CALVIN without its simulator: a stage where the tool goes where it is told, and
a task is solved where it is. And how the expert moves there.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.builders import calvin_demonstrations as made
from data_pipelines.builders.calvin_chains import Chain, jittered
from data_pipelines.builders.calvin_expert import CLOSED, OPEN, Expert, plan
from data_pipelines.builders.calvin_world import METRES, RADIANS, Scene
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index

BUTTON = np.array([-0.12, -0.12, 0.47])
POSITION = {
    "red": np.array([0.05, -0.12, 0.46]),
    "blue": np.array([0.07, 0.09, 0.46]),
    "pink": np.array([0.23, -0.12, 0.46]),
}


class Table:
    """The simulator's place: only the tool moves."""

    facts = {"renderer": "none"}  # noqa: RUF012

    def reset(self, robot: np.ndarray, scene: np.ndarray) -> None:
        self.tool, self.angles = np.array([0.03, -0.23, 0.57]), np.array([np.pi, 0.0, np.pi / 2])
        self.fingers, self.moves = 0.08, 0

    def step(self, action: np.ndarray) -> dict[str, Any]:
        self.tool = self.tool + action[:3] * METRES
        self.angles = self.angles + action[3:6] * RADIANS
        self.fingers = float(np.clip(self.fingers + 0.02 * action[6], 0.0, 0.08))
        self.moves += 1
        return {"tool": self.tool}

    def info(self) -> dict[str, Any]:
        return {"tool": self.tool}

    def solved(self, task: str, start: dict[str, Any], now: dict[str, Any]) -> bool:
        return bool(np.linalg.norm(now["tool"] - BUTTON) < 0.02)

    def observe(self) -> dict[str, Any]:
        pictures = {
            "rgb_static": np.full((200, 200, 3), self.moves % 256, np.uint8),
            "rgb_gripper": np.zeros((84, 84, 3), np.uint8),
        }
        state = np.concatenate([self.tool, self.angles, [self.fingers], np.zeros(7), [1.0]])
        return {"rgb_obs": pictures, "robot_obs": state}

    def close(self) -> None:
        pass

    def scene(self) -> Scene:
        angles = {block: np.array([0.0, 0.0, np.pi / 2 + 0.3]) for block in POSITION}
        held = ("red",) if 0.02 < self.fingers < 0.07 else ()
        return Scene(
            0.0, 0.0, POSITION, angles, self.tool, self.tool, self.angles, self.fingers, held
        )


class Rules:
    tasks = ("turn_on_led", "turn_off_led")

    def begin(self, initial: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(15), np.zeros(24)

    def draw(self, draw: np.random.Generator, task: str, before: int) -> Chain:
        return Chain({}, (task,))


def stage() -> made.Stage:
    told = {split: {task: [f"{split} {task}"] for task in Rules.tasks} for split in made.SPLITS}
    told["train"] = {task: [*said, f"do {task}"] for task, said in told["train"].items()}
    return made.Stage(Table(), Rules(), told)  # type: ignore[arg-type]


def test_the_dataset_is_one_of_calvin_whose_labels_are_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(processes: int, mp_context: Any, **rest: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(processes, **rest)

    monkeypatch.setattr(made, "staged", stage)
    monkeypatch.setattr(made, "ProcessPoolExecutor", threads)
    folder = made.write_demonstrations(tmp_path, train=2, val=1)
    assert not (tmp_path / "calvin.part").exists()
    split = open_index(tmp_path, DATASETS["calvin"]).splits["train"]
    # Each frame in a sentence of its own, of its task; those of validation have theirs.
    assert sorted(split.sentences) == [
        "do turn_off_led", "do turn_on_led", "train turn_off_led", "train turn_on_led"
    ]  # fmt: skip
    for episode in (0, 1):
        rows = np.arange(split.first[episode], split.first[episode] + split.length[episode])
        said = split.told(rows, np.full(len(rows), episode), None)
        words = {split.sentences[i] for i in said.tolist()}
        assert len(words) == 2
        assert len({text.split()[1] for text in words}) == 1
    assert open_index(tmp_path, DATASETS["calvin"]).splits["val"].sentences == ("val turn_on_led",)
    actions = split.actions
    assert np.abs(actions[:, :6]).max() <= 0.8 + 1e-6  # the expert's; what was done drifted
    assert set(actions[:, 6].tolist()) == {0.0, 1.0}
    assert json.loads((folder / "simulator.json").read_text()) == {"renderer": "none"}
    # Parts are gone on with; those of other settings are not.
    with pytest.raises(ValueError, match="expected nothing there, got a dataset"):
        made.write_demonstrations(tmp_path, train=2, val=1)
    folder.rename(tmp_path / "first")
    monkeypatch.setattr(made, "example", lambda *_: pytest.fail("it was made before"))
    made.write_demonstrations(tmp_path, train=2, val=1)
    folder.rename(tmp_path / "second")
    with pytest.raises(ValueError, match=r"got some of .*'seed': 0"):
        made.write_demonstrations(tmp_path, train=2, val=1, seed=1)


def test_a_demonstration_follows_from_its_number() -> None:
    first, second, other = (made.play(stage(), 0, "train", number)[1] for number in (1, 1, 3))
    assert all((a["robot_obs"] == b["robot_obs"]).all() for a, b in zip(first, second, strict=True))
    assert not (first[9]["robot_obs"] == other[9]["robot_obs"]).all()
    moved = np.diff([frame["robot_obs"][:3] for frame in first], axis=0) / METRES
    drift = moved - np.array([frame["rel_actions"][:3] for frame in first[:-1]])
    assert 0.02 < np.abs(drift).mean() < 0.4


def test_blocks_stay_in_their_places_and_never_as_they_were() -> None:
    robot, scene = np.ones(15), np.zeros(24)
    scene[6:12], scene[12:18] = (0.05, -0.12, 0.46, 0, 0, 1.5), (0.07, 0.092, 0.461, 0, 0, 1.4)
    was = scene.copy()
    other_robot, other = jittered(np.random.default_rng(0), robot, scene)
    assert (scene == was).all()
    assert (other_robot[[0, 6, 14]] == 1).all()
    assert 0 < np.abs(other_robot[7:14] - 1).max() < 0.03
    assert 0 < abs(other[6] - 0.05) < 0.03
    assert 0 < abs(other[7] + 0.12) < 0.02
    assert other[[8, 13, 14]].tolist() == [0.46, 0.092, 0.461]


@pytest.mark.parametrize("task", Rules.tasks)
def test_the_expert_gets_there_within_its_speed(task: str) -> None:
    table = Table()
    table.reset(np.zeros(15), np.zeros(24))
    expert = Expert(table.scene, task)
    actions = []
    while not table.solved(task, {}, table.info()):
        actions.append(expert.act())
        table.step(actions[-1])
    assert len(actions) < 30
    assert np.abs(np.array(actions)[:, :6]).max() <= 0.8 + 1e-9


def test_a_block_is_taken_by_its_narrow_sides_after_what_was_held_is_put_down() -> None:
    table = Table()
    table.reset(np.zeros(15), np.zeros(24))
    table.fingers = 0.05
    ways = list(plan(table.scene, "lift_pink_block_table"))
    assert (ways[0].position, ways[0].gripper) == (None, OPEN)
    grasp = next(way for way in ways[1:] if way.position is not None and way.position[2] < 0.5)
    assert grasp.yaw == pytest.approx(0.3)
    assert [way.gripper for way in ways[-2:]] == [CLOSED, CLOSED]
    with pytest.raises(ValueError, match="expected a task of CALVIN's, got 'fold_towel'"):
        plan(table.scene, "fold_towel")
