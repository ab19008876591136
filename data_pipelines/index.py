"""The sidecar index of an RLDS dataset: byte ranges of its frames, low-dimensional columns, instructions, statistics.

One pass over the original TFRecords, which stay as they are; every record's checksum is verified on the way. The index lies in
`<version>/.vla_jax/` beside the files, or in the cache where that folder cannot be written. It names the files' sizes and the
code that standardises; an index that does not match is rebuilt, never used.
"""

import hashlib
import inspect
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data_pipelines import tfrecord
from data_pipelines.datasets import Dataset
from data_pipelines.stats import statistics

SCHEMA = 1


class Split(NamedTuple):
    """One split. Frames are numbered through all episodes: episode e has frames first[e] .. first[e] + length[e] - 1."""

    files: list[Path]
    shard: Int[np.ndarray, " episodes"]
    first: Int[np.ndarray, " episodes"]
    length: Int[np.ndarray, " episodes"]
    instructions: list[str]
    actions: Float[np.ndarray, "n d"]
    state: Float[np.ndarray, "n p"]
    frames: dict[str, Int[np.ndarray, "n 2"]]  # camera -> byte offset in the file and number of bytes
    stats: dict[str, dict[str, np.ndarray]]  # "action", "state" -> mean, std, min, max, q01, q99


class Index(NamedTuple):
    """A dataset, ready to be read at random. `digest` stands for the standardised actions and states of all splits."""

    dataset: Dataset
    splits: dict[str, Split]
    digest: str


def open_index(root: str | Path, dataset: Dataset, cache: Path | None = None) -> Index:
    """The index of `dataset` under `root`, built if it is not there or does not match the files.

    Raises ValueError naming file, record, episode, step or feature when the data is missing, damaged or not what `dataset` says.
    """
    folder = Path(root).expanduser() / dataset.tfds_name / dataset.version
    shards = _shards(folder, dataset)
    identity = _identity(folder, shards, dataset)
    path = _place(folder, dataset, identity, cache)
    if path.exists():
        try:
            arrays = _read(path)
            if str(arrays["identity"]) == identity:
                return _unpack(arrays, shards, dataset)
            print(f"index {path} was made from other files or by other code: building it again", flush=True)
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
            print(f"index {path} is damaged ({error}): building it again", flush=True)
    arrays = {"identity": np.array(identity)}
    _check_features(folder, dataset)
    for name, files in shards.items():
        arrays |= {f"{name}/{key}": value for key, value in _build_split(name, files, folder, dataset).items()}
    _write(path, arrays)
    return _unpack(arrays, shards, dataset)


# -------------------------------------------------------------------------------------------------------------- building


class _Episode(NamedTuple):
    shard: int
    instruction: str
    actions: np.ndarray
    state: np.ndarray
    frames: dict[str, np.ndarray]


