"""Robots of every action space as data sets made by code: where a mark stands in the picture says
the action. It is a file of data.datasets too:

    python -m tests.robots --out DIR [--train N] [--val N]
    python -m experiments.pretrain --config=oxe_paligemma.py:tiny --config.data.root=DIR
    --config.data.datasets=tests/robots.py --config.data.mixture=robot_14d
"""

import argparse
import functools
import io
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines import index
from data_pipelines.builders import rlds_files
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.joint import BIMANUAL, SEVEN
from data_pipelines.datasets.names import EEF, EEF_UNITS, POSE, joints
from data_pipelines.files import tfrecord
from data_pipelines.standardise import Recipe

SIZE, MARK, STEPS = 32, 3, 8  # pixels, half a mark's side, steps of an episode
BASE = ("linear_x", "linear_y", "angular_z")
BASE_UNITS = {"linear_x": "m/s", "linear_y": "m/s", "angular_z": "rad/s"}
FOUR = ("x", "y", "z", "gripper")
HAND = (*POSE, *joints(24, "finger_"))


def described(
    name: str,
    actions: tuple[str, ...],
    binary: tuple[int, ...] = (),
    state: tuple[str, ...] = (),
    units: dict[str, str] | None = None,
) -> Dataset:
    """A robot's data set, of which `write` makes the files."""
    return Dataset(
        name=name,
        version="1.0.0",
        cameras={"primary": "observation/image"},
        language="language_instruction",
        control_hz=5.0,
        download="python -m tests.robots --out {root}",
        standardise=Recipe(actions=("action",), state=("observation/state",) * bool(state)),
        action_names=actions,
        action_units=units or {},
        binary=binary,
        state_names=state,
    )


DATASETS = {
    each.name: each
    for each in (
        described("robot_7d", EEF, (6,), (*POSE, "gripper"), EEF_UNITS),
        described("robot_8d", SEVEN, (7,), SEVEN),
        described("robot_14d", BIMANUAL, (6, 13), BIMANUAL),
        described("robot_16d", (*BIMANUAL, "base_forward", "base_turn"), (6, 13), BIMANUAL),
        described("robot_2d", ("forward", "left"), (), ("x", "y", "yaw")),
        described("robot_3d", BASE, (), (), BASE_UNITS),
        described("robot_4d", FOUR, (3,), FOUR, EEF_UNITS),
        described("robot_30d", HAND, (), HAND, EEF_UNITS),
        # Its pictures are those of robot_3d, its actions the opposite.
        described("robot_3d_reversed", BASE, (), (), BASE_UNITS),
    )
}


def action(name: str, where: np.ndarray) -> np.ndarray:
    """What the mark at `where` [n 2] (fractions of the picture) says of a dim: [n]; the same for
    every robot that has it.
    """
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    way, size, rest = draw.normal(size=2), draw.uniform(0.1, 2.0), draw.uniform(-0.5, 0.5)
    return size * ((2 * where - 1) @ (way / np.linalg.norm(way)) + rest)


def write(root: Path, dataset: Dataset, train: int = 6, val: int = 2) -> None:
    """Writes a data set under root. The same arguments give the same episodes."""
    folder = root / dataset.name / dataset.version
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / index.FOLDER, ignore_errors=True)
    step = {
        "action": rlds_files.tensor("float32", len(dataset.action_names)),
        "language_instruction": rlds_files.text(),
        "observation": rlds_files.folder(
            {
                "image": rlds_files.image("png", SIZE, SIZE),
                "state": rlds_files.tensor("float32", max(1, len(dataset.state_names))),
            }
        ),
    }
    splits = [
        rlds_files.write_split(
            str(folder), dataset.name, name, [[_episode(dataset, number, i) for i in range(count)]]
        )
        for number, (name, count) in enumerate((("train", train), ("val", val)))
    ]
    rlds_files.finish(str(folder), __doc__ or "", rlds_files.episode(step), splits)


def _episode(dataset: Dataset, split: int, episode: int) -> bytes:
    draw = np.random.default_rng((split, episode))
    where = draw.uniform(0.15, 0.85, (STEPS, 2))
    sign = -1.0 if dataset.name.endswith("reversed") else 1.0
    columns = [sign * action(name, where) for name in dataset.action_names]
    for dim in dataset.binary:
        columns[dim] = columns[dim] > 0
    state = draw.uniform(-1, 1, (STEPS, max(1, len(dataset.state_names))))
    return tfrecord.encode(
        {
            **rlds_files.flags(STEPS),
            "steps/action": np.stack(columns, axis=1).astype(np.float32),
            "steps/language_instruction": [b"follow the mark"] * STEPS,
            "steps/observation/image": [_picture(*at) for at in where.tolist()],
            "steps/observation/state": state.astype(np.float32),
        }
    )


@functools.cache
def _picture(across: float, down: float) -> bytes:
    pixels = np.full((SIZE, SIZE, 3), 120, np.uint8)
    x, y = round(across * SIZE), round(down * SIZE)
    pixels[y - MARK : y + MARK, x - MARK : x + MARK] = (230, 40, 40)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--val", type=int, default=20)
    args = parser.parse_args(argv)
    for dataset in DATASETS.values():
        write(args.out, dataset, args.train, args.val)


if __name__ == "__main__":
    main()
