"""How busy a run keeps the processors that it may use."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CPU_TIMES = slice(11, 15)  # of /proc/PID/stat behind the name: its own and its children's, in ticks


class Work(NamedTuple):
    """Seconds by the clock, and of processors."""

    wall: float
    cpu: float


def so_far(children: Iterable[int]) -> Work:
    """Of this process, its ended children, and those of these ids, as far as the system tells of
    them while they run (Linux does).
    """
    return Work(time.perf_counter(), sum(os.times()[:4]) + sum(map(_of, children)))


def share(before: Work, after: Work) -> float:
    """What was used of all that there was: what is missing to 1 was idle, or others had it."""
    return (after.cpu - before.cpu) / ((after.wall - before.wall) * len(os.sched_getaffinity(0)))


def _of(process: int) -> float:
    try:
        told = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # it ended, or there is no such folder
        return 0.0
    ticks = map(int, told.rpartition(")")[2].split()[CPU_TIMES])
    return sum(ticks) / os.sysconf("SC_CLK_TCK")
