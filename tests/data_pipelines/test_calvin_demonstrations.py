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
from data_pipelines.builders.calvin_chains import PLACES, Chain, anywhere, jittered
from data_pipelines.builders.calvin_expert import CLOSED, OPEN, Expert, rule
from data_pipelines.builders.calvin_world import METRES, RADIANS, SHOWN, Scene, shown
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

    def put(self, robot: np.ndarray, scene: np.ndarray) -> None:
        self.reset(robot, scene)
        self.tool = self.tool + robot[7:10]

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
        robot, scene = self.state()
        return {"rgb_obs": self.drawn(robot, scene), "robot_obs": robot}

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        robot = np.concatenate([self.tool, self.angles, [self.fingers], np.zeros(7), [1.0]])
        return robot, np.append(np.zeros(23), self.moves)

    def drawn(self, robot: np.ndarray, scene: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "rgb_static": np.full((200, 200, 3), scene[-1] % 256, np.uint8),
            "rgb_gripper": np.zeros((84, 84, 3), np.uint8),
        }

    def close(self) -> None:
        pass

    def scene(self) -> Scene:
        angles = {block: np.array([0.0, 0.0, np.pi / 2 + 0.3]) for block in POSITION}
        held = ("red",) if 0.02 < self.fingers < 0.07 else ()
        return Scene(0.0, 0.0, POSITION, angles, self.tool, self.angles, self.fingers, held)


