"""Images with texts about them, read at random from a TFDS dataset: rows of `Batch.image_text`.

The files stay as they are; image_text_table.py says where their records are. What stands at a
position depends on nothing but the seed and the position: every image comes once an epoch, with one
of its texts drawn anew.
"""

import dataclasses
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import images, order
from data_pipelines.buffers import Buffers
from data_pipelines.config import ALIVE, PREFETCH
from data_pipelines.files import remote, tfrecord
from data_pipelines.files.tfds_folder import AGAIN
from data_pipelines.image_text_table import Table, parse
from vla_jax.types import Batch, ImageText

# Tokenizers promise nothing about threads, and one may serve several readers.
TOKENISING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class ReaderConfig:
    """What a row holds and how rows are drawn.

    Attributes:
        length: tokens of question and answer together, l.
        image_size: pixels, height and width.
        resize: how images get it, one of types.RESIZES.
        batch_size: rows of the global batch.
        seed: of the order.
    """

    length: int
    image_size: int
    batch_size: int
    seed: int
    resize: str = "lanczos"


class Codec(NamedTuple):
    """How texts become token ids."""

    question: Callable[[str], Sequence[int] | np.ndarray]  # with whatever begins a sequence
    answer: Callable[[str], Sequence[int] | np.ndarray]  # with whatever ends one


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
        self._buffers = Buffers((config.image_size, config.image_size, 3), ALIVE)
        self.images = len(self._split.offset)
        # An image is a visit of one window to the order, and all visits are open: a full shuffle.
        visits = order.Visits(np.arange(self.images), np.ones(self.images, np.int64), self.images)
        self._order = order.Order(
            [visits], [1.0], order.OrderConfig(config.seed, config.batch_size, self.images)
        )
        self._workers = remote.workers(self._split.shards[0])

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
        records = self._order.windows(position * config.batch_size + self._rows)
        draws = order.raw(config.batch_size, config.seed, position, 4)[self._rows]
        out = ImageText(
            images=self._buffers.take(b),
            tokens=np.zeros((b, config.length), np.int32),
            mask=np.zeros((b, config.length), bool),
            target=np.zeros((b, config.length), bool),
        )
        jobs = zip(records.tolist(), draws.tolist(), strict=True)
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
        image, pairs = parse(data, dataset, where)
        try:
            out.images[row] = images.decode(
                image, self._config.image_size, resize=self._config.resize
            )
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
        # Not strict: one pass of batches ends, texts do not.
        for batch, image_text in zip(batches, texts, strict=False):
            yield batch._replace(image_text=image_text)
    finally:
        batches.close()
        texts.close()


def _finished(out: ImageText, jobs: list[Future[None]]) -> ImageText:
    for job in jobs:
        job.result()
    return out
