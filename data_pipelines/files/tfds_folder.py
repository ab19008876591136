"""A dataset folder as TFDS writes it: features.json, dataset_info.json and the TFRecord files they
describe.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from data_pipelines.files import remote

FEATURES, INFO = "features.json", "dataset_info.json"
REQUESTS = 16  # files asked for at the same time where that takes a round trip
AGAIN = "download the file again"


class File(NamedTuple):
    """One TFRecord file, the number of records it must hold and its bytes."""

    path: str
    records: int
    size: int


def splits(folder: str) -> dict[str, list[File]]:
    """The files of each split. Raises ValueError when one is missing, a split is empty, or there is
    none.
    """
    path = remote.join(folder, INFO)
    info = _json(path)
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise ValueError(
            f"{path}: expected fileFormat tfrecord, got {info['fileFormat']!r}; convert the dataset"
        )
    by_split = {}
    for split in info.get("splits", []):
        counts = [int(n) for n in split.get("shardLengths", [])]
        if not sum(counts):
            raise ValueError(
                f"{path}: split {split['name']!r} is empty: expected at least one record, got"
                f" shardLengths {counts}; remove the split or download the dataset again"
            )
        files = _files(folder, info["name"], split, len(counts))
        by_split[split["name"]] = [
            File(path, n, size) for (path, size), n in zip(files, counts, strict=True)
        ]
    if not by_split:
        raise ValueError(
            f"{path}: expected at least one split, got none; download the dataset again"
        )
    return by_split


def features(folder: str) -> dict[str, dict[str, Any]]:
    """What features.json says of every feature that is not a container, by its key in a record."""
    return dict(_leaves(_json(remote.join(folder, FEATURES)), ""))


def _leaves(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, node) of every feature that is not a container. Sequences add nothing to the path."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            yield from _leaves(child, f"{prefix}/{name}" if prefix else name)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], prefix)
    else:
        yield prefix, node


def _files(folder: str, name: str, split: dict[str, Any], count: int) -> list[tuple[str, int]]:
    """(path, bytes) of the files of a split. Raises ValueError when the folder holds other ones."""
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    names = []
    for i in range(count):
        values = {
            "DATASET": name,
            "SPLIT": split["name"],
            "FILEFORMAT": "tfrecord",
            "NUM_SHARDS": f"{count:05d}",
        }
        values |= {"SHARD_INDEX": f"{i:05d}", "SHARD_X_OF_Y": f"{i:05d}-of-{count:05d}"}
        names.append(template.format(**values))
    paths = [remote.join(folder, name) for name in names]
    with ThreadPoolExecutor(REQUESTS) as threads:
        sizes = list(threads.map(_size, paths))
    missing = [name for name, size in zip(names, sizes, strict=True) if size is None]
    if missing:
        prefix = f"{name}-{split['name']}.tfrecord"
        there = [name for name in remote.list_folder(folder) if name.startswith(prefix)]
        raise ValueError(
            f"{folder}: split {split['name']!r}: expected {count} shards ({INFO}), got {len(there)}"
            f" files {there[:3]}; missing {missing[:3]}; download them again"
        )
    return [(path, size) for path, size in zip(paths, sizes, strict=True) if size is not None]


def _size(path: str) -> int | None:
    try:
        return remote.size(path)
    except FileNotFoundError:
        return None


def _json(path: str) -> dict[str, Any]:
    try:
        return json.loads(remote.read(path))
    except FileNotFoundError:
        message = (
            f"{path}: expected the file TFDS writes, found none; check the root,"
            " and the dataset's version and tfds_name (its folder where that is not its name),"
            " or download it"
        )
        raise ValueError(message) from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}: expected JSON, got {error}; download the file again") from error
