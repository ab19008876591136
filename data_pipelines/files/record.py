"""One record of an RLDS dataset: what it says of its episodes, checked."""

import re
from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets.dataset import Dataset, Standardised
from data_pipelines.files import outcomes, sensors, tfds_folder, tfrecord
from data_pipelines.files.features import FLAGS, OF_EPISODE, Kind
from data_pipelines.files.sensors import Fail, Stored
from data_pipelines.files.tfds_folder import AGAIN, FEATURES

# What is said about stretches of a record of play data, one entry each
# (data_pipelines/builders/calvin.py writes them).
SEGMENTS = tuple(f"episode_metadata/segment_{name}" for name in ("first", "stop", "text"))

REPAIR = "repair the episode or list it in data.quarantine"


class Shard(NamedTuple):
    """One file of a split, which holds a record an episode, and the features of a step that are
    read from it.
    """

    file: tfds_folder.File
    features: dict[str, Kind]  # by feature key
    sensors: dict[str, Stored]  # by name

    @property
    def path(self) -> str:
        """A path or URL."""
        return self.file.path

    @property
    def files(self) -> list[tfds_folder.File]:
        """All that is read."""
        return [self.file]


class Run(NamedTuple):
    """Steps in a row that are told the same: any of `texts`."""

    steps: int
    texts: tuple[str, ...]


class Episode(NamedTuple):
    """One standardised episode of T steps."""

    shard: int
    record: int  # its number in the file
    runs: list[Run]  # their steps add up to T
    first_frame: int  # of the recording it was cut from (Dataset.first_frame); 0 where nobody says
    actions: np.ndarray  # T d, float32
    state: np.ndarray  # T p, float32
    offset: dict[str, np.ndarray]  # slot -> T, int64: bytes from the beginning of the file
    size: dict[str, np.ndarray]  # slot -> T, int64
    frames: np.ndarray  # T, int: the raw step of each row
    end: int  # bytes of the file up to the end of the record
    # Of LeRobot: slot -> video, of which `offset` are time stamps; raw column -> its frames'
    # number, least, greatest, sum and sum of squares [5, d].
    videos: dict[str, str] = {}  # noqa: RUF012
    measured: dict[str, np.ndarray] = {}  # noqa: RUF012
    # Of sensors: readings T ..., float32; of those that stay in the file first byte and bytes, T 2.
    readings: dict[str, np.ndarray] = {}  # noqa: RUF012
    places: dict[str, np.ndarray] = {}  # noqa: RUF012
    outcome: int = outcomes.UNKNOWN  # see Dataset.outcome


class EpisodeError(ValueError):
    """What is wrong with one episode. `record` is None when it is the file, `step` when it is no
    single step.
    """

    def __init__(
        self, path: str, record: int | None, step: int | None, field: str, problem: str, fix: str
    ) -> None:
        where = [path]
        where += [f"record {record}"] if record is not None else []
        where += [f"step {step}"] if step is not None else []
        where += [field] if field else []
        super().__init__(f"{': '.join(where)}: {problem}; {fix}")
        self.path, self.record, self.step, self.field = path, record, step, field
        self.problem, self.fix = problem, fix


