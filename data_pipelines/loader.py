"""Batches of windows from a mixture: what comes at a position depends on nothing but the seed and the position."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from data_pipelines import order, windows
from data_pipelines.frames import Buffers, Decoder, Pool, Span
from data_pipelines.mixture import Part, check
from vla_jax.types import Batch, Observation

PREFETCH = 2  # batches made ahead of the one in use
VISITS_AHEAD = 4  # per decoding thread: enough that none waits while a batch is put together


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a window holds and how windows are drawn.

    Attributes:
        window: frames per window, t.
        chunk: actions per frame, k.
        cameras: slots in the order the model takes them; one that a dataset lacks is black and masked.
        image_size: pixels, height and width, one per camera.
        prompt_length: tokens, l.
        batch_size: windows per global batch.
        seed: of the order.
        ram_budget: bytes of decoded frames, over all hosts; it decides how many visits are mixed at a time.
        windows_per_visit: consecutive windows of an episode that are decoded together. Fewer mix better in the same
            memory, and cost window - 1 more decoded frames each.
        shuffle: endless shuffled epochs; False: one pass in file order.
    """

    window: int
    chunk: int
    cameras: tuple[str, ...]
    image_size: tuple[int, ...]
    prompt_length: int
    batch_size: int
    seed: int
    ram_budget: int
    windows_per_visit: int
    shuffle: bool


