"""Batches as a pure function of (seed, position).

There is no shuffle buffer and no iterator state: `batch(p)` can be asked for in any order and on any host, so a run resumes from
the number of batches it has consumed. Episodes are decoded once and kept while windows of them are due, within a stated budget.

Axes: b batch, t window step, k chunk step, d action dim, p proprio, l text, h w pixels.
"""

import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines import images, windows
from data_pipelines.index import Index
from vla_jax.actions import ActionSpec
from vla_jax.types import Batch, Observation

PREFETCH = 2  # batches made ahead of the consumer


@dataclass(frozen=True)
class LoaderConfig:
    """What a batch looks like, and how many bytes of decoded frames may be kept."""

    window: int
    chunk: int
    cameras: tuple[str, ...]
    image_size: int
    prompt_length: int
    batch_size: int
    seed: int
    ram_budget: int
    shuffle: bool


class Loader:
    """Windows of one split.

    Args:
        index: of the dataset.
        split: its name.
        specs: of actions and state.
        config: see there.
        encode: instruction -> token ids.
        rows: which rows of the global batch this host makes; None: all.

    Raises ValueError for a split or camera that is not there, a window longer than every episode, and a budget below one episode.
    """

    def __init__(
        self,
        index: Index,
        split: str,
        specs: tuple[ActionSpec, ActionSpec],
        config: LoaderConfig,
        encode: Callable[[str], np.ndarray],
        rows: Int[np.ndarray, " rows"] | None = None,
    ) -> None:
        if split not in index.splits:
            raise ValueError(f"{index.dataset.name}: expected a split of {', '.join(index.splits)}, got {split!r}")
        self._index, self._split, self._data, self._config = index, split, index.splits[split], config
        self._encode = encode
        self._rows = np.arange(config.batch_size) if rows is None else rows
        self._actions = specs[0].normalise(self._data.actions)
        self._state = specs[1].normalise(self._data.state)
        lengths = self._data.length
        if config.window > lengths.max():
            raise ValueError(
                f"model.window: expected at most {lengths.max()}, the longest episode of {index.dataset.name}/{split}, "
                f"got {config.window}"
            )
        if not set(config.cameras) & set(index.dataset.cameras):
            raise ValueError(
                f"model.cameras: expected one of {', '.join(index.dataset.cameras)} as {index.dataset.name} has, "
                f"got {', '.join(config.cameras)}"
            )
        self.windows = int(lengths.sum())
        self.pool = self._episodes_in_budget()
        self._episode_of = np.repeat(np.arange(len(lengths)), lengths)
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()
        self._prompts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._pixels: OrderedDict[int, list[np.ndarray | None]] = OrderedDict()
        self._lock = threading.Lock()
        self._files: dict[int, int] = {}

    def batch(self, position: int) -> Batch:
        """The rows of batch number `position`, as numpy. Without shuffling the last batch is filled up with masked windows."""
        config = self._config
        number = position * config.batch_size + self._rows
        if not config.shuffle:
            real = number < self.windows
            if not real.any() and position >= -(-self.windows // config.batch_size):
                raise ValueError(f"{self._split}: expected a position below {-(-self.windows // config.batch_size)}, got {position}")
            return self._assemble(np.minimum(number, self.windows - 1), real)
        epochs = number // self.windows
        picked = np.empty(len(number), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            picked[here] = self._order(int(epoch))[number[here] % self.windows]
        return self._assemble(picked, np.ones(len(picked), bool))

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Batches from position `start`, made ahead by a thread; endless when shuffled, one pass when not.

        An error in the thread is raised here. Closing the generator stops the thread.
        """
        last = None if self._config.shuffle else -(-self.windows // self._config.batch_size)
        ready: queue.Queue[Any] = queue.Queue(PREFETCH)
        stop = threading.Event()

        def put(item: Any) -> None:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def work() -> None:
            position = start
            try:
                while not stop.is_set() and (last is None or position < last):
                    put(self.batch(position))
                    position += 1
                put(None)
            except Exception as error:  # handed to the consumer, which raises it
                put(error)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def identity(self) -> dict[str, Any]:
        """What fixes the order and content of batches: a run may only be continued where this is the same."""
        config = self._config
        return {
            "dataset": self._index.dataset.name,
            "split": self._split,
            "digest": self._index.digest,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "windows": self.windows,
            "pool": self.pool,
        }

    def instruction(self, episode: int) -> str:
        """The words of an episode."""
        return self._data.instructions[episode]

    def episode(self, episode: int) -> Batch:
        """Every frame of an episode in order: b is the frame, and each row the window that ends there."""
        first, length = self._data.first[episode], self._data.length[episode]
        return self._assemble(first + np.arange(length), np.ones(length, bool))

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                self._orders[epoch] = windows.order(self._data.length, self._config.seed, epoch, self.pool)
                while len(self._orders) > 2:
                    self._orders.popitem(last=False)
            return self._orders[epoch]

    def _assemble(self, picked: np.ndarray, real: np.ndarray) -> Batch:
        """The windows that end at the frames `picked`; those not `real` are masked out of the loss."""
        config = self._config
        episodes = self._episode_of[picked]
        first, length = self._data.first[episodes], self._data.length[episodes]
        w = windows.window(picked - first, length, config.window, config.chunk)
        pixels = self._decoded(np.unique(episodes))
        shape = (len(picked), config.window, config.image_size, config.image_size, 3)
        views = []
        for c in range(len(config.cameras)):
            view = np.zeros(shape, np.uint8)
            for row, episode in enumerate(episodes):
                frames = pixels[episode][c]
                if frames is not None:
                    view[row] = frames[w.frames[row]]
            views.append(view)
        has = np.array([camera in self._data.frames for camera in config.cameras])
        prompts = [self._prompt(self._data.instructions[episode]) for episode in episodes]
        mask = w.action_mask & real[:, None, None]
        actions = self._actions[first[:, None, None] + w.actions]  # b t k d
        obs = Observation(
            images=tuple(views),
            image_mask=np.broadcast_to(has, (len(picked), config.window, len(has))).copy(),
            proprio=self._state[first[:, None] + w.frames],
            proprio_mask=np.ones(len(picked), bool),
            prompt=np.stack([ids for ids, _ in prompts]),
            prompt_mask=np.stack([valid for _, valid in prompts]),
            step_mask=w.step_mask,
        )
        full = np.broadcast_to(mask[..., None], actions.shape).copy()
        return Batch(obs, np.where(full, actions, np.float32(0)), full, np.zeros(len(picked), np.int32))

    def _prompt(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        if instruction not in self._prompts:
            ids, room = np.asarray(self._encode(instruction), np.int32), self._config.prompt_length
            if len(ids) > room:
                raise ValueError(
                    f"model.prompt_length: expected at least {len(ids)} for the instruction {instruction!r}, got {room}"
                )
            valid = np.arange(room) < len(ids)
            self._prompts[instruction] = np.pad(ids, (0, room - len(ids))), valid
        return self._prompts[instruction]

    # ------------------------------------------------------------------------------------------------- decoded episodes

    def _bytes_per_frame(self) -> int:
        cameras = sum(camera in self._data.frames for camera in self._config.cameras)
        return cameras * self._config.image_size**2 * 3

    def _episodes_in_budget(self) -> int:
        """How many episodes may be open at once: the mixing that the budget buys."""
        longest = int(self._data.length.max()) * self._bytes_per_frame()
        if longest > self._config.ram_budget:
            raise ValueError(
                f"data.ram_budget: expected at least {longest:,} bytes, the longest episode of {self._index.dataset.name} "
                f"decoded, got {self._config.ram_budget:,}"
            )
        return max(1, int(self._config.ram_budget / (self._data.length.mean() * self._bytes_per_frame())))

    def _decoded(self, episodes: np.ndarray) -> dict[int, list[np.ndarray | None]]:
        """Frames [T h w 3] per camera of the given episodes; what the budget does not hold is dropped, oldest use first."""
        with self._lock:
            found = {e: self._pixels[e] for e in episodes.tolist() if e in self._pixels}
        lacking = [e for e in episodes.tolist() if e not in found]
        if len(lacking) == 1:
            found[lacking[0]] = self._decode(lacking[0])
        elif lacking:
            with ThreadPoolExecutor(os.cpu_count()) as workers:  # Pillow releases the GIL
                found |= zip(lacking, workers.map(self._decode, lacking), strict=True)
        with self._lock:
            for e in episodes.tolist():
                self._pixels[e] = found[e]
                self._pixels.move_to_end(e)
            kept = sum(self._data.length[e] for e in self._pixels) * self._bytes_per_frame()
            while kept > self._config.ram_budget and len(self._pixels) > 1:
                oldest, _ = self._pixels.popitem(last=False)
                kept -= self._data.length[oldest] * self._bytes_per_frame()
        return found

    def _decode(self, episode: int) -> list[np.ndarray | None]:
        """One read per episode and camera, then each frame."""
        data, size = self._data, self._config.image_size
        shard = int(data.shard[episode])
        handle = self._open(shard)
        rows = slice(data.first[episode], data.first[episode] + data.length[episode])
        out: list[np.ndarray | None] = []
        for camera in self._config.cameras:
            if camera not in data.frames:
                out.append(None)
                continue
            spans = data.frames[camera][rows]
            start, stop = int(spans[0, 0]), int(spans[-1].sum())
            block = os.pread(handle, stop - start, start)
            if len(block) != stop - start:
                raise ValueError(f"{data.files[shard]}: expected {stop - start} bytes at {start}, got {len(block)}; truncated?")
            frames = np.empty((len(spans), size, size, 3), np.uint8)
            for i, (offset, length) in enumerate(spans.tolist()):
                frames[i] = images.decode(block[offset - start : offset - start + length], size)
            out.append(frames)
        return out

    def _open(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self._data.files[shard], os.O_RDONLY)
            return self._files[shard]
