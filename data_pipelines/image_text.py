"""Images with texts about them, read at random from a TFDS dataset: rows of `Batch.image_text`.

The files stay as they are. One pass over them makes a table of the places of their records, kept as
a sidecar like the index of an RLDS dataset (index.py). After that every record is one ranged read.
What stands at a position depends on nothing but the seed and the position: every image comes once
an epoch, with one of its texts drawn anew.
"""

import dataclasses
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import images, order
from data_pipelines.datasets.image_text import ImageTextDataset
from data_pipelines.files import remote, store, tfds_folder, tfrecord
from data_pipelines.files.tfds_folder import AGAIN, File
from data_pipelines.buffers import Buffers
from data_pipelines.frames import REMOTE_READS
from data_pipelines.index import place
from data_pipelines.progress import Progress
from vla_jax.types import Batch, ImageText

SCHEMA = 1
PREFETCH = 2  # batches made ahead of the one in use
COLUMNS = {
    "shard": np.int32,
    "record": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "crc": np.uint32,
}
TOKENISING = (
    threading.Lock()
)  # tokenizers promise nothing about threads, and one may serve several readers

Pairs = list[tuple[str, str]]  # question, answer


@dataclasses.dataclass(frozen=True)
class Split:
    """Where the N records of a split are. The arrays are read-only."""

    shards: tuple[str, ...]  # paths or URLs
    shard: np.ndarray  # N, int32: index into shards
    record: np.ndarray  # N, int32: its number in the shard
    offset: np.ndarray  # N, int64: where its data begin
    length: np.ndarray  # N, int64: bytes of its data
    crc: np.ndarray  # N, uint32: checksum of its data, as TFRecord stores it


@dataclasses.dataclass(frozen=True)
class Table:
    """The splits of a dataset that are used. `digest` names their contents, wherever they are."""

    dataset: ImageTextDataset
    splits: dict[str, Split]
    digest: str


@dataclasses.dataclass(frozen=True)
class ReaderConfig:
    """What a row holds and how rows are drawn.

    Attributes:
        length: tokens of question and answer together, l.
        image_size: pixels, height and width.
        batch_size: rows of the global batch.
        seed: of the order.
    """

    length: int
    image_size: int
    batch_size: int
    seed: int


class Codec(NamedTuple):
    """How texts become token ids."""

    question: Callable[[str], Sequence[int] | np.ndarray]  # with whatever begins a sequence
    answer: Callable[[str], Sequence[int] | np.ndarray]  # with whatever ends one


def problem(root: str, dataset: ImageTextDataset) -> str:
    """A line that says what brings the dataset, when its files are not under `root`; else ""."""
    info = remote.join(_folder(root, dataset), tfds_folder.INFO)
    return (
        ""
        if remote.exists(info)
        else f"{dataset.name}: no {info}; {dataset.download.format(root=root)}"
    )


def open_table(
    root: str | Path, dataset: ImageTextDataset, cache_dir: str | Path | None = None
) -> Table:
    """The table of root/tfds_name/version, made if there is none, or if it is stale or damaged.

    `cache_dir` as in `index.open_index`. Raises ValueError when files are missing, damaged or not
    what `dataset` promises, and OSError when the table cannot be written.
    """
    folder = _folder(str(root), dataset)
    if line := problem(str(root), dataset):
        raise ValueError(f"objectives.image_text.dataset: {line}")
    _check_features(folder, dataset)
    files = tfds_folder.splits(folder)
    wanted = list(dict.fromkeys((dataset.split, dataset.held_out)))
    absent = [split for split in wanted if split not in files]
    if absent:
        raise ValueError(
            f"{folder}: expected a split {absent[0]!r} ({dataset.name}), got"
            f" {', '.join(sorted(files))}"
        )
    used = {split: files[split] for split in wanted}
    key = {
        "schema": SCHEMA,
        "revision": dataset.revision,
        "description": [dataset.image, dataset.question, dataset.answer],
        "files": {
            split: [[file.path.rsplit("/", 1)[-1], file.size] for file in used[split]]
            for split in used
        },
    }
    path = place(folder, f"{dataset.name}.image_text", cache_dir)
    stored = store.load(path, key)
    if stored is None:
        store.save(
            path,
            key,
            {
                name: column
                for split in used
                for name, column in _build(dataset, split, used[split])
            },
        )
        stored = store.load(path, key)
        if stored is None:
            raise OSError(f"{path}: the table is not what was just written there; check the disk")
    arrays = stored.arrays
    splits = {
        split: Split(
            tuple(f.path for f in used[split]),
            **{name: arrays[f"{split}/{name}"] for name in COLUMNS},
        )
        for split in used
    }
    return Table(dataset, splits, stored.digest)


