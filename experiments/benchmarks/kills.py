"""Kills a run with SIGKILL again and again and holds what it leaves against a run that nobody
disturbed.

    python -m experiments.benchmark kills [--kills 50] [--seed 0] [--steps 300] [--every 20]
    [--root DIR] [--json=FILE]

A tiny run saves every `every` steps in the background. Of five kills one falls while the process
starts, the others at a random moment of the three intervals that follow. After each the
newest whole checkpoint must be there, hold the same parameters as the undisturbed run had at that
step, and be what the next start goes on from. A run that reaches its end is compared row by row,
and the next begins. The moments are drawn from the seed; what they hit depends on the machine too.

"lost" are the steps from the newest whole checkpoint to the last one reached. They must not be more
than an interval, or than an interval before the save that was being written when the kill fell and
what was trained meanwhile.
"""

import argparse
import contextlib
import io
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import tiny_runs
from experiments.composition.json_files import write_json
from vla_jax.training.checkpoint import complete_steps, load_params

POLL = 0.003  # seconds between looks at a run
TEMPORARY = ".orbax-checkpoint-tmp"


class Kill(NamedTuple):
    """What a kill left."""

    moment: str
    reached: int  # the last step with a row
    whole: int  # the step of the newest whole checkpoint, 0: none
    writing: int | None  # the step of the save that was under way
    same: bool  # the checkpoint is the undisturbed run's

    def lost(self) -> int:
        """Steps to repeat."""
        return self.reached - self.whole

    def too_many(self, every: int) -> bool:
        """Whether more were lost than could be; what is written was not whole yet."""
        return (self.lost() if self.writing is None else self.writing - self.whole) > every


class Settings(NamedTuple):
    """What every process of the benchmark is started with."""

    root: Path
    steps: int
    every: int

    def start(self, name: str, keep: int) -> subprocess.Popen[bytes]:
        """A process of the run `name`, which continues what is there."""
        numbers = {
            "steps": self.steps, "log_every": 1, "eval_every": 5 * self.every,
            "save_every": self.every, "keep_checkpoints": keep,
        }  # fmt: skip
        return tiny_runs.start(self.root / "data", self.root / name, self.log(name), numbers)

    def log(self, name: str) -> Path:
        """What the last process of a run said."""
        return self.root / f"{name}.log"


