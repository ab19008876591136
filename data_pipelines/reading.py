"""The files of a dataset read into blocks, one a shard: all that an index holds of it.

A block is kept in memory, or in a file of its own (a part) where another job or host reads the
shard. joining.py puts blocks together, in the order of the shards: it does not matter who read
which, or when.
"""

import hashlib
import inspect
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import fingerprint, formats, lerobot, remote, rlds, store, tfrecord
from data_pipelines.files.record import Episode
from data_pipelines.files.sensors import Stored
from data_pipelines.selection import Quarantine
from data_pipelines.standardise import Recipe
from vla_jax.progress import Progress

SCHEMA = 4
# Columns of a block with one row an episode, and a run of steps that are told the same. All others
# have one a step.
EPISODE = ("length", "record", "runs", "from_frame", "to_frame")
RUN = ("steps", "instruction")
OUTCOME = "outcome"  # one an episode too, where Dataset.outcome says what tells it

Arrays = dict[str, np.ndarray]
Shards = dict[str, list[formats.Shard]]  # by split
Skipped = dict[str, frozenset[int]]  # records to leave out, by the name of their file


class Block(NamedTuple):
    """The episodes of one shard. Columns by name; see EPISODE and RUN.

    "instruction" [r, alternatives] counts `sentences`; -1: fewer alternatives. "from_frame" and
    "to_frame" say where an episode lies in its recording (Dataset.first_frame).
    """

    columns: Arrays
    sentences: tuple[str, ...]
    # "file": fingerprint; "unwanted": records without Dataset.require; else than of RLDS
    # "others": fingerprints of videos by name, "videos": those that the columns "video/SLOT" count,
    # "measured": Episode.measured of all
    notes: dict[str, Any]


def key(dataset: Dataset, shards: Shards, skipped: Skipped) -> dict[str, Any]:
    """What the blocks of shards are made from; JSON-able."""
    said = [s.meta for each in shards.values() for s in each if isinstance(s, lerobot.Shard)]
    return {
        **({"meta": hashlib.sha256("".join(said).encode()).hexdigest()} if said else {}),
        "schema": SCHEMA,
        "revision": dataset.revision,
        "description": {
            "cameras": dataset.cameras,
            "columns": dataset.columns,
            "language": [*dataset.languages, dataset.instruction],
            "first_frame": dataset.first_frame,
            **({"positions": True} if dataset.positions else {}),  # which steps are idle
        },
        # Not said where there are none: indexes of before there were sensors stay valid.
        **({"sensors": next(iter(shards.values()))[0].sensors} if dataset.sensors else {}),
        **({"outcome": dataset.outcome} if dataset.outcome else {}),
        "episodes": [dataset.require, dataset.pattern, dataset.segments],
        "recipe": _recipe(dataset),
        "features": next(iter(shards.values()))[0].features,
        "files": {s.file.name: s.file.records for each in shards.values() for s in each},
        "quarantine": {name: sorted(records) for name, records in sorted(skipped.items())},
    }


def _recipe(dataset: Dataset) -> str:
    """A Recipe as text; of a function outside of this repository its whole file: nobody remembers
    to raise a revision, which stands for ours.
    """
    made = inspect.unwrap(dataset.standardise)  # else a decorator's file would stand for it
    if isinstance(made, Recipe):
        return repr(made)
    file = inspect.getsourcefile(made if inspect.isroutine(made) else type(made))
    if file is None or Path(__file__).parent in Path(file).absolute().parents:
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def quarantined(shards: Shards, quarantine: Quarantine) -> Skipped:
    """The records to leave out, by shard file name."""
    listed: dict[str, set[int]] = {}
    for name, record in quarantine:
        listed.setdefault(name, set()).add(record)
    skipped: Skipped = {}
    for file in (shard.file for each in shards.values() for shard in each):
        records = listed.get(file.name, set())
        if records and not 0 <= min(records) <= max(records) < file.records:
            raise ValueError(
                f"data.quarantine: expected records 0 to {file.records - 1} of {file.path}, got"
                f" {sorted(records)}; was the list made for another version of the data?"
            )
        if records:
            skipped[file.name] = frozenset(records)
    return skipped


