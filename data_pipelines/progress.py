"""How far a long pass over files is: a bar on a terminal, a line now and then elsewhere.

The bar is tqdm's. Elsewhere tqdm would fill a log with one endless line, because it writes over
what it wrote before, and it counts without a lock.
"""

import sys
import threading
import time
from types import TracebackType
from typing import Any

EVERY = 10.0  # seconds between lines


class Progress:
    """Counts bytes (or frames ...) of `total`; any thread may add to it. To be used in a `with`
    statement.
    """

    def __init__(self, what: str, total: int, unit: str = "B") -> None:
        self._what, self._total, self._unit, self._done = what, total, unit, 0
        self._began = self._shown = time.monotonic()
        self._lock = threading.Lock()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=what, unit=unit, unit_scale=True, dynamic_ncols=True, leave=False
            )

    def add(self, count: int) -> None:
        """So many more bytes are done."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if self._bar is not None:
                self._bar.update(count)
            elif now - self._shown >= EVERY:
                self._shown = now
                print(self._line(now - self._began), flush=True)

    def spent(self) -> str:
        """Time and rate so far, in words."""
        seconds = time.monotonic() - self._began
        return f"{seconds:.1f} s ({self._rate(self._done / max(seconds, 1e-3))})"

    def _rate(self, rate: float) -> str:
        return f"{rate / 1e6:.0f} MB/s" if self._unit == "B" else f"{rate:.0f} {self._unit}/s"

    def _line(self, seconds: float) -> str:
        rate = self._done / seconds
        left = (self._total - self._done) / rate if rate else float("inf")
        done = f"{self._done} of {self._total} {self._unit}"
        if self._unit == "B":
            done = f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        return f"{self._what}: {done}, {self._rate(rate)}, {left:.0f} s left"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
