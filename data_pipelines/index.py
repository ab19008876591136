"""The sidecar index of an RLDS dataset: one pass over its TFRecord files, then random access to every frame.

The files stay as they are. The index holds byte offsets of frames, the standardised actions and states, the
instructions and the exact statistics. It is one file: a line with the SHA-256 of the rest, then an npz. It lives beside
the data, or in a cache where that is read-only, and is used only for files of the sizes it was made from.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import rlds
from data_pipelines.datasets.dataset import Dataset

SCHEMA = 1
FOLDER = ".vla_jax_index"

Arrays = dict[str, np.ndarray]


class Frames(NamedTuple):
    """Where the encoded frames of one camera are. All [N] int64."""

    shard: np.ndarray  # index into Split.shards
    offset: np.ndarray  # bytes from the beginning of the file
    length: np.ndarray  # bytes


@dataclasses.dataclass(frozen=True)
class Split:
    """One split: E episodes whose N steps stand one after the other in all columns."""

    name: str
    shards: tuple[Path, ...]
    first: np.ndarray  # E, int64: row of the first step of each episode
    length: np.ndarray  # E, int64: steps of each episode; 0 when standardisation leaves none
    instructions: tuple[str, ...]  # one per episode
    actions: np.ndarray  # N d, float32
    state: np.ndarray  # N p, float32
    frames: dict[str, Frames]  # by camera slot
    stats: dict[str, Arrays]  # "action", "state" -> mean, std, min, max, q01, q99 (float64)


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of one dataset. `digest` names its contents: two equal digests mean the same data, wherever it is."""

    dataset: Dataset
    splits: dict[str, Split]
    digest: str


def open_index(root: str | Path, dataset: Dataset, cache_dir: str | Path | None = None) -> Index:
    """The index of root/tfds_name/version, built if there is none, or if it is stale or damaged.

    Args:
        root: the folder that holds the datasets.
        dataset: what to expect there.
        cache_dir: where to keep the index; by default beside the data, or if that is read-only in $VLA_JAX_CACHE or
            ~/.cache/vla_jax.

    Raises ValueError when files are missing, damaged or not what `dataset` promises.
    """
    folder = (Path(root).expanduser() / dataset.tfds_name / dataset.version).absolute()
    files = rlds.check(folder, dataset)
    key = _key(folder, dataset, files)
    path = _place(folder, dataset, cache_dir)
    arrays = _load(path, key)
    if arrays is None:
        arrays = {}
        for split, shards in files.items():
            arrays.update({f"{split}/{name}": value for name, value in _build(dataset, split, shards).items()})
        _save(path, key, arrays)
    return Index(dataset, {split: _split(split, shards, arrays) for split, shards in files.items()}, _digest(arrays))


def _build(dataset: Dataset, split: str, shards: list[rlds.Shard]) -> Arrays:
    """One pass over the shards of a split."""
    began = time.monotonic()
    episodes = [e for number, shard in enumerate(shards) for e in rlds.episodes(shard, number, dataset)]
    length = np.array([len(e.actions) for e in episodes], np.int64)
    if not length.sum():
        raise ValueError(
            f"{shards[0].path.parent}: split {split!r} is empty: expected at least one step, got "
            f"{len(episodes)} episodes without any; remove it from dataset_info.json or download the dataset again"
        )
    arrays = {
        "first": np.cumsum(length) - length,
        "length": length,
        "instructions": _text(json.dumps([e.instruction for e in episodes])),
        "actions": np.concatenate([e.actions for e in episodes]),
        "state": np.concatenate([e.state for e in episodes]),
        "shard": np.repeat(np.array([e.shard for e in episodes], np.int64), length),
    }
    for slot in dataset.cameras:
        arrays[f"offset/{slot}"] = np.concatenate([e.offset[slot] for e in episodes])
        arrays[f"size/{slot}"] = np.concatenate([e.size[slot] for e in episodes])
    for name, column in (("action", arrays["actions"]), ("state", arrays["state"])):
        arrays.update({f"stats/{name}/{key}": value for key, value in statistics(column).items()})
    empty = int((length == 0).sum())
    print(
        f"{dataset.name}: indexed split {split}: {len(episodes)} episodes, {length.sum()} steps"
        + (f" ({empty} episodes too short for a step)" if empty else "")
        + f" in {time.monotonic() - began:.1f} s",
        flush=True,
    )
    return arrays


