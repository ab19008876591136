"""HDF5 files of demonstrations: data/demo_N of robomimic and LIBERO, ALOHA's file an episode.

Where a file holds the group `data`, each demo_N in it is an episode, a record, counted from 0 in
the order of N; else the file is one, with `action` and `observations`. Keys are paths from there
on: "actions", "obs/agentview_rgb"; "action", "observations/images/cam_high". Pictures are uint8
[T h w c], or encoded and padded with zeros to uint8 [T n] (ALOHA's `compress`).

The words of an episode are an attribute (Dataset.language) of its group, of `data` or of the file:
"NAME", or "NAME/KEY" of one that is JSON ("problem_info/language_instruction" of LIBERO). The lists
of `mask`, robomimic's splits, are not read: data.held_out says what is held out.
"""

import json
import re
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any, NamedTuple

import h5py
import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import outcomes, remote, tfds_folder
from data_pipelines.files.features import CHANNELS, Kind, check_of_rlds
from data_pipelines.files.record import (
    REPAIR,
    Episode,
    EpisodeError,
    Run,
    check_finite,
    raised,
    standardised,
)
from data_pipelines.files.sensors import Stored
from data_pipelines.files.tfds_folder import AGAIN, File

ENDINGS = (".hdf5", ".h5")
DATA, DEMO = "data", re.compile(r"demo_(\d+)")
ALOHA = ("action", "observations")
ROWS = 2**32  # a frame's place is its demo's N times this, plus its row
READ = 2**24  # bytes of decoded frames that are read at a time
DAMAGED = (KeyError, RuntimeError, OSError)  # what h5py raises where a part cannot be read


class Shard(NamedTuple):
    """One file, and the features of a step that are read from it."""

    file: File
    features: dict[str, Kind]  # by feature key, as the first file of the dataset has them
    demos: tuple[int, ...]  # N of each record; () where the file is one

    @property
    def path(self) -> str:
        """A path or URL."""
        return self.file.path

    @property
    def files(self) -> list[File]:
        """All that is read."""
        return [self.file]

    @property
    def sensors(self) -> dict[str, Stored]:
        """None: `check` refuses a dataset that names some."""
        return {}


def names(folder: str) -> list[str]:
    """The HDF5 files of a folder, episode_10 after episode_9; none where a server does not list."""
    found = [name for name in remote.list_folder(folder) if name.endswith(ENDINGS)]
    return sorted(found, key=_counted)