class Reader:
    """Rows of one split. `images` is the number of images in an epoch."""

    images: int

    def __init__(
        self,
        table: Table,
        split: str,
        config: ReaderConfig,
        codec: Codec,
        rows: np.ndarray | None = None,
    ) -> None:
        """`rows` of the global batch are those this host makes; None = all."""
        self._table, self._name, self._config, self._codec = table, split, config, codec
        self._split = table.splits[split]
        self._rows = np.arange(config.batch_size) if rows is None else np.asarray(rows)
        self._buffers = Buffers((config.image_size, config.image_size, 3), PREFETCH + 3)
        self.images = len(self._split.offset)
        # An image is a visit of one window to the order, and all visits are open: a full shuffle.
        visits = order.Visits(np.arange(self.images), np.ones(self.images, np.int64))
        self._order = order.Order(
            [visits], [1.0], order.OrderConfig(config.seed, config.batch_size, self.images)
        )
        self._workers = (os.cpu_count() or 1) + REMOTE_READS * remote.is_remote(
            self._split.shards[0]
        )

    def identity(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same rows; JSON-able."""
        dataset, config = self._table.dataset, self._config
        return {
            "dataset": [dataset.name, self._name, self._table.digest[:16]],
            "texts": [dataset.image, dataset.question, dataset.answer, dataset.prompt],
            "seed": config.seed,
            "batch_size": config.batch_size,
            "length": config.length,
        }

    def batch(self, position: int) -> ImageText:
        """This host's rows at a position: a pure function of the identity and the position.

        Raises ValueError naming the record when an image or a text cannot be used.
        """
        with ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as threads:
            return _finished(*self._begin(position, threads))

    def batches(self, start: int = 0) -> Generator[ImageText, None, None]:
        """Rows from a position on, made ahead in threads, without end. Close it to stop the
        threads.
        """
        threads = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        ahead = deque[tuple[ImageText, list[Future[None]]]]()
        try:
            for position in itertools.count(start):
                ahead.append(self._begin(position, threads))
                if len(ahead) > PREFETCH:
                    yield _finished(*ahead.popleft())
        finally:
            threads.shutdown(cancel_futures=True)

    def _begin(
        self, position: int, threads: ThreadPoolExecutor
    ) -> tuple[ImageText, list[Future[None]]]:
        """The arrays of a batch, and what fills them in."""
        config, b = self._config, len(self._rows)
        found = self._order.windows(position * config.batch_size + self._rows)
        draws = order.raw(config.batch_size, config.seed, position, 4)[self._rows]
        out = ImageText(
            images=self._buffers.take(b),
            tokens=np.zeros((b, config.length), np.int32),
            mask=np.zeros((b, config.length), bool),
            target=np.zeros((b, config.length), bool),
        )
        jobs = zip(found.tolist(), draws.tolist(), strict=True)
        return out, [threads.submit(self._fill, out, row, *job) for row, job in enumerate(jobs)]

    def _fill(self, out: Any, row: int, number: int, draw: int) -> None:
        """Reads the record `number` of the split into a row."""
        split, dataset = self._split, self._table.dataset
        path, start = split.shards[int(split.shard[number])], int(split.offset[number])
        data = remote.read_range(path, start, start + int(split.length[number]))
        record = int(split.record[number])
        if tfrecord.masked_crc(data) != split.crc[number]:
            raise tfrecord.Damaged(path, record, "its data are not those the table was made from")
        where = f"{path}: record {record}"
        image, pairs = _parse(data, dataset, where)
        try:
            out.images[row] = images.decode(image, self._config.image_size)
        except ValueError as error:
            raise ValueError(f"{where}: {dataset.image}: {error}; {AGAIN}") from error
        question, answer = pairs[draw % len(pairs)]
        with TOKENISING:
            before, after = (
                np.asarray(ids, np.int32)
                for ids in (self._codec.question(question), self._codec.answer(answer))
            )
        length, n = self._config.length, len(before)
        if n >= length:
            raise ValueError(
                f"{where}: objectives.image_text.length: expected at least {n + 1}, for the"
                f" question {question!r} and a token of its answer, got {length}"
            )
        after = after[: length - n]  # a long answer is cut, and then without its end
        end = n + len(after)
        out.tokens[row, :end] = np.concatenate([before, after])
        out.mask[row, :end] = True
        out.target[row, n:end] = True


def attach(
    batches: Generator[Batch, None, None], texts: Generator[ImageText, None, None]
) -> Generator[Batch, None, None]:
    """Batches with `image_text` filled in: two streams that begin at the same position. Closing it
    closes both.
    """
    try:
        for batch, found in zip(
            batches, texts, strict=False
        ):  # one pass of batches ends, texts do not
            yield batch._replace(image_text=found)
    finally:
        batches.close()
        texts.close()


def _finished(out: ImageText, jobs: list[Future[None]]) -> ImageText:
    for job in jobs:
        job.result()
    return out


def _folder(root: str, dataset: ImageTextDataset) -> str:
    root = root if remote.is_remote(root) else str(Path(root).expanduser().absolute())
    return remote.join(root, dataset.tfds_name, dataset.version)


def _check_features(folder: str, dataset: ImageTextDataset) -> None:
    """Raises ValueError when features.json lacks a feature that `dataset` promises, or has it as
    another kind.
    """
    leaves = tfds_folder.features(folder)
    for what in ("image", "question", "answer"):
        key = getattr(dataset, what)
        node = leaves.get(key, {})
        text = "text" in node or node.get("tensor", {}).get("dtype") in ("string", "object")
        if key and not ("image" in node if what == "image" else text):
            got = (
                f"a {node.get('pythonClassName', '?').split('.')[-1]}"
                if node
                else "no such feature"
            )
            raise ValueError(
                f"{remote.join(folder, tfds_folder.FEATURES)}: {dataset.name} promises the {what}"
                f" as the {'image' if what == 'image' else 'text'} feature {key!r}, got {got}; the"
                f" records have {', '.join(sorted(leaves))}"
            )


def _build(
    dataset: ImageTextDataset, split: str, files: list[File]
) -> Iterator[tuple[str, np.ndarray]]:
    """The columns of a split by their names in the sidecar: one pass over its files, some at a
    time.
    """
    with (
        Progress(f"{dataset.name}: reading {split}", sum(file.size for file in files)) as progress,
        ThreadPoolExecutor(
            (os.cpu_count() or 1) + REMOTE_READS * remote.is_remote(files[0].path)
        ) as threads,
    ):
        jobs = [
            threads.submit(_read, dataset, number, file, progress)
            for number, file in enumerate(files)
        ]
        try:
            found = np.concatenate([job.result() for job in jobs])
        finally:
            threads.shutdown(cancel_futures=True)  # after an error the rest need not be read
    total = sum(file.records for file in files)
    if not len(found):
        raise ValueError(
            f"{files[0].path}: expected texts in {dataset.answer!r}, all {total} records have none"
        )
    without = (
        f" ({total - len(found)} images without a text left out)" if total > len(found) else ""
    )
    print(
        f"{dataset.name}: split {split}: {len(found)} images{without} in {progress.spent()}",
        flush=True,
    )
    for (name, kind), column in zip(COLUMNS.items(), found.T, strict=True):
        yield f"{split}/{name}", column.astype(kind)


def _read(dataset: ImageTextDataset, number: int, file: File, progress: Progress) -> np.ndarray:
    """The rows of a file, [n columns] int64: its records that have a text."""
    rows, count = [], 0
    for record in tfrecord.read(file.path):
        _, pairs = _parse(record.data, dataset, f"{file.path}: record {record.number}")
        if pairs:
            rows.append(
                (
                    number,
                    record.number,
                    record.offset,
                    len(record.data),
                    tfrecord.masked_crc(record.data),
                )
            )
        count += 1
        progress.add(len(record.data) + 16)
    if count != file.records:
        raise ValueError(
            f"{file.path}: expected {file.records} records ({tfds_folder.INFO}), got {count};"
            f" {AGAIN}"
        )
    return np.array(rows, np.int64).reshape(-1, len(COLUMNS))


def _parse(data: bytes, dataset: ImageTextDataset, where: str) -> tuple[bytes, Pairs]:
    """The encoded image of a record, and its questions and answers that are not blank."""

    def strings(key: str) -> list[bytes]:
        value = found.get(key, np.zeros(0))
        if not isinstance(value, tfrecord.Spans):
            if len(value):  # an empty list has no type on the wire
                raise ValueError(f"{where}: {key}: expected byte strings, got numbers; {AGAIN}")
            return []
        return [
            data[at : at + n]
            for at, n in zip(value.offset.tolist(), value.length.tolist(), strict=True)
        ]

    def texts(key: str) -> list[str]:
        try:
            return [text.decode() for text in strings(key)]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: {key}: expected UTF-8, got {error}; write it again in UTF-8"
            ) from error

    try:
        found = tfrecord.parse(data, {dataset.image, dataset.question, dataset.answer})
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {AGAIN}") from error
    encoded, answers = strings(dataset.image), texts(dataset.answer)
    if len(encoded) != 1:
        raise ValueError(
            f"{where}: {dataset.image}: expected one encoded image, got {len(encoded)}; {AGAIN}"
        )
    questions = texts(dataset.question) if dataset.question else [dataset.prompt]
    if len(questions) == 1:
        questions *= len(answers)
    if len(questions) != len(answers):
        raise ValueError(
            f"{where}: expected one {dataset.question!r}, or one for each {dataset.answer!r}, got"
            f" {len(questions)} and {len(answers)}; {AGAIN}"
        )
    return encoded[0], [(q, a) for q, a in zip(questions, answers, strict=True) if a.strip()]
