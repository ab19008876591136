"""Pictures of the block-pushing table with captions, questions and answers: what tests and demos
co-train on.

    python -m data_pipelines.builders.blocks_captions --out DIR

Laid out as TFDS lays out coco_captions and clevr: one record per picture, with a sequence of
captions and one of question-answer pairs. The captions name the blocks from left to right, the
questions ask for the place of each.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.builders import made, rlds_files
from data_pipelines.builders.blocks import compress, laid
from data_pipelines.builders.blocks_world import COLOURS, SIZE, TASKS, World
from data_pipelines.datasets.image_text import BLOCKS_CAPTIONS
from data_pipelines.files import tfrecord
from vla_jax import command

CAPTIONS = (
    "from left to right: a {0}, a {1} and a {2} block",
    "the {1} block is between the {0} and the {2} block",
)
PLACES = ("left", "middle", "right")


def write_captions(root: str | Path, train: int = 120, val: int = 24, seed: int = 0) -> Path:
    """Writes root/blocks_captions/1.0.0 and returns that folder. The same arguments give the same
    pictures.
    """

    def example(split: int, picture: int) -> bytes:
        return _example(*scene(seed, split, picture))

    pair = rlds_files.folder({"question": rlds_files.text(), "answer": rlds_files.text()})
    features = {
        "image": rlds_files.image("png", SIZE, SIZE),
        "captions": rlds_files.sequence(rlds_files.folder({"text": rlds_files.text()})),
        "questions": rlds_files.sequence(pair),
    }
    counts = {"train": train, "val": val}
    described = rlds_files.folder(features)
    return made.write(root, BLOCKS_CAPTIONS, counts, example, described, __doc__)


def scene(seed: int, split: int, picture: int) -> tuple[np.ndarray, list[str]]:
    """The pixels [h w 3] uint8 of a table, and the colours of its blocks from left to right."""
    layout = laid(made.drawn(seed, split, picture, 1))
    colours = sorted(COLOURS, key=lambda colour: layout.blocks[COLOURS.index(colour)][0])
    return World(layout, TASKS["red left"]).picture(), colours


def _example(pixels: np.ndarray, colours: list[str]) -> bytes:
    """A tf.train.Example laid out as TFDS does for single examples."""
    return tfrecord.encode(
        {
            "image": [compress(pixels, "PNG")],
            "captions/text": [caption.format(*colours).encode() for caption in CAPTIONS],
            "questions/question": [f"where is the {colour} block?".encode() for colour in colours],
            "questions/answer": [place.encode() for place in PLACES],
        }
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    made.main(
        argv, write_captions, "the embedded pictures with texts", "blocks_captions", "pictures"
    )


if __name__ == "__main__":
    command.run(main)