def _counted(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def check(folder: str, dataset: Dataset) -> dict[str, list[Shard]]:
    """The shards of the split "train": all files. Raises ValueError when a file is damaged or has
    another layout, or a promised feature is missing from the first episode.
    """
    check_of_rlds(folder, dataset)
    if dataset.sensors:
        raise ValueError(
            f"{folder}: {dataset.name}: sensors {', '.join(dataset.sensors)}: expected none: they"
            " are read from RLDS and LeRobot alone; leave them out of its description"
        )
    paths = [remote.join(folder, name) for name in names(folder)]
    with _opened(paths[0]) as file:
        demos = _demos(file, paths[0])
        first = demos[0] if demos else 0
        where = f"{paths[0]}: {_group(file, first).name}"
        features = _promised(where, _group(file, first), dataset)
        _words(file, first, dataset, where)
        outcomes.of_hdf5(dataset.outcome, _group(file, first))
    shards = []
    for path, version in zip(paths, tfds_folder.versions_of(paths), strict=True):
        assert version is not None  # it was listed
        # Of ALOHA's there are thousands, one record each: they are opened when they are read.
        own = demos
        if demos and path != paths[0]:
            with _opened(path) as file:
                own = _demos(file, path)
        shards.append(Shard(File(path, max(1, len(own)), version), features, own))
    return {"train": shards}


def episodes(
    shard: Shard,
    number: int,
    dataset: Dataset,
    on_error: Callable[[EpisodeError], None] | None = None,
    skip: Set[int] = frozenset(),
) -> Iterator[Episode]:
    """The standardised episodes of a file, as `rlds.episodes`; pictures are looked up, not read.

    Raises EpisodeError naming file, record, demo, step and feature when something is damaged,
    missing, not finite, or of another length, type or layout. A file of which no record is wanted
    is not opened.
    """
    wanted = [record for record in range(shard.file.records) if record not in skip]
    if not wanted:
        return
    report = on_error or raised

    try:
        with _opened(shard.path) as file:
            if bool(shard.demos) != _has_demos(file):
                raise ValueError(
                    f"expected {_layout(bool(shard.demos))} as in the dataset's first file, got"
                    f" {', '.join(sorted(file)) or 'nothing'}"
                )
            for record in wanted:
                try:
                    yield _Demo(file, shard, record).episode(number, dataset)
                except EpisodeError as error:
                    report(error)
                except DAMAGED as error:
                    problem = f"damaged: {error}"
                    report(EpisodeError(shard.path, record, None, "", problem, AGAIN))
    except ValueError as error:
        if isinstance(error, EpisodeError):
            raise
        whole = None if shard.demos else 0  # a file that is one record can be quarantined
        report(EpisodeError(shard.path, whole, None, "", _without(shard.path, error), AGAIN))


class _Demo:
    """One episode of an open file."""

    def __init__(self, file: h5py.File, shard: Shard, record: int) -> None:
        self._file, self._shard, self._record = file, shard, record
        self._number = shard.demos[record] if shard.demos else 0
        self._group = _group(file, self._number)

    def episode(self, number: int, dataset: Dataset) -> Episode:
        """It, standardised; `number` is the shard's."""
        stored = {key: self._stored(key) for key in self._shard.features}
        lengths = {key: len(each) for key, each in stored.items()}
        if len(set(lengths.values())) > 1 or not min(lengths.values(), default=0):
            got = ", ".join(f"{key} {length}" for key, length in lengths.items())
            problem = f"expected as many steps in every feature, at least one, got {got}"
            raise self._error(None, "", problem, REPAIR)
        columns = {name: self._numbers(key, stored[key]) for name, key in dataset.columns.items()}
        steps = next(iter(lengths.values()))
        out = standardised(dataset, columns, steps, self._error)
        try:
            words = _words(self._file, self._number, dataset, "")
            ended = outcomes.of_hdf5(dataset.outcome, self._group)
        except ValueError as error:
            raise self._error(None, "language or outcome", str(error), REPAIR) from error
        places = self._number * ROWS + out.frames.astype(np.int64)
        file = self._shard.file
        return Episode(
            number,
            self._record,
            [Run(len(out.frames), words)],
            0,
            out.actions,
            out.state,
            dict.fromkeys(dataset.cameras, places),
            dict.fromkeys(dataset.cameras, np.zeros(len(places), np.int64)),
            out.frames,
            file.size * (self._record + 1) // file.records,
            outcome=ended,
        )

    def _stored(self, key: str) -> h5py.Dataset:
        """A feature, of the kind that the dataset's first episode has."""
        found, kind = self._group.get(key), self._shard.features[key]
        try:
            own = _kind(found, kind.channels > 0 or kind.strings)
        except ValueError as error:
            raise self._error(None, key, str(error), REPAIR) from error
        if own != kind and not (kind.channels and own.channels):
            problem = f"expected {kind.shape or 'one number'} a step, as in the first episode"
            raise self._error(None, key, f"{problem}, got {own.shape or 'one'}", REPAIR)
        return found

    def _numbers(self, key: str, stored: h5py.Dataset) -> np.ndarray:
        """[T, *shape] finite numbers."""
        values = stored[()]
        check_finite(key, values, self._error)
        return values

    def _error(self, step: int | None, field: str, problem: str, fix: str) -> EpisodeError:
        demo = f"demo_{self._number}" if self._shard.demos else ""
        field = ": ".join(word for word in (demo, field) if word)
        return EpisodeError(self._shard.path, self._record, step, field, problem, fix)


def frames(path: str, key: str, places: np.ndarray) -> Iterator[bytes | np.ndarray]:
    """The stored frames of a stretch of one episode, in order, by slices of at most READ bytes or
    of a chunk of the file.

    Args:
        path: the file.
        key: the camera's, below the episode's group.
        places: [f] from `Episode.offset`, ascending.

    Yields what images.decode takes. Raises ValueError where one cannot be read.
    """
    rows = places % ROWS
    with _opened(path) as file:
        stored = _group(file, int(places[0]) // ROWS).get(key)
        _kind(stored, picture=True)
        chunk = stored.chunks[0] if stored.chunks else 1
        wide = max(1, READ // max(1, int(np.prod(stored.shape[1:])) * chunk)) * chunk
        for block in np.unique(rows // wide).tolist():
            inside = rows[rows // wide == block]
            first = int(inside[0])
            try:
                slab = stored[first : int(inside[-1]) + 1]
            except DAMAGED as error:
                raise ValueError(f"{key}: damaged: {error}") from error
            if len(slab) <= inside[-1] - first:
                raise ValueError(f"{key}: expected row {inside[-1]}, it ends at {len(stored)}")
            for row in (inside - first).tolist():
                yield _picture(slab[row])


def where(place: int) -> str:
    """What a place is, for a message."""
    return f"demo_{place // ROWS}, row {place % ROWS}"


def _picture(frame: np.ndarray) -> bytes | np.ndarray:
    """A frame as images.decode takes it: encoded without its padding, or RGB [h w 3]."""
    if frame.ndim == 1:
        return frame.tobytes().rstrip(b"\0")
    if frame.shape[-1] == 1:
        return np.repeat(frame, 3, axis=-1)
    return np.ascontiguousarray(frame[..., :3])


@contextmanager
def _opened(path: str) -> Iterator[h5py.File]:
    """A file to read. Raises ValueError when it is no whole HDF5 file."""
    stream = remote.open_stream(path) if remote.is_remote(path) else None
    try:
        # Without a lock: some network file systems have none, and nothing is written here.
        file = h5py.File(stream or path, "r", **({} if stream else {"locking": False}))
    except OSError as error:
        raise ValueError(f"{path}: expected a whole HDF5 file, got {error}; {AGAIN}") from error
    with file:
        yield file


def _demos(file: h5py.File, path: str) -> tuple[int, ...]:
    """N of every demo_N, ascending; () where the file is one episode. Raises ValueError for another
    layout.
    """
    if not _has_demos(file):
        if not all(name in file for name in ALOHA):
            got = ", ".join(sorted(file)) or "nothing"
            raise ValueError(
                f"{path}: expected {_layout(True)}, or {_layout(False)}, got {got}; write the"
                " dataset so, or as RLDS or LeRobot"
            )
        return ()
    group = file[DATA]
    strange = [
        name
        for name in group
        if not DEMO.fullmatch(name) or group.get(name, getclass=True) is not h5py.Group
    ]
    if strange or not len(group):
        raise ValueError(
            f"{path}: {DATA}: expected groups demo_0, demo_1, ..., got"
            f" {', '.join(sorted(strange)[:3]) or 'none'}; {AGAIN}"
        )
    return tuple(sorted(int(name.removeprefix("demo_")) for name in group))


def _has_demos(file: h5py.File) -> bool:
    return isinstance(file.get(DATA), h5py.Group)


def _layout(demos: bool) -> str:
    if demos:
        return f"the group {DATA} of demo_N (robomimic, LIBERO)"
    return f"{' and '.join(ALOHA)} (ALOHA)"


def _group(file: h5py.File, demo: int) -> h5py.Group:
    """Of an episode."""
    return file[f"{DATA}/demo_{demo}"] if _has_demos(file) else file


def _promised(where: str, group: h5py.Group, dataset: Dataset) -> dict[str, Kind]:
    """How the promised features are stored. Raises ValueError, which begins with `where`, when one
    is missing or another.
    """
    kinds = {}
    wanted = [(f"camera {slot!r}", key, True) for slot, key in dataset.cameras.items()]
    wanted += [(f"column {name!r}", key, False) for name, key in dataset.columns.items()]
    for what, key, picture in wanted:
        try:
            kinds[key] = _kind(group.get(key), picture)
        except ValueError as error:
            there: list[str] = []
            group.visititems(lambda name, each: there.append(name) if _is_data(each) else None)  # noqa: B023
            raise ValueError(
                f"{where}: {dataset.name} promises {what} as {key!r}: {error}; there are"
                f" {', '.join(sorted(there))}"
            ) from error
    return kinds


def _is_data(each: Any) -> bool:
    return isinstance(each, h5py.Dataset)


def _kind(stored: Any, picture: bool) -> Kind:
    """How a feature is stored. Raises ValueError when it is none, or of another kind."""
    expected = (
        "pictures, uint8 [T h w c] of 1, 3 or 4 channels or encoded [T n]"
        if picture
        else "numbers [T ...]"
    )
    if not _is_data(stored):
        raise ValueError(f"expected {expected}, got {'a group' if stored else 'no such feature'}")
    shape = tuple(stored.shape[1:])
    if not picture and stored.dtype.kind in "fiub" and stored.ndim:
        return Kind(shape, False)
    if picture and stored.dtype == np.uint8:
        if stored.ndim == 2:
            return Kind((), True)
        if stored.ndim == 4 and shape[-1] in CHANNELS:
            return Kind(shape, False, shape[-1])
    raise ValueError(f"expected {expected}, got {stored.dtype} {list(stored.shape)}")


def _words(file: h5py.File, demo: int, dataset: Dataset, where: str) -> tuple[str, ...]:
    """What an episode is told: the alternatives that are not empty, else what the dataset says.
    Raises ValueError, which begins with `where`, when it has no such attribute.
    """
    texts = [_text(file, demo, key, where) for key in dataset.languages]
    return tuple(text for text in texts if text.strip()) or (
        dataset.instruction or "".join(texts[:1]),
    )


def _text(file: h5py.File, demo: int, key: str, where: str) -> str:
    name, _, inside = key.partition("/")
    holders = [_group(file, demo), *([file[DATA]] if _has_demos(file) else []), file]
    found = next((each.attrs[name] for each in holders if name in each.attrs), None)
    start = f"{where}: " if where else ""
    if found is None:
        there = sorted({attribute for each in holders for attribute in each.attrs})
        raise ValueError(
            f"{start}expected the words as an attribute {name!r} of the episode, of {DATA} or of"
            f" the file, got {', '.join(there) or 'no attribute'}; name another as `language`, or"
            " say them as `instruction`"
        )
    text = found.decode() if isinstance(found, bytes) else found
    try:
        value = json.loads(text)[inside] if inside else text
        return "".join(value)  # LIBERO also has a list of letters
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{start}{key}: expected a text, got {text!r:.80} ({error!r})") from error


def _without(path: str, error: ValueError) -> str:
    """What is wrong, without the path and the remedy that the message around it has."""
    return str(error).removeprefix(f"{path}: ").removesuffix(f"; {AGAIN}")
