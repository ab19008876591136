"""Batches of windows from a mixture: what comes at a position depends on nothing but the seed and
the position.
"""

import queue
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np

from data_pipelines import order
from data_pipelines.assemble import Assembler
from data_pipelines.config import PREFETCH, LoaderConfig
from data_pipelines.frames import Decoder, Pool, Span, future_runs
from data_pipelines.mixture import Member, check, check_sensors
from vla_jax.types import ActionTokens, Batch

WORDS = 5  # number of the random stream that chooses among an instruction's alternatives
VISITS_AHEAD = 4  # per decoding thread: enough that none waits while a batch is put together


class Loader:
    """Batches of a mixture. `windows` is the number of windows in an epoch.

    A window is named by its id: the row of its newest step in the columns of all datasets put one
    after the other.
    """

    windows: int

    def __init__(
        self,
        members: list[Member],
        config: LoaderConfig,
        encode: Callable[[str], np.ndarray],
        rows: np.ndarray | None = None,
        target: Callable[[str], np.ndarray] | None = None,
        write: Callable[[Batch], ActionTokens] | None = None,
    ) -> None:
        """Checks the config against the data and encodes all instructions.

        Args:
            members: the datasets; `Batch.dataset_id` counts them.
            config: see LoaderConfig.
            encode: an instruction to its token ids [n].
            rows: rows of the global batch that this host builds; None = all.
            target: an instruction to its embedding [e], float32, for `Batch.text_target`; asked
                once for every sentence, when it is first met. Called in the thread that makes the
                batches.
            write: what makes `Batch.action_tokens` of the rest of a batch, in the same thread.

        Raises ValueError when splits, window, cameras, prompt length or future do not fit the data.
        """
        if len(config.image_size) != len(config.cameras):
            raise ValueError(
                f"model.image_size: expected one per camera {config.cameras}, got"
                f" {config.image_size}"
            )
        check(members, config.cameras, config.window)
        check_sensors(members, config.sensors)
        self._members, self._config, self._write = members, config, write
        self._splits = [member.index.splits[member.split] for member in members]
        self._rows = np.arange(config.batch_size) if rows is None else np.asarray(rows)
        if self._rows.size and not 0 <= self._rows.min() <= self._rows.max() < config.batch_size:
            raise ValueError(
                f"rows: expected rows of a batch of {config.batch_size}, got {self._rows}"
            )
        self._assembler = Assembler(members, config, encode, target)
        swapped = [member.index.dataset.bgr for member in members]
        self._decoder = Decoder(self._splits, swapped, config)
        self._bases = np.cumsum([0, *(int(split.length.sum()) for split in self._splits)])
        self._visits = [
            order.visits(split.length.astype(np.int64), config.windows_per_visit, config.stride)
            for split in self._splits
        ]
        self._visit_starts = np.concatenate(
            [
                visits.start + base
                for visits, base in zip(self._visits, self._bases[:-1], strict=True)
            ]
        )
        self._visit_counts = np.concatenate([visits.windows for visits in self._visits])
        self._alternatives = any(split.instruction.shape[1] > 1 for split in self._splits)
        frames = self._decoder.bytes_of(self._visits)
        self.pool = self._pool_size(frames)
        # Each host holds what its rows need, which may be all.
        hosts = config.batch_size / max(1, self._rows.size)
        self.decoded_once = config.shuffle and hosts * frames <= config.ram_budget
        self._order = order.Order(
            self._visits,
            [member.weight for member in members],
            order.OrderConfig(config.seed, config.batch_size, self.pool),
        )
        every = int(self._visit_counts.sum())
        self.windows = self._order.epoch_length if config.shuffle else every

    def identity(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same batch; JSON-able."""
        config = self._config
        strides = {"stride": config.stride} if config.stride > 1 else {}  # older runs have none
        return strides | {
            "datasets": [
                [
                    member.index.dataset.name,
                    member.split,
                    member.weight,
                    member.index.digest[:16],
                ]
                for member in self._members
            ],
            "seed": config.seed,
            "batch_size": config.batch_size,
            "pool": self.pool,
            "windows_per_visit": config.windows_per_visit,
            "shuffle": config.shuffle,
            "future": list(config.future),
        }

    def order_of(self, identity: Mapping[str, Any]) -> order.Order | None:
        """The order of a loader with that `identity()`; None unless this one has its datasets."""
        here = {
            (member.index.dataset.name, member.split, member.index.digest[:16]): split
            for member, split in zip(self._members, self._splits, strict=True)
        }
        wanted = [(name, split, digest) for name, split, _, digest in identity["datasets"]]
        if any(each not in here for each in wanted):
            return None
        cut = identity["windows_per_visit"], identity.get("stride", 1)
        return order.Order(
            [order.visits(here[each].length.astype(np.int64), *cut) for each in wanted],
            [weight for _, _, weight, _ in identity["datasets"]],
            order.OrderConfig(identity["seed"], identity["batch_size"], identity["pool"]),
        )

    def epoch(self, number: int) -> np.ndarray:
        """The ids of the windows of an epoch in order, [windows]."""
        return self._order.epoch(number)

    def ids(self, position: int, rows: np.ndarray | None = None) -> np.ndarray:
        """The ids of the windows of these rows of the global batch at a position, by default this
        host's; without shuffling the last batch is filled up with the last one.
        """
        if not self._config.shuffle and not 0 <= position < self._batches_per_pass():
            raise ValueError(
                f"batch: expected a position below {self._batches_per_pass()} (one pass), got"
                f" {position}"
            )
        rows = self._rows if rows is None else rows
        return self._ids(position * self._config.batch_size + rows)

    def instruction(self, episode: int) -> str:
        """What the first step of an episode, counted over all datasets, is told."""
        dataset_id, inside = self._locate(episode)
        return self._splits[dataset_id].words(inside)

    def summary(self) -> str:
        """The mixture as a table, and how well it is mixed: what to look at before a long run."""
        shares = np.array(self._order.taken) / self._order.epoch_length
        lines = [
            f"{'dataset':44s} {'weight':>7s} {'share':>7s} {'windows':>10s} {'episodes':>9s}"
            f" {'Hz':>5s}  cameras, state"
        ]
        whole = zip(self._members, self._splits, self._visits, shares, strict=True)
        for member, split, visits, share in whole:
            dataset = member.index.dataset
            seen = [slot for slot in self._config.cameras if slot in split.frames]
            lines.append(
                f"{dataset.name:44.44s} {member.weight:7.4g} {share:7.2%}"
                f" {int(visits.windows.sum()):10d} {len(split.length):9d}"
                f" {dataset.control_hz or '?':>5}  {'+'.join(seen)}, {len(dataset.state_names)}"
            )
        rates = sorted({member.index.dataset.control_hz or 0.0 for member in self._members})
        if len(rates) > 1:
            lines.append(
                f"control rates differ ({', '.join(f'{r:g}' if r else 'unknown' for r in rates)}"
                f" Hz): a chunk of {self._config.chunk} steps is not the same time in every dataset"
            )
        firsts = np.concatenate(
            [s.first + base for s, base in zip(self._splits, self._bases[:-1], strict=True)]
        )
        mixed = order.mixing(np.searchsorted(firsts, self.epoch(0), side="right"))
        lines.append(
            f"{self.windows} windows an epoch; {self.pool} visits (stretches of an episode whose"
            f" windows are decoded together) open at a time; {mixed.batch} windows in a row hold"
            f" {mixed.pairs:.1f} pairs from the same episode (fewer are better mixed:"
            f" data.ram_budget), {mixed.episodes:.1f} distinct episodes"
            + ("; all frames fit into data.ram_budget: decoded once" if self.decoded_once else "")
        )
        return "\n".join(lines)

    def batch(self, position: int) -> Batch:
        """This host's rows of the batch at a position: a pure function of the identity and the
        position.

        Without shuffling the last batch is filled up with repeated windows whose actions and future
        are masked. Decodes the frames of these windows alone; `batches` is the fast way to read
        many.
        """
        return self._read(self.ids(position), position)

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches from a position on, made ahead in a thread. Endless when shuffling. Close it to
        stop the thread.
        """
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCH)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._work, args=(start, ready, stop), name="loader", daemon=True
        )
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def episode(self, episode: int) -> Batch:
        """All windows of an episode (counted over all datasets) in order: a batch of as many rows
        as it has steps.
        """
        dataset_id, inside = self._locate(episode)
        split = self._splits[dataset_id]
        length = int(split.length[inside])
        if not length:
            raise ValueError(
                f"episode {episode}: expected at least one step, it has none after standardisation"
            )
        first = self._bases[dataset_id] + int(split.first[inside])
        return self._read(first + np.arange(length), None)

    def _read(self, ids: np.ndarray, position: int | None) -> Batch:
        """The windows `ids` decoded for this one batch."""
        pool = Pool(self._decoder, len(self._config.cameras))
        try:
            visits = self._visit(ids)
            for visit in np.unique(visits).tolist():
                wanted = ids[visits == visit]
                span = self._span(int(wanted.min()), int(wanted.max()) + 1)
                pool.plan(visit, span, len(wanted), more=False)
            return self._make(ids, position, pool)
        finally:
            pool.close()

    def _work(self, start: int, ready: "queue.Queue[Any]", stop: threading.Event) -> None:
        """The thread behind `batches`: decoding runs ahead, batches are put together in order."""

        def put(item: Batch | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    # Looks up now and then: nobody may be taking any more.
                    ready.put(item, timeout=0.05)
                    return
                except queue.Full:
                    continue

        pool = Pool(self._decoder, len(self._config.cameras))
        try:
            plan = self._plan(pool, start)
            end = None if self._config.shuffle else self._batches_per_pass()
            visit_windows = self._visit_counts.mean() if len(self._visit_counts) else 0.0
            ahead = max(
                PREFETCH,
                round(
                    VISITS_AHEAD * self._decoder.workers * visit_windows / max(1, len(self._rows))
                ),
            )
            planned = position = start
            while not stop.is_set() and (end is None or position < end):
                while planned <= position + ahead and (end is None or planned < end):
                    next(plan)
                    planned += 1
                put(self._make(self.ids(position), position, pool))
                position += 1
            put(None)
        except BaseException as error:
            put(error)
        finally:
            pool.close()

    def _plan(self, pool: Pool, start: int) -> Generator[None, None, None]:
        """Tells the pool, one batch per step from a position on, which visits come and how long to
        keep them.
        """
        last_epoch, left = -1, np.zeros(0, np.int64)
        position = start
        while True:
            samples = position * self._config.batch_size + self._rows
            for ids, epoch in self._by_epoch(samples):
                if epoch != last_epoch:
                    last_epoch, left = epoch, self._uses(epoch, start * self._config.batch_size)
                visits = np.unique(self._visit(ids), return_counts=True)
                for visit, count in zip(*visits, strict=True):
                    left[visit] -= count
                    begin = int(self._visit_starts[visit])
                    span = self._span(begin, begin + int(self._visit_counts[visit]))
                    more = self.decoded_once or bool(left[visit] > 0)
                    pool.plan(int(visit), span, int(count), more)
            position += 1
            yield

    def _uses(self, epoch: int, start: int) -> np.ndarray:
        """How many windows of each visit this host makes in an epoch, from the sample `start` on:
        [V].
        """
        size = self._config.batch_size
        length = self.windows if self._config.shuffle else self._batches_per_pass() * size
        samples = np.arange(max(epoch * length, start), (epoch + 1) * length)
        ours = np.zeros(size, bool)
        ours[self._rows] = True
        uses = np.bincount(self._ids(samples[ours[samples % size]]), minlength=self._bases[-1])
        return np.add.reduceat(uses, self._visit_starts)

    def _by_epoch(self, samples: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """(ids, epoch) of samples that may straddle two epochs."""
        epoch = samples // self.windows if self._config.shuffle else np.zeros_like(samples)
        return [(self._ids(samples[epoch == number]), int(number)) for number in np.unique(epoch)]

    def _ids(self, samples: np.ndarray) -> np.ndarray:
        """The ids of the windows of samples (position x batch_size + row)."""
        if self._config.shuffle:
            return self._order.windows(samples)
        samples = np.minimum(samples, self.windows - 1)
        # Every window is a visit of its own, or every row is a window.
        return self._visit_starts[samples] if self._config.stride > 1 else samples

    def _batches_per_pass(self) -> int:
        """Batches in one pass in file order."""
        return -(-self.windows // self._config.batch_size)

    def _visit(self, ids: np.ndarray) -> np.ndarray:
        """The visits that hold windows."""
        return np.searchsorted(self._visit_starts, ids, side="right") - 1

    def _span(self, begin: int, end: int) -> Span:
        """The frames that the windows with the ids [begin, end) of one episode need."""
        dataset_id = int(np.searchsorted(self._bases, begin, side="right")) - 1
        base, split = int(self._bases[dataset_id]), self._splits[dataset_id]
        begin, end = begin - base, end - base
        episode = int(np.searchsorted(split.first, begin, side="right")) - 1
        first = int(split.first[episode])
        start = max(first, begin - self._config.window + 1)
        runs = future_runs(start, end, first + int(split.length[episode]), self._config.future)
        return Span(dataset_id, start, end, tuple((int(a), int(b)) for a, b in runs if a < b))

    def _locate(self, episode: int) -> tuple[int, int]:
        """(dataset, episode in it) of an episode counted over all datasets."""
        counts = np.cumsum([0, *(len(split.length) for split in self._splits)])
        if not 0 <= episode < counts[-1]:
            raise ValueError(f"episode: expected one below {counts[-1]}, got {episode}")
        dataset_id = int(np.searchsorted(counts, episode, side="right")) - 1
        return dataset_id, episode - int(counts[dataset_id])

    def _make(self, ids: np.ndarray, position: int | None, pool: Pool) -> Batch:
        """The batch of the windows `ids` [b], whose visits are open."""
        batch = self._assembler.empty(len(ids))
        dataset_ids = np.searchsorted(self._bases, ids, side="right") - 1
        # Steps in the dataset's own columns.
        frames = np.zeros((len(ids), self._config.window), np.int64)
        draws = self._draws(position)
        future = np.zeros((*frames.shape, len(self._config.future)), np.int64)
        for dataset_id in np.unique(dataset_ids).tolist():
            rows = np.flatnonzero(dataset_ids == dataset_id)
            newest = ids[rows] - self._bases[dataset_id]
            frames[rows], future[rows] = self._assembler.fill_numbers(
                batch, dataset_id, rows, newest, None if draws is None else draws[rows]
            )
        visits = self._visit(ids)
        for visit in np.unique(visits).tolist():
            rows = np.flatnonzero(visits == visit)
            self._assembler.fill_images(batch, rows, (frames[rows], future[rows]), pool, visit)
            pool.done(visit, len(rows))
        if self._write is not None:
            batch = batch._replace(action_tokens=self._write(batch))
        if position is None or self._config.shuffle:
            return batch
        real = position * self._config.batch_size + self._rows < self.windows
        if batch.future is not None:
            batch = batch._replace(
                future=batch.future._replace(mask=batch.future.mask & real[:, None, None, None])
            )
        return batch._replace(action_mask=batch.action_mask & real[:, None, None, None])

    def _draws(self, position: int | None) -> np.ndarray | None:
        """What chooses among the alternatives of an instruction, for this host's rows [b]; None
        where there are none, and out of order.
        """
        if not self._alternatives or position is None or not self._config.shuffle:
            return None
        draws = order.raw(self._config.batch_size, self._config.seed, position, WORDS)
        return (draws[self._rows] >> np.uint64(1)).astype(np.int64)

    def _pool_size(self, frames: int) -> int:
        """Visits that fit into the RAM budget, where the frames of all have so many bytes; all of
        them when none stays open for a second window.
        """
        count = len(self._visit_starts)
        if self._config.windows_per_visit == 1 or self._config.stride > 1:
            return count
        return int(np.clip(self._config.ram_budget * count / frames, 1, count))