class Rules:
    tasks = ("turn_on_led", "turn_off_led")

    def begin(self, initial: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(15), np.zeros(24)

    def draw(self, draw: np.random.Generator, task: str, before: int) -> Chain:
        return Chain({}, (task,))


def stage() -> made.Stage:
    told = {
        "train": {task: [[f"train {task}"], [f"do {task}"]] for task in Rules.tasks},
        "val": {task: [[f"val {task}"]] for task in Rules.tasks},
    }
    return made.Stage(Table(), Rules(), told)  # type: ignore[arg-type]


def test_the_dataset_is_one_of_calvin_whose_labels_are_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(processes: int, mp_context: Any, **rest: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(processes, **rest)

    monkeypatch.setattr(made, "staged", stage)
    monkeypatch.setattr(made, "STILLS", 4)
    monkeypatch.setattr(made, "ProcessPoolExecutor", threads)
    folder = made.write_demonstrations(tmp_path, train=2, val=1)
    assert not (tmp_path / "calvin.part").exists()
    split = open_index(tmp_path, DATASETS["calvin"]).splits["train"]
    # Each frame in a sentence of its own, of its task; those of validation have theirs.
    assert {text.lower() for text in split.sentences} == {
        "do turn_off_led", "do turn_on_led", "train turn_off_led", "train turn_on_led"
    }  # fmt: skip
    assert any(text[0].isupper() for text in split.sentences)
    for episode in range(len(split.first)):
        rows = np.arange(split.first[episode], split.first[episode] + split.length[episode])
        said = split.told(rows, np.full(len(rows), episode), None)
        assert len({split.sentences[i].split()[1] for i in said.tolist()}) == 1
    held_out = open_index(tmp_path, DATASETS["calvin"]).splits["val"]
    assert set(held_out.sentences) == {"val turn_on_led", "val turn_off_led"}
    scene = open_index(tmp_path, DATASETS["calvin_scene"]).splits["train"].readings["scene"]
    assert scene.shape == (len(split.actions), *SHOWN)
    actions = split.actions
    assert np.abs(actions[:, :6]).max() <= 0.8 + 1e-6
    assert set(actions[:, 6].tolist()) == {0.0, 1.0}
    assert json.loads((folder / "simulator.json").read_text()) == {"renderer": "none"}
    # Parts are gone on with; those of other settings are not.
    with pytest.raises(ValueError, match="expected nothing there, got a dataset"):
        made.write_demonstrations(tmp_path, train=2, val=1)
    folder.rename(tmp_path / "first")
    monkeypatch.setattr(made, "examples", lambda *_: pytest.fail("it was made before"))
    made.write_demonstrations(tmp_path, train=2, val=1)
    folder.rename(tmp_path / "second")
    with pytest.raises(ValueError, match=r"got some of .*'seed': 0"):
        made.write_demonstrations(tmp_path, train=2, val=1, seed=1)


def frames_of(number: int) -> list[list[made.Frame]]:
    return [frames for _, frames in made.play(stage(), 0, "train", number)]


def test_a_sequence_follows_from_its_number() -> None:
    first, second, other = (
        [frame["robot_obs"] for frames in frames_of(number) for frame in frames]
        for number in (1, 1, 3)
    )
    assert len(first) == len(second)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert not (first[-1] == other[-1]).all()


def test_an_episode_is_what_the_expert_does_and_pushes_lie_between_episodes() -> None:
    episodes = [frames for number in range(8) for frames in frames_of(number)]
    assert len(episodes) > 8  # some were pushed
    for frames in episodes:
        moved = np.diff([frame["robot_obs"][:3] for frame in frames], axis=0) / METRES
        told = np.array([frame["rel_actions"][:3] for frame in frames[:-1]])
        assert np.abs(moved - told).max() < 1e-9
    ends = {tuple(frames[-1]["robot_obs"][:3]) for frames in episodes}
    assert not ends & {tuple(frames[0]["robot_obs"][:3]) for frames in episodes}


def test_cameras_are_slower_than_the_arm() -> None:
    frames = max(frames_of(1), key=len)
    seen = [int(frame["rgb_static"][0, 0, 0]) for frame in frames]
    moves = [int(frame["scene_obs"][-1]) for frame in frames]
    assert seen == [moves[i - i % made.DRAWN_EVERY] for i in range(len(frames))]


def test_what_a_picture_shows_as_numbers() -> None:
    robot, scene = np.arange(15.0), np.arange(24.0)
    numbers = shown(robot, scene)
    assert numbers.shape == SHOWN
    assert numbers[3].tolist() == [0, 1, 3, 4, 5, 0, 1, 2]
    blue = numbers[1]  # columns 12 to 17
    assert blue[:6].tolist() == [12, 13, 14, 12, 12, 12]
    assert blue[6:] == pytest.approx([np.sin(34), np.cos(34)])


def test_blocks_stay_in_their_places_and_never_as_they_were() -> None:
    robot, scene = np.ones(15), np.zeros(24)
    scene[6:12], scene[12:18] = (0.05, -0.12, 0.46, 0, 0, 1.5), (0.07, 0.092, 0.461, 0, 0, 1.4)
    was = scene.copy()
    other_robot, other = jittered(np.random.default_rng(0), robot, scene)
    assert (scene == was).all()
    assert (other_robot[[0, 6, 14]] == 1).all()
    assert 0 < np.abs(other_robot[7:14] - 1).max() < 0.05
    assert 0 < abs(other[6] - 0.05) < 0.12
    assert 0 < abs(other[7] + 0.12) < 0.05
    assert other[[8, 13, 14]].tolist() == [0.46, 0.092, 0.461]
    for seed in range(20):
        blocks = jittered(np.random.default_rng(seed), robot, scene)[1][6:].reshape(3, 6)[:, :2]
        away = [np.linalg.norm(blocks[i] - blocks[j]) for i in range(3) for j in range(i)]
        assert min(away) > 0.09


def test_stills_are_of_scenes_where_everything_is_anywhere() -> None:
    episodes = made.stills(stage(), 0, "train", 1)
    assert len(episodes) == made.STILLS
    assert all(len(frames) == 1 for _, frames in episodes)
    assert {task for task, _ in episodes} == set(Rules.tasks)
    places = {tuple(frames[0]["robot_obs"][:3]) for _, frames in episodes}
    assert len(places) == made.STILLS
    scenes = [anywhere(np.random.default_rng(i), np.zeros(15), np.zeros(24)) for i in range(200)]
    heights = np.array([scene[8::6] for _, scene in scenes]).ravel()
    low, high = PLACES[2][2]
    assert {round(z, 2) for z in heights if not low <= z <= high} == {0.36, 0.46}
    assert 0.05 < ((heights > low) & (heights < high)).mean() < 0.2
    assert {robot[6] for robot, _ in scenes} == {0.0, 0.04, 0.08}
    assert all((robot[14] == 1) == (robot[6] == 0.08) for robot, _ in scenes)


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


def test_the_expert_remembers_nothing_and_comes_from_anywhere() -> None:
    for place in ((0.2, 0.05, 0.52), (-0.3, -0.3, 0.45), (-0.12, -0.12, 0.7)):
        table = Table()
        table.reset(np.zeros(15), np.zeros(24))
        table.tool, table.fingers = np.array(place), 0.0
        busy = Expert(table.scene, "turn_on_led")
        solved = False
        for _ in range(80):
            action = busy.act()
            assert (Expert(table.scene, "turn_on_led").act() == action).all()
            solved = table.solved("turn_on_led", {}, table.step(action))
            if solved:
                break
        assert solved


def test_a_block_is_taken_by_its_narrow_sides_after_what_was_held_is_put_down() -> None:
    table = Table()
    table.reset(np.zeros(15), np.zeros(24))
    table.fingers = 0.05  # on the red block, which lies on the table
    aim = rule("lift_pink_block_table")(table.scene())
    assert (aim.gripper, aim.position.tolist()) == (OPEN, table.tool.tolist())
    expert, grippers = Expert(table.scene, "lift_pink_block_table"), []
    for _ in range(60):
        action = expert.act()
        grippers.append(action[6])
        if action[6] == CLOSED:
            break
        table.step(action)
    assert grippers[-1] == CLOSED
    assert table.tool == pytest.approx(POSITION["pink"] + [0, 0, 0.005], abs=0.011)
    assert table.angles[2] - np.pi / 2 == pytest.approx(0.3, abs=0.16)
    with pytest.raises(ValueError, match="expected a task of CALVIN's, got 'fold_towel'"):
        rule("fold_towel")
