"""The episodes of a LeRobot parquet file, checked against meta/ and the videos."""

import functools
from collections.abc import Callable, Iterator, Set
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import lerobot, outcomes, remote, video
from data_pipelines.files.features import Kind
from data_pipelines.files.lerobot_features import TASK
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
from data_pipelines.files.tfds_folder import AGAIN

TOLERANCE = 1e-4  # seconds between a frame and the time it should have, as lerobot has it
INDEX = ("episode_index", "frame_index", "timestamp", "task_index")
# How far statistics may be off, as shares of a column's range and, as others compute in float32, of
# its numbers: min and max, mean and std; the variance of numbers (mean of squares less square of
# mean) of their squares.
EXACT, CLOSE, ROUNDING = 1e-5, 1e-3, 1e-2
CANCELLED = 1e-5
CHANGED = f"the data or its statistics were changed: {AGAIN}, or write them again with lerobot"

_timeline = functools.lru_cache(maxsize=256)(lambda file: video.timeline(file.path))


def episodes(
    shard: lerobot.Shard,
    number: int,
    dataset: Dataset,
    on_error: Callable[[EpisodeError], None] | None = None,
    skip: Set[int] = frozenset(),
) -> Iterator[Episode]:
    """The standardised episodes of a file, as `rlds.episodes`. A record is an episode, counted from
    0 in the file.

    Raises EpisodeError naming file, record, episode and field when something is damaged, missing,
    not finite, or not what meta/ or the video says.
    """
    report = on_error or raised

    try:
        file = _File(shard, dataset)
    except EpisodeError as error:
        report(error)
        return
    for record in range(len(shard.episodes)):
        if record in skip:
            continue
        try:
            yield file.episode(number, record)
        except EpisodeError as error:
            report(error)


