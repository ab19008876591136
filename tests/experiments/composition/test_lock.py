"""One run at a time in a work directory: who is refused, and what is taken over."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.composition import lock
from experiments.composition.lock import held
from tests.processes import REPO

HOLDER = """
import sys, time
from pathlib import Path
from experiments.composition.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def waiting(monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]) -> list[float]:
    """In place of sleeping `do(number of the call)`; the list tells how long each was to be."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        do(len(slept))

    monkeypatch.setattr(lock, "sleep", sleep)
    return slept


def write(file: Path, **changed: Any) -> None:
    """A lock of this process, but for what is changed."""
    owner = lock._Lock(file)._owner | changed
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(owner))


def test_the_second_is_refused_and_the_folder_is_as_it_was_before_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    with held(folder):
        said = (folder / "lock").read_text()
        who = rf"host {socket.gethostname()}, process {os.getpid()}, which is running"
        with (
            pytest.raises(ValueError, match=rf"^--workdir={folder}: expected .*{who}"),
            held(folder),
        ):
            pytest.fail("both have it")
        assert (folder / "lock").read_text() == said
    assert not (tmp_path / "runs").exists()
    with held(folder):
        (folder / "metrics.jsonl").write_text("")
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("error", [ValueError("refused"), SystemExit(143), KeyboardInterrupt()])
def test_however_a_run_ends_its_lock_goes(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), held(tmp_path):
        raise error
    assert not list(tmp_path.iterdir())


def test_of_many_that_start_at_once_one_has_it(tmp_path: Path) -> None:
    began, done = threading.Barrier(8), threading.Barrier(8)
    outcomes = []

    def start() -> None:
        began.wait()
        try:
            with held(tmp_path / "new"):
                outcomes.append("held")
                done.wait()
        except ValueError:
            outcomes.append("refused")
            done.wait()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 7]


def test_a_process_that_was_killed_is_taken_over_from_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept = waiting(monkeypatch, lambda number: None)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"process {process.pid}, which is running"):
            held(tmp_path).__enter__()
        assert not slept
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, its number still taken
        with held(tmp_path):
            assert f"taken over from host {socket.gethostname()}, process {process.pid}, which is" \
                " gone" in capsys.readouterr().out  # fmt: skip
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert slept == [lock.SETTLE]
    assert not list(tmp_path.iterdir())


def test_a_number_that_another_process_has_now_is_none_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(monkeypatch, lambda number: None)
    write(tmp_path / "lock", started="1")
    with held(tmp_path):
        pass


@pytest.mark.parametrize("other", [{"host": "far"}, {"machine": "another boot"}])
def test_of_another_machine_only_the_beat_tells(
    other: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    file = tmp_path / "lock"
    name = other.get("host", socket.gethostname())
    write(file, **other, pid=7)
    old = json.loads(file.read_text())

    def beat(number: int) -> None:
        if number == 5:
            file.write_text(json.dumps({**old, "beat": "0000000001"}))

    slept = waiting(monkeypatch, beat)
    with pytest.raises(ValueError, match=rf"got that of host {name}, process 7, which is running"):
        held(tmp_path).__enter__()
    assert slept == [1.0] * 5
    slept = waiting(monkeypatch, lambda number: None)
    with held(tmp_path):
        assert slept == [1.0] * 20 + [lock.SETTLE]
        said = capsys.readouterr().out
    assert f"taken over from host {name}, process 7, which gave no sign for 20 s" in said


def test_one_that_ends_while_we_look_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "lock", host="far")
    slept = waiting(monkeypatch, lambda number: (tmp_path / "lock").unlink())
    with held(tmp_path):
        assert slept == [1.0]


@pytest.mark.parametrize("text", ["", '{"host": "fa', "[1]"])
def test_what_cannot_be_read_may_be_half_written(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lock").write_text(text)
    waiting(monkeypatch, lambda number: write(tmp_path / "lock", host="far", pid=7))
    with pytest.raises(ValueError, match="got that of host far, process 7"):
        held(tmp_path).__enter__()
    (tmp_path / "lock").write_text(text)
    waiting(monkeypatch, lambda number: None)
    with held(tmp_path):
        assert "taken over from an unknown process" in capsys.readouterr().out


def test_of_two_that_take_over_at_once_the_first_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lock"
    write(file, started="1")
    waiting(monkeypatch, lambda number: write(file, host="far", pid=8))
    with pytest.raises(ValueError, match="got that of host far, process 8"):
        held(tmp_path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert json.loads(file.read_text())["pid"] == 8


def test_signs_of_life_are_given_until_another_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, why = threading.Event(), []

    def end(text: str) -> None:
        why.append(text)
        if len(why) > 3:  # in earnest this ends the process; here signs of life are given on
            ended.set()

    monkeypatch.setattr(lock, "BEAT", 0.005)
    monkeypatch.setattr(lock, "_end", end)
    file = tmp_path / "lock"
    with held(tmp_path):
        while int(json.loads(file.read_text())["beat"]) < 12:
            pass
        write(tmp_path / "new", host="far", pid=9)
        os.replace(tmp_path / "new", file)  # as one does that takes over
        assert ended.wait(10)
        theirs = file.read_text()
    assert "host far, process 9 has taken this work directory over" in why[0]
    assert file.read_text() == theirs  # neither written nor removed