def main(argv: list[str]) -> int:
    """Runs the benchmark, prints its table and returns the exit status: 1 where anything was lost,
    corrupt or different.
    """
    parser = argparse.ArgumentParser(
        prog="experiments.benchmark kills", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=20, help="steps between two saves")
    parser.add_argument("--root", type=Path, default=None, help="kept; else a temporary folder")
    parser.add_argument("--json", type=Path, default=None, help="write the table here too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(args.root or Path(folder), args.steps, args.every)
        settings.root.mkdir(parents=True, exist_ok=True)
        table = measure(settings, args.kills, np.random.default_rng(args.seed))
    if args.json:
        write_json(args.json, table)
    return 1 if table["lost"] or table["corrupt"] or table["different"] else 0


def measure(settings: Settings, kills: int, random: np.random.Generator) -> dict[str, Any]:
    """The table, printed kill by kill."""
    tiny_runs.write_data(settings.root / "data")
    shutil.rmtree(settings.root / "undisturbed", ignore_errors=True)
    process = settings.start("undisturbed", keep=settings.steps)
    started = wait_for_steps(process, settings.log("undisturbed"), 1)
    tiny_runs.finish(process, settings.log("undisturbed"))
    print(
        f"undisturbed: {settings.steps} steps, the first after {started:.1f} s, a save every"
        f" {settings.every}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    print(f"{'':>4s} {'killed':26s} {'reached':>8s} {'saved':>6s} {'writing':>8s} {'lost':>5s}")
    table: dict[str, Any] = {"kills": [], "lost": 0, "corrupt": 0, "different": 0, "runs": 0}
    name, whole = "run_1", None  # the run, and the checkpoint it must go on from
    while len(table["kills"]) < kills:
        if whole is None:
            shutil.rmtree(settings.root / name, ignore_errors=True)
        process = settings.start(name, keep=3)
        moment, killed = kill_at_random(settings, process, settings.log(name), started, random)
        table["different"] += not resumed_from(settings.log(name), whole)
        if killed:
            kill = look(settings, name, moment)
            note(table, kill, settings.every)
            whole = kill.whole
        else:  # it had come to its end
            compare(settings, name, table)
            name, whole = f"run_{table['runs'] + 1}", None
    if whole is not None:
        tiny_runs.finish(settings.start(name, keep=3), settings.log(name))
        compare(settings, name, table)
    print(
        f"{len(table['kills'])} kills in {table['runs']} runs of {settings.steps} steps:"
        f" {table['lost']} lost more than an interval, {table['corrupt']} left a corrupt"
        f" checkpoint; {table['different']} times a run was not as the undisturbed one"
    )
    return table


def kill_at_random(
    settings: Settings,
    process: subprocess.Popen[bytes],
    log: Path,
    started: float,
    random: np.random.Generator,
) -> tuple[str, bool]:
    """Kills a process at a random moment, which is returned in words; and whether it was not too
    late. `started` are the seconds that one takes to its first step.
    """
    if random.random() < 0.2:
        seconds = random.uniform(0, started)
        words = f"{seconds:.2f} s after start"
    else:
        part, steps = math.modf(random.uniform(2, 3 * settings.every))
        words = f"{steps + part:.2f} steps later"
        wait_for_steps(process, log, int(steps) - 1)
        seconds = part * wait_for_steps(process, log, int(steps))  # that of one step
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(min(POLL, max(0.0, end - time.monotonic())))
    process.kill()
    code = process.wait()
    if code > 0:
        raise RuntimeError(f"pretrain: expected to kill it, it failed: {log.read_text()[-2000:]}")
    return words, code < 0


def wait_for_steps(process: subprocess.Popen[bytes], log: Path, steps: int) -> float:
    """The seconds until a run has said so many steps; or ended."""
    began = time.monotonic()
    while process.poll() is None and log.read_bytes().count(b"\nstep ") < steps:
        time.sleep(POLL)
    return time.monotonic() - began


def look(settings: Settings, name: str, moment: str) -> Kill:
    """What lies in a work directory whose process was killed."""
    directory = settings.root / name / "checkpoints"
    writing = [
        int(path.name.split(".")[0])
        for path in (directory.iterdir() if directory.is_dir() else [])
        if TEMPORARY in path.name
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it says what is half-written
        whole = max(complete_steps(directory), default=0)
        same = same_parameters(settings, directory, whole)
    reached = max((row["step"] for row in tiny_runs.rows(settings.root / name)), default=0)
    return Kill(moment, max(reached, whole), whole, max(writing, default=None), same)


def same_parameters(settings: Settings, directory: Path, step: int) -> bool:
    """Whether the checkpoint can be read and is the undisturbed run's, bit for bit."""
    if step == 0:
        return True
    try:
        here = load_params(directory, step)
    except Exception as error:  # whatever a damaged checkpoint raises
        print(f"{directory}/{step}: {error}", file=sys.stderr)
        return False
    there = load_params(settings.root / "undisturbed" / "checkpoints", step)
    return here.keys() == there.keys() and all(
        np.array_equal(here[key].view(np.uint8), there[key].view(np.uint8)) for key in there
    )


def note(table: dict[str, Any], kill: Kill, every: int) -> None:
    """Counts a kill and prints its line."""
    table["kills"].append({**kill._asdict(), "lost": kill.lost()})
    table["lost"] += kill.too_many(every)
    table["corrupt"] += not kill.same
    writing = "-" if kill.writing is None else str(kill.writing)
    print(
        f"{len(table['kills']):4d} {kill.moment:26s} {kill.reached:8d} {kill.whole:6d}"
        f" {writing:>8s} {kill.lost():5d}{'' if kill.same else '  CORRUPT'}",
        flush=True,
    )


def resumed_from(log: Path, whole: int | None) -> bool:
    """Whether a process, as far as it came, went on from the checkpoint that was there."""
    said = re.search(r"continuing from the checkpoint of step (\d+)", log.read_text())
    trains = "\ntrain step " in log.read_text()
    return int(said[1]) == whole if said else not (trains and whole)


def compare(settings: Settings, name: str, table: dict[str, Any]) -> None:
    """Holds the rows and the last checkpoint of a run that has ended against the undisturbed
    one's.
    """
    same = tiny_runs.rows(settings.root / name) == tiny_runs.rows(settings.root / "undisturbed")
    last = same_parameters(settings, settings.root / name / "checkpoints", settings.steps)
    table["runs"] += 1
    table["different"] += not (same and last)
    print(f"     {name} ended: {'bit-equal' if same and last else 'DIFFERENT'}", flush=True)