class _File:
    """A parquet file's columns, and where its episodes are in them."""

    def __init__(self, shard: lerobot.Shard, dataset: Dataset) -> None:
        self._shard, self._dataset = shard, dataset
        stored = [key for key in dataset.cameras.values() if key not in shard.filmed]
        texts = [key for key in dataset.languages if key != TASK]
        sensed = [each.key for each in shard.sensors.values()]
        ended = [key for key in (dataset.outcome,) if key in shard.features]
        columns = dataset.columns.values()
        wanted = dict.fromkeys([*INDEX, *columns, *texts, *stored, *sensed, *ended])
        try:
            table = pq.read_table(pa.BufferReader(remote.read(shard.path)), columns=[*wanted])
        except pa.ArrowException as error:
            raise self._error(None, None, "", f"damaged: {error}", AGAIN) from error
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            problem = f"expected the columns {', '.join(wanted)}, got none of {', '.join(missing)}"
            raise self._error(None, None, "", problem, AGAIN)
        self._table = table.combine_chunks()
        self._of = self._numbers("episode_index", Kind((), False), 0, table.num_rows, None)
        # Where another episode begins: number -> the rows at which a stretch of it does.
        self._begins: dict[int, list[int]] = {}
        for row in np.flatnonzero(np.diff(self._of, prepend=-1)).tolist():
            self._begins.setdefault(int(self._of[row]), []).append(row)
        known = {each.number for each in shard.episodes}
        foreign = sorted(self._begins.keys() - known)
        if foreign:
            problem = f"expected rows of the episodes that meta/ lists, got some of {foreign[:3]}"
            raise self._error(None, None, "episode_index", problem, AGAIN)

    def episode(self, number: int, record: int) -> Episode:
        """One episode; `number` is the shard's."""
        shard, dataset, facts = self._shard, self._dataset, self._shard.episodes[record]
        begin, stop = self._rows(record)

        def fail(step: int | None, field: str, problem: str, fix: str = REPAIR) -> EpisodeError:
            return self._error(record, step, field, problem, fix)

        columns = {
            name: self._numbers(key, shard.features[key], begin, stop, record)
            for name, key in dataset.columns.items()
        }
        measured = {key: _measured(columns[name]) for name, key in dataset.columns.items()}
        for key, own in measured.items():
            problem = _unlike(own, facts.stats.get(key, {}))
            if problem:
                raise fail(None, key, f"meta/ says of it {problem}", CHANGED)
        times = self._times(begin, stop, record)
        out = standardised(dataset, columns, stop - begin, fail)
        places, films = {}, {}
        for slot, key in dataset.cameras.items():
            if key in shard.filmed:
                films[slot], start = facts.videos[key]
                places[slot] = self._stamps(record, key, times + start)[out.frames]
            else:
                self._check_images(key, begin, stop, record)
                places[slot] = begin + out.frames.astype(np.int64)
        return Episode(
            number,
            record,
            self._runs(out.frames, begin, stop, record),
            0,
            out.actions,
            out.state,
            places,
            {slot: np.zeros(len(out.frames), np.int64) for slot in places},
            out.frames,
            shard.file.size * (record + 1) // len(shard.episodes),
            films,
            measured,
            {
                name: self._reading(each, begin, stop, record)[out.frames]
                for name, each in shard.sensors.items()
            },
            outcome=self._outcome(begin, stop, record),
        )

    def _outcome(self, begin: int, stop: int, record: int) -> int:
        """How an episode ended."""
        key, kinds = self._dataset.outcome, self._shard.features
        if key in kinds:
            return outcomes.of_numbers(self._numbers(key, kinds[key], begin, stop, record))
        number = self._shard.episodes[record].number
        return self._shard.ended.get(number, outcomes.UNKNOWN)

    def _error(
        self, record: int | None, step: int | None, field: str, problem: str, fix: str
    ) -> EpisodeError:
        number = "" if record is None else f"episode {self._shard.episodes[record].number}"
        field = ": ".join(word for word in (number, field) if word)
        return EpisodeError(self._shard.path, record, step, field, problem, fix)

    def _rows(self, record: int) -> tuple[int, int]:
        """The rows of an episode: as many as meta/ says, one after the other."""
        facts = self._shard.episodes[record]
        begins = self._begins.get(facts.number, [])
        begin = begins[0] if begins else 0
        inside = self._of[begin : begin + facts.length + 1] == facts.number
        stop = begin + (len(inside) if inside.all() else int(inside.argmin()))
        if stop - begin != facts.length or len(begins) != 1:
            problem = f"expected {facts.length} rows in a row (meta/), got {stop - begin}"
            problem += f" and others of it {len(begins) - 1} times" if len(begins) > 1 else ""
            raise self._error(record, None, "episode_index", problem, AGAIN)
        frames = self._numbers("frame_index", Kind((), False), begin, stop, record)
        wrong = np.flatnonzero(frames != np.arange(facts.length))
        if len(wrong):
            step = int(wrong[0])
            problem = f"expected {step}, the frames in their order, got {frames[step]}"
            raise self._error(record, step, "frame_index", problem, REPAIR)
        return begin, stop

    def _times(self, begin: int, stop: int, record: int) -> np.ndarray:
        """Seconds of each frame since the episode began: [T], a frame each 1/fps."""
        stored = self._numbers("timestamp", Kind((), False), begin, stop, record)
        times = stored.astype(np.float64)
        allowed = TOLERANCE + np.spacing(np.abs(stored).max()).astype(np.float64)
        fps = self._shard.fps
        wrong = np.flatnonzero(np.abs(np.diff(times) - 1 / fps) > allowed)
        if len(wrong):
            step = int(wrong[0]) + 1
            problem = (
                f"expected {times[step - 1] + 1 / fps:.6f} s, one frame of {fps:g} a second after"
                f" the one before, got {times[step]:.6f}"
            )
            raise self._error(record, step, "timestamp", problem, REPAIR)
        return times

    def _stamps(self, record: int, key: str, times: np.ndarray) -> np.ndarray:
        """The time stamps of the frames of a video that are shown at `times`: [T]."""
        name, _ = self._shard.episodes[record].videos[key]
        file = next(each for each in self._shard.videos if each.name == name)
        try:
            known = _timeline(file)
        except ValueError as error:
            raise self._error(record, None, key, str(error), REPAIR) from error
        base, half = float(known.base), 0.5 / self._shard.fps
        near = np.searchsorted(known.stamps, (times - half) / base)
        allowed = TOLERANCE + float(np.spacing(np.float32(np.abs(times).max())))
        there = near < len(known.stamps)
        shown = known.stamps[near[there]] * base
        off = np.full(len(times), np.inf)
        off[there] = np.abs(shown - times[there])
        wrong = np.flatnonzero(off > allowed)
        if not len(wrong):
            return known.stamps[near]
        step = int(wrong[0])
        problem = f"{name}: expected a frame at {times[step]:.6f} s"
        if not there[step]:
            last = known.stamps[-1] * base if len(known.stamps) else 0
            problem += f", the video ends early: its {len(known.stamps)} frames end at {last:.6f} s"
        else:
            problem += f" ({self._shard.fps:g} a second), the nearest is {off[step]:.6f} s off"
            inside = np.diff(known.stamps[near[there].min() : near[there].max() + 1]) * base
            if len(inside) and np.ptp(inside) > TOLERANCE:
                problem += (
                    f": a variable frame rate, frames follow each other by {inside.min():.6f} to"
                    f" {inside.max():.6f} s"
                )
        fix = "encode the video again at the constant rate of meta/info.json, or leave the episode"
        raise self._error(record, step, key, problem, f"{fix} out with data.quarantine")

    def _numbers(
        self, key: str, kind: Kind, begin: int, stop: int, record: int | None
    ) -> np.ndarray:
        """[T, *shape] finite numbers of some rows."""
        values = self._any_numbers(key, kind.shape, begin, stop, record)
        check_finite(key, values, functools.partial(self._error, record))
        return values

    def _reading(self, stored: Stored, begin: int, stop: int, record: int) -> np.ndarray:
        """[T, *shape] float32 of a sensor, NaN and infinity as they are."""
        values = self._any_numbers(stored.key, stored.shape, begin, stop, record)
        return values.astype(np.float32) * np.float32(stored.scale)

    def _any_numbers(
        self, key: str, shape: tuple[int, ...], begin: int, stop: int, record: int | None
    ) -> np.ndarray:
        """[T, *shape] numbers of some rows."""
        column = _flat(self._table[key].slice(begin, stop - begin))
        width = int(np.prod(shape))
        if column.null_count or len(column) != width * (stop - begin):
            got = f"{len(column)} and {column.null_count} empty"
            problem = f"expected {width} numbers in each of {stop - begin} rows, got {got}"
            raise self._error(record, None, key, problem, REPAIR)
        return column.to_numpy(zero_copy_only=False).reshape(stop - begin, *shape)

    def _check_images(self, key: str, begin: int, stop: int, record: int) -> None:
        """Raises EpisodeError when an image is not in the file."""
        column = self._table[key].slice(begin, stop - begin).combine_chunks()
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        inside = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        if not inside or column.field("bytes").null_count or column.null_count:
            problem = f"expected the bytes of every image in the file, got {column.type}, some none"
            raise self._error(record, None, key, problem, "embed the images, or encode videos")

    def _runs(self, frames: np.ndarray, begin: int, stop: int, record: int) -> list[Run]:
        """What the steps `frames` are told. Without a step, what the first one recorded was."""
        dataset = self._dataset
        cells = [self._texts(key, begin, stop, record) for key in dataset.languages]
        runs: list[Run] = []
        last = None
        for step in frames.tolist() if len(frames) else [0]:
            told = tuple(cell[step] for cell in cells)
            if not runs or told != last:
                texts = tuple(text for text in told if text.strip())
                runs.append(Run(0, texts or (dataset.instruction or "".join(told[:1]),)))
                last = told
            runs[-1] = runs[-1]._replace(steps=runs[-1].steps + 1)
        return runs if len(frames) else [runs[0]._replace(steps=0)]

    def _texts(self, key: str, begin: int, stop: int, record: int) -> list[str]:
        """The words of every row."""
        if key != TASK:
            return [text or "" for text in self._table[key].slice(begin, stop - begin).to_pylist()]
        numbers = self._numbers("task_index", Kind((), False), begin, stop, record).tolist()
        for step, number in enumerate(numbers):
            if number not in self._shard.tasks:
                problem = f"expected one of the {len(self._shard.tasks)} tasks of {lerobot.TASKS}"
                raise self._error(record, step, "task_index", f"{problem}, got {number}", REPAIR)
        return [self._shard.tasks[number] for number in numbers]


