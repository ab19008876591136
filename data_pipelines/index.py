"""The sidecar index of a dataset: one pass over its files, then random access to every frame.

The files stay as they are. The index holds the places of frames (bytes; in LeRobot's files rows or
time stamps, in HDF5 files rows), the standardised actions and
states, the instructions and the statistics. It lives beside the data, or in a cache where that is
read-only or remote, and is used only for the files it was made from (files/fingerprint.py). It is
mapped into memory, not read into it.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import joining, reading, readings
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import fingerprint, formats, pictures, remote, store, tfds_folder
from data_pipelines.files.sensors import Stored
from data_pipelines.selection import HELD_OUT, OF_TRAIN, Selection
from vla_jax.progress import Progress

FOLDER = ".vla_jax_index"

Arrays = dict[str, np.ndarray]


class Frames(NamedTuple):
    """Where the encoded frames of one camera are, by row of the split's columns."""

    shard: np.ndarray  # N, int32: index into Split.shards
    offset: np.ndarray  # N, int64: bytes from the beginning of the file; see files/pictures.py
    length: np.ndarray  # N, int32: bytes; 0 where `offset` counts no bytes


@dataclasses.dataclass(frozen=True)
class Split:
    """One split: E episodes whose N steps stand one after the other in all columns, told what to do
    in R runs of steps. The arrays are read-only.
    """

    name: str
    shards: tuple[str, ...]  # paths or URLs, of videos last
    listed: tuple[str, ...]  # the names of those that hold records, as a quarantine list has them
    shard: np.ndarray  # N, int32: index into `listed`
    first: np.ndarray  # E, int64: row of the first step of each episode
    length: np.ndarray  # E, int32: steps of each episode; 0 when standardisation leaves none
    record: np.ndarray  # E, int32: its number in the shard
    run: np.ndarray  # R, int64: row of the first step of each run; no run crosses an episode
    # R alternatives, int32: index into sentences. Those that are not empty come first, then -1.
    instruction: np.ndarray
    sentences: tuple[str, ...]  # every instruction once
    actions: np.ndarray  # N d, float32
    state: np.ndarray  # N p, float32
    frames: dict[str, Frames]  # by camera slot
    cameras: dict[str, str]  # slot -> feature key
    # "action", "state" -> mean, std, min, max, q01, q99 (float64); "sensor_..." -> see stats.finite
    stats: dict[str, Arrays]
    label: str  # what messages call it: its name, or that it was held out of train
    left_out: dict[str, int]  # episodes, by reason
    # Of sensors, by name: readings N ..., float32; or in their file first byte and bytes, N 2.
    readings: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    places: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sensors: dict[str, Stored] = dataclasses.field(default_factory=dict)
    # E: how episodes ended, as files/outcomes.py says; none without Dataset.outcome.
    outcome: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))

    def told(self, rows: np.ndarray, episode: np.ndarray, draws: np.ndarray | None) -> np.ndarray:
        """What steps [r] are told: indices into sentences [r].

        Args:
            rows: of the steps.
            episode: which holds each step.
            draws: numbers from 0 on that choose among the alternatives; None takes the first.
        """
        whole = self.run is self.first  # every episode is one run
        runs = episode if whole else np.searchsorted(self.run, rows, side="right") - 1
        if draws is None or self.instruction.shape[1] == 1:
            return self.instruction[runs, 0]
        choices = self.instruction[runs]
        return choices[np.arange(len(runs)), draws % (choices >= 0).sum(1)]

    def words(self, episode: int) -> str:
        """What the first step of an episode is told; the first alternative."""
        run = int(np.searchsorted(self.run, self.first[episode], side="right")) - 1
        return self.sentences[int(self.instruction[run, 0])]

    def pictures(self, camera: str, rows: np.ndarray) -> Iterator[pictures.Picture]:
        """What images.decode takes of steps [f] of one episode, as it is stored. Raises ValueError
        at one that is damaged.
        """
        shard, offset, length = (column[rows].astype(np.int64) for column in self.frames[camera])
        return pictures.read(self.shards[int(shard[0])], self.cameras[camera], offset, length)

    def sensed(self, name: str, kind: str, rows: np.ndarray) -> list[Any]:
        """Raw readings of a sensor at steps [f] of one episode, as Sensor.values of that kind takes
        them; sound, which is the whole episode's, once. Raises ValueError for what is damaged.
        """
        if name in self.readings:
            return list(self.readings[name][rows])
        path = self.shards[int(self.shard[rows[0]])]
        return readings.raw(self.sensors[name], kind, path, self.places[name][rows])

    def where(self, row: int) -> str:
        """The file and record of a step's episode, for a message."""
        episode = int(np.searchsorted(self.first, row, side="right")) - 1
        return f"{self.listed[int(self.shard[row])]}:{self.record[episode]}"


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of one dataset. `digest` names its contents: two equal digests mean the same data,
    wherever it is.
    """

    dataset: Dataset
    splits: dict[str, Split]
    digest: str
    # Of simulated data, where their builder says it: what the pictures depend on.
    simulator: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def held_out(self) -> Split | None:
        """The split that is evaluated on."""
        return next((self.splits[name] for name in HELD_OUT if name in self.splits), None)

    def split_names(self) -> str:
        """The names of the splits, for a message: which one is no split of the files is said."""
        names = {name: split.label for name, split in sorted(self.splits.items())}
        return ", ".join(
            name if name == label else f"{name} ({label})" for name, label in names.items()
        )


class _Place(NamedTuple):
    """What is there of a dataset, and where its index goes."""

    folder: str
    shards: reading.Shards
    skipped: reading.Skipped
    key: dict[str, Any]
    path: Path
    parts: Path  # a folder

    def all_shards(self) -> list[formats.Shard]:
        """Those of all splits."""
        return [shard for each in self.shards.values() for shard in each]

    def files(self) -> list[tfds_folder.File]:
        """Those of all splits."""
        return [*{file: None for shard in self.all_shards() for file in shard.files}]


def open_index(
    root: str | Path,
    dataset: Dataset,
    cache_dir: str | Path | None = None,
    selection: Selection | None = None,
) -> Index:
    """The index of a dataset under `root` (RLDS, LeRobot or HDF5, found by its files), built if
    there is none, or if it is stale or damaged.

    Shards that `build_parts` read are not read again.

    Args:
        root: the folder or URL that holds the datasets.
        dataset: what to expect there.
        cache_dir: where to keep the index; by default beside the data, or if that is read-only or
            remote in $VLA_JAX_CACHE or ~/.cache/vla_jax.
        selection: what is held out and left out; None = Selection().

    Raises ValueError when files are missing, damaged or not what `dataset` promises, and OSError
    when the index cannot be written.
    """
    selection = selection or Selection()
    at = _place(root, dataset, cache_dir, selection)
    stored = current(at.path, at.key, at.files())
    if stored is None:
        made = joining.build(dataset, at.shards, at.skipped, selection, at.parts)
        store.save(at.path, at.key, made.arrays, made.notes)
        del made  # from here on the file holds it
        stored = store.load(at.path, at.key)
        if stored is None:
            raise OSError(
                f"{at.path}: the index is not what was just written there; check the disk"
            )
        shutil.rmtree(at.parts, ignore_errors=True)
        splits = _splits(at, stored, dataset.cameras)
        for line in (*(_indexed(each, at) for each in splits.values()), *_colours(at)):
            print(f"{dataset.name}: {line}", flush=True)
    else:
        splits = _splits(at, stored, dataset.cameras)
    return Index(dataset, splits, stored.digest, _simulator(at.folder))


def build_parts(
    root: str | Path,
    dataset: Dataset,
    job: tuple[int, int],
    cache_dir: str | Path | None = None,
    selection: Selection | None = None,
) -> bool:
    """Reads this job's shards and leaves each as a part where `open_index` finds it. All jobs
    together read every shard once, in any order and whatever their number; none is read where there
    is an index (it then returns False), or the part already.

    Args:
        job: (number of the job from 0 on, number of jobs).

    Others as of `open_index`. Raises ValueError and OSError as `open_index`.
    """
    number, count = job
    at = _place(root, dataset, cache_dir, selection or Selection())
    if _is_current(at):
        return False
    shards = at.all_shards()
    ours = shards[number::count]
    what = f"{dataset.name}: job {number} of {count}: indexing {len(ours)} of {len(shards)} files"
    with Progress(what, sum(shard.file.size for shard in ours)) as progress:
        reading.make_parts(at.parts, dataset, ours, at.skipped, progress)
    print(f"{what} in {progress.spent()}", flush=True)
    return True


def parts_there(
    root: str | Path,
    dataset: Dataset,
    cache_dir: str | Path | None = None,
    selection: Selection | None = None,
) -> tuple[int, int, Path]:
    """How many shards need not be read any more, of how many, and the folder of their parts."""
    at = _place(root, dataset, cache_dir, selection or Selection())
    shards = at.all_shards()
    read = len(shards) if _is_current(at) else reading.count_parts(at.parts, shards)
    return read, len(shards), at.parts


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


def current(path: Path, key: dict[str, Any], files: list[tfds_folder.File]) -> store.Stored | None:
    """What is stored at `path`, if it was made from `key` and these very files; None, said why,
    when it must be made again.
    """
    stored = store.load(path, key)
    if stored is None:
        return None
    changed, known = fingerprint.compare(files, stored.notes["files"])
    if changed:
        more = f" and {len(changed) - 1} other files" if len(changed) > 1 else ""
        print(f"{path}: the index is stale ({changed[0]}{more}); building it again", flush=True)
        return None
    if known != stored.notes["files"]:  # copied or touched: next time their stamps say so
        store.save(path, key, stored.arrays, {**stored.notes, "files": known})
    return stored


def _place(
    root: str | Path, dataset: Dataset, cache_dir: str | Path | None, selection: Selection
) -> _Place:
    folder = formats.folder(remote.absolute(root), dataset)
    shards = formats.check(folder, dataset)
    skipped = reading.quarantined(shards, selection.quarantine)
    own = {shard.file.name for each in shards.values() for shard in each}
    key = reading.key(dataset, shards, skipped) | {"selection": selection.key(own)}
    path = place(folder, f"{dataset.name}{selection.suffix()}.index", cache_dir)
    return _Place(folder, shards, skipped, key, path, path.parent / f"{dataset.name}.parts")


def _is_current(at: _Place) -> bool:
    """Whether there is an index of these very files."""
    notes = store.peek(at.path, at.key)
    return notes is not None and not fingerprint.compare(at.files(), notes["files"])[0]


def _splits(at: _Place, stored: store.Stored, cameras: dict[str, str]) -> dict[str, Split]:
    splits = {}
    for name, (origin, numbers) in stored.notes["shards"].items():
        own = {
            key.removeprefix(f"{name}/"): value
            for key, value in stored.arrays.items()
            if key.startswith(f"{name}/")
        }
        statistics: dict[str, Arrays] = {"action": {}, "state": {}}
        frames, readings, places = {}, {}, {}
        for key, value in own.items():
            kind, _, rest = key.partition("/")
            if kind == "stats":
                column, _, statistic = rest.partition("/")
                statistics.setdefault(column, {})[statistic] = value
            if kind == "reading":
                readings[rest] = value
            if kind == "place":
                places[rest] = value
            if kind == "offset":
                place = own.get(f"video/{rest}", own["shard"])
                frames[rest] = Frames(place, value, own[f"size/{rest}"])
        run = own.get("run", own["first"])  # there is no "run" where every episode is one
        files = [at.shards[origin][number].file for number in numbers]
        videos = json.loads(own["videos"].tobytes()) if "videos" in own else []
        splits[name] = Split(
            name,
            (*(file.path for file in files), *(remote.join(at.folder, each) for each in videos)),
            tuple(file.name for file in files),
            own["shard"],
            own["first"],
            own["length"],
            own["record"],
            run,
            own["instruction"].reshape(len(run), -1),
            tuple(json.loads(own["sentences"].tobytes())),
            own["actions"],
            own["state"],
            frames,
            {slot: cameras[slot] for slot in frames},
            statistics,
            name if name == origin else OF_TRAIN,
            stored.notes["left_out"][name],
            readings,
            places,
            next(iter(at.shards.values()))[0].sensors,
            np.array(stored.notes.get("outcomes", {}).get(name, []), int),
        )
    return splits


def _indexed(split: Split, at: _Place) -> str:
    """A line that says what a new index holds."""
    empty = int((split.length == 0).sum())
    files = [] if split.label == OF_TRAIN else [shard.file.name for shard in at.shards[split.name]]
    quarantined = sum(len(at.skipped.get(file, ())) for file in files)
    remarks = [f"{empty} episodes too short for a step"] if empty else []
    remarks += [f"{quarantined} episodes in quarantine left out"] if quarantined else []
    remarks += [f"left out: {count} {reason}" for reason, count in split.left_out.items()]
    return (
        f"indexed split {split.label}: {len(split.length)} episodes,"
        f" {len(split.actions)} steps" + "".join(f" ({remark})" for remark in remarks)
    )


def _colours(at: _Place) -> list[str]:
    """What becomes of pictures that are not RGB."""
    features = next(iter(at.shards.values()))[0].features
    said = {1: "is gray: three equal channels", 4: "has alpha, which is dropped"}
    return [
        f"{key} {said[kind.channels]}" for key, kind in features.items() if kind.channels in said
    ]


def _simulator(folder: str) -> dict[str, str]:
    """What the builder of simulated data says of its simulator; nothing where nobody said it."""
    file = remote.join(folder, tfds_folder.SIMULATOR)
    if not remote.exists(file):
        return {}
    try:
        return {str(key): str(fact) for key, fact in json.loads(remote.read(file)).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected a JSON object, got {error}; build the data anew"
        ) from None


def _writable(folder: Path) -> bool:
    """Root may write anywhere, but a folder without any write permission is meant to stay
    as it is.
    """
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)
