"""Success in closed loop while a run trains: experiments.rollout on saved checkpoints, in a process
beside the training that has only time that nobody else wants, of one core.

WORKDIR/rollouts/STEP   what experiments.rollout writes, and output.txt with what it said
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vla_jax.progress import Progress
from vla_jax.training.checkpoint import Checkpointer, is_complete
from vla_jax.training.metrics import Recorder

LOOK = 0.5  # seconds between two looks at a process
NICE = 19  # the least priority: it gets what is left
LINES = 8  # of its output that are told when it fails
ENDING = 10.0  # seconds that a process has to end


class Rollouts:
    """The rollouts of a run, one at a time. While one runs, the next due one waits; where another
    comes due meanwhile, the older one is skipped. train.Follower.
    """

    def __init__(
        self, config: ConfigDict, folder: Path, recorder: Recorder, checkpointer: Checkpointer
    ) -> None:
        """`config` is config.rollouts; `folder` the work directory."""
        self._config, self._folder = config, folder.absolute()
        self._out = self._folder / "rollouts"
        self._recorder, self._checkpointer = recorder, checkpointer
        self._child: subprocess.Popen[bytes] | None = None
        self._running = 0  # the step of the child
        self._waiting: list[int] = []  # of these one at most was never begun
        self._last = 0  # the newest step that came due
        self._looked = 0.0
        self._trains = True
        self._told = 0  # the step of which it was said that another process plays it

    def resume(self, start: int, end: int) -> None:
        """Goes on where the run does, at the step `start` of `end`: what is there is not made
        again, what was not finished is begun again, what is of later steps is set aside.
        """
        known = _recorded(self._folder / "metrics.jsonl")
        unfinished = []
        folders = self._out.iterdir() if self._out.is_dir() else ()
        for step in sorted(int(path.name) for path in folders if path.name.isdigit()):
            if step > start:
                _set_aside(self._out / str(step))
                continue
            self._last = step
            if not (self._out / str(step) / "results.json").is_file():
                unfinished.append(step)
                continue
            self._checkpointer.release(step)  # it was held when the run was killed
            if step not in known:
                self._record(step)
        for step in unfinished:
            if is_complete(self._checkpointer.directory, step):
                self._wait_for(step)
        if start and is_complete(self._checkpointer.directory, start):
            self.saved(start, start >= end)

    def saved(self, step: int, last: bool) -> None:
        """See train.Follower: of the steps from a multiple of `every` on the first that is saved is
        due, and the last one of the run.
        """
        every = self._config.every
        if step > self._last and (last or step // every > self._last // every):
            self._last = step
            self._wait_for(step)

    def look(self) -> None:
        """See train.Follower."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        if self._child is not None and (code := self._child.poll()) is not None:
            self._child = None
            self._ended(self._running, code)
        if self._child is None and self._waiting and self._free(self._waiting[0]):
            self._begin(self._waiting.pop(0))

    def wait(self) -> None:
        """Returns when nothing runs or waits: when all checkpoints are written and nothing is
        trained any more.
        """
        self._trains = False
        if self._child is not None:
            _share(self._child.pid, 0)
        if self._child is not None or self._waiting:
            step = [self._running, *self._waiting][-1]
            self._recorder.say(f"rollout of step {step}: the run ends when it has ended")
        while self._child is not None or self._waiting:
            self.look()
            Progress.moved += 1  # to other hosts, which wait for this one
            time.sleep(LOOK)

    def close(self) -> None:
        """Ends what runs: it loses nothing that it finished, and the run goes on with it. Its
        checkpoint stays until then.
        """
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGTERM)
        try:
            self._child.wait(ENDING)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._child = None

    def _wait_for(self, step: int) -> None:
        for other in [each for each in self._waiting if not (self._out / str(each)).exists()]:
            self._recorder.say(
                f"rollout of step {other}: skipped: it had not begun when that of step {step} was"
                " due (one runs at a time)"
            )
            self._waiting.remove(other)
            self._checkpointer.release(other)
        self._waiting.append(step)
        self._checkpointer.hold(step)

    def _free(self, step: int) -> bool:
        """Whether a rollout can begin: its checkpoint is written, and no process of an earlier,
        killed training still plays it.
        """
        if not is_complete(self._checkpointer.directory, step):
            return False
        played = self._played(step)
        if played and self._told != step:
            self._told = step
            self._recorder.say(f"rollout of step {step}: another process plays it still")
        return not played

    def _played(self, step: int) -> bool:
        """Whether a process has its episodes open, as rolling/results.py keeps them."""
        file = self._out / str(step) / "episodes.jsonl"
        if not file.exists():
            return False
        with file.open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _begin(self, step: int) -> None:
        out = self._out / str(step)
        if (out / "results.json").is_file():  # the other process has ended
            self._ended(step, 0)
            return
        out.mkdir(parents=True, exist_ok=True)
        config = self._config
        words = [
            "-m", "experiments.rollout", f"--policy={self._folder}", f"--step={step}",
            f"--sim={config.sim}", f"--episodes={config.episodes}", f"--out={out}",
        ]  # fmt: skip
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        with (out / "output.txt").open("ab") as said:
            self._child = subprocess.Popen(
                [sys.executable, *words], env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
        with contextlib.suppress(OSError):  # it ended
            os.setpriority(os.PRIO_PROCESS, self._child.pid, NICE)
            if hasattr(os, "SCHED_IDLE"):  # Linux: whoever wakes up goes before it at once
                os.sched_setaffinity(self._child.pid, {max(os.sched_getaffinity(0))})
                os.sched_setscheduler(self._child.pid, os.SCHED_IDLE, os.sched_param(0))
        _share(self._child.pid, NICE if self._trains else 0)
        self._running = step

    def _ended(self, step: int, code: int) -> None:
        """Tells what became of it."""
        out = self._out / str(step)
        done = (out / "results.json").is_file()
        if not done and self._played(step):  # that process was here first
            self._waiting.insert(0, step)
            return
        self._checkpointer.release(step)
        if code or not done:
            file = out / "output.txt"
            lines = file.read_text(errors="replace").splitlines()[-LINES:] if file.exists() else []
            self._recorder.say(
                "\n  ".join([f"rollout of step {step}: exit code {code}, {file} ends:", *lines])
            )
        if done:
            self._record(step)

    def _record(self, step: int) -> None:
        out = self._out / str(step)
        body: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
        success = body["success"]
        share = success["successes"] / success["episodes"]
        row = {"step": step, "rollout/success": share, "rollout/low": success["low"]}
        row |= {"rollout/high": success["high"], "rollout/episodes": success["episodes"]}
        if "in_a_row" in body:
            row["rollout/in_a_row"] = body["in_a_row"]["mean"]
        film = np.asarray(Image.open(out / "film.png").convert("RGB"))
        self._recorder.late(row, {"rollout/film": film})
        self._recorder.say(
            f"rollout of step {step}: success {share:.1%} [{100 * success['low']:.0f},"
            f" {100 * success['high']:.0f}] of {success['episodes']}: {out}"
        )


def _share(pid: int, nice: int) -> None:
    """Sets how much a session gets where Linux lets sessions share alike (autogroup), whatever the
    priorities in them.
    """
    with contextlib.suppress(OSError):  # it ended, or there is no such thing here
        Path(f"/proc/{pid}/autogroup").write_text(f"{nice}")


def _recorded(metrics_file: Path) -> set[int]:
    """The steps of which the success is among the rows."""
    lines = metrics_file.read_text().splitlines() if metrics_file.exists() else ()
    rows = [json.loads(line) for line in lines]
    return {row["step"] for row in rows if "rollout/success" in row}


def _set_aside(folder: Path) -> None:
    """Renames results of a step that is about to be trained again."""
    for i in range(1000):
        target = folder.with_name(f"{folder.name}.before{i or ''}")
        if not target.exists():
            os.replace(folder, target)
            return