def statistics(column: np.ndarray) -> Arrays:
    """Exact float64 statistics over the rows of [N, d]: mean, std, min, max, q01, q99, each [d]."""
    x = column.astype(np.float64)
    low, high = np.quantile(x, (0.01, 0.99), axis=0)
    return {"mean": x.mean(0), "std": x.std(0), "min": x.min(0), "max": x.max(0), "q01": low, "q99": high}


def _split(name: str, shards: list[rlds.Shard], arrays: Arrays) -> Split:
    own = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
    stats: dict[str, Arrays] = {"action": {}, "state": {}}
    frames = {}
    for key, value in own.items():
        kind, _, rest = key.partition("/")
        if kind == "stats":
            column, _, statistic = rest.partition("/")
            stats[column][statistic] = value
        if kind == "offset":
            frames[rest] = Frames(own["shard"], value, own[f"size/{rest}"])
    return Split(
        name,
        tuple(shard.path for shard in shards),
        own["first"],
        own["length"],
        tuple(json.loads(own["instructions"].tobytes())),
        own["actions"],
        own["state"],
        frames,
        stats,
    )


def _key(folder: Path, dataset: Dataset, files: dict[str, list[rlds.Shard]]) -> dict[str, Any]:
    """What an index must have been made from to be used."""
    paths = [shard.path for shards in files.values() for shard in shards]
    paths += [folder / rlds.FEATURES, folder / rlds.INFO]
    description = {"cameras": dataset.cameras, "columns": dataset.columns, "language": dataset.language}
    return {
        "schema": SCHEMA,
        "revision": dataset.revision,
        "description": description,
        "files": {path.name: path.stat().st_size for path in paths},
    }


def _place(folder: Path, dataset: Dataset, cache_dir: str | Path | None) -> Path:
    """The file the index is read from and written to."""
    beside = folder / FOLDER
    name = f"{dataset.name}.index"
    if cache_dir is None:
        if _writable(beside if beside.is_dir() else folder):
            return beside / name
        cache_dir = os.environ.get("VLA_JAX_CACHE") or "~/.cache/vla_jax"
    # Two copies of a dataset share a cache: the folder is part of the name.
    return Path(cache_dir).expanduser() / hashlib.sha256(str(folder).encode()).hexdigest()[:16] / name


def _writable(folder: Path) -> bool:
    """Root may write anywhere, but a folder without any write permission is meant to stay as it is."""
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _load(path: Path, key: dict[str, Any]) -> Arrays | None:
    """The arrays of an index made from `key`; None, with a line that says why, when it must be built again."""
    if not path.is_file():
        return None
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        print(f"{path}: the index is damaged (its checksum does not match); building it again", flush=True)
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as stored:
        arrays = dict(stored)
    found = json.loads(arrays.pop("key").tobytes())
    if found != key:
        changed = sorted(k for k in key if found.get(k) != key[k])
        print(f"{path}: the index is stale ({', '.join(changed)} changed); building it again", flush=True)
        return None
    return arrays


def _save(path: Path, key: dict[str, Any], arrays: Arrays) -> None:
    """Writes the index so that a reader sees all of it or none of it."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{"key": _text(json.dumps(key)), **arrays})  # type: ignore[arg-type]
    body = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(handle, "wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _digest(arrays: Arrays) -> str:
    """SHA-256 over names, shapes and contents."""
    total = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        total.update(f"{name} {value.dtype} {value.shape}".encode())
        total.update(np.ascontiguousarray(value).data)
    return total.hexdigest()


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
