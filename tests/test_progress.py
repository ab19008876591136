"""Progress: lines in a log, a bar on any terminal, a sign of life though nothing is added."""

import io
import os
import pty
import select
import time
from types import SimpleNamespace

import pytest

from vla_jax import progress
from vla_jax.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands still but for what a test adds to `now`."""
    fake = SimpleNamespace(now=0.0)
    fake.monotonic = lambda: fake.now
    monkeypatch.setattr(progress, "time", fake)
    return fake


def test_a_line_has_the_rate_the_time_left_and_the_note(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("blocks: indexing train", 4_000_000_000) as shown:
        clock.now = 20.0
        shown.add(1_000_000_000, "loss 0.5")
    said = capsys.readouterr().out
    assert said == "blocks: indexing train: 1.00 of 4.00 GB, 50 MB/s, 60 s left, loss 0.5\n"


def test_lines_come_after_ten_seconds_and_then_each_minute(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("evaluate", 10_000, "windows") as shown:
        for second in range(1, 200):
            clock.now = float(second)
            shown.add(5)
    said = [line.split(" of ")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["evaluate: 50", "evaluate: 350", "evaluate: 650", "evaluate: 950"]


def test_what_came_before_the_first_step_is_not_in_the_rate(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("training", 1_000, "steps", start=500) as shown:
        clock.now = 7200.0  # compiled for hours
        shown.add(1)
        capsys.readouterr()
        clock.now += 100.0
        shown.add(50)
        said = capsys.readouterr().out
        assert said == "training: 551 of 1000 steps, 0.50 steps/s, 0:14:58 left\n"
        shown.row("step 551/1000", "loss 0.3")
        assert capsys.readouterr().out == "step 551/1000  loss 0.3  0.50 steps/s  0:14:58 left\n"


def test_it_tells_of_itself_though_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()  # capsys would lose a line that comes while it is read
    monkeypatch.setattr("sys.stdout", said)
    monkeypatch.setattr(progress, "TICK", 0.01)
    monkeypatch.setattr(progress, "FIRST", 0.02)
    deadline = time.monotonic() + 20
    with Progress("compiling"):
        while not said.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said.getvalue() == "compiling: 0 s so far\n"


def test_a_terminal_of_unknown_width_has_a_bar_too(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()  # says 0 columns, as some containers' do
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with Progress("training", 10, "steps") as shown:
            shown.row("step 5/10", "loss 0.5")
        terminal.flush()
        said = ""
        while "loss 0.5" not in said and select.select([master], [], [], 5)[0]:
            said += os.read(master, 1 << 16).decode()
    os.close(master)
    assert "training:   0%|" in said
    assert "loss 0.5" in said
