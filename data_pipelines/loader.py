"""Batches of windows from an index: what comes at a position depends on nothing but the seed and the position."""

import dataclasses
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from data_pipelines import images, windows
from data_pipelines.index import Index, Split
from vla_jax.actions import ActionSpec
from vla_jax.types import Batch, Observation

PREFETCH = 2  # batches made ahead of the one in use


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a window holds and how windows are drawn.

    Attributes:
        window: frames per window, t.
        chunk: actions per frame, k.
        cameras: slots in the order the model takes them; one that the dataset lacks is black and masked.
        image_size: pixels, height and width.
        prompt_length: tokens, l.
        batch_size: windows per global batch.
        seed: of the order.
        ram_budget: bytes of decoded frames to keep; it also bounds how many episodes are mixed at a time.
        shuffle: endless shuffled epochs; False: one pass in file order.
    """

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
    """Batches of one split. `windows` is their number in one epoch: one for every step."""

    windows: int

    def __init__(
        self,
        index: Index,
        split: str,
        specs: tuple[ActionSpec, ActionSpec],
        config: LoaderConfig,
        encode: Callable[[str], np.ndarray],
        rows: np.ndarray | None = None,
    ) -> None:
        """Checks the config against the data and encodes all instructions.

        Args:
            index: of the dataset.
            split: name of one of its splits.
            specs: normalisation of the actions and of the state.
            config: see LoaderConfig.
            encode: an instruction to its token ids [n].
            rows: rows of the global batch that this host builds; None = all.

        Raises ValueError when split, window, cameras or prompt length do not fit the data.
        """
        self._split, self._config, self._digest = _checked(index, split, config), config, index.digest
        self._rows = np.arange(config.batch_size) if rows is None else np.asarray(rows)
        if self._rows.size and not 0 <= self._rows.min() <= self._rows.max() < config.batch_size:
            raise ValueError(f"rows: expected rows of a batch of {config.batch_size}, got {self._rows}")
        action_spec, state_spec = specs
        self._actions = action_spec.normalise(self._split.actions)  # N d
        self._state = state_spec.normalise(self._split.state)  # N p
        self._prompt, self._prompt_mask = _prompts(self._split.instructions, encode, config.prompt_length)
        self._frames = _FramePool(self._split, config.image_size, config.ram_budget)
        self.windows = int(self._split.length.sum())
        present = sum(slot in self._split.frames for slot in config.cameras)
        episode_bytes = self.windows / np.count_nonzero(self._split.length) * config.image_size**2 * 3 * present
        self._pool = int(np.clip(config.ram_budget / episode_bytes, 1, len(self._split.length)))
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        if config.shuffle:
            print(
                f"{index.dataset.name}/{split}: {self.windows} windows, {self._pool} episodes mixed at a time",
                flush=True,
            )

    def identity(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same batch; JSON-able."""
        return {
            "dataset": self._digest,
            "split": self._split.name,
            "seed": self._config.seed,
            "batch_size": self._config.batch_size,
            "pool": self._pool,
            "shuffle": self._config.shuffle,
        }

    def instruction(self, episode: int) -> str:
        """The words of an episode."""
        return self._split.instructions[episode]

    def batch(self, position: int) -> Batch:
        """This host's rows of the batch at a position: a pure function of the identity and the position.

        Without shuffling the last batch is filled up with repeated windows whose action_mask is False.
        """
        at = position * self._config.batch_size + self._rows
        if self._config.shuffle:
            epoch = at // self.windows
            flat = np.zeros_like(at)
            for number in np.unique(epoch):
                here = epoch == number
                flat[here] = self._order(int(number))[at[here] % self.windows]
            return self._make(flat)
        if not 0 <= position < self._passes():
            raise ValueError(f"batch: expected a position below {self._passes()} (one pass), got {position}")
        batch = self._make(np.minimum(at, self.windows - 1))
        return batch._replace(action_mask=batch.action_mask & (at < self.windows)[:, None, None, None])

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
        """All windows of an episode in order: a batch of as many rows as it has steps."""
        first, length = self._split.first[episode], self._split.length[episode]
        if not length:
            raise ValueError(f"episode {episode}: expected at least one step, it has none after standardisation")
        return self._make(np.arange(first, first + length))

    def _passes(self) -> int:
        return -(-self.windows // self._config.batch_size)

    def _work(self, start: int, ready: "queue.Queue[Any]", stop: threading.Event) -> None:
        def put(item: Batch | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.05)  # looks up now and then: nobody may be taking any more
                    return
                except queue.Full:
                    continue

        try:
            position = start
            while not stop.is_set() and (self._config.shuffle or position < self._passes()):
                put(self.batch(position))
                position += 1
            put(None)
        except BaseException as error:
            put(error)

    def _order(self, epoch: int) -> np.ndarray:
        number, found = self._epoch  # read once: another thread may replace the pair
        if number != epoch:
            found = windows.order(self._split.length, self._config.seed, epoch, self._pool)
            self._epoch = (epoch, found)
        return found

    def _make(self, flat: np.ndarray) -> Batch:
        """The windows whose newest steps are the rows `flat` [b] of the split."""
        split, config = self._split, self._config
        episode = np.searchsorted(split.first, flat, side="right") - 1
        first = split.first[episode]
        at = windows.steps(flat - first, split.length[episode], config.window, config.chunk)
        frames = first[:, None] + at.frames  # b t
        actions = self._actions[first[:, None, None] + at.actions]  # b t k d
        mask = np.broadcast_to(at.action_mask[..., None], actions.shape).copy()
        present = np.array([slot in split.frames for slot in config.cameras])
        b, t = frames.shape
        obs = Observation(
            images=tuple(self._frames.get(slot, episode, at.frames) for slot in config.cameras),
            image_mask=np.broadcast_to(present, (b, t, len(present))).copy(),
            proprio=self._state[frames],
            proprio_mask=np.ones(b, bool),
            prompt=self._prompt[episode],
            prompt_mask=self._prompt_mask[episode],
            step_mask=at.step_mask,
        )
        return Batch(obs, np.where(mask, actions, np.float32(0)), mask, np.zeros(b, np.int32))


class _FramePool:
    """Decoded frames of the least recently left episodes, within a budget of bytes."""

    def __init__(self, split: Split, size: int, budget: int) -> None:
        self._split, self._size, self._budget = split, size, budget
        self._kept: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes and resizes outside the GIL

    def get(self, slot: str, episode: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Frames [b t h w 3] of the steps [b t] of episodes [b]; black when the dataset lacks the camera."""
        out = np.zeros((*steps.shape, self._size, self._size, 3), np.uint8)
        if slot in self._split.frames:
            with self._lock:
                for number in np.unique(episode):
                    here = episode == number
                    out[here] = self._episode(slot, int(number), steps[here])
        return out

    def _episode(self, slot: str, episode: int, steps: np.ndarray) -> np.ndarray:
        key, length = (slot, episode), int(self._split.length[episode])
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][steps]
        size = length * self._size**2 * 3
        if size > self._budget:  # never fits: decode what is asked for and keep nothing
            wanted, place = np.unique(steps, return_inverse=True)
            return self._decode(slot, episode, wanted)[place.reshape(steps.shape)]
        while self._bytes + size > self._budget:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept[key] = self._decode(slot, episode, np.arange(length))
        self._bytes += size
        return self._kept[key][steps]

    def _decode(self, slot: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """Frames [n h w 3] of the steps [n], with one read: the frames of a camera lie together in a record."""
        rows = self._split.first[episode] + steps
        shard, offset, length = (column[rows] for column in self._split.frames[slot])
        path = self._split.shards[int(shard[0])]
        start, end = int(offset.min()), int((offset + length).max())
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(end - start)

        def one(step: int, a: int, n: int) -> np.ndarray:
            try:
                return images.decode(data[a : a + n], self._size)
            except ValueError as error:
                raise ValueError(
                    f"{path}: byte {start + a}: {slot} frame {step} of episode {episode}: {error}"
                ) from error

        return np.stack(list(self._workers.map(one, steps.tolist(), (offset - start).tolist(), length.tolist())))


def _checked(index: Index, name: str, config: LoaderConfig) -> Split:
    """The split, if the config can be served from it."""
    if name not in index.splits:
        raise ValueError(f"{index.dataset.name}: expected a split of {', '.join(sorted(index.splits))}, got {name!r}")
    split = index.splits[name]
    longest = int(split.length.max())
    if config.window > longest:
        raise ValueError(
            f"model.window: expected at most {longest}, the longest episode of {index.dataset.name}/{name}, "
            f"got {config.window}"
        )
    if not any(slot in split.frames for slot in config.cameras):
        raise ValueError(
            f"model.cameras: expected at least one of {', '.join(sorted(split.frames))}, which {index.dataset.name} "
            f"has, got {config.cameras}"
        )
    return split


def _prompts(
    instructions: tuple[str, ...], encode: Callable[[str], np.ndarray], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [E l] int32, padded with zeros on the right, and their mask."""
    encoded = {text: np.asarray(encode(text)) for text in sorted(set(instructions))}
    prompt = np.zeros((len(instructions), length), np.int32)
    mask = np.zeros((len(instructions), length), bool)
    for row, text in enumerate(instructions):
        ids = encoded[text]
        if len(ids) > length:
            raise ValueError(
                f"model.prompt_length: expected at least {len(ids)} for the instruction {text!r}, got {length}"
            )
        prompt[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return prompt, mask
