"""Where the time of a run went: seconds by what it was doing, over all of its restarts.

productive   the devices computed steps that are part of the run
compile      the train step was traced and compiled, or read from the cache of compiled programs
input        the devices stood still because the next batch was not there
checkpoint   the loop stood still for a save; what is written in the background costs nothing
evaluation   held-out batches, the compilation of their step included; waiting for the last rollout
lost         steps that a restart had to repeat: they came after the last complete save
other        opening the data, restoring, making parameters, writing profiles
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

KINDS = ("productive", "compile", "input", "checkpoint", "evaluation", "lost", "other")

SAVES = 1000  # are remembered; who restarts does so from one of the newest


class Clock:
    """Counts every second as one of KINDS, "other" at first. To be told what the run does, by one
    thread.

    The record in `file` is rewritten whole by `write`. What a killed process did after its last
    `write` is in no record and counts as nothing; nor does the time between two processes.
    """

    def __init__(self, file: Path | None, now: Callable[[], float] = time.perf_counter) -> None:
        """Goes on from the record in `file` where there is one; None keeps none.

        Raises ValueError for a record that cannot be read.
        """
        self._file, self._now = file, now
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._productive_at: dict[int, float] = {}  # step of a save -> productive seconds until it
        self._starts = 0
        if file is not None and file.exists():
            self._read(file)
        self._starts += 1
        self._kind, self._since = "other", now()

    def seconds(self) -> dict[str, float]:
        """Of each kind until now."""
        self._count()
        return dict(self._seconds)

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Within, time is of that kind; afterwards of the kind before."""
        before = self._kind
        self._turn_to(kind)
        try:
            yield
        finally:
            self._turn_to(before)

    def resume(self, step: int) -> None:
        """The run goes on from the save of `step`: what was productive after it is lost."""
        self._productive_at = {at: t for at, t in self._productive_at.items() if at <= step}
        kept = self._productive_at[max(self._productive_at)] if self._productive_at else 0.0
        self._seconds["lost"] += self._seconds["productive"] - kept
        self._seconds["productive"] = kept

    def saving(self, step: int) -> None:
        """A save of `step` begins. Written at once: it is whole only later, and who restarts from
        it must find this.
        """
        self._productive_at[step] = self.seconds()["productive"]
        if len(self._productive_at) > SAVES:
            del self._productive_at[min(self._productive_at)]
        self.write()

    def write(self) -> None:
        """Writes the record, whole or not at all."""
        seconds = self.seconds()
        if self._file is None:
            return
        total = sum(seconds.values())
        body = {
            "starts": self._starts,
            "seconds": seconds,
            "share": {kind: value / total if total else 0.0 for kind, value in seconds.items()},
            "productive_at_saves": self._productive_at,
        }
        part = self._file.with_name(self._file.name + ".part")
        part.write_text(json.dumps(body, indent=1) + "\n")
        os.replace(part, self._file)

    def summary(self) -> str:
        """A line for each kind: seconds and share of all."""
        seconds = self.seconds()
        total = sum(seconds.values()) or 1.0
        times = "once" if self._starts == 1 else f"{self._starts} times"
        lines = [f"{total:,.1f} s, started {times}"]
        lines += [
            f"  {kind:11s} {value:12,.1f} s {value / total:7.2%}" for kind, value in seconds.items()
        ]
        return "\n".join(lines)

    def _turn_to(self, kind: str) -> None:
        self._count()
        self._kind = kind

    def _count(self) -> None:
        now = self._now()
        self._seconds[self._kind] += now - self._since
        self._since = now

    def _read(self, file: Path) -> None:
        try:
            body = json.loads(file.read_text())
            self._seconds = {kind: float(body["seconds"][kind]) for kind in KINDS}
            saves = body["productive_at_saves"].items()
            self._productive_at = {int(step): float(seconds) for step, seconds in saves}
            self._starts = int(body["starts"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file}: expected the record of where the run's time went, got {error!r}; was it"
                " edited? Without the file the run goes on and counts from now"
            ) from None
