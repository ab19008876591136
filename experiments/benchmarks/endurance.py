"""Whether a long run stays as it is: memory step by step, and how long saves hold up training.

    python -m experiments.benchmark endurance [--steps 2000] [--every 500] [--json=FILE]

A tiny run in a process of its own, whose memory is read from outside (from /proc, so on Linux)
while it trains, saves in the background every `every` steps and evaluates eight times. It is what
the process has written to and not given back, in memory or in swap (pages of files come and go),
with an allocator that gives back at once. The growth is the slope of a line through what was read
after the first quarter. "held up" is the share of the training in which the loop stood still for a
save, without the last one, which the end of a run waits for. A save of so small a model is all
fixed costs, about 50 ms on an idle core.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import tiny_runs
from experiments.composition.json_files import write_json

POLL = 0.05  # seconds between two readings
GROWTH, HELD_UP = 1000.0, 0.02  # what may be: bytes a step, share of the time

# glibc's allocator keeps what is freed, in as many pools as there are threads.
GIVES_BACK = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def main(argv: list[str]) -> int:
    """Runs the benchmark, prints what it saw and returns 1 where that is more than may be."""
    parser = argparse.ArgumentParser(
        prog="experiments.benchmark endurance", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=500, help="steps between two saves")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        table = measure(Path(folder), args.steps, args.every)
    if args.json:
        write_json(args.json, table)
    return 1 if table["bytes_a_step"] > GROWTH or table["held_up"] > HELD_UP else 0


def measure(root: Path, steps: int, every: int) -> dict[str, Any]:
    """The numbers, printed."""
    data, workdir, log = tiny_runs.write_data(root / "data"), root / "run", root / "log"
    numbers = {"steps": steps, "log_every": 1, "eval_every": steps // 8, "save_every": every}
    process = tiny_runs.start(data, workdir, log, numbers, GIVES_BACK)
    readings = read(process, workdir)
    tiny_runs.finish(process, log)
    growth, quarters = slope(readings[:, 0], readings[:, 1])
    saving, training = readings[readings[:, 0] < steps][-1, 2:]
    table = {
        "steps": steps,
        "bytes_a_step": growth,
        "mib_at_quarters": quarters,
        "held_up": saving / training,
        "save_seconds": saving / ((steps - 1) // every),
        "step_seconds": training / steps,
        "load": os.getloadavg()[0],
    }
    print(
        f"{steps} steps of {1e3 * table['step_seconds']:.1f} ms, a save every {every}; load"
        f" {table['load']:.1f} on {os.cpu_count()} cores\n"
        f"memory grew by {growth:,.0f} bytes a step (may: {GROWTH:,.0f}); MiB at 25, 50, 75, 100 %:"
        f" {', '.join(f'{each:.1f}' for each in quarters)}\n"
        f"saves held up training for {table['held_up']:.2%} of its time (may: {HELD_UP:.0%}),"
        f" {1e3 * table['save_seconds']:.0f} ms each"
    )
    return table


def read(process: subprocess.Popen[bytes], workdir: Path) -> np.ndarray:
    """What a run looks like from outside, from its first step to its end: step, bytes of memory,
    seconds that it stood still for saves, seconds of training with these. [n 4]
    """
    readings = []
    metrics, goodput = workdir / "metrics.jsonl", workdir / "goodput.json"
    while process.poll() is None:
        time.sleep(POLL)
        status = Path(f"/proc/{process.pid}/status").read_text()
        sizes = re.findall(r"(?:RssAnon|VmSwap):\s+(\d+) kB", status)
        if not goodput.exists() or not sizes:  # it starts; it is ending
            continue
        step = metrics.read_bytes().count(b"\n")
        seconds = json.loads(goodput.read_text())["seconds"]
        training = sum(seconds[kind] for kind in ("productive", "input", "checkpoint"))
        memory = 1024 * sum(map(int, sizes))
        readings.append((step, memory, seconds["checkpoint"], training))
    return np.array(readings, np.float64)


def slope(steps: np.ndarray, sizes: np.ndarray) -> tuple[float, list[float]]:
    """Bytes a step after the first quarter of the steps, and MiB at each quarter."""
    late = steps >= steps[-1] / 4
    growth = np.polyfit(steps[late], sizes[late], 1)[0]
    quarters = np.searchsorted(steps, steps[-1] * np.array([0.25, 0.5, 0.75, 1.0]))
    return float(growth), [float(size / 2**20) for size in sizes[quarters]]
