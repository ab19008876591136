"""The benchmarks of long runs, shortened: memory stays flat, saves hold up little, and a killed run
goes on as if nothing had been; and that each of them sees what it looks for.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import endurance, kills, tiny_runs
from vla_jax.training.checkpoint import complete_steps


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes compile once."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))


def test_growth_is_a_slope_and_the_start_is_left_out() -> None:
    steps = np.arange(1.0, 401)
    sizes = 2.0**30 + 700 * steps
    sizes[:90] = np.linspace(2**28, 2**30, 90)  # what is made once
    growth, quarters = endurance.slope(steps, sizes)
    assert growth == pytest.approx(700)
    assert quarters == pytest.approx([1024, 1024, 1024, 1024], abs=1)


@pytest.mark.parametrize(
    ("reached", "whole", "writing", "too_many"),
    [
        (19, 10, None, False),
        (20, 10, None, False),  # the save of 20 had not begun
        (21, 10, None, True),
        (28, 10, 20, False),
        (28, 9, 20, True),
        (28, 0, None, True),
    ],
)
def test_no_more_than_an_interval_may_be_lost(
    reached: int, whole: int, writing: int | None, too_many: bool
) -> None:
    assert kills.Kill("", reached, whole, writing, True).too_many(10) is too_many


@pytest.mark.parametrize(
    ("said", "whole", "right"),
    [
        ("continuing from the checkpoint of step 20 in x\ntrain step compiled", 20, True),
        ("continuing from the checkpoint of step 10 in x\ntrain step compiled", 20, False),
        ("killed before", 20, True),
        ("a table\ntrain step compiled", 20, False),  # it began anew
        ("a table\ntrain step compiled", 0, True),
        ("a table\ntrain step compiled", None, True),
    ],
)
def test_a_start_goes_on_from_what_is_there(
    said: str, whole: int | None, right: bool, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text(said)
    assert kills.resumed_from(tmp_path / "log", whole) is right


@pytest.mark.slow
def test_three_kills_change_nothing(
    compiled: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "kills", tmp_path / "table.json"
    flags = ["--kills=3", "--steps=40", "--every=8", f"--root={root}", f"--json={out}"]
    assert benchmark.main(["kills", *flags]) == 0
    table: dict[str, Any] = json.loads(out.read_text())
    assert len(table["kills"]) == 3
    assert (table["lost"], table["corrupt"], table["different"]) == (0, 0, 0)
    assert "3 kills in" in capsys.readouterr().out
    assert [row["step"] for row in tiny_runs.rows(root / "run_1")] == list(range(1, 41))
    assert json.loads((root / "run_1" / "goodput.json").read_text())["starts"] > 1

    # What it holds the runs against is seen to differ when it does.
    settings = kills.Settings(root, 40, 8)
    last = max(complete_steps(root / "run_1" / "checkpoints"))
    assert kills.same_parameters(settings, root / "run_1" / "checkpoints", last)
    other = root / "undisturbed" / "checkpoints"
    shutil.rmtree(other / str(last))
    shutil.copytree(other / "8", other / str(last))
    assert not kills.same_parameters(settings, root / "run_1" / "checkpoints", last)


@pytest.mark.slow
def test_memory_does_not_grow_and_saves_hold_up_little(
    compiled: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    benchmark.main(["endurance", "--steps=800", "--every=200", f"--json={out}"])
    table = json.loads(out.read_text())
    # What is allocated at the moment wanders by some MB: over so few steps this only sees that a
    # batch (98 kB) or a state (6 MB) is not held on to.
    assert table["bytes_a_step"] < 20 * endurance.GROWTH
    assert 0 < table["held_up"] < 0.1
    assert "memory grew by" in capsys.readouterr().out
