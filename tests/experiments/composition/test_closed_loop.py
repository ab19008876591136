"""Rollouts beside the training: their results come with their step, one at a time, whatever becomes
of their processes. The processes are not started: what they leave is written here.
"""

import fcntl
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments.composition import closed_loop
from experiments.composition.closed_loop import Rollouts
from vla_jax.training.metrics import Recorder

NOBODY = 2**30  # a process id that the system does not give


class Child:
    """In the place of a process; `code` None: it runs."""

    begun: list["Child"]

    def __init__(self, words: list[str], **given: Any) -> None:
        self.given, self.pid, self.code = given, NOBODY, None
        self.flags = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
        self.step, self.out = int(self.flags["step"]), Path(self.flags["out"])
        given["stdout"].write(b"line 1\nno such world\n")
        self.begun.append(self)

    def poll(self) -> int | None:
        return self.code

    def wait(self, seconds: float | None = None) -> None:
        self.code = -15

    def ends(self, code: int = 0, results: bool = True) -> None:
        self.code = code
        if results:
            finished(self.out, self.step)


def finished(out: Path, successes: int) -> None:
    """What a rollout of 100 episodes leaves."""
    out.mkdir(parents=True, exist_ok=True)
    success = {"successes": successes, "episodes": 100, "low": 0.1, "high": 0.9}
    (out / "results.json").write_text(json.dumps({"success": success}))
    Image.new("RGB", (8, 4), (0, 200, 0)).save(out / "film.png")


class Keeper:
    """A Checkpointer whose steps are all whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.held: set[int] = set()
        self.hold, self.release = self.held.add, self.held.discard


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    Child.begun = []
    monkeypatch.setattr(closed_loop, "subprocess", SimpleNamespace(
        Popen=Child, DEVNULL=None, STDOUT=None, TimeoutExpired=TimeoutError
    ))  # fmt: skip
    monkeypatch.setattr(closed_loop, "LOOK", 0.0)
    monkeypatch.setattr(closed_loop, "is_complete", lambda directory, step: True)
    return Child.begun


def rollouts(folder: Path, recorder: Any, start: int = 0, end: int = 100) -> Rollouts:
    config = ConfigDict({"sim": "navigation", "every": 10, "episodes": 100})
    out = Rollouts(config, folder, recorder, Keeper(folder / "checkpoints"))  # type: ignore
    out.resume(start, end)
    return out


def told() -> Any:
    """A recorder that keeps what it is told."""
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    return SimpleNamespace(
        rows=rows, lines=lines, say=lines.append, late=lambda row, pictures: rows.append(row)
    )


def steps_of(begun: list[Child]) -> list[int]:
    return [child.step for child in begun]


@pytest.mark.slow
def test_results_arrive_late_with_their_step_and_their_film(
    tmp_path: Path, begun: list[Child], capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(tmp_path, 0, 100)
    beside = rollouts(tmp_path, recorder)
    beside.saved(10, last=False)
    beside.look()
    recorder.write({"step": 12, "loss": 0.5})
    begun[0].ends()
    beside.look()
    recorder.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "step": 10, "rollout/success": 0.1, "rollout/low": 0.1, "rollout/high": 0.9,
        "rollout/episodes": 100,
    }  # fmt: skip
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"rollout/film" in events.read_bytes()
    assert "rollout of step 10: success 10.0% [10, 90] of 100" in capsys.readouterr().out
    assert begun[0].given["env"]["JAX_PLATFORMS"] == "cpu"
    assert begun[0].flags["policy"] == str(tmp_path)
    assert begun[0].flags["sim"] == "navigation"


def test_one_at_a_time_and_the_newest_waits(tmp_path: Path, begun: list[Child]) -> None:
    recorder = told()
    beside = rollouts(tmp_path, recorder)
    for step in (5, 10, 15, 20, 33, 37):
        beside.saved(step, last=False)
        beside.look()
    assert steps_of(begun) == [10]
    (said,) = recorder.lines
    assert said.startswith("rollout of step 20: skipped: it had not begun when that of step 33")
    assert beside._checkpointer.held == {10, 33}  # type: ignore
    begun[0].ends()
    beside.look()
    assert steps_of(begun) == [10, 33]
    assert beside._checkpointer.held == {33}  # type: ignore
    beside.saved(39, last=True)  # no multiple, but the last
    begun[1].ends()
    beside.look()
    begun[2].ends()
    beside.wait()
    assert steps_of(begun) == [10, 33, 39]
    assert [row["step"] for row in recorder.rows] == [10, 33, 39]
    assert not beside._checkpointer.held  # type: ignore


def test_one_that_fails_is_told_with_its_last_lines(tmp_path: Path, begun: list[Child]) -> None:
    recorder = told()
    beside = rollouts(tmp_path, recorder)
    beside.saved(10, last=False)
    beside.look()
    begun[0].ends(code=2, results=False)
    beside.look()
    (said,) = recorder.lines
    assert said.startswith("rollout of step 10: exit code 2")
    assert said.endswith("output.txt ends:\n  line 1\n  no such world")
    beside.saved(20, last=False)
    beside.look()
    begun[1].ends(code=1)  # some episodes were errors: the others count
    beside.look()
    assert [row["step"] for row in recorder.rows] == [20]
    assert len(recorder.lines) == 3


def test_a_run_that_is_killed_makes_nothing_again(tmp_path: Path, begun: list[Child]) -> None:
    out = tmp_path / "rollouts"
    finished(out / "10", 10)
    finished(out / "20", 20)  # it ended when nobody looked any more
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "rollout/success": 0.1}\n')
    (out / "30").mkdir()  # this one had begun
    finished(out / "50", 50)  # of a checkpoint that was lost
    recorder = told()
    beside = rollouts(tmp_path, recorder, start=47)
    assert [row["step"] for row in recorder.rows] == [20]
    with (out / "30" / "episodes.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the process of then is there still
        beside.look()
        beside.look()
    assert not begun
    assert recorder.lines[1:] == ["rollout of step 30: another process plays it still"]
    beside.look()
    begun[0].ends()
    beside.look()
    assert steps_of(begun) == [30, 47]  # the one that had begun, before the one that is due
    assert not (out / "50").exists()
    assert (out / "50.before").is_dir()


def test_what_the_process_of_then_made_is_taken(tmp_path: Path, begun: list[Child]) -> None:
    (tmp_path / "rollouts" / "30").mkdir(parents=True)
    recorder = told()
    beside = rollouts(tmp_path, recorder, start=37)
    finished(tmp_path / "rollouts" / "30", 30)
    beside.look()
    assert not begun
    assert [row["step"] for row in recorder.rows] == [30]


def test_a_process_of_then_that_was_first_is_waited_for(tmp_path: Path, begun: list[Child]) -> None:
    """It had not opened its episodes yet when another one was begun, which they refuse."""
    recorder = told()
    beside = rollouts(tmp_path, recorder)
    beside.saved(10, last=False)
    beside.look()
    with (begun[0].out / "episodes.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        begun[0].ends(code=2, results=False)
        beside.look()
        beside.look()
        finished(begun[0].out, 10)
    beside.wait()
    assert steps_of(begun) == [10]
    assert [row["step"] for row in recorder.rows] == [10]
    assert not beside._checkpointer.held  # type: ignore


def test_a_run_that_stops_ends_what_runs_and_keeps_its_checkpoint(
    tmp_path: Path, begun: list[Child]
) -> None:
    beside = rollouts(tmp_path, told())
    beside.saved(10, last=False)
    beside.look()
    beside.close()
    assert begun[0].code == -15
    assert beside._checkpointer.held == {10}  # type: ignore