def check_totals(shard: lerobot.Shard, measured: list[dict[str, np.ndarray]]) -> None:
    """Raises ValueError when the columns of all episodes of a dataset, `measured` in parts, are not
    what its meta/stats.json says.
    """
    for key, said in shard.totals.items():
        parts = np.array([each[key] for each in measured if key in each])
        if not len(parts):
            continue
        whole = parts.sum(0)
        whole[1], whole[2] = parts[:, 1].min(0), parts[:, 2].max(0)
        problem = _unlike(whole, said)
        if problem:
            raise ValueError(
                f"{shard.file.folder}: {key}: meta/stats.json has {problem}; {CHANGED}"
            )


def _measured(values: np.ndarray) -> np.ndarray:
    """Of [T, ...] numbers: T, least, greatest, sum, sum of squares: [5, d]."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    count = np.full(rows.shape[1], len(rows), np.float64)
    return np.stack([count, rows.min(0), rows.max(0), rows.sum(0), (rows * rows).sum(0)])


def _unlike(measured: np.ndarray, stats: dict[str, list[float]]) -> str:
    """The first statistic in which `measured` [5, d] is not `stats`, in words; "" if it is."""
    count, least, greatest, total, squares = measured
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    spread = greatest - least + np.maximum(np.abs(greatest), np.abs(least)) * ROUNDING
    for name, mine in {"min": least, "max": greatest, "mean": mean, "std": std}.items():
        if name not in stats:
            continue
        said = np.array(stats[name])
        if len(said) != len(mine):
            return f"{len(said)} numbers as {name}, expected {len(mine)}"
        allowed = (EXACT if name in ("min", "max") else CLOSE) * spread
        off = np.abs(said - mine) > allowed
        if name == "std":
            off &= np.abs(said * said - mine * mine) > CANCELLED * mean * mean
        wrong = np.flatnonzero(off | np.isnan(said))
        if len(wrong):
            at = int(wrong[0])
            return f"{name} {said[at]:g} in column {at}, the data has {mine[at]:g}"
    return ""


def _flat(column: Any) -> pa.Array:
    """The numbers of a column of lists of lists, one after the other."""
    array = column.combine_chunks()
    while True:
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else array.combine_chunks()
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if not pa.types.is_nested(array.type) or array.null_count:
            return array
        array = array.flatten()
