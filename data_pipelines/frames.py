"""Decoded frames: each visit's once, in threads, kept as long as a window of it is still to
come.
"""

import dataclasses
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from data_pipelines import images
from data_pipelines.buffers import Buffers
from data_pipelines.config import LoaderConfig
from data_pipelines.files import pictures, remote
from data_pipelines.index import Split
from data_pipelines.order import Visits
from vla_jax.robot.sensing import Reading, Sensor

KEEP = 4096  # free arrays to remember for each camera

Integers = int | np.ndarray


class Span(NamedTuple):
    """Steps of one episode of one dataset, as rows of its columns: [start, stop), and runs of
    later ones.
    """

    dataset_id: int
    start: int
    stop: int
    ahead: tuple[tuple[int, int], ...] = ()  # [start, stop) of runs in order, none empty

    def steps(self) -> Int64[np.ndarray, " f"]:
        """All steps, in order: the f frames of an array of this span."""
        return np.concatenate([np.arange(a, b) for a, b in ((self.start, self.stop), *self.ahead)])


def future_runs(
    start: Integers, stop: Integers, end: Integers, offsets: tuple[int, ...]
) -> Iterator[tuple[Any, Any]]:
    """What the futures of the steps [start, stop) need beyond these steps, in an episode that ends
    before `end`.

    Yields (first step, step after the last) of a run per offset; runs are in order and disjoint,
    and may be empty. Takes numbers or arrays of them.
    """
    reached = stop
    for offset in sorted(offsets):
        last = np.minimum(stop + offset, end)
        first = np.minimum(np.maximum(start + offset, reached), last)
        yield first, last
        reached = last


class Decoder:
    """Reads and decodes the frames of spans, for every camera in the config's order."""

    def __init__(
        self, splits: list[Split], swapped: list[tuple[str, ...]], config: LoaderConfig
    ) -> None:
        """`swapped` names each split's cameras that were stored BGR."""
        self.sensors = config.sensors
        self._splits, self._swapped, self._resize = splits, swapped, config.resize
        self._cameras, self._sizes = config.cameras, config.image_size
        self._window, self._future = config.window, config.future
        self._buffers = [Buffers((size, size, 3), KEEP) for size in self._sizes]
        # Pillow decodes and resizes outside the GIL.
        self.workers = max(remote.workers(path) for split in splits for path in split.shards)

    def decode(self, span: Span, camera: int) -> UInt8[np.ndarray, "f h w 3"] | None:
        """Frames of a camera, with one read or one seek: they lie together. None when the dataset
        lacks it.
        """
        split, slot, size = (
            self._splits[span.dataset_id],
            self._cameras[camera],
            self._sizes[camera],
        )
        if slot not in split.frames:
            return None
        steps = span.steps()
        shard, offset, length = (column[steps].astype(np.int64) for column in split.frames[slot])
        path = split.shards[int(shard[0])]
        bgr = slot in self._swapped[span.dataset_id]
        out = self._buffers[camera].take(len(shard))
        key = split.cameras[slot]
        stored = pictures.read(path, key, offset, length)
        for i, at in enumerate(offset.tolist()):
            try:
                out[i] = images.decode(next(stored), size, bgr, self._resize)
            except ValueError as error:
                where = f"{slot} frame {{}} ({pictures.where(path, at)}): {error}"
                raise _damaged(split, int(steps[i]), path, where) from error
        return out

    def read(self, span: Span, sensor: Sensor) -> Reading | None:
        """Readings of a sensor, [f ...], or of sound the only one, [1 ...]. None where the dataset
        lacks it, or has it in its index.
        """
        split = self._splits[span.dataset_id]
        if sensor.name not in split.places:
            return None
        steps = np.arange(span.start, span.stop)
        try:
            raw = split.sensed(sensor.name, sensor.kind, steps)
            values = np.stack([sensor.values(each) for each in raw])
        except ValueError as error:
            path, at = split.shards[int(split.shard[steps[0]])], split.places[sensor.name]
            where = f"sensor {sensor.name} from frame {{}} on (byte {at[steps[0], 0]}): {error}"
            raise _damaged(split, span.start, path, where) from error
        return sensor.seen(values, None)

    def bytes_of(self, visits: list[Visits]) -> int:
        """Of the frames of all visits, one entry a dataset, if all are open at the same time."""
        total = 0
        for dataset_id, (split, (first, windows, _)) in enumerate(
            zip(self._splits, visits, strict=True)
        ):
            start, stop = first - (self._window - 1), first + windows
            episode = np.searchsorted(split.first, first, side="right") - 1
            end = split.first[episode] + split.length[episode]
            runs = [(start, stop), *future_runs(start, stop, end, self._future)]
            frames = sum(int((b - a).sum()) for a, b in runs)
            total += frames * self._bytes_per_frame(dataset_id)
        return total

    def _bytes_per_frame(self, dataset_id: int) -> int:
        """Of all cameras the dataset has, and of its sensors that are not in the index."""
        split = self._splits[dataset_id]
        pixels = sum(
            s * s * 3
            for slot, s in zip(self._cameras, self._sizes, strict=True)
            if slot in split.frames
        )
        placed = [each for each in self.sensors if each.name in split.places]
        return pixels + sum(
            math.prod(each.shape) * np.dtype(each.dtype).itemsize
            for each in placed
            if split.sensors[each.name].form != "sound"
        )


