"""What the datasets made by code share: how they are written, and their command line."""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines import index
from data_pipelines.builders import rlds_files
from data_pipelines.datasets import Dataset
from data_pipelines.datasets.image_text import ImageTextDataset

# The first number that rollouts in these worlds are drawn from; data have others, see `of_data`.
ROLLOUTS = 2
SHARDS = {"train": 2, "val": 1}  # files of a split, at most


def drawn(*numbers: int) -> np.random.Generator:
    """The random numbers of an episode; other numbers give independent ones."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))


def of_data(seed: int) -> int:
    """The first number that a data set of this seed is drawn from: never that of rollouts."""
    return seed if seed < ROLLOUTS else seed + 1


def write(
    root: str | Path,
    dataset: Dataset | ImageTextDataset,
    counts: Mapping[str, int],
    example: Callable[[int, int], bytes],
    features: rlds_files.Feature,
    description: str | None,
) -> Path:
    """Writes a dataset under `root` and returns its folder.

    Args:
        root: the data root.
        dataset: whose name and version the folder has.
        counts: records of each split of SHARDS.
        example: gives a record by the number of its split in `counts` and its own in the split.
        features: the content of features.json.
        description: what dataset_info.json says that it is.
    """
    folder = Path(root).expanduser() / dataset.tfds_name / dataset.version
    folder.mkdir(parents=True, exist_ok=True)
    # The index describes what is overwritten here.
    shutil.rmtree(folder / index.FOLDER, ignore_errors=True)
    splits = []
    for number, (split, count) in enumerate(counts.items()):
        parts = np.array_split(np.arange(count), min(SHARDS[split], count))
        shards = [map(example, [number] * len(part), part.tolist()) for part in parts]
        splits.append(rlds_files.write_split(str(folder), dataset.tfds_name, split, shards))
    rlds_files.finish(str(folder), description or "", features, splits)
    return folder


def main(
    argv: Sequence[str] | None, writer: Callable[..., Path], what: str, name: str, records: str
) -> None:
    """The command line of a `writer` of (root, train, val, seed), which says how many there are
    by default; `name` is the dataset's folder.
    """
    parser = argparse.ArgumentParser(
        description=f"Writes {what}.", argument_default=argparse.SUPPRESS
    )
    parser.add_argument(
        "--out", required=True, help=f"data root; the dataset goes to OUT/{name}/1.0.0"
    )
    parser.add_argument("--train", type=int, help=f"training {records}")
    parser.add_argument("--val", type=int, help=f"held-out {records}")
    parser.add_argument("--seed", type=int)
    given = vars(parser.parse_args(argv))
    print(f"wrote {writer(given.pop('out'), **given)}")
