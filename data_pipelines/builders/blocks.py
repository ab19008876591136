"""A small block-pushing dataset in RLDS form, made by code: what the demo and the tests learn from.

    python -m data_pipelines.builders.blocks --out DIR

The world is blocks_world.py, who shows how it is done blocks_expert.py. The instruction names a
colour and a direction: the colour says to which block the hand goes, the direction to which side of
it, and where it then pushes. Neither the picture nor the words alone give the action. Half of the
training episodes begin where the way of another task led, beside another block and lowered too: a
policy that errs comes to be there, and where the hand is must not tell what it is to do, or nobody
learns the colours. The data set has no held-out words and shades of PHRASES and SHADES.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.builders import blocks_expert as expert
from data_pipelines.builders import made, rlds_files
from data_pipelines.builders.blocks_world import (
    COLOURS,
    SIZE,
    TASKS,
    Layout,
    Shade,
    Task,
    World,
    scatter,
)
from data_pipelines.datasets.blocks import BLOCKS
from data_pipelines.files import tfrecord
from vla_jax import command

SPLITS = ("train", "val")


class Words(NamedTuple):
    """Sentences, those of training and those kept from it; {0} is the colour, {1} the direction."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


class Shades(NamedTuple):
    """Shades of a colour, those of training and those kept from it."""

    seen: tuple[Shade, ...]
    held_out: tuple[Shade, ...]


PHRASES = Words(
    (
        "push the {0} block {1}",
        "move the {0} block {1}",
        "slide the {0} block {1}",
        "{1} with the {0} block",
        "push {1} the block that is {0}",
        "the {0} block is to slide {1}",
    ),
    (
        "move {1} the block that is {0}",
        "slide {1} the {0} block",
        "the {0} block is to move {1}",
    ),
)
SHADES = {
    "red": Shades(
        ((220, 30, 30), (235, 50, 35), (200, 25, 45)),
        ((170, 25, 25), (235, 75, 75)),
    ),
    "green": Shades(
        ((30, 170, 40), (50, 185, 50), (25, 150, 55)),
        ((20, 120, 30), (90, 190, 95)),
    ),
    "blue": Shades(
        ((30, 60, 220), (50, 75, 235), (25, 70, 195)),
        ((25, 45, 160), (90, 110, 235)),
    ),
}


class Table(NamedTuple):
    """One episode: T steps of pictures, states and actions, and its words."""

    primary: list[np.ndarray]
    wrist: list[np.ndarray]
    states: np.ndarray  # T 7, float32
    actions: np.ndarray  # T 7, float32
    instruction: str


def write_blocks(root: str | Path, train: int = 1920, val: int = 96, seed: int = 0) -> Path:
    """Writes the dataset under root/blocks/1.0.0 and returns that folder. The same arguments give
    the same episodes.
    """

    def example(split: int, episode: int) -> bytes:
        return _example(play(seed, split, episode))

    counts = dict(zip(SPLITS, (train, val), strict=True))
    return made.write(root, BLOCKS, counts, example, _features(), __doc__)


def told(draw: np.random.Generator, task: Task, held_out: bool = False) -> str:
    """Words for a task, those of training or those kept from it."""
    phrases = PHRASES.held_out if held_out else PHRASES.seen
    return phrases[int(draw.integers(len(phrases)))].format(*task)


def laid(draw: np.random.Generator, held_out: bool = False) -> Layout:
    """A table with blocks in shades of training, or in those kept from it."""
    kept = (SHADES[c].held_out if held_out else SHADES[c].seen for c in COLOURS)
    return scatter(draw, tuple(shades[int(draw.integers(len(shades)))] for shades in kept))


def play(seed: int, split: int, episode: int) -> Table:
    """One episode of the expert. Tasks come in turn, the rest by chance; `split`: of SPLITS."""
    draw = made.drawn(made.of_data(seed), split, episode)
    task = list(TASKS.values())[episode % len(TASKS)]
    words = told(draw, task)
    strayed = SPLITS[split] == "train" and episode // len(TASKS) % 2 == 1
    world = _strayed(draw, task) if strayed else World(laid(draw), task)
    primary, wrist, states, actions = [], [], [], []
    while not world.outcome:
        action = expert.act(world)
        primary.append(world.picture())
        wrist.append(world.wrist())
        states.append(world.state())
        actions.append(action)
        world.step(action)
    return Table(primary, wrist, np.stack(states), np.array(actions, np.float32), words)


def _strayed(draw: np.random.Generator, task: Task) -> World:
    """A world in which the expert went some steps for another task, and from where it still
    succeeds.
    """
    while True:
        layout = laid(draw)
        other = list(TASKS.values())[int(draw.integers(len(TASKS)))]
        steps = int(draw.integers(1, 12))
        world, tried = World(layout, task), World(layout, task)
        for each in (world, tried):
            for _ in range(steps):
                if not each.outcome:
                    each.step(expert.act(each, other))
        while not tried.outcome:
            tried.step(expert.act(tried))
        if tried.outcome == "success" and not world.outcome:
            return world


def _example(table: Table) -> bytes:
    """A tf.train.Example laid out as TFDS does for an RLDS episode."""
    steps = len(table.actions)
    return tfrecord.encode(
        {
            **rlds_files.flags(steps),
            "steps/action": table.actions,
            "steps/language_instruction": [table.instruction.encode()] * steps,
            "steps/observation/image": [compress(picture, "JPEG") for picture in table.primary],
            "steps/observation/state": table.states,
            "steps/observation/wrist_image": [compress(picture, "PNG") for picture in table.wrist],
        }
    )


def compress(picture: np.ndarray, kind: str) -> bytes:
    """The picture as a JPEG or PNG file."""
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def _features() -> rlds_files.Feature:
    """The content of features.json."""
    cameras = {
        "image": rlds_files.image("jpeg", SIZE, SIZE),
        "wrist_image": rlds_files.image("png", SIZE, SIZE),
    }
    return rlds_files.episode(
        {
            "action": rlds_files.tensor("float32", 7),
            "language_instruction": rlds_files.text(),
            "observation": rlds_files.folder({**cameras, "state": rlds_files.tensor("float32", 7)}),
        }
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    made.main(argv, write_blocks, "the embedded block-pushing dataset", "blocks", "episodes")


if __name__ == "__main__":
    command.run(main)
