"""Arrays of pixels whose memory is used again: fresh memory costs a page fault every 4 kB."""

import threading
import weakref
from collections import deque

import numpy as np
from jaxtyping import UInt8

ROUND = 8  # long arrays are made of multiples of it, so that freed memory fits more often


class Buffers:
    """Lends arrays of uint8 whose items have one shape. Safe to use from several threads.

    The memory of an array comes back when the last object that can see it is gone: the array, a
    view of it, a memoryview, a device array that JAX laid over it. Nobody has to give it back, so
    nobody can give it back too early.
    """

    def __init__(self, item: tuple[int, ...], keep: int) -> None:
        """`item` is the shape behind the first axis; at most `keep` free arrays are remembered."""
        self._item = item
        # Memory comes back in whichever thread drops the last reference, also in the middle of
        # `take` when the garbage collector runs there: that must not wait for a lock. Appending to
        # a deque needs none, and `maxlen` drops the oldest when there are too many.
        self._free: deque[np.ndarray] = deque(maxlen=keep)
        self._taking = threading.Lock()

    def take(self, length: int) -> UInt8[np.ndarray, "length ..."]:
        """An array of `length` items with any content."""
        with self._taking:
            memory = self._fitting(length)
        if memory is None:
            # Below 32 of fewer: where each frame is kept alone, it must not take the room of eight.
            step = min(ROUND, 1 << max(0, length.bit_length() - 3))
            rounded = -(-length // step) * step
            memory = np.empty((rounded, *self._item), np.uint8)
        loan = _Loan(memory[:length])
        weakref.finalize(loan, self._free.append, memory).atexit = False
        return np.asarray(loan)

    def _fitting(self, length: int) -> np.ndarray | None:
        """The latest free memory of at least `length` items. Where all is shorter, None, and the
        oldest is dropped: the longer one that is made now takes its place.
        """
        for _ in range(len(self._free)):
            memory = self._free.pop()
            if len(memory) >= length:
                return memory
            self._free.appendleft(memory)
        if self._free:
            self._free.popleft()
        return None


class _Loan:
    """Stands between the memory and the arrays that show it.

    An array made from an object with `__array_interface__` has that object as its base, and so has
    every view of the array: numpy follows bases of views down to the first that is no array. So
    this object lives exactly as long as anything shows the memory.
    """

    def __init__(self, memory: np.ndarray) -> None:
        self.__array_interface__ = memory.__array_interface__
