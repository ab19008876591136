"""Pictures of CALVIN's scene D that ask where a block is, as the dataset `calvin_boxes`: what a
policy learns to look by.

    python -m data_pipelines.builders.calvin_boxes --out ROOT --train 8000

Question and answer are those that PaliGemma was pretrained with: `detect red block`, and the box in
1,024ths of the picture, top, left, bottom, right: `<loc0256><loc0512><loc0304><loc0576> red block`.
Numbers are rounded to 64ths here, so that a small model meets each of them often. A picture is that
of the static camera; blocks, drawer, slider, lights and arm are anywhere, nothing moves. A block
that is hidden is not asked for. Needs what calvin_demonstrations.py needs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.builders import calvin, calvin_chains, calvin_clones, made, rlds_files
from data_pipelines.builders.calvin_chains import (
    BLOCKS,
    FIRST_BLOCK,
    JOINTS,
    OF_A_BLOCK,
    Rules,
    Symbols,
)
from data_pipelines.builders.calvin_world import DRAWER, SLIDER, World
from data_pipelines.builders.made import drawn
from data_pipelines.datasets.image_text import CALVIN_BOXES
from data_pipelines.files import tfrecord
from vla_jax import command

SIDE = 200  # of the static camera's picture, pixels
STEPS, PART = 1024, 16  # of a picture's side; how many of them a number is rounded to
LEAST = 20  # pixels of a block, else it is hidden
LIGHTS = slice(4, 6)  # columns of scene_obs
STRAY = 0.35  # rad: how far each joint is from where chains begin, at most
# Places of a block, m: low and high of x, y and z. Those in the drawer move with it.
TABLE, SHELF, AIR, INSIDE = (
    ((-0.3, 0.32), (-0.22, -0.02), (0.46, 0.46)),
    ((-0.3, 0.3), (0.08, 0.1), (0.46, 0.46)),
    ((-0.3, 0.32), (-0.25, 0.05), (0.5, 0.75)),
    ((0.08, 0.28), (-0.16, -0.02), (0.36, 0.36)),
)
PLACES, OFTEN = (TABLE, SHELF, AIR, INSIDE), (0.5, 0.2, 0.2, 0.1)

Box = tuple[int, int, int, int]  # top, left, bottom, right, in 1,024ths
Begin = Callable[[Symbols], tuple[np.ndarray, np.ndarray]]
Still = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, dict[str, np.ndarray]]]


def write_boxes(root: str | Path, train: int = 8_000, val: int = 200, seed: int = 0) -> Path:
    """Writes root/calvin_boxes/1.0.0 and returns that folder. The same arguments give the same
    pictures.
    """
    clones = calvin_clones.located()
    world, rules = World(clones), Rules(clones)

    def example(split: int, number: int) -> bytes:
        draw = drawn(seed, split, number, 2)
        pixels, boxes = picture(rules.begin, world.still, draw)
        while not boxes:
            pixels, boxes = picture(rules.begin, world.still, draw)
        return encode(pixels, boxes)

    pair = rlds_files.folder({"question": rlds_files.text(), "answer": rlds_files.text()})
    features = rlds_files.folder(
        {"image": rlds_files.image("jpeg", SIDE, SIDE), "boxes": rlds_files.sequence(pair)}
    )
    try:
        counts = {"train": train, "val": val}
        return made.write(root, CALVIN_BOXES, counts, example, features, __doc__)
    finally:
        world.close()


def encode(pixels: np.ndarray, boxes: dict[str, Box]) -> bytes:
    """A tf.train.Example laid out as TFDS does for single examples."""
    return tfrecord.encode(
        {
            "image": [calvin.jpeg(pixels)],
            "boxes/question": [f"detect {block} block".encode() for block in boxes],
            "boxes/answer": [
                f"{''.join(f'<loc{i:04d}>' for i in box)} {block} block".encode()
                for block, box in boxes.items()
            ],
        }
    )


def picture(
    begin: Begin, still: Still, draw: np.random.Generator
) -> tuple[np.ndarray, dict[str, Box]]:
    """The pixels [h w 3] uint8 of a scene by chance, and the boxes of the blocks that it shows.
    `begin` and `still` are those of calvin_chains.Rules and calvin_world.World.
    """
    robot, scene = begin(calvin_chains.initial(draw))  # made for who asks
    robot[JOINTS] += draw.uniform(-STRAY, STRAY, size=7)
    scene[SLIDER], scene[DRAWER] = draw.uniform(0, 0.28), draw.choice([0.0, draw.uniform(0, 0.22)])
    scene[LIGHTS] = draw.integers(2, size=2)
    for block in scene[FIRST_BLOCK:].reshape(-1, OF_A_BLOCK):
        place = PLACES[draw.choice(len(PLACES), p=OFTEN)]
        block[:3] = [draw.uniform(*each) for each in place]
        block[1] -= scene[DRAWER] if place is INSIDE else 0.0
        block[3:] = 0.0, 0.0, draw.uniform(-np.pi, np.pi)
    pixels, shown = still(robot, scene)
    return pixels, {
        block: _box(shown[block]) for block in BLOCKS if np.count_nonzero(shown[block]) >= LEAST
    }


def _box(shown: np.ndarray) -> Box:
    """The box around the pixels [h w] that are True."""
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    edges = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / SIDE
    rounded = np.round(edges * STEPS / PART).astype(int) * PART
    top, left, bottom, right = np.minimum(rounded, STEPS - 1).tolist()
    return top, left, bottom, right


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    made.main(
        argv, write_boxes, "pictures of CALVIN with the boxes of its blocks", "calvin_boxes",
        "pictures",
    )  # fmt: skip


if __name__ == "__main__":
    command.run(main)
