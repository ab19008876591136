"""A look into a run that is under way: SIGUSR1 has the next steps traced."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

STEPS = 3  # in a trace


class Profiler:
    """Writes a trace of STEPS steps to `<directory>/step_<n>` when this process hears SIGUSR1.

    TensorBoard with its profile plugin, XProf and Perfetto read it. On several hosts each is asked
    for itself, and writes to `step_<n>-process_<i>`.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        """Nothing is made in `directory` until a trace is asked for."""
        self._directory, self._say = directory, say
        self._asked = False
        self._last: int | None = None  # the step after which the running trace ends
        self._where = directory

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, SIGUSR1 does not kill. A trace that still runs at the end is written."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may listen to signals
            return
        before = signal.signal(signal.SIGUSR1, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)
            if self._last is not None:
                self._end()

    def before(self, number: int) -> None:
        """Step `number` is next."""
        if not self._asked or self._last is not None:
            return
        self._asked = False
        several = jax.process_count() > 1
        name = f"step_{number}" + (f"-process_{jax.process_index()}" if several else "")
        self._where, self._last = self._directory / name, number + STEPS - 1
        jax.profiler.start_trace(self._where)

    def after(self, number: int, report: Any) -> None:
        """Step `number` was started; `report` is what it returns."""
        if number == self._last:
            jax.block_until_ready(report)
            self._end()

    def _end(self) -> None:
        self._last = None
        jax.profiler.stop_trace()
        self._say(f"SIGUSR1: a profile is in {self._where}")

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True
