"""How far long work is: a bar on a terminal, a line now and then elsewhere. Every command's.

The bar is tqdm's. Elsewhere tqdm would fill a log with one endless line, because it writes over
what it wrote before, and it counts without a lock.
"""

import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, ClassVar

FIRST, EVERY = 10.0, 60.0  # seconds to the first line, and at most between lines
TICK = 1.0  # seconds between looks at the clock
WIDTH, HEIGHT = 80, 24  # columns and rows of a terminal that does not say how many it has


class Progress:
    """Counts bytes (or frames ...) of `total`, or only time without one; any thread may add to it.
    To be used in a `with` statement.

    It tells of itself even when nothing is added: what it waits for may be one long step. `moved`
    counts all that this process has done in any work: it grows while anything does.
    """

    moved: ClassVar[int] = 0

    def __init__(
        self, what: str, total: int | None = None, unit: str = "B", start: int = 0
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._start = self._done = start
        self._began = self._shown = time.monotonic()
        self._first: tuple[int, float] | None = None  # what was done when, from where the rate is
        self._note = ""
        self._lock = threading.RLock()
        self._bar = self._make_bar() if sys.stderr.isatty() else None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)
        self._thread.start()

    def add(self, count: int, note: str = "") -> None:
        """So many more bytes are done; `note` is said at the line's end from now on."""
        with self._lock:
            self._done += count
            Progress.moved += count
            self._note = note or self._note
            if self._bar is not None:
                self._bar.set_postfix_str(self._note, refresh=False)
                self._bar.update(count)
            self._line_if_due()
            if self._first is None and count:
                self._first = self._done, time.monotonic()

    def say(self, line: str) -> None:
        """A line to the reader, without tearing the bar; none of its own is due for a while."""
        with self._lock:
            self._shown = time.monotonic()
            if self._bar is not None:
                self._bar.write(line)
            else:
                print(line, flush=True)

    def row(self, name: str, note: str) -> None:
        """What the reader wants to see now: at the bar, or as a line with the rate."""
        with self._lock:
            if self._bar is not None:
                self._bar.set_postfix_str(note)
                return
            now = time.monotonic()
            rate, left = self._speed(now)
            known = self._first is not None and self._done > self._first[0]
            speed = f"  {self._rate(rate)}  {left} left" if known else ""
            self.say(f"{name}  {note}{speed}")

    def spent(self) -> str:
        """Time and rate so far, in words."""
        seconds = time.monotonic() - self._began
        rate = (self._done - self._start) / max(seconds, 1e-3)
        return f"{seconds:.1f} s ({self._rate(rate)})"

    def close(self) -> None:
        """No more lines."""
        self._closed.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def _make_bar(self) -> Any:
        from tqdm import tqdm

        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        known = columns > 0  # tqdm shows nothing where both are said to be 0
        form = "{desc}: {elapsed}{postfix}" if self._total is None else None
        return tqdm(
            total=self._total, initial=self._start, desc=self._what, unit=self._unit,
            unit_scale=self._unit == "B", leave=False, bar_format=form,
            dynamic_ncols=known, ncols=None if known else WIDTH, nrows=None if known else HEIGHT,
        )  # fmt: skip

    def _tell(self) -> None:
        """The thread: a line when one is due, a bar that moves on though nothing is added."""
        while not self._closed.wait(TICK):
            with self._lock:
                if self._bar is not None:
                    self._bar.refresh()
                self._line_if_due()

    def _line_if_due(self) -> None:
        now = time.monotonic()
        due = FIRST if self._shown == self._began else EVERY
        if self._bar is None and now - self._shown >= min(due, EVERY):
            self._shown = now
            print(self._line(now), flush=True)

    def _rate(self, rate: float) -> str:
        if self._unit == "B":
            return f"{rate / 1e6:.0f} MB/s"
        return f"{rate:.0f} {self._unit}/s" if rate >= 10 else f"{rate:.2f} {self._unit}/s"

    def _line(self, now: float) -> str:
        note, spent = (
            f", {self._note}" if self._note else "",
            f"{duration(now - self._began)} so far",
        )
        if self._total is None:
            return f"{self._what}: {spent}{note}"
        done = f"{self._done} of {self._total} {self._unit}"
        if self._unit == "B":
            done = f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        rate, left = self._speed(now)
        if not rate:
            return f"{self._what}: {done}, {spent}{note}"
        return f"{self._what}: {done}, {self._rate(rate)}, {left} left{note}"

    def _speed(self, now: float) -> tuple[float, str]:
        """What is done a second, and the time left; 0 before anything is.

        What lies before the first is counted, compilation say, is not in the rate of the others.
        """
        first, since = self._first or (self._start, self._began)
        if self._done == first:
            first, since = self._start, self._began
        rate = (self._done - first) / max(now - since, 1e-9)
        left = ((self._total or 0) - self._done) / rate if rate else 0.0
        return rate, duration(left)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def duration(seconds: float) -> str:
    """In words: seconds, from ten minutes on h:mm:ss."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
