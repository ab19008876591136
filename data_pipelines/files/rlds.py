"""RLDS datasets as TFDS writes them: features.json, dataset_info.json, and episodes in TFRecord
shards.
"""

from collections.abc import Callable, Iterator, Set
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets.dataset import Dataset, Standardised
from data_pipelines.files import tfds_folder, tfrecord
from data_pipelines.files.features import FLAGS, Kind, described_features
from data_pipelines.files.tfds_folder import AGAIN, FEATURES, INFO

# What is said about stretches of a record of play data, one entry each
# (data_pipelines/builders/calvin.py writes them).
SEGMENTS = tuple(f"episode_metadata/segment_{name}" for name in ("first", "stop", "text"))

REPAIR = "repair the episode or list it in data.quarantine"


class Shard(NamedTuple):
    """One file of a split, the number of episodes it must hold, its bytes, and the features that
    are read from it.
    """

    path: str
    episodes: int
    size: int
    features: dict[str, Kind]  # by feature key
    keep: range  # records that belong to the split


class Episode(NamedTuple):
    """One standardised episode of T steps."""

    shard: int
    record: int  # its number in the file
    instruction: str
    actions: np.ndarray  # T d, float32
    state: np.ndarray  # T p, float32
    offset: dict[str, np.ndarray]  # slot -> T, int64: bytes from the beginning of the file
    size: dict[str, np.ndarray]  # slot -> T, int64
    frames: np.ndarray  # T, int: the raw step of each row
    end: int  # bytes of the file up to the end of the record


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


def check(folder: str, dataset: Dataset) -> dict[str, list[Shard]]:
    """The shards of each split. Raises ValueError when a file or a promised feature is missing, or
    a split is empty.
    """
    splits = tfds_folder.splits(folder)
    kinds = described_features(folder, dataset)
    return {
        split: [
            Shard(file.path, file.records, file.size, kinds, range(file.records)) for file in files
        ]
        for split, files in splits.items()
    }


def episodes(
    shard: Shard,
    number: int,
    dataset: Dataset,
    on_error: Callable[[EpisodeError], None] | None = None,
    skip: Set[int] = frozenset(),
) -> Iterator[Episode]:
    """The standardised episodes of a shard, in one pass. A record of play data holds one for each
    of its segments.

    Args:
        shard: from `check`.
        number: the shard's in its split.
        dataset: what the records hold.
        on_error: called for each bad episode, which is then left out; by default it is raised.
        skip: numbers of records (from 0) that are passed over, damaged or not.

    Raises EpisodeError (a ValueError) naming file, record, step and field when something is
    damaged, incomplete, not finite or in a wrong order.
    """
    count = 0
    wanted = {f"steps/{key}" for key in shard.features} | {dataset.require} - {""}
    wanted |= set(SEGMENTS) if dataset.segments else set()

    def report(error: EpisodeError) -> None:
        if on_error is None:
            raise error
        on_error(error)

    def report_damage(error: tfrecord.Damaged) -> None:
        report(EpisodeError(shard.path, error.record, None, "", f"damaged: {error.problem}", AGAIN))

    def damaged(error: tfrecord.Damaged) -> None:
        nonlocal count
        count = error.record + 1
        if error.record not in skip and error.record in shard.keep:
            report_damage(error)

    try:
        for record in tfrecord.read(shard.path, damaged):
            count = record.number + 1
            if record.number in skip or record.number not in shard.keep:
                continue
            try:
                yield from _Record(shard, record, wanted).episodes(number, dataset)
            except EpisodeError as error:
                report(error)
    except tfrecord.Damaged as error:
        # Whatever `skip` says: the records after this one cannot be found.
        report_damage(error)
        return
    if count != shard.episodes:
        got = f"{count}, and the file is empty" if not shard.size else str(count)
        problem = f"expected {shard.episodes} records ({INFO}), got {got}"
        report(EpisodeError(shard.path, None, None, "", problem, AGAIN))


class _Record:
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
        if dataset.require and not self._holds(dataset.require):
            return []
        columns = {name: self._column(key) for name, key in dataset.columns.items()}
        spans = {slot: self._spans(key) for slot, key in dataset.cameras.items()}
        try:
            out = dataset.standardise(columns)
        except ValueError as error:
            raise self._error(None, "actions", f"standardising failed: {error}", REPAIR) from error
        self._check_standardised(out, dataset)
        end = self._record.offset + len(self._record.data) + 4
        if dataset.segments:
            stretches = [
                (text, (out.frames >= a) & (out.frames < b)) for a, b, text in self._segments()
            ]
        else:
            first = int(out.frames[0]) if len(out.frames) else 0
            stretches = [(self._words(dataset.language, first), np.ones(len(out.frames), bool))]
        made = []
        for words, inside in stretches:
            frames = out.frames[inside]
            offset = {
                slot: self._record.offset + span.offset[frames] for slot, span in spans.items()
            }
            size = {slot: span.length[frames] for slot, span in spans.items()}
            actions, state = out.actions[inside], out.state[inside]
            record = self._record.number
            made.append(Episode(number, record, words, actions, state, offset, size, frames, end))
        return made

    def _holds(self, key: str) -> bool:
        """Whether a feature of the whole episode is true."""
        value = self._features.get(key)
        if not isinstance(value, np.ndarray) or len(value) != 1:
            raise self._error(
                None, key, "expected one number that says whether the episode is to be used", AGAIN
            )
        return bool(value[0])

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
        bad = np.argwhere(~np.isfinite(column))
        if len(bad):
            step, *dim = (int(i) for i in bad[0])
            value = column[tuple(bad[0])]
            raise self._error(
                step, f"{key}{dim or ''}", f"expected a finite number, got {value}", REPAIR
            )
        return column

    def _words(self, key: str, step: int) -> str:
        """The instruction at a step: UTF-8 text, or code points that end at the first 0."""
        try:
            if self._shard.features[key].strings:
                return self._bytes(key)[step].decode()
            points = self._column(key).reshape(self._steps, -1)[step].astype(np.int64).tolist()
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

    def _check_standardised(self, out: Standardised, dataset: Dataset) -> None:
        for kind, values, names in (
            ("actions", out.actions, dataset.action_names),
            ("state", out.state, dataset.state_names),
        ):
            if values.shape != (len(out.frames), len(names)) or not np.isfinite(values).all():
                got = (
                    f"shape {values.shape}"
                    if values.shape != (len(out.frames), len(names))
                    else "NaN or infinity"
                )
                problem = (
                    f"standardised: expected finite [{len(out.frames)}, {len(names)}], got {got}"
                )
                raise self._error(None, kind, problem, f"mend {dataset.name}'s standardise")
        if len(out.frames) and not 0 <= out.frames.min() <= out.frames.max() < self._steps:
            problem = (
                f"standardised: expected steps below {self._steps}, got {out.frames.min()} to"
                f" {out.frames.max()}"
            )
            raise self._error(None, "frames", problem, f"mend {dataset.name}'s standardise")