def _build_split(split: str, files: list[tuple[Path, int]], folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    shapes = _feature_shapes(folder)
    episodes: list[_Episode] = []
    for shard, (file, promised) in enumerate(files):
        count = 0
        for number, (offset, data) in enumerate(tfrecord.read_records(file)):
            episodes.append(_episode(data, offset, shard, dataset, shapes, f"{file}: record {number}"))
            count += 1
        if count != promised:
            raise ValueError(f"{file}: dataset_info.json promises {promised} records, got {count}; fetch it again")
    kept = [episode for episode in episodes if len(episode.actions)]
    frames = sum(len(episode.actions) for episode in kept)
    print(f"indexed {dataset.name}/{split}: {len(kept)} episodes, {frames} frames from {len(files)} files", flush=True)
    if not frames:
        raise ValueError(f"{folder}: split {split!r} is empty; remove it from dataset_info.json or fetch the data again")
    length = np.array([len(episode.actions) for episode in kept], np.int64)
    out = {
        "shard": np.array([episode.shard for episode in kept], np.int32),
        "length": length,
        "instructions": np.array(json.dumps([episode.instruction for episode in kept])),
        "actions": np.concatenate([episode.actions for episode in kept]),
        "state": np.concatenate([episode.state for episode in kept]),
    }
    for camera in dataset.cameras:
        out[f"frames/{camera}"] = np.concatenate([episode.frames[camera] for episode in kept])
    for kind, column in (("action", "actions"), ("state", "state")):
        out |= {f"stats/{kind}/{key}": value for key, value in statistics(out[column]).items()}
    return out


def _episode(
    data: bytes, offset: int, shard: int, dataset: Dataset, shapes: dict[str, tuple[int, ...] | None], where: str
) -> _Episode:
    features = tfrecord.parse_example(data)

    def feature(name: str) -> tfrecord.Feature:
        if f"steps/{name}" not in features:
            raise ValueError(f"{where}: expected the feature steps/{name}, got {', '.join(sorted(features))}")
        return features[f"steps/{name}"]

    columns = {}
    for name, key in dataset.columns.items():
        values = tfrecord.numbers(data, feature(key))
        shape = shapes[f"steps/{key}"] or ()
        columns[name] = values.reshape(-1, *shape)
    steps = len(next(iter(columns.values())))
    language = feature(dataset.language).spans
    images = {camera: feature(key).spans for camera, key in dataset.cameras.items()}
    found = {name: len(value) for name, value in columns.items()} | {dataset.language: len(language)}
    found |= {camera: len(spans) for camera, spans in images.items()}
    if set(found.values()) != {steps}:
        raise ValueError(f"{where}: expected as many steps in every feature, got {found}; write the dataset again")
    standard = dataset.standardise(columns)
    _check_finite(standard.actions, dataset.action_names, "action", where)
    _check_finite(standard.state, dataset.state_names, "state", where)
    spans = {camera: np.array(value, np.int64).reshape(-1, 2)[standard.frames] for camera, value in images.items()}
    return _Episode(
        shard=shard,
        instruction=data[slice(*language[0])].decode() if steps else "",
        actions=standard.actions,
        state=standard.state,
        frames={c: np.stack([offset + s[:, 0], s[:, 1] - s[:, 0]], axis=1) for c, s in spans.items()},
    )


def _check_finite(values: np.ndarray, names: tuple[str, ...], kind: str, where: str) -> None:
    if values.ndim != 2 or values.shape[1] != len(names):
        raise ValueError(f"{where}: {kind}: expected {len(names)} dims ({', '.join(names)}), got shape {values.shape}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, dim = bad[0]
        raise ValueError(
            f"{where}: {kind} {names[dim]!r} at step {step} is {values[step, dim]} ({len(bad)} such values in the episode); "
            "mend or remove the episode"
        )


# ------------------------------------------------------------------------------------------------------ what TFDS says


def _shards(folder: Path, dataset: Dataset) -> dict[str, list[tuple[Path, int]]]:
    """Split -> (file, promised records). Raises ValueError naming every file that is not there."""
    info = folder / "dataset_info.json"
    if not info.is_file() or not (folder / "features.json").is_file():
        raise ValueError(
            f"{dataset.name}: expected dataset_info.json and features.json in {folder.absolute()}; set data.root to the folder "
            f"that holds {dataset.tfds_name}/{dataset.version}"
        )
    body = json.loads(info.read_text())
    if body.get("fileFormat", "tfrecord") != "tfrecord":
        raise ValueError(f"{info}: expected fileFormat tfrecord, got {body['fileFormat']!r}")
    out: dict[str, list[tuple[Path, int]]] = {}
    for split in body["splits"]:
        lengths = [int(length) for length in split["shardLengths"]]
        template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
        out[split["name"]] = [
            (
                folder
                / template.format(
                    DATASET=dataset.tfds_name,
                    SPLIT=split["name"],
                    FILEFORMAT="tfrecord",
                    SHARD_X_OF_Y=f"{i:05d}-of-{len(lengths):05d}",
                ),
                length,
            )
            for i, length in enumerate(lengths)
        ]
        if not sum(lengths):
            raise ValueError(f"{info}: split {split['name']!r} is empty; remove it or fetch the data again")
    absent = [str(file) for files in out.values() for file, _ in files if not file.is_file()]
    if absent:
        raise ValueError(f"{dataset.name}: {len(absent)} files are missing: {', '.join(absent[:20])}; fetch them again")
    if "train" not in out:
        raise ValueError(f"{info}: expected a split named train, got {', '.join(out) or 'none'}")
    return out


def _feature_shapes(folder: Path) -> dict[str, tuple[int, ...] | None]:
    """Every feature by path ("steps/observation/state") with its shape in one step; None for text and images."""

    def walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, tuple[int, ...] | None]]:
        if "featuresDict" in node:
            for name, child in node["featuresDict"]["features"].items():
                yield from walk(child, f"{path}/{name}" if path else name)
        elif "sequence" in node:
            yield from walk(node["sequence"]["feature"], path)
        elif "tensor" in node:
            yield path, tuple(int(n) for n in node["tensor"].get("shape", {}).get("dimensions", []))
        else:
            yield path, None

    return dict(walk(json.loads((folder / "features.json").read_text()), ""))


