"""RLDS datasets as TFDS writes them: features.json, dataset_info.json, and episodes in TFRecord shards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import tfrecord
from data_pipelines.datasets.dataset import Dataset

FEATURES, INFO = "features.json", "dataset_info.json"


class Shard(NamedTuple):
    """One file of a split, the number of episodes it must hold, and the shape of one step of each column."""

    path: Path
    episodes: int
    shapes: dict[str, tuple[int, ...]]


class Episode(NamedTuple):
    """One standardised episode of T steps."""

    shard: int
    instruction: str
    actions: np.ndarray  # T d, float32
    state: np.ndarray  # T p, float32
    offset: dict[str, np.ndarray]  # slot -> T, int64: bytes from the beginning of the file
    size: dict[str, np.ndarray]  # slot -> T, int64


def check(folder: Path, dataset: Dataset) -> dict[str, list[Shard]]:
    """The shards of each split. Raises ValueError when a file or a promised feature is missing, or a split is empty."""
    info, features = _json(folder / INFO), _json(folder / FEATURES)
    shapes = _shapes(folder / FEATURES, dict(_leaves(features, "")), dataset)
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise ValueError(
            f"{folder / INFO}: expected fileFormat tfrecord, got {info['fileFormat']!r}; convert the dataset"
        )
    splits = {}
    for split in info.get("splits", []):
        counts = [int(n) for n in split.get("shardLengths", [])]
        if not sum(counts):
            raise ValueError(
                f"{folder / INFO}: split {split['name']!r} is empty: expected at least one episode, got shardLengths "
                f"{counts}; remove the split or download the dataset again"
            )
        paths = _paths(folder, info["name"], split, len(counts))
        splits[split["name"]] = [Shard(path, n, shapes) for path, n in zip(paths, counts, strict=True)]
    if not splits:
        raise ValueError(f"{folder / INFO}: expected at least one split, got none; download the dataset again")
    return splits


def episodes(shard: Shard, number: int, dataset: Dataset) -> Iterator[Episode]:
    """The standardised episodes of a shard, the `number`-th of its split.

    Raises ValueError naming the file and the record when one is damaged, incomplete or not finite.
    """
    names = {key: f"steps/{key}" for key in (*dataset.cameras.values(), *dataset.columns.values(), dataset.language)}
    wanted = frozenset(names.values())
    count = 0
    for count, record in enumerate(tfrecord.read(shard.path), 1):
        where = f"{shard.path}: record {count - 1}"
        try:
            found = tfrecord.parse(record.data, wanted)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; download the file again") from error
        columns = {name: _column(where, key, found, shard.shapes[name]) for name, key in dataset.columns.items()}
        spans = {key: _spans(where, key, found) for key in (*dataset.cameras.values(), dataset.language)}
        lengths = {key: len(columns[name]) for name, key in dataset.columns.items()}
        lengths |= {key: len(span.offset) for key, span in spans.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"{where}: expected as many steps in every feature, got {lengths}; download the file again"
            )
        out = dataset.standardise(columns)
        _check_standardised(where, out.actions, out.state, dataset)
        words = spans[dataset.language]
        at = int(out.frames[0]) if len(out.frames) else 0
        start = int(words.offset[at]) if len(words.offset) else 0
        end = start + int(words.length[at]) if len(words.offset) else 0
        yield Episode(
            number,
            record.data[start:end].decode(),
            out.actions,
            out.state,
            {slot: record.offset + spans[key].offset[out.frames] for slot, key in dataset.cameras.items()},
            {slot: spans[key].length[out.frames] for slot, key in dataset.cameras.items()},
        )
    if count != shard.episodes:
        raise ValueError(
            f"{shard.path}: expected {shard.episodes} records ({INFO}), got {count}; download the file again"
        )


def _column(where: str, key: str, found: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """[T, *shape] numbers of a feature, all finite."""
    values = found.get(f"steps/{key}")
    width = int(np.prod(shape))
    if not isinstance(values, np.ndarray) or len(values) % width:
        got = "none" if values is None else "bytes" if isinstance(values, tfrecord.Spans) else f"{len(values)} numbers"
        raise ValueError(f"{where}: {key}: expected {width} numbers a step, got {got}; download the file again")
    column = values.reshape(-1, *shape)
    bad = np.argwhere(~np.isfinite(column))
    if len(bad):
        step, *dim = (int(i) for i in bad[0])
        raise ValueError(
            f"{where}: step {step}: {key}{dim or ''}: expected a finite number, got {column[tuple(bad[0])]}; "
            "repair or remove the episode"
        )
    return column


def _spans(where: str, key: str, found: dict[str, Any]) -> tfrecord.Spans:
    spans = found.get(f"steps/{key}")
    if isinstance(spans, np.ndarray) and not len(spans):  # an empty list has no type on the wire
        spans = tfrecord.Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))
    if not isinstance(spans, tfrecord.Spans):
        got = "nothing" if spans is None else "numbers"
        raise ValueError(f"{where}: {key}: expected byte strings, got {got}; download the file again")
    return spans


def _check_standardised(where: str, actions: np.ndarray, state: np.ndarray, dataset: Dataset) -> None:
    for kind, values, names in (("actions", actions, dataset.action_names), ("state", state, dataset.state_names)):
        if values.ndim != 2 or values.shape[1] != len(names) or not np.isfinite(values).all():
            raise ValueError(
                f"{where}: standardised {kind}: expected finite [T, {len(names)}], got shape {values.shape}; "
                f"mend {dataset.name}'s standardise"
            )


def _shapes(path: Path, leaves: dict[str, Any], dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """The shape of one step of each column, after checking that all promised features are there."""
    promised = {f"camera {slot!r}": (key, "image") for slot, key in dataset.cameras.items()}
    promised |= {f"column {name!r}": (key, "tensor") for name, key in dataset.columns.items()}
    promised["language"] = (dataset.language, "text")
    shapes = {}
    for what, (key, kind) in promised.items():
        node = leaves.get(f"steps/{key}")
        strings = kind == "text" and node is not None and node.get("tensor", {}).get("dtype") in ("string", "object")
        if node is None or not (kind in node or strings):
            got = "no such feature" if node is None else f"a {node.get('pythonClassName', '?').split('.')[-1]}"
            raise ValueError(
                f"{path}: {dataset.name} promises {what} as the {kind} feature 'steps/{key}', got {got}; the steps "
                f"have {', '.join(sorted(k.removeprefix('steps/') for k in leaves if k.startswith('steps/')))}"
            )
        if kind == "tensor":
            encoding = node["tensor"].get("encoding", "none")
            if encoding != "none":
                raise ValueError(f"{path}: 'steps/{key}': expected plain numbers, got encoding {encoding!r}")
            shapes[what[8:-1]] = tuple(int(n) for n in node["tensor"].get("shape", {}).get("dimensions", []))
    return shapes


def _leaves(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, node) of every feature that is not a container. Sequences add nothing to the path."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            yield from _leaves(child, f"{prefix}/{name}" if prefix else name)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], prefix)
    else:
        yield prefix, node


def _paths(folder: Path, name: str, split: dict[str, Any], count: int) -> list[Path]:
    """The files of a split. Raises ValueError when the folder holds other ones."""
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    paths = []
    for i in range(count):
        values = {"DATASET": name, "SPLIT": split["name"], "FILEFORMAT": "tfrecord", "NUM_SHARDS": f"{count:05d}"}
        values |= {"SHARD_INDEX": f"{i:05d}", "SHARD_X_OF_Y": f"{i:05d}-of-{count:05d}"}
        paths.append(folder / template.format(**values))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        found = sorted(path.name for path in folder.glob(f"{name}-{split['name']}.tfrecord*"))
        raise ValueError(
            f"{folder}: split {split['name']!r}: expected {count} shards ({INFO}), got {len(found)} files {found[:3]}; "
            f"missing {missing[:3]}; download them again"
        )
    return paths


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: expected the file TFDS writes, found none; check data.root or download the dataset")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}; download the file again") from error