class Record:
    """One record, and what it says about the features of its steps."""

    def __init__(self, shard: Shard, record: tfrecord.Record, wanted: Set[str]) -> None:
        self._shard, self._record = shard, record
        try:
            self._features = tfrecord.parse(record.data, wanted)
        except ValueError as error:
            raise self._error(None, "", str(error), AGAIN) from error
        self._steps = self._count()

    def episodes(self, number: int, dataset: Dataset) -> list[Episode]:
        """Its standardised episodes: one, or one for each described segment. `number` is the
        shard's.
        """
        self._check_order()
        if dataset.require and not self._holds(dataset):
            return []
        columns = {name: self._column(key) for name, key in dataset.columns.items()}
        spans = {slot: self._spans(key) for slot, key in dataset.cameras.items()}
        out = standardised(dataset, columns, self._steps, self._error)
        readings, places = self._sensors()
        begin = int(self._number(dataset.first_frame)) if dataset.first_frame else 0
        ended = outcomes.of_record(dataset.outcome, self._features, self._record, self._error)
        made = []
        for runs, inside in self._stretches(dataset, out.frames):
            frames = out.frames[inside]
            made.append(
                Episode(
                    number,
                    self._record.number,
                    runs,
                    begin,
                    out.actions[inside],
                    out.state[inside],
                    {
                        slot: self._record.offset + span.offset[frames]
                        for slot, span in spans.items()
                    },
                    {slot: span.length[frames] for slot, span in spans.items()},
                    frames,
                    self._record.offset + len(self._record.data) + 4,
                    readings={name: column[frames] for name, column in readings.items()},
                    places={name: place[frames] for name, place in places.items()},
                    outcome=ended,
                )
            )
        return made

    def _sensors(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The readings of all recorded steps, and places of those that stay in the file."""
        stored = self._shard.sensors
        try:
            return sensors.columns(stored, self._features, self._record, self._steps, self._error)
        except EpisodeError:
            raise
        except ValueError as error:
            raise self._error(None, "sensors", str(error), AGAIN) from error

    def _stretches(
        self, dataset: Dataset, frames: np.ndarray
    ) -> list[tuple[list[Run], np.ndarray]]:
        """What an episode is told, and which of the kept steps `frames` belong to it."""
        if not dataset.segments:
            return [(self._runs(dataset, frames), np.ones(len(frames), bool))]
        stretches = []
        for a, b, text in self._segments():
            inside = (frames >= a) & (frames < b)
            words = text if text.strip() else dataset.instruction or text
            stretches.append(([Run(int(inside.sum()), (words,))], inside))
        return stretches

    def _holds(self, dataset: Dataset) -> bool:
        """Whether the episode is to be used."""
        if not dataset.pattern:
            return bool(self._number(dataset.require))
        text = self._decoded(self._of_episode(dataset.require), 0, dataset.require)
        return re.search(dataset.pattern, text) is not None

    def _number(self, key: str) -> float:
        """A feature of the whole episode."""
        value = self._features.get(key)
        if not isinstance(value, np.ndarray) or len(value) != 1:
            raise self._error(None, key, "expected one number for the whole episode", AGAIN)
        return float(value[0])

    def _of_episode(self, key: str) -> bytes:
        """A text of the whole episode."""
        value = self._features.get(key)
        if not isinstance(value, tfrecord.Spans) or len(value.offset) != 1:
            raise self._error(None, key, "expected one text for the whole episode", AGAIN)
        at = int(value.offset[0])
        return self._record.data[at : at + int(value.length[0])]

    def _segments(self) -> list[tuple[int, int, str]]:
        """(first step, step after the last, instruction) of the record's described parts, which may
        overlap.
        """
        first, stop, text = (self._features.get(key) for key in SEGMENTS)
        if not any(
            len(x.offset if isinstance(x, tfrecord.Spans) else x)
            for x in (first, stop, text)
            if x is not None
        ):
            return []  # nothing in this stretch of play is described
        if not (
            isinstance(first, np.ndarray)
            and isinstance(stop, np.ndarray)
            and isinstance(text, tfrecord.Spans)
        ):
            raise self._error(
                None, "segments", "expected two lists of steps and one of sentences", AGAIN
            )
        if not len(first) == len(stop) == len(text.offset):
            got = f"{len(first)}, {len(stop)} and {len(text.offset)}"
            raise self._error(
                None, "segments", f"expected {', '.join(SEGMENTS)} of one length, got {got}", AGAIN
            )
        segments = []
        for a, b, at, n in zip(
            first.tolist(), stop.tolist(), text.offset, text.length, strict=True
        ):
            if not 0 <= a < b <= self._steps:
                raise self._error(
                    None, "segments", f"expected steps within {self._steps}, got {a} to {b}", AGAIN
                )
            try:
                segments.append((a, b, self._record.data[at : at + n].decode()))
            except UnicodeError as error:
                raise self._error(
                    a, "segments", f"expected an instruction in UTF-8, got {error}", REPAIR
                ) from error
        return segments

    def _error(self, step: int | None, field: str, problem: str, fix: str) -> EpisodeError:
        return EpisodeError(self._shard.path, self._record.number, step, field, problem, fix)

    def _count(self) -> int:
        """The number of steps, on which all features must agree."""
        counts = {}
        for key, kind in self._shard.features.items():
            values = self._values(key)
            if isinstance(values, tfrecord.Spans):
                counts[key] = float(len(values.offset))
            else:
                counts[key] = len(values) / max(1, int(np.prod(kind.shape)))
        if len(set(counts.values())) != 1:
            # The number that most features have is the number of steps.
            steps = max(counts.values(), key=list(counts.values()).count)
            key = next(key for key, count in counts.items() if count != steps)
            width = int(np.prod(self._shard.features[key].shape))
            if steps and width > 1 and counts[key] * width % steps == 0:
                got = f"{counts[key] * width / steps:g} in each of {steps:g} steps"
                raise self._error(
                    None, key, f"expected {width} numbers a step ({FEATURES}), got {got}", REPAIR
                )
            listed = ", ".join(f"{key} {count:g}" for key, count in counts.items())
            raise self._error(
                None, key, f"expected as many steps in every feature, got {listed}", REPAIR
            )
        steps = int(next(iter(counts.values())))
        if not steps:
            raise self._error(
                None, "", "expected at least one step, got an episode of none", REPAIR
            )
        return steps

    def _values(self, key: str) -> tfrecord.Spans | np.ndarray:
        kind, values = self._shard.features[key], self._features.get(f"steps/{key}")
        if (
            isinstance(values, np.ndarray) and not len(values) and kind.strings
        ):  # an empty list has no type on the wire
            values = tfrecord.Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if values is None or isinstance(values, tfrecord.Spans) != kind.strings:
            expected = (
                "byte strings" if kind.strings else f"{int(np.prod(kind.shape))} numbers a step"
            )
            got = "nothing" if values is None else "byte strings" if not kind.strings else "numbers"
            raise self._error(None, key, f"expected {expected}, got {got}", AGAIN)
        return values

    def _spans(self, key: str) -> tfrecord.Spans:
        values = self._values(key)
        assert isinstance(values, tfrecord.Spans)  # `check` took the feature as strings
        return values

    def _bytes(self, key: str) -> list[bytes]:
        spans = self._spans(key)
        return [
            self._record.data[a : a + n]
            for a, n in zip(spans.offset.tolist(), spans.length.tolist(), strict=True)
        ]

    def _column(self, key: str) -> np.ndarray:
        """[T, *shape] finite numbers, or [T] byte strings as objects."""
        kind = self._shard.features[key]
        if kind.strings:
            column = np.empty(self._steps, object)
            column[:] = self._bytes(key)
            return column
        values = self._values(key)
        assert isinstance(values, np.ndarray)
        column = values.reshape(self._steps, *kind.shape)
        check_finite(key, column, self._error)
        return column

    def _runs(self, dataset: Dataset, frames: np.ndarray) -> list[Run]:
        """What the steps `frames` are told. Without a step, what the first one recorded was."""
        cells = list(zip(*(self._cells(key) for key in dataset.languages), strict=True))
        runs: list[Run] = []
        last = None
        for step in frames.tolist() if len(frames) else [0]:
            told = cells[step] if cells else ()
            if not runs or told != last:
                runs.append(Run(0, self._texts(dataset, told, step)))
                last = told
            runs[-1] = runs[-1]._replace(steps=runs[-1].steps + 1)
        return runs if len(frames) else [runs[0]._replace(steps=0)]

    def _cells(self, key: str) -> list[bytes]:
        """The stored words of every step: UTF-8, or the bytes of its code points (int64)."""
        if key.startswith(OF_EPISODE):
            return [self._of_episode(key)] * self._steps
        if self._shard.features[key].strings:
            return self._bytes(key)
        return [row.astype(np.int64).tobytes() for row in self._column(key)]

    def _texts(self, dataset: Dataset, told: Sequence[bytes], step: int) -> tuple[str, ...]:
        """The alternatives that are not empty; else what the dataset says, or nothing."""
        texts = [
            self._decoded(cell, step, key)
            for cell, key in zip(told, dataset.languages, strict=True)
        ]
        return tuple(text for text in texts if text.strip()) or (
            dataset.instruction or "".join(texts[:1]),
        )

    def _decoded(self, cell: bytes, step: int, key: str) -> str:
        """UTF-8 text, or code points that end at the first 0."""
        try:
            kind = self._shard.features.get(key)  # of a whole episode there is none
            if kind is None or kind.strings:
                return cell.decode()
            points = np.frombuffer(cell, np.int64).tolist()
            text = "".join(map(chr, points[: points.index(0)] if 0 in points else points))
            return text.encode().decode()  # refuses halves of surrogate pairs
        except (UnicodeError, ValueError, OverflowError) as error:
            problem = f"expected an instruction in UTF-8, got {error}"
            raise self._error(
                step, key, problem, "write it again in UTF-8 or list it in data.quarantine"
            ) from error

    def _check_order(self) -> None:
        """No step but the first says that it is the first, none but the last that it is the last.

        A flag that no step has is fine: that is an episode cut out of a longer one.
        """
        for flag, at in zip(FLAGS, (0, self._steps - 1), strict=True):
            if flag in self._shard.features:
                wrong = np.flatnonzero(
                    self._column(flag).astype(bool) & (np.arange(self._steps) != at)
                )
                if len(wrong):
                    problem = (
                        f"RLDS step order: expected True at step {at} alone (of {self._steps}), got"
                        " True here"
                    )
                    raise self._error(int(wrong[0]), flag, problem, REPAIR)


def raised(error: EpisodeError) -> None:
    """What becomes of a bad episode where nobody takes it."""
    raise error


def check_finite(key: str, values: np.ndarray, fail: Fail) -> None:
    """Raises what `fail` makes of the first number of a column [T ...] that is not finite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, *dim = (int(i) for i in bad[0])
        problem = f"expected a finite number, got {values[tuple(bad[0])]}"
        raise fail(step, f"{key}{dim or ''}", problem, REPAIR)


def standardised(
    dataset: Dataset, columns: dict[str, np.ndarray], steps: int, fail: Fail
) -> Standardised:
    """The columns of an episode of so many raw steps, standardised; `fail` makes the error to raise
    when that does not go, or gives what it must not.
    """
    try:
        out = dataset.standardise(columns)
    except ValueError as error:
        raise fail(None, "actions", f"standardising failed: {error}", REPAIR) from error
    mend = f"mend {dataset.name}'s standardise"
    for kind, values, names in (
        ("actions", out.actions, dataset.action_names),
        ("state", out.state, dataset.state_names),
    ):
        expected = (len(out.frames), len(names))
        if values.shape != expected or not np.isfinite(values).all():
            got = f"shape {values.shape}" if values.shape != expected else "NaN or infinity"
            problem = f"standardised: expected finite {list(expected)}, got {got}"
            raise fail(None, kind, problem, mend)
    if len(out.frames) and not 0 <= out.frames.min() <= out.frames.max() < steps:
        problem = (
            f"standardised: expected steps below {steps}, got {out.frames.min()} to"
            f" {out.frames.max()}"
        )
        raise fail(None, "frames", problem, mend)
    return out
