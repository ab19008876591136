"""Batches onto the devices, ahead of the step that takes them.

One is enough: it is there when the step before it ends, and the loader has its own ahead in host
memory. `python -m experiments.benchmark input --size tiny`, share of the time in which the device
stood still for want of a batch (2 busy cores): taken in turn between two steps 1.31%, with 1 ahead
0.01%, with 2 or 4 0.00%; no difference in step time above the noise, and each costs a batch of
device memory.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from vla_jax import sharding
from vla_jax.training.clock import Clock
from vla_jax.types import Batch

AHEAD = 1  # batches on the devices beside the one in use


class Feed:
    """This process's rows of each batch, put on the devices by a thread while these compute. Close
    it to stop the thread.
    """

    def __init__(
        self, batches: Iterator[Batch], mesh: Mesh, batch_size: int, ahead: int = AHEAD
    ) -> None:
        """`batches` belongs to the thread until `close` returns. `ahead` is at least 1."""
        self._batches, self._mesh, self._batch_size = batches, mesh, batch_size
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._thread.start()

    def next(self, position: int, running: Any, clock: Clock) -> Batch:
        """The next batch, whose place in the data is `position`.

        Input is waited for from when the devices are done with `running`, what the last step
        returns; until then they are not idle. Raises ValueError when there is no batch left.
        """
        try:
            batch = self._ready.get_nowait()
        except queue.Empty:
            jax.block_until_ready(running)
            with clock.during("input"):
                batch = self._ready.get()
        if isinstance(batch, BaseException):
            raise batch
        if batch is None:
            raise ValueError(
                f"batches: expected one for every step, got none at position {position}"
            )
        return batch

    def close(self) -> None:
        """Returns when the thread has ended, which is after the batch that it is making."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            for batch in self._batches:
                self._put(sharding.global_batch(batch, self._mesh, self._batch_size))
                del batch  # its memory is used again
                if self._stop.is_set():
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                # Looks up now and then: nobody may be taking any more.
                self._ready.put(item, timeout=0.05)
                return
            except queue.Full:
                continue