class Loader:
    """Batches of a mixture. `windows` is the number of windows in an epoch."""

    windows: int

    def __init__(
        self,
        parts: list[Part],
        config: LoaderConfig,
        encode: Callable[[str], np.ndarray],
        rows: np.ndarray | None = None,
    ) -> None:
        """Checks the config against the data and encodes all instructions.

        Args:
            parts: the datasets; `Batch.dataset_id` counts them.
            config: see LoaderConfig.
            encode: an instruction to its token ids [n].
            rows: rows of the global batch that this host builds; None = all.

        Raises ValueError when splits, window, cameras or prompt length do not fit the data.
        """
        if len(config.image_size) != len(config.cameras):
            raise ValueError(f"model.image_size: expected one per camera {config.cameras}, got {config.image_size}")
        check(parts, config.cameras, config.window)
        self._parts, self._config = parts, config
        self._splits = [part.index.splits[part.split] for part in parts]
        self._rows = np.arange(config.batch_size) if rows is None else np.asarray(rows)
        if self._rows.size and not 0 <= self._rows.min() <= self._rows.max() < config.batch_size:
            raise ValueError(f"rows: expected rows of a batch of {config.batch_size}, got {self._rows}")
        self._prompts = [_prompts(split.sentences, encode, config.prompt_length) for split in self._splits]
        swapped = [part.index.dataset.bgr for part in parts]
        self._decoder = Decoder(self._splits, swapped, config.cameras, config.image_size)
        self._buffers = Buffers((PREFETCH + 3) * len(config.cameras))
        self._bases = np.cumsum([0, *(int(split.length.sum()) for split in self._splits)])
        self._state_dim = max(len(part.state_spec.names) for part in parts)
        self._visits = [order.visits(split.length.astype(np.int64), config.windows_per_visit) for split in self._splits]
        self._visit_starts = np.concatenate(
            [visits.start + base for visits, base in zip(self._visits, self._bases[:-1], strict=True)]
        )
        self._visit_counts = np.concatenate([visits.windows for visits in self._visits])
        self.pool = self._pool_size()
        self._order = order.Order(
            self._visits,
            [part.weight for part in parts],
            order.OrderConfig(config.seed, config.batch_size, self.pool),
        )
        self.windows = self._order.epoch_length if config.shuffle else int(self._bases[-1])

    def identity(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same batch; JSON-able."""
        config = self._config
        return {
            "datasets": [
                [part.index.dataset.name, part.split, part.weight, part.index.digest[:16]] for part in self._parts
            ],
            "seed": config.seed,
            "batch_size": config.batch_size,
            "pool": self.pool,
            "windows_per_visit": config.windows_per_visit,
            "shuffle": config.shuffle,
        }

    def epoch(self, number: int) -> np.ndarray:
        """The windows of an epoch in order, [windows] rows of all datasets' steps put together."""
        return self._order.epoch(number)

    def instruction(self, episode: int) -> str:
        """The words of an episode, counted over all datasets."""
        part, inside = self._locate(episode)
        split = self._splits[part]
        return split.sentences[int(split.instruction[inside])]

    def summary(self) -> str:
        """The mixture as a table, and how well it is mixed: what to look at before a long run."""
        shares = np.array(self._order.taken) / self._order.epoch_length
        rows = [
            f"{'dataset':44s} {'weight':>7s} {'share':>7s} {'windows':>10s} {'episodes':>9s} {'Hz':>5s}  cameras, state"
        ]
        for part, split, share in zip(self._parts, self._splits, shares, strict=True):
            dataset = part.index.dataset
            seen = [slot for slot in self._config.cameras if slot in split.frames]
            rows.append(
                f"{dataset.name:44.44s} {part.weight:7.4g} {share:7.2%} {int(split.length.sum()):10d} "
                f"{len(split.length):9d} {dataset.control_hz or '?':>5}  {'+'.join(seen)}, {len(dataset.state_names)}"
            )
        rates = sorted({part.index.dataset.control_hz or 0.0 for part in self._parts})
        if len(rates) > 1:
            rows.append(
                f"control rates differ ({', '.join(f'{r:g}' if r else 'unknown' for r in rates)} Hz): a chunk of "
                f"{self._config.chunk} steps is not the same time in every dataset"
            )
        found = self._order.epoch(0)
        firsts = np.concatenate([s.first + base for s, base in zip(self._splits, self._bases[:-1], strict=True)])
        mixed = order.mixing(np.searchsorted(firsts, found, side="right"))
        rows.append(
            f"{self.windows} windows an epoch; {self.pool} visits open at a time; {mixed.batch} windows in a row hold "
            f"{mixed.pairs:.1f} pairs from the same episode, {mixed.episodes:.1f} distinct episodes"
        )
        return "\n".join(rows)

    def batch(self, position: int) -> Batch:
        """This host's rows of the batch at a position: a pure function of the identity and the position.

        Without shuffling the last batch is filled up with repeated windows whose action_mask is False. Decodes the
        frames of these windows alone; `batches` is the fast way to read many.
        """
        return self._read(self._at(position), position)

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches from a position on, made ahead in a thread. Endless when shuffling. Close it to stop the thread."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCH)
        stop = threading.Event()
        thread = threading.Thread(target=self._work, args=(start, ready, stop), name="loader", daemon=True)
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
        """All windows of an episode (counted over all datasets) in order: a batch of as many rows as it has steps."""
        part, inside = self._locate(episode)
        split = self._splits[part]
        length = int(split.length[inside])
        if not length:
            raise ValueError(f"episode {episode}: expected at least one step, it has none after standardisation")
        return self._read(self._bases[part] + int(split.first[inside]) + np.arange(length), None)

    def _read(self, flat: np.ndarray, position: int | None) -> Batch:
        """The windows `flat` decoded for this one batch."""
        pool = Pool(self._decoder, len(self._config.cameras))
        try:
            visit = self._visit(flat)
            for number in np.unique(visit).tolist():
                wanted = flat[visit == number]
                pool.plan(number, self._span(int(wanted.min()), int(wanted.max()) + 1), len(wanted), more=False)
            return self._make(flat, position, pool)
        finally:
            pool.close()

    def _work(self, start: int, ready: "queue.Queue[Any]", stop: threading.Event) -> None:
        """The thread behind `batches`: decoding runs ahead, batches are put together in order."""

        def put(item: Batch | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.05)  # looks up now and then: nobody may be taking any more
                    return
                except queue.Full:
                    continue

        pool = Pool(self._decoder, len(self._config.cameras))
        try:
            plan = self._plan(pool, start)
            end = None if self._config.shuffle else self._passes()
            visit_windows = self._bases[-1] / max(1, len(self._visit_starts))
            ahead = max(PREFETCH, round(VISITS_AHEAD * pool.workers * visit_windows / max(1, len(self._rows))))
            planned = position = start
            while not stop.is_set() and (end is None or position < end):
                while planned <= position + ahead and (end is None or planned < end):
                    next(plan)
                    planned += 1
                put(self._make(self._at(position), position, pool))
                position += 1
            put(None)
        except BaseException as error:
            put(error)
        finally:
            pool.close()

    def _plan(self, pool: Pool, start: int) -> Generator[None, None, None]:
        """Tells the pool, one batch per step from a position on, which visits come and how long to keep them."""
        epoch, left = -1, np.zeros(0, np.int64)
        position = start
        while True:
            samples = position * self._config.batch_size + self._rows
            for flat, number in self._by_epoch(samples):
                if number != epoch:
                    epoch, left = number, self._uses(number, start * self._config.batch_size)
                for visit, count in zip(*np.unique(self._visit(flat), return_counts=True), strict=True):
                    left[visit] -= count
                    begin = int(self._visit_starts[visit])
                    span = self._span(begin, begin + int(self._visit_counts[visit]))
                    pool.plan(int(visit), span, int(count), more=bool(left[visit] > 0))
            position += 1
            yield

    def _uses(self, epoch: int, start: int) -> np.ndarray:
        """How many windows of each visit this host makes in an epoch, from the sample `start` on: [V]."""
        size = self._config.batch_size
        length = self.windows if self._config.shuffle else self._passes() * size
        samples = np.arange(max(epoch * length, start), (epoch + 1) * length)
        ours = np.zeros(size, bool)
        ours[self._rows] = True
        rows = np.bincount(self._flat(samples[ours[samples % size]]), minlength=self._bases[-1])
        return np.add.reduceat(rows, self._visit_starts)

    def _by_epoch(self, samples: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """(windows, epoch) of samples that may straddle two epochs."""
        epoch = samples // self.windows if self._config.shuffle else np.zeros_like(samples)
        return [(self._flat(samples[epoch == number]), int(number)) for number in np.unique(epoch)]

    def _at(self, position: int) -> np.ndarray:
        """The windows of this host's rows at a position."""
        if not self._config.shuffle and not 0 <= position < self._passes():
            raise ValueError(f"batch: expected a position below {self._passes()} (one pass), got {position}")
        return self._flat(position * self._config.batch_size + self._rows)

    def _flat(self, samples: np.ndarray) -> np.ndarray:
        """The windows of samples, as rows of all datasets' columns put together."""
        if self._config.shuffle:
            return self._order.windows(samples)
        return np.minimum(samples, self.windows - 1)

    def _passes(self) -> int:
        return -(-self.windows // self._config.batch_size)

    def _visit(self, flat: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._visit_starts, flat, side="right") - 1

    def _span(self, begin: int, end: int) -> Span:
        """The frames that the windows [begin, end) of one episode need."""
        part = int(np.searchsorted(self._bases, begin, side="right")) - 1
        begin, end = begin - int(self._bases[part]), end - int(self._bases[part])
        split = self._splits[part]
        first = int(split.first[np.searchsorted(split.first, begin, side="right") - 1])
        return Span(part, max(first, begin - self._config.window + 1), end)

    def _locate(self, episode: int) -> tuple[int, int]:
        """(dataset, episode in it) of an episode counted over all datasets."""
        counts = np.cumsum([0, *(len(split.length) for split in self._splits)])
        if not 0 <= episode < counts[-1]:
            raise ValueError(f"episode: expected one below {counts[-1]}, got {episode}")
        part = int(np.searchsorted(counts, episode, side="right")) - 1
        return part, episode - int(counts[part])

    def _make(self, flat: np.ndarray, position: int | None, pool: Pool) -> Batch:
        """The batch of windows whose newest steps are the rows `flat` [b] of all columns; their visits are open."""
        config, b = self._config, len(flat)
        batch = self._empty(b)
        images: Any = batch.obs.images
        part_of = np.searchsorted(self._bases, flat, side="right") - 1
        frames = np.zeros((b, config.window), np.int64)  # rows of the dataset's own columns
        for number in np.unique(part_of).tolist():
            here = np.flatnonzero(part_of == number)
            frames[here] = self._numbers(batch, number, here, flat[here] - self._bases[number])
        for visit in np.unique(self._visit(flat)).tolist():
            begin = self._visit_starts[visit]
            here = np.flatnonzero((flat >= begin) & (flat < begin + self._visit_counts[visit]))
            for camera, out in enumerate(images):
                found, first = pool.frames(visit, camera)
                for row in here:
                    if found is None:
                        out[row] = 0
                    else:  # "clip" lets take write into `out` without a copy; no index is out of range
                        found.take(frames[row] - first, axis=0, out=out[row], mode="clip")
            pool.done(visit, len(here))
        if position is None or config.shuffle:
            return batch
        real = position * config.batch_size + self._rows < self.windows
        return batch._replace(action_mask=batch.action_mask & real[:, None, None, None])

    def _numbers(self, batch: Batch, number: int, here: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Fills in all but the images of the rows `here` of a batch, from rows of a dataset. Returns their frames."""
        part, split, config = self._parts[number], self._splits[number], self._config
        episode = np.searchsorted(split.first, rows, side="right") - 1
        # Episodes without steps share their first row with the next one; `right` finds the last of them.
        first, length = split.first[episode].astype(np.int64), split.length[episode].astype(np.int64)
        at = windows.steps(rows - first, length, config.window, config.chunk)
        actions = windows.actions(split.actions, first, at, part.action_spec)
        batch.actions[here] = part.action_spec.normalise(actions)
        batch.action_mask[here] = at.action_mask[..., None]
        frames = first[:, None] + at.frames
        state = part.state_spec.normalise(np.asarray(split.state)[frames])
        batch.obs.proprio[here, :, : state.shape[-1]] = state
        batch.obs.proprio_mask[here] = state.shape[-1] > 0
        batch.obs.image_mask[here] = [slot in split.frames for slot in config.cameras]
        prompt, mask = self._prompts[number]
        sentence = split.instruction[episode]
        batch.obs.prompt[here], batch.obs.prompt_mask[here] = prompt[sentence], mask[sentence]
        batch.obs.step_mask[here] = at.step_mask
        batch.dataset_id[here] = number
        return frames

    def _empty(self, b: int) -> Batch:
        """Arrays for b windows, to be filled in."""
        config = self._config
        t, k, d, l = config.window, config.chunk, len(self._parts[0].action_spec.names), config.prompt_length  # noqa: E741
        return Batch(
            Observation(
                images=tuple(self._buffers.take((b, t, size, size, 3)) for size in config.image_size),
                image_mask=np.empty((b, t, len(config.cameras)), bool),
                proprio=np.zeros((b, t, self._state_dim), np.float32),
                proprio_mask=np.empty(b, bool),
                prompt=np.empty((b, l), np.int32),
                prompt_mask=np.empty((b, l), bool),
                step_mask=np.empty((b, t), bool),
            ),
            np.empty((b, t, k, d), np.float32),
            np.empty((b, t, k, d), bool),
            np.empty(b, np.int32),
        )

    def _pool_size(self) -> int:
        """Visits that fit into the RAM budget; all of them when none stays open for a second window."""
        if self._config.windows_per_visit == 1:
            return len(self._visit_starts)
        total = 0.0
        for number, visits in enumerate(self._visits):
            frames = float(visits.windows.sum() + (self._config.window - 1) * len(visits.windows))
            total += frames * self._decoder.bytes_per_frame(number)
        count = len(self._visit_starts)
        return int(np.clip(self._config.ram_budget * count / total, 1, count))


def _prompts(
    sentences: tuple[str, ...], encode: Callable[[str], np.ndarray], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [S l] int32 of distinct sentences, padded with zeros on the right, and their mask."""
    prompt = np.zeros((len(sentences), length), np.int32)
    mask = np.zeros((len(sentences), length), bool)
    for row, text in enumerate(sentences):
        ids = np.asarray(encode(text))
        if len(ids) > length:
            raise ValueError(
                f"model.prompt_length: expected at least {len(ids)} for the instruction {text!r}, got {length}"
            )
        prompt[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return prompt, mask
