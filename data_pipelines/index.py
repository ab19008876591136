"""The sidecar index of an RLDS dataset: one pass over its TFRecord files, then random access to
every frame.

The files stay as they are. The index holds byte offsets of frames, the standardised actions and
states, the instructions and the statistics. It lives beside the data, or in a cache where that is
read-only or remote, and is used only for files of the sizes it was made from. It is mapped into
memory, not read into it.
"""

import dataclasses
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import stats
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import remote, rlds, store, tfds_folder
from data_pipelines.progress import Progress
from data_pipelines.standardise import Recipe

SCHEMA = 3
HELD_OUT = ("val", "validation", "test")  # names of splits that are not trained on
HELD_OUT_SHARE = 0.05  # of the episodes of a dataset that has none of these, as Octo and OpenVLA do
FOLDER = ".vla_jax_index"

Arrays = dict[str, np.ndarray]
Quarantine = frozenset[tuple[str, int]]  # (name of the shard's file, number of the record in it)


class Frames(NamedTuple):
    """Where the encoded frames of one camera are, by row of the split's columns."""

    shard: np.ndarray  # N, int32: index into Split.shards
    offset: np.ndarray  # N, int64: bytes from the beginning of the file
    length: np.ndarray  # N, int32: bytes


@dataclasses.dataclass(frozen=True)
class Split:
    """One split: E episodes whose N steps stand one after the other in all columns. The arrays are
    read-only.
    """

    name: str
    shards: tuple[str, ...]  # paths or URLs
    first: np.ndarray  # E, int64: row of the first step of each episode
    length: np.ndarray  # E, int32: steps of each episode; 0 when standardisation leaves none
    record: np.ndarray  # E, int32: its number in the shard
    instruction: np.ndarray  # E, int32: index into sentences
    sentences: tuple[str, ...]  # every instruction once
    actions: np.ndarray  # N d, float32
    state: np.ndarray  # N p, float32
    frames: dict[str, Frames]  # by camera slot
    stats: dict[str, Arrays]  # "action", "state" -> mean, std, min, max, q01, q99 (float64)


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of one dataset. `digest` names its contents: two equal digests mean the same data,
    wherever it is.
    """

    dataset: Dataset
    splits: dict[str, Split]
    digest: str


def open_index(
    root: str | Path,
    dataset: Dataset,
    cache_dir: str | Path | None = None,
    quarantine: Quarantine = frozenset(),
) -> Index:
    """The index of root/tfds_name/version, built if there is none, or if it is stale or damaged.

    Args:
        root: the folder or URL that holds the datasets.
        dataset: what to expect there.
        cache_dir: where to keep the index; by default beside the data, or if that is read-only or
            remote in $VLA_JAX_CACHE or ~/.cache/vla_jax.
        quarantine: (shard file name, record number) of episodes to leave out; entries of other
            datasets' files are ignored.

    Raises ValueError when files are missing, damaged or not what `dataset` promises, and OSError
    when the index cannot be written.
    """
    folder = remote.join(remote.absolute(root), dataset.tfds_name, dataset.version)
    files = _hold_out(rlds.check(folder, dataset))
    skipped = _quarantined(files, quarantine)
    key = _key(folder, dataset, files, skipped)
    path = place(folder, f"{dataset.name}.index", cache_dir)
    stored = store.load(path, key)
    if stored is None:
        built = {}
        for split, shards in files.items():
            built.update(
                {
                    f"{split}/{name}": value
                    for name, value in _build(dataset, split, shards, skipped).items()
                }
            )
        store.save(path, key, built)
        del built  # from here on the file holds them
        stored = store.load(path, key)
        if stored is None:
            raise OSError(f"{path}: the index is not what was just written there; check the disk")
    splits = {split: _split(split, shards, stored.arrays) for split, shards in files.items()}
    return Index(dataset, splits, stored.digest)


def place(folder: str, name: str, cache_dir: str | Path | None = None) -> Path:
    """The file `name` beside the data in `folder`, or in a cache where it cannot be (see
    `open_index`).
    """
    if cache_dir is None:
        beside = Path(folder) / FOLDER
        if not remote.is_remote(folder) and _writable(beside if beside.is_dir() else Path(folder)):
            return beside / name
        cache_dir = os.environ.get("VLA_JAX_CACHE") or "~/.cache/vla_jax"
    # Two copies of a dataset share a cache: the folder is part of the name.
    return Path(cache_dir).expanduser() / hashlib.sha256(folder.encode()).hexdigest()[:16] / name


def _hold_out(files: dict[str, list[rlds.Shard]]) -> dict[str, list[rlds.Shard]]:
    """The same splits; the last episodes of "train" become "val" where nothing else is held out
    (most OXE datasets).

    They are taken out before the statistics are made, which describe what is trained on alone.
    """
    total = sum(shard.episodes for shard in files.get("train", []))
    if total < 2 or set(HELD_OUT) & set(files):
        return files
    cut, at = total - max(1, round(HELD_OUT_SHARE * total)), 0
    train, val = [], []
    for shard in files["train"]:
        inside = min(max(cut - at, 0), shard.episodes)
        if inside:
            train.append(shard._replace(keep=range(inside)))
        if inside < shard.episodes:
            val.append(shard._replace(keep=range(inside, shard.episodes)))
        at += shard.episodes
    return {**files, "train": train, "val": val}


def _quarantined(
    files: dict[str, list[rlds.Shard]], quarantine: Quarantine
) -> dict[str, frozenset[int]]:
    """The records to leave out, by shard file name."""
    listed: dict[str, set[int]] = {}
    for file, record in quarantine:
        listed.setdefault(file, set()).add(record)
    skipped = {}
    for shard in (shard for shards in files.values() for shard in shards):
        records = listed.get(_name(shard.path), set())
        if records and not 0 <= min(records) <= max(records) < shard.episodes:
            raise ValueError(
                f"data.quarantine: expected records 0 to {shard.episodes - 1} of {shard.path}, got"
                f" {sorted(records)}; was the list made for another version of the data?"
            )
        if records:
            skipped[_name(shard.path)] = frozenset(records)
    return skipped


def _build(
    dataset: Dataset, split: str, shards: list[rlds.Shard], skipped: dict[str, frozenset[int]]
) -> Arrays:
    """One pass over the shards of a split. Memory: its columns, and a record per thread."""
    columns: dict[str, bytearray] = {}
    kinds: dict[str, np.ndarray] = {}  # an empty array of each column's dtype and width
    ids: dict[str, int] = {}
    running = {
        "actions": stats.empty(len(dataset.action_names)),
        "state": stats.empty(len(dataset.state_names)),
    }
    with Progress(
        f"{dataset.name}: indexing {split}", sum(shard.size for shard in shards)
    ) as progress:
        for block, sentences in _blocks(dataset, shards, skipped, progress):
            own = np.array([ids.setdefault(text, len(ids)) for text in sentences], np.int32)
            block["instruction"] = own[block["instruction"]]
            for name, value in block.items():
                kinds[name] = value[:0]
                columns.setdefault(name, bytearray()).extend(value.tobytes())
            running = {name: stats.update(running[name], block[name]) for name in running}
    steps = running["actions"].rows
    if not steps:
        raise ValueError(
            f"{shards[0].path}: split {split!r} is empty: expected at least one step, got episodes"
            " without any; remove it from dataset_info.json or download the dataset again"
        )
    arrays = {
        name: (
            np.frombuffer(body, kinds[name].dtype).reshape(
                -1 if body else steps, *kinds[name].shape[1:]
            )
        )
        for name, body in columns.items()
    }
    length = arrays["length"]
    arrays["first"] = np.cumsum(length, dtype=np.int64) - length
    arrays["sentences"] = np.frombuffer(json.dumps(list(ids)).encode(), np.uint8)
    for name, kind in (("actions", "action"), ("state", "state")):
        arrays.update(
            {f"stats/{kind}/{key}": value for key, value in stats.summary(running[name]).items()}
        )
    empty = int((length == 0).sum())
    left_out = sum(
        record in shard.keep for shard in shards for record in skipped.get(_name(shard.path), ())
    )
    print(
        f"{dataset.name}: indexed split {split}: {len(length)} episodes, {steps} steps"
        + (f" ({empty} episodes too short for a step)" if empty else "")
        + (f" ({left_out} episodes in quarantine left out)" if left_out else "")
        + f" in {progress.spent()}",
        flush=True,
    )
    return arrays


def _blocks(
    dataset: Dataset,
    shards: list[rlds.Shard],
    skipped: dict[str, frozenset[int]],
    progress: Progress,
) -> Iterator[tuple[Arrays, list[str]]]:
    """What `_read` makes of every shard, in their order; several are read at a time."""
    workers = remote.workers(shards[0].path)
    with ThreadPoolExecutor(workers, thread_name_prefix="index") as threads:
        ahead: deque[Future[tuple[Arrays, list[str]]]] = deque()
        try:
            for number, shard in enumerate(shards):
                skip = skipped.get(_name(shard.path), frozenset())
                ahead.append(threads.submit(_read, dataset, shard, number, skip, progress))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)  # after an error the rest need not be read


def _read(
    dataset: Dataset, shard: rlds.Shard, number: int, skip: frozenset[int], progress: Progress
) -> tuple[Arrays, list[str]]:
    """The columns of one shard, and the sentences that its column "instruction" points to."""
    ids: dict[str, int] = {}
    rows: dict[str, list[int]] = {name: [] for name in ("length", "record", "instruction")}
    blocks: dict[str, list[np.ndarray]] = {
        "actions": [np.zeros((0, len(dataset.action_names)), np.float32)],
        "state": [np.zeros((0, len(dataset.state_names)), np.float32)],
    }
    blocks |= {f"offset/{slot}": [np.zeros(0, np.int64)] for slot in dataset.cameras}
    blocks |= {f"size/{slot}": [np.zeros(0, np.int32)] for slot in dataset.cameras}
    at = 0
    for episode in rlds.episodes(shard, number, dataset, skip=skip):
        rows["length"].append(len(episode.actions))
        rows["record"].append(episode.record)
        rows["instruction"].append(ids.setdefault(episode.instruction, len(ids)))
        blocks["actions"].append(episode.actions)
        blocks["state"].append(episode.state)
        for slot in dataset.cameras:
            blocks[f"offset/{slot}"].append(episode.offset[slot])
            blocks[f"size/{slot}"].append(episode.size[slot])
        progress.add(episode.end - at)
        at = episode.end
    progress.add(shard.size - at)
    columns = {name: np.array(values, np.int32) for name, values in rows.items()}
    # The first block has the dtype to store: a frame has fewer than 2 GiB, whatever its record has.
    columns |= {
        name: np.concatenate(values).astype(values[0].dtype) for name, values in blocks.items()
    }
    columns["shard"] = np.full(len(columns["actions"]), number, np.int32)
    return columns, list(ids)


def _split(name: str, shards: list[rlds.Shard], arrays: Arrays) -> Split:
    own = {
        key.removeprefix(f"{name}/"): value
        for key, value in arrays.items()
        if key.startswith(f"{name}/")
    }
    statistics: dict[str, Arrays] = {"action": {}, "state": {}}
    frames = {}
    for key, value in own.items():
        kind, _, rest = key.partition("/")
        if kind == "stats":
            column, _, statistic = rest.partition("/")
            statistics[column][statistic] = value
        if kind == "offset":
            frames[rest] = Frames(own["shard"], value, own[f"size/{rest}"])
    return Split(
        name,
        tuple(shard.path for shard in shards),
        own["first"],
        own["length"],
        own["record"],
        own["instruction"],
        tuple(json.loads(own["sentences"].tobytes())),
        own["actions"],
        own["state"],
        frames,
        statistics,
    )


def _key(
    folder: str,
    dataset: Dataset,
    files: dict[str, list[rlds.Shard]],
    skipped: dict[str, frozenset[int]],
) -> dict[str, Any]:
    """What an index must have been made from to be used."""
    sizes = {_name(shard.path): shard.size for shards in files.values() for shard in shards}
    sizes |= {
        name: remote.size(remote.join(folder, name))
        for name in (tfds_folder.FEATURES, tfds_folder.INFO)
    }
    return {
        "schema": SCHEMA,
        "revision": dataset.revision,
        "description": {
            "cameras": dataset.cameras,
            "columns": dataset.columns,
            "language": dataset.language,
        },
        "episodes": [dataset.require, dataset.segments],
        "recipe": repr(dataset.standardise) if isinstance(dataset.standardise, Recipe) else "",
        "files": sizes,
        "quarantine": {name: sorted(records) for name, records in sorted(skipped.items())},
    }


def _writable(folder: Path) -> bool:
    """Root may write anywhere, but a folder without any write permission is meant to stay
    as it is.
    """
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
