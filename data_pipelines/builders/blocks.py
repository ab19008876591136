"""A small block-pushing dataset in RLDS form, made by code: what the demo and the tests learn from.

    python -m data_pipelines.builders.blocks --out DIR

Three blocks lie side by side in random order. The instruction names a colour and a direction: the
colour says where the gripper goes first (to the side of that block), the direction from which side,
and then where it pushes. Neither the picture nor the words alone give the action. Positions are
fractions of the table, x to the right and y downwards.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.builders import made, rlds_files
from data_pipelines.datasets.blocks import BLOCKS
from data_pipelines.files import tfrecord
from vla_jax import command

SIZE, CROP = 32, 14  # pixels of both cameras; pixels of the table that the wrist camera sees
TABLE, OPEN_MARK, CLOSED_MARK = (205, 190, 160), (255, 255, 255), (0, 0, 0)
COLOURS = {"red": (220, 30, 30), "green": (30, 170, 40), "blue": (30, 60, 220)}
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
PHRASES = (
    "push the {0} block {1}",
    "move the {0} block {1}",
    "slide the {0} block {1}",
    "{1} with the {0} block",
)
YAW = {"left": 0.2, "right": -0.2, "up": 0.1, "down": -0.1}  # radians per step of the approach
HALF_BLOCK, HALF_GRIPPER = 0.1, 0.065  # half sides
REACH = 0.13  # distance from a block at which it is pushed
SPEED, DESCENT, PUSHES = 0.08, 0.03, 6  # per step; steps of pushing


class Table(NamedTuple):
    """One episode: T steps of pictures, states and actions, and its words."""

    primary: list[np.ndarray]
    wrist: list[np.ndarray]
    states: np.ndarray  # T 7, float32
    actions: np.ndarray  # T 7, float32
    instruction: str


def write_blocks(root: str | Path, train: int = 240, val: int = 40, seed: int = 0) -> Path:
    """Writes the dataset under root/blocks/1.0.0 and returns that folder. The same arguments give
    the same episodes.
    """

    def example(split: int, episode: int) -> bytes:
        return _example(play(seed, split, episode))

    return made.write(root, BLOCKS, {"train": train, "val": val}, example, _features(), __doc__)


def play(seed: int, split: int, episode: int) -> Table:
    """One episode of a perfect player. Colours and directions come in turn, the rest by chance."""
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, split, episode))))
    colour = list(COLOURS)[episode % len(COLOURS)]
    direction = list(DIRECTIONS)[episode // len(COLOURS) % len(DIRECTIONS)]
    way = np.array(DIRECTIONS[direction])
    blocks, hand = scatter(draw)
    pose = np.array([0.2, 0.0, 0.0, 0.0])  # z, roll, pitch, yaw
    primary, wrist, states, actions = [], [], [], []
    pushed = 0
    while pushed < PUSHES:
        gap = blocks[colour] - REACH * way - hand
        pushing = pushed > 0 or bool(np.linalg.norm(gap) < 1e-6)
        move = SPEED * way if pushing else gap * min(1.0, SPEED / np.linalg.norm(gap))
        turn = np.array([0, 0, 0, 0]) if pushing else np.array([-DESCENT, 0, 0, YAW[direction]])
        picture = draw_table(blocks, colour, hand, pushing)
        primary.append(picture)
        wrist.append(_crop(picture, hand))
        states.append([*hand, *pose, 0.0 if pushing else 1.0])
        actions.append([*move, *turn, 0.0 if pushing else 1.0])
        hand, pose, pushed = hand + move, pose + turn, pushed + pushing
        if pushing:
            blocks[colour] = blocks[colour] + move
    words = PHRASES[int(draw.integers(len(PHRASES)))].format(colour, direction)
    return Table(primary, wrist, np.array(states, np.float32), np.array(actions, np.float32), words)


def scatter(draw: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Where the blocks (by colour) and the gripper are at first."""
    places = np.stack([[0.25, 0.5, 0.75], [0.45] * 3], axis=1) + draw.uniform(-0.03, 0.03, (3, 2))
    blocks = dict(zip(COLOURS, places[draw.permutation(3)], strict=True))
    return blocks, np.array([0.5, 0.85]) + draw.uniform(-0.08, 0.08, 2)


def draw_table(
    blocks: dict[str, np.ndarray], top: str, hand: np.ndarray, closed: bool
) -> np.ndarray:
    """The table from above, [h w 3] uint8. The block `top` covers the others, the gripper covers
    all.
    """
    picture = np.empty((SIZE, SIZE, 3), np.uint8)
    picture[:] = TABLE
    for colour in sorted(blocks, key=lambda name: name == top):
        _square(picture, blocks[colour], HALF_BLOCK, COLOURS[colour])
    _square(picture, hand, HALF_GRIPPER, CLOSED_MARK if closed else OPEN_MARK)
    return picture


def _square(
    picture: np.ndarray, centre: np.ndarray, half: float, colour: tuple[int, int, int]
) -> None:
    x0, y0 = (round(v) for v in np.clip((centre - half) * SIZE, 0, SIZE))
    x1, y1 = (round(v) for v in np.clip((centre + half) * SIZE, 0, SIZE))
    picture[y0:y1, x0:x1] = colour


def _crop(picture: np.ndarray, hand: np.ndarray) -> np.ndarray:
    """What a camera on the wrist sees: the surroundings of the gripper, enlarged."""
    x, y = (int(v) for v in np.clip(np.round(hand * SIZE) - CROP // 2, 0, SIZE - CROP))
    part = Image.fromarray(picture[y : y + CROP, x : x + CROP])
    return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.NEAREST))


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
