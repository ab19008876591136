"""The share of processors that a run had."""

import os
import subprocess
import sys

from experiments.learning import processors

BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"


def test_the_work_of_children_counts_while_they_run_and_once_they_ended() -> None:
    before = processors.so_far([])
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    running = processors.so_far([child.pid])
    child.communicate(b"\n")
    ended = processors.so_far([child.pid])
    assert running.cpu - before.cpu > 0.25
    assert ended.cpu >= running.cpu - 0.02  # clocks tick in hundredths
    assert processors.so_far([child.pid]).cpu - ended.cpu < 0.1


def test_the_share_is_of_all_processors() -> None:
    before = processors.so_far([])
    after = processors.Work(before.wall + 1.0, before.cpu + 0.5)
    assert processors.share(before, after) == 0.5 / len(os.sched_getaffinity(0))