def _damaged(split: Split, row: int, path: str, problem: str) -> ValueError:
    """The error of a step of a file; `problem` has {} where the number of its frame goes."""
    episode = int(np.searchsorted(split.first, row, side="right")) - 1
    said = problem.replace("{}", str(row - int(split.first[episode])), 1)
    return ValueError(
        f"{path}: record {split.record[episode]}: {said}; download the file again, or leave the"
        " episode out: experiments.index_data --validate --quarantine=FILE writes the list for"
        " data.quarantine"
    )


@dataclasses.dataclass
class _Visit:
    """An open visit: its frames per camera, its readings of sensors by name, the windows that were
    planned and not yet made, and whether more follow.
    """

    span: Span
    frames: list[Future[np.ndarray | None]]
    readings: dict[str, Future[Reading | None]]
    planned: int
    more: bool


class Pool:
    """The open visits of one stream of batches, decoded ahead in threads."""

    def __init__(self, decoder: Decoder, cameras: int) -> None:
        self._decoder, self._cameras = decoder, cameras
        self._threads = ThreadPoolExecutor(decoder.workers, thread_name_prefix="decode")
        self._open: dict[int, _Visit] = {}

    def plan(self, visit: int, span: Span, windows: int, more: bool) -> None:
        """Says that so many windows of a visit come next, and whether more of them follow; begins
        to decode it.
        """
        if visit in self._open:
            self._open[visit].planned += windows
            self._open[visit].more = more
            return
        frames = [
            self._threads.submit(self._decoder.decode, span, camera)
            for camera in range(self._cameras)
        ]
        readings = {
            sensor.name: self._threads.submit(self._decoder.read, span, sensor)
            for sensor in self._decoder.sensors
        }
        self._open[visit] = _Visit(span, frames, readings, windows, more)

    def span(self, visit: int) -> Span:
        """The steps of an open visit."""
        return self._open[visit].span

    def frames(self, visit: int, camera: int) -> UInt8[np.ndarray, "f h w 3"] | None:
        """The frames of an open visit's span, when they are there. Raises what decoding raised."""
        return self._open[visit].frames[camera].result()

    def reading(self, visit: int, sensor: Sensor) -> Reading | None:
        """What Decoder.read says of an open visit's span, when it is there. Raises what that
        raised.
        """
        return self._open[visit].readings[sensor.name].result()

    def done(self, visit: int, windows: int) -> None:
        """Lets go of a visit when none of its windows is left."""
        state = self._open[visit]
        state.planned -= windows
        if not state.planned and not state.more:
            del self._open[visit]

    def close(self) -> None:
        """Stops the threads."""
        self._threads.shutdown(cancel_futures=True)
