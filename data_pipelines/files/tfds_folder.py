"""A dataset folder as TFDS writes it: features.json, dataset_info.json and the TFRecord files they
describe.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from data_pipelines.files import remote, tfrecord

FEATURES, INFO = "features.json", "dataset_info.json"
SIMULATOR = "simulator.json"  # of simulated ones: what their pictures depend on, {"renderer": ...}
REQUESTS = 16  # files asked for at the same time where that takes a round trip
AGAIN = "download the file again"
SHOWN = 20  # folders that are looked into to say what is there


class File(NamedTuple):
    """One data file, the number of records it must hold, and its version."""

    path: str
    records: int
    version: remote.Version
    folder: str = ""  # of the dataset; "": the one the file is in

    @property
    def name(self) -> str:
        """Without the dataset's folder."""
        folder = self.folder or self.path.rpartition("/")[0]
        return self.path.removeprefix(folder).lstrip("/")

    @property
    def size(self) -> int:
        """Bytes."""
        return self.version.size


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
    lacking = [key for key in ("name", "splits") if not info.get(key)]
    if lacking:
        raise ValueError(
            f"{path}: expected {' and '.join(map(repr, lacking))} as TFDS writes it, got"
            f" {', '.join(sorted(info)) or 'nothing'}; was the dataset still being written?"
            " download it again, or write it again with TFDS"
        )
    for split in info["splits"]:
        if "shardLengths" not in split:
            raise ValueError(
                f"{path}: split {split.get('name')!r}: expected shardLengths, the records of every"
                f" file, got {', '.join(sorted(split))}; the download is unfinished, or the dataset"
                " was written by hand: download it again, or write it with TFDS"
            )
        counts = [int(n) for n in split["shardLengths"]]
        if not sum(counts):
            raise ValueError(
                f"{path}: split {split['name']!r} is empty: expected at least one record, got"
                f" shardLengths {counts}; remove the split or download the dataset again"
            )
        files = _files(folder, info["name"], split, len(counts))
        by_split[split["name"]] = [
            File(path, n, version) for (path, version), n in zip(files, counts, strict=True)
        ]
    return by_split


class Feature(NamedTuple):
    """What features.json says of one feature that is no container."""

    node: dict[str, Any]
    lengths: tuple[int, ...]  # of the sequences it is in, outermost first; -1: any


def features(folder: str) -> dict[str, Feature]:
    """All features that are no container, by their key in a record."""
    return dict(_leaves(_json(remote.join(folder, FEATURES)), "", ()))


def _leaves(
    node: dict[str, Any], prefix: str, lengths: tuple[int, ...]
) -> Iterator[tuple[str, Feature]]:
    """(path, feature). Sequences add nothing to the path."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            yield from _leaves(child, f"{prefix}/{name}" if prefix else name, lengths)
    elif "sequence" in node:
        length = int(node["sequence"].get("length", -1))
        yield from _leaves(node["sequence"]["feature"], prefix, (*lengths, length))
    else:
        yield prefix, Feature(node, lengths)


def there(folder: str) -> str:
    """What is there instead of the dataset folder .../name/version, in words; "" when nothing like
    it is.
    """
    parent, _, version = folder.rstrip("/").rpartition("/")
    names = [name for name in remote.list_folder(parent) if not name.startswith(".")]
    unfinished = [name for name in names if "incomplete" in name]
    versions = [name for name in names if re.fullmatch(r"\d+\.\d+\.\d+", name) and name != version]
    inner = {name: remote.list_folder(remote.join(parent, name)) for name in names[:SHOWN]}
    configs = [name for name, held in inner.items() if name not in versions and version in held]
    lines = (
        [f"an unfinished download ({', '.join(unfinished)}): run it again"] if unfinished else []
    )
    if version in names:
        lines += [f"the folder without {INFO}: its download is unfinished, run it again"]
    if versions:
        lines += [f"version {', '.join(versions)}: give it as `version` of a Dataset of your own"]
    if configs:
        name = parent.rpartition("/")[2]
        lines += [f"the TFDS config {', '.join(configs)}: give tfds_name='{name}/{configs[0]}'"]
    return f"{parent} has {'; '.join(lines)}" if lines else ""


def _files(
    folder: str, name: str, split: dict[str, Any], count: int
) -> list[tuple[str, remote.Version]]:
    """(path, version) of the files of a split. Raises ValueError when the folder holds other
    ones.
    """
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
    versions = versions_of(paths)
    missing = [name for name, version in zip(names, versions, strict=True) if version is None]
    if missing:
        prefix = f"{name}-{split['name']}.tfrecord"
        there = [name for name in remote.list_folder(folder) if name.startswith(prefix)]
        raise ValueError(
            f"{folder}: split {split['name']!r}: expected {count} shards ({INFO}), got {len(there)}"
            f" files {there[:3]}; missing {missing[:3]}; download them again"
        )
    return [(path, of) for path, of in zip(paths, versions, strict=True) if of is not None]


def versions_of(paths: list[str]) -> list[remote.Version | None]:
    """The version of each file, None where there is none; several are asked for at a time."""
    with ThreadPoolExecutor(REQUESTS) as threads:
        return list(threads.map(_version, paths))


def _version(path: str) -> remote.Version | None:
    try:
        return remote.version(path)
    except FileNotFoundError:
        return None


def _json(path: str) -> dict[str, Any]:
    try:
        return json.loads(remote.read(path))
    except FileNotFoundError:
        instead = there(path.rpartition("/")[0])
        message = (
            f"{path}: expected the file TFDS writes, found none; "
            + (f"{instead}; or " if instead else "")
            + "check the root, and the dataset's version and tfds_name (its folder where that is"
            " not its name), or download it"
        )
        raise ValueError(message) from None
    except ValueError as error:  # not JSON, or not UTF-8
        got, fix = tfrecord.foreign(remote.read(path)[:64]) or (str(error), AGAIN)
        raise ValueError(f"{path}: expected JSON, got {got}; {fix}") from error