def blocks(
    dataset: Dataset, split: str, shards: list[formats.Shard], skipped: Skipped, parts: Path
) -> Iterator[Block]:
    """The block of every shard of a split, in their order; several are read at a time. Parts are
    taken where `parts` has them.
    """
    workers = remote.workers(shards[0].path)
    total = sum(shard.file.size for shard in shards)
    with (
        Progress(f"{dataset.name}: indexing {split}", total) as progress,
        ThreadPoolExecutor(workers, thread_name_prefix="index") as threads,
    ):

        def block(shard: formats.Shard) -> Block:
            made = load_part(parts, dataset, shard, skipped)
            if made is None:
                return read(dataset, shard, skipped, progress)
            progress.add(shard.file.size)
            return made

        ahead: deque[Future[Block]] = deque()
        try:
            for shard in shards:
                ahead.append(threads.submit(block, shard))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)  # after an error the rest need not be read
    print(f"{dataset.name}: read split {split} in {progress.spent()}", flush=True)


def make_parts(
    parts: Path, dataset: Dataset, shards: list[formats.Shard], skipped: Skipped, progress: Progress
) -> None:
    """Reads shards, several at a time, and leaves each as a part; one that is there already is
    kept. Raises OSError as `store.save`.
    """

    def make(shard: formats.Shard) -> None:
        if load_part(parts, dataset, shard, skipped) is not None:
            progress.add(shard.file.size)
            return
        block = read(dataset, shard, skipped, progress)
        words = np.frombuffer(json.dumps(block.sentences).encode(), np.uint8)
        arrays = {**block.columns, "sentences": words}
        store.save(_part(parts, shard), _part_key(dataset, shard, skipped), arrays, block.notes)

    if shards:
        with ThreadPoolExecutor(remote.workers(shards[0].path)) as threads:
            jobs = [threads.submit(make, shard) for shard in shards]
            try:
                for job in jobs:
                    job.result()
            finally:
                threads.shutdown(cancel_futures=True)


def count_parts(parts: Path, shards: list[formats.Shard]) -> int:
    """How many shards have a part."""
    return sum(_part(parts, shard).is_file() for shard in shards)


def load_part(
    parts: Path, dataset: Dataset, shard: formats.Shard, skipped: Skipped
) -> Block | None:
    """The block that another job left in the folder `parts`; None, said where it was another's,
    when the shard must be read.
    """
    path = _part(parts, shard)
    stored = store.load(path, _part_key(dataset, shard, skipped))
    if stored is None:
        return None
    changed, _ = fingerprint.compare(shard.files, fingerprints(shard, stored.notes))
    if changed:
        print(f"{path}: not used: {changed[0]}", flush=True)
        return None
    # Copies: a map keeps its file open, and there may be more parts than a process may open files.
    columns = {name: np.array(column) for name, column in stored.arrays.items()}
    sentences = tuple(json.loads(columns.pop("sentences").tobytes()))
    return Block(columns, sentences, stored.notes)


def fingerprints(shard: formats.Shard, notes: dict[str, Any]) -> dict[str, Any]:
    """Of the files of a shard, by name, as its block's notes tell them."""
    return {shard.file.name: notes["file"], **notes.get("others", {})}


def _part(parts: Path, shard: formats.Shard) -> Path:
    return parts / f"{shard.file.name}.part"


def _part_key(dataset: Dataset, shard: formats.Shard, skipped: Skipped) -> dict[str, Any]:
    own = {name: records for name, records in skipped.items() if name == shard.file.name}
    return key(dataset, {"": [shard]}, own)


def read(dataset: Dataset, shard: formats.Shard, skipped: Skipped, progress: Progress) -> Block:
    """The block of a shard, in one pass over its file."""
    skip, checksums = skipped.get(shard.file.name, frozenset()), tfrecord.Checksums()
    filmed: frozenset[str] = getattr(shard, "filmed", frozenset())
    slots = [slot for slot, key in dataset.cameras.items() if key in filmed]
    columns, ids = _Columns(dataset, slots, shard.sensors), dict[str, int]()
    at = 0
    for episode in formats.episodes(shard, 0, dataset, skip=skip, checksums=checksums):
        columns.add(episode, ids)
        progress.add(max(0, episode.end - at))
        at = max(at, episode.end)
    progress.add(shard.file.size - at)
    read = columns.arrays()
    unwanted = shard.file.records - len(skip) - len(np.unique(read["record"]))
    notes: dict[str, Any] = {"unwanted": unwanted if dataset.require else 0}
    if not isinstance(shard, rlds.Shard):
        known = {file.name: list(fingerprint.of_bytes(file)) for file in shard.files}
        notes |= {"file": known.pop(shard.file.name), "others": known, **columns.notes()}
    else:
        notes["file"] = list(fingerprint.of(shard.file.version, checksums))
    return Block(read, tuple(ids), notes)


