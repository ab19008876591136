"""Datasets that take hours to make: file by file, on any number of processes, going on after a
kill. A file has its name when it is whole, and the folder is a dataset when dataset_info.json is
there, which is written last.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.builders import rlds_files
from data_pipelines.datasets import Dataset
from data_pipelines.files import tfrecord
from vla_jax.progress import Progress

SETTINGS = "settings.json"  # in the folder: what it is built from


class Shard(NamedTuple):
    """A file to write: so many `episodes` of a split, from number `first` on, as a plan says."""

    plan: Any
    split: int
    first: int
    episodes: int
    file: Path


class Made(NamedTuple):
    """What is made.

    Attributes:
        dataset: whose name and version the folder has.
        plan: a NamedTuple of the builder, for its shards and its settings.
        counts: episodes by split.
        size: of a file, in episodes.
        features: the content of features.json.
        description: what dataset_info.json says that it is.
    """

    dataset: Dataset
    plan: Any
    counts: Mapping[str, int]
    size: int
    features: rlds_files.Feature
    description: str


def make(
    root: str | Path,
    made: Made,
    facts: Mapping[str, str],
    write: Callable[[Shard], None],
    processes: int,
) -> Path:
    """Makes a dataset under `root` with a function that writes a shard's file, and returns its
    folder. Raises ValueError where the folder holds what other settings or facts began, and where a
    process is killed.
    """
    folder = Path(root).expanduser() / made.dataset.tfds_name / made.dataset.version
    _claim(folder, json.loads(json.dumps({**made.plan._asdict(), "facts": dict(facts)})))
    shards = [shard for split in range(len(made.counts)) for shard in _cut(folder, made, split)]
    todo = [shard for shard in shards if not shard.file.exists()]
    total, left = (sum(shard.episodes for shard in each) for each in (shards, todo))
    with Progress("demonstrations", total, "episodes", start=total - left) as progress:
        for shard, _ in zip(todo, _written(todo, write, processes), strict=True):
            progress.add(shard.episodes)
    splits = []
    for split, name in enumerate(made.counts):
        mine = [shard for shard in shards if shard.split == split]
        size = sum(shard.file.stat().st_size for shard in mine)
        splits.append(rlds_files.split_info(name, [shard.episodes for shard in mine], size))
    rlds_files.finish(str(folder), made.description, made.features, splits, facts)
    return folder


def write_file(file: Path, examples: Iterable[bytes]) -> None:
    """Writes a shard's file, whole or not at all."""
    part = file.with_name(file.name + ".part")
    tfrecord.write(part, examples)
    os.replace(part, file)


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the folder, and says in it what it is built from."""
    file = folder / SETTINGS
    if file.exists():
        begun = json.loads(file.read_text())
        other = {key: begun.get(key) for key in settings if begun.get(key) != settings[key]}
        if other:
            raise ValueError(
                f"{folder}: expected what these arguments began, got one with {other}; give another"
                " folder, or remove it"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder}: expected an empty folder, or one begun by this builder")
    part = file.with_suffix(".part")
    part.write_text(json.dumps(settings, indent=2))
    part.replace(file)


def _cut(folder: Path, made: Made, split: int) -> Iterator[Shard]:
    name, episodes = list(made.counts.items())[split]
    firsts = range(0, episodes, made.size)
    for number, first in enumerate(firsts):
        file = rlds_files.shard_name(made.dataset.tfds_name, name, number, len(firsts))
        yield Shard(made.plan, split, first, min(made.size, episodes - first), folder / file)


def _written(shards: list[Shard], write: Callable[[Shard], None], processes: int) -> Iterator[None]:
    """Writes the shards, one after the other or side by side."""
    if processes == 1:
        yield from map(write, shards)
        return
    # Not forked: what draws does not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            yield from pool.map(write, shards)
        except BrokenProcessPool as error:
            raise ValueError(
                "a process was killed, perhaps for memory; the same command goes on with what is"
                " missing (fewer --processes need less)"
            ) from error
