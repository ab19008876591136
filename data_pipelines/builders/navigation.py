"""A small navigation dataset in RLDS form, made by code: a base goes round boxes to a cup, told in
Korean on which side.

    python -m data_pipelines.builders.navigation --out DIR

The scenarios and their sentences are those of vla_jax/robot/navigation.py, each in other words too.
Nothing but the words says on which side to pass. Every other training episode begins off the way,
where a robot that errs comes to be. The split val has layouts of its own, and of each scenario
the words that no training episode has.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.builders import made, rlds_files
from data_pipelines.builders import navigation_expert as expert
from data_pipelines.builders.blocks import compress
from data_pipelines.builders.navigation_world import SIZE, Layout, Pose, World, scatter, wrapped
from data_pipelines.datasets.navigation import NAVIGATION
from data_pipelines.files import tfrecord
from vla_jax import command
from vla_jax.robot.navigation import SCENARIOS

SPLITS = ("train", "val")
OFF = (0.35, 0.35, 0.7)  # how far from the way an episode may begin: m, m, rad
SIDES = {"left": ("왼쪽", "좌측"), "right": ("오른쪽", "우측")}  # two words each


class Wordings(NamedTuple):
    """Sentences for a kind of scenario beside its first one; {0} and {1} are the words of SIDES."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


WORDINGS = {
    "1box_vert": Wordings(
        (
            "박스를 {0}으로 돌아 컵으로 이동하세요",
            "{0}으로 박스를 돌아서 컵까지 가 주세요",
            "컵까지 가되 박스를 {1}으로 돌아 가세요",
            "박스 {1}으로 돌아서 컵 앞까지 가세요",
        ),
        ("{0}으로 돌아서 박스를 지나 컵까지 가세요", "컵 앞까지 박스를 {1}으로 돌아 이동하세요"),
    ),
    "1box_hori": Wordings(
        (
            "박스를 {0}으로 피해 컵으로 이동하세요",
            "{0}으로 박스를 피해서 컵까지 가 주세요",
            "컵까지 가되 박스를 {1}으로 피해 가세요",
            "박스 {1}으로 피해서 컵 앞까지 가세요",
        ),
        ("{0}으로 피해서 박스를 지나 컵까지 가세요", "컵 앞까지 박스를 {1}으로 피해 이동하세요"),
    ),
    "2box_vert": Wordings(
        (
            "두 박스 사이를 {0} 길로 지나 컵까지 가 주세요",
            "{0} 경로로 두 박스 사이를 지나 컵으로 이동하세요",
            "컵까지 가되 두 박스 사이 {1} 경로로 가세요",
            "두 박스 사이 {1} 길로 컵 앞까지 가세요",
        ),
        (
            "{0} 길로 두 박스 사이를 지나 컵까지 가세요",
            "컵 앞까지 두 박스 사이 {1} 경로로 이동하세요",
        ),
    ),
    "2box_hori": Wordings(
        (
            "두 박스를 {0}으로 피해 컵으로 이동하세요",
            "{0}으로 두 박스를 피해서 컵까지 가 주세요",
            "컵까지 가되 두 박스를 {1}으로 피해 가세요",
            "두 박스 {1}으로 피해서 컵 앞까지 가세요",
        ),
        (
            "{0}으로 피해서 두 박스를 지나 컵까지 가세요",
            "컵 앞까지 두 박스를 {1}으로 피해 이동하세요",
        ),
    ),
}


class Drive(NamedTuple):
    """One episode: T steps of pictures, states and actions, its words and its scenario."""

    pictures: list[np.ndarray]
    states: np.ndarray  # T 3, float32
    actions: np.ndarray  # T 3, float32
    instruction: str
    scenario: str


def sentences(scenario: str, held_out: bool) -> list[str]:
    """What a scenario is told by: the words of training, or those that are kept from it."""
    kind, _, side = scenario.rpartition("_")
    wordings = WORDINGS[kind]
    given = wordings.held_out if held_out else wordings.seen
    others = [words.format(*SIDES[side]) for words in given]
    return others if held_out else [SCENARIOS[scenario].korean, *others]


def play(seed: int, split: int, episode: int) -> Drive:
    """One episode of the expert. Scenarios come in turn, the rest by chance; `split` counts in
    SPLITS.
    """
    draw = made.drawn(made.of_data(seed), split, episode)
    held_out = SPLITS[split] != "train"
    scenario = list(SCENARIOS)[episode % len(SCENARIOS)]
    said = sentences(scenario, held_out)
    words = said[int(draw.integers(len(said)))]
    layout = scatter(draw, scenario)
    off_course = not held_out and episode // len(SCENARIOS) % 2 == 1
    world = World(layout, _off_course(draw, layout) if off_course else None)
    pictures, states, actions = [], [], []
    while not world.outcome:
        action = expert.act(layout, world.pose)
        pictures.append(world.picture())
        states.append(world.odometry())
        actions.append(action)
        world.step(*action)
    return Drive(pictures, np.stack(states), np.array(actions, np.float32), words, scenario)


def _off_course(draw: np.random.Generator, layout: Layout) -> Pose:
    """A pose beside the expert's way, from where it still succeeds."""
    world = World(layout)
    way = []
    while not world.outcome:
        way.append(world.pose)
        world.step(*expert.act(layout, world.pose))
    while True:
        x, y, yaw = way[int(draw.integers(len(way)))]
        dx, dy, turn = (most * float(draw.uniform(-1.0, 1.0)) for most in OFF)
        world = World(layout, (x + dx, y + dy, wrapped(yaw + turn)))
        pose = world.pose
        if not world.on_course():
            continue
        while not world.outcome:
            world.step(*expert.act(layout, world.pose))
        if world.outcome == "success":
            return pose


def write_navigation(root: str | Path, train: int = 640, val: int = 80, seed: int = 0) -> Path:
    """Writes the dataset under root/navigation/1.0.0 and returns that folder. The same arguments
    give the same episodes.
    """

    def example(split: int, episode: int) -> bytes:
        return _example(play(seed, split, episode))

    counts = dict(zip(SPLITS, (train, val), strict=True))
    return made.write(root, NAVIGATION, counts, example, _features(), __doc__)


def _example(drive: Drive) -> bytes:
    """A tf.train.Example laid out as TFDS does for an RLDS episode."""
    steps = len(drive.actions)
    return tfrecord.encode(
        {
            **rlds_files.flags(steps),
            "episode_metadata/scenario": [drive.scenario.encode()],
            "steps/action": drive.actions,
            "steps/language_instruction": [drive.instruction.encode()] * steps,
            "steps/observation/image": [compress(picture, "PNG") for picture in drive.pictures],
            "steps/observation/state": drive.states,
        }
    )


def _features() -> rlds_files.Feature:
    """The content of features.json."""
    seen = {
        "image": rlds_files.image("png", SIZE, SIZE),
        "state": rlds_files.tensor("float32", 3),
    }
    return rlds_files.episode(
        {
            "action": rlds_files.tensor("float32", 3),
            "language_instruction": rlds_files.text(),
            "observation": rlds_files.folder(seen),
        },
        {"scenario": rlds_files.text()},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    made.main(argv, write_navigation, "the embedded navigation dataset", "navigation", "episodes")


if __name__ == "__main__":
    command.run(main)