def _check_features(folder: Path, dataset: Dataset) -> None:
    there = _feature_shapes(folder)
    wanted = {f"camera {slot}": key for slot, key in dataset.cameras.items()}
    wanted |= {f"column {name}": key for name, key in dataset.columns.items()} | {"language": dataset.language}
    lacking = [f"{what} (steps/{key})" for what, key in wanted.items() if f"steps/{key}" not in there]
    if lacking:
        raise ValueError(
            f"{folder / 'features.json'}: {dataset.name} promises {', '.join(lacking)}, the file has {', '.join(there)}; is this "
            "another version of the dataset?"
        )


# ---------------------------------------------------------------------------------------------------------- the file


def _identity(folder: Path, shards: dict[str, list[tuple[Path, int]]], dataset: Dataset) -> str:
    """A digest of all that the index depends on: the files' names and sizes, the features, and the code that standardises."""
    sha = hashlib.sha256(f"{SCHEMA} {dataset.name} {dataset.cameras} {dataset.columns} {dataset.language}".encode())
    source = inspect.getsourcefile(dataset.standardise)
    sha.update(Path(source).read_bytes() if source else b"")
    sha.update((folder / "features.json").read_bytes())
    for split, files in shards.items():
        for file, records in files:
            sha.update(f"{split} {file.name} {file.stat().st_size} {records}\n".encode())
    return sha.hexdigest()


def _place(folder: Path, dataset: Dataset, identity: str, cache: Path | None) -> Path:
    beside = folder / ".vla_jax" / f"{dataset.name}.npz"
    if beside.exists() or (cache is None and os.access(folder, os.W_OK)):
        return beside
    root = cache or Path(os.environ.get("VLA_JAX_CACHE", "~/.cache/vla_jax")).expanduser()
    return root / "index" / f"{dataset.tfds_name}-{dataset.version}-{identity[:16]}.npz"


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Atomic: another process sees the old index, none, or this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        np.savez(part, **arrays)  # type: ignore[arg-type]
    os.replace(part.name, path)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Every array; the zip's checksums are verified as they are read."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def _unpack(arrays: dict[str, np.ndarray], shards: dict[str, list[tuple[Path, int]]], dataset: Dataset) -> Index:
    splits, sha = {}, hashlib.sha256()
    for name, files in shards.items():
        own = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
        stats: dict[str, dict[str, np.ndarray]] = {"action": {}, "state": {}}
        for key, value in own.items():
            if key.startswith("stats/"):
                _, kind, which = key.split("/")
                stats[kind][which] = value
        splits[name] = Split(
            files=[file for file, _ in files],
            shard=own["shard"],
            first=np.cumsum(own["length"]) - own["length"],
            length=own["length"],
            instructions=json.loads(str(own["instructions"])),
            actions=own["actions"],
            state=own["state"],
            frames={camera: own[f"frames/{camera}"] for camera in dataset.cameras},
            stats=stats,
        )
        for key in ("length", "actions", "state"):
            sha.update(np.ascontiguousarray(own[key]).tobytes())
    return Index(dataset, splits, sha.hexdigest())