class _Columns:
    """The columns of a block, as its episodes come."""

    def __init__(self, dataset: Dataset, filmed: Sequence[str], sensors: dict[str, Stored]) -> None:
        """`filmed` are the slots whose frames are in videos."""
        self._videos: dict[str, int] = {}
        self._measured: dict[str, np.ndarray] = {}
        self._alternatives = 1 if dataset.segments else max(1, len(dataset.languages))
        told = (OUTCOME,) if dataset.outcome else ()
        self._rows: dict[str, list[Any]] = {name: [] for name in (*EPISODE, *told, *RUN)}
        # The first piece has the dtype to store: a frame has fewer than 2 GiB, whatever its record
        # has.
        self._pieces: dict[str, list[np.ndarray]] = {
            "actions": [np.zeros((0, len(dataset.action_names)), np.float32)],
            "state": [np.zeros((0, len(dataset.state_names)), np.float32)],
        }
        self._pieces |= {f"offset/{slot}": [np.zeros(0, np.int64)] for slot in dataset.cameras}
        self._pieces |= {f"size/{slot}": [np.zeros(0, np.int32)] for slot in dataset.cameras}
        self._pieces |= {f"video/{slot}": [np.zeros(0, np.int32)] for slot in filmed}
        for name, each in sensors.items():
            here, kind = each.form == "numbers", f"reading/{name}"
            self._pieces[kind if here else f"place/{name}"] = [
                np.zeros((0, *each.shape), np.float32) if here else np.zeros((0, 2), np.int64)
            ]

    def add(self, episode: Episode, ids: dict[str, int]) -> None:
        """The next episode; `ids` counts the sentences."""
        steps = len(episode.actions)
        inside = (int(episode.frames[0]), int(episode.frames[-1]) + 1) if steps else (0, 0)
        row = (steps, episode.record, len(episode.runs), *(episode.first_frame + i for i in inside))
        for name, value in zip(EPISODE, row, strict=True):
            self._rows[name].append(value)
        if OUTCOME in self._rows:
            self._rows[OUTCOME].append(episode.outcome)
        for run in episode.runs:
            told = [ids.setdefault(text, len(ids)) for text in run.texts]
            self._rows["steps"].append(run.steps)
            self._rows["instruction"].append(told + [-1] * (self._alternatives - len(told)))
        pieces = {"actions": episode.actions, "state": episode.state}
        pieces |= {f"offset/{slot}": value for slot, value in episode.offset.items()}
        pieces |= {f"size/{slot}": value for slot, value in episode.size.items()}
        pieces |= {f"reading/{name}": value for name, value in episode.readings.items()}
        pieces |= {f"place/{name}": value for name, value in episode.places.items()}
        for slot, name in episode.videos.items():
            pieces[f"video/{slot}"] = np.full(
                steps, self._videos.setdefault(name, len(self._videos))
            )
        for name, piece in pieces.items():
            self._pieces[name].append(piece)
        for key, own in episode.measured.items():
            whole = self._measured.setdefault(key, own)
            added = [whole[0] + own[0], np.minimum(whole[1], own[1]), np.maximum(whole[2], own[2])]
            if whole is not own:
                self._measured[key] = np.stack([*added, *(whole[3:] + own[3:])])

    def notes(self) -> dict[str, Any]:
        """What a block of a file that is no TFRecord notes."""
        measured = {key: own.tolist() for key, own in self._measured.items()}
        return {"videos": list(self._videos), "measured": measured}

    def arrays(self) -> Arrays:
        """All columns."""
        kinds = {"from_frame": np.int64, "to_frame": np.int64}
        columns = {k: np.array(rows, kinds.get(k, np.int32)) for k, rows in self._rows.items()}
        columns["instruction"] = columns["instruction"].reshape(-1, self._alternatives)
        return columns | {
            name: np.concatenate(pieces).astype(pieces[0].dtype)
            for name, pieces in self._pieces.items()
        }
