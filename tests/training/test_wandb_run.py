"""The rows of a run at Weights & Biases: with a package that notes how it is called, and with the
real one offline where it is installed.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vla_jax.training import wandb_run
from vla_jax.training.metrics import Recorder

CONFIG = {"steps": 9, "optim": {"lr": 0.1}}


class Gone(Exception):
    """What W&B raises."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the package is asked for, in this order."""
    noted: list[tuple[str, Any]] = []

    class Run:
        config = property(lambda self: self)

        def update(self, values: dict[str, Any], allow_val_change: bool) -> None:
            assert allow_val_change  # a run that goes on may have another config
            noted.append(("config", values))

        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "step")

        def log(self, row: dict[str, Any]) -> None:
            noted.append(("log", row))

        def finish(self, exit_code: int) -> None:
            noted.append(("finish", exit_code))

    package = ModuleType("wandb")
    package.errors = ModuleType("wandb.errors")  # type: ignore[attr-defined]
    package.errors.Error = Gone  # type: ignore[attr-defined]
    package.Run = Run  # type: ignore[attr-defined]
    package.init = lambda **given: [noted.append(("init", given)), Run()][1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    return noted


def test_rows_go_there_as_they_stand_in_the_file(tmp_path: Path, calls: list[Any]) -> None:
    recorder = Recorder(tmp_path, 0, 9, "robots", CONFIG)
    recorder.write({"step": 1, "loss": 0.5, "train/mfu": None, "train/l1/x": float("nan")})
    recorder.write({"step": 2, "loss": 0.25})
    recorder.close()
    recorder.close()  # a run that is stopped closes it before it leaves
    opened, *others = calls
    number = (tmp_path / wandb_run.ID).read_text().strip()
    assert len(number) == 8
    assert opened == (
        "init",
        {"project": "robots", "id": number, "name": tmp_path.name, "dir": str(tmp_path),
         "resume": "allow"},
    )  # fmt: skip
    assert others == [
        ("config", CONFIG),
        ("log", {"step": 1, "loss": 0.5}),
        ("log", {"step": 2, "loss": 0.25}),
        ("finish", 0),
    ]


def test_a_continued_run_goes_on_in_the_same_one(tmp_path: Path, calls: list[Any]) -> None:
    for start in (0, 4):
        Recorder(tmp_path, start, 9, "robots", CONFIG).close()
    Recorder(tmp_path / "other", 0, 9, "robots", CONFIG).close()
    first, second, other = [given for name, given in calls if name == "init"]
    assert first["id"] == second["id"] != other["id"]
    assert second["name"] is None  # who renamed it there keeps the name


def test_an_error_is_told(tmp_path: Path, calls: list[Any]) -> None:
    recorder = Recorder(tmp_path, 0, 9, "robots", CONFIG)
    with contextlib.suppress(RuntimeError), contextlib.closing(recorder):
        raise RuntimeError("the loss is not finite")
    assert calls[-1] == ("finish", 1)


def test_off_is_the_default_and_needs_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    Recorder(tmp_path, 0, 9).close()
    assert not (tmp_path / wandb_run.ID).exists()


@pytest.mark.parametrize("there", [None, ModuleType("wandb")])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, there: ModuleType | None
) -> None:
    """A folder of runs, wandb/, in the current directory is a module without anything in it."""
    monkeypatch.setitem(sys.modules, "wandb", there)
    with pytest.raises(ValueError, match=r'pip install "vla_jax\[wandb\]"'):
        wandb_run.package()


def test_a_refusal_says_what_to_do(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**given: Any) -> None:
        raise Gone("No API key configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(ValueError, match=r"wandb=robots: .*No API key.*WANDB_MODE=offline"):
        Recorder(tmp_path, 0, 9, "robots", CONFIG)


def test_training_goes_on_without_it(
    tmp_path: Path,
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its process was killed: every call raises from then on."""
    recorder = Recorder(tmp_path, 0, 9, "robots", CONFIG)

    def reset(*args: Any, **given: Any) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    for name in ("log", "finish"):
        monkeypatch.setattr(sys.modules["wandb"].Run, name, reset)  # type: ignore[attr-defined]
    for step in (1, 2):
        recorder.write({"step": step, "loss": 0.5})
    recorder.close()
    assert capsys.readouterr().out.count("W&B is gone (ConnectionResetError: ") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


REAL = """
import sys
from vla_jax.training.metrics import Recorder
for start in (0, 2):
    recorder = Recorder(sys.argv[1], start, 9, "robots", {"lr": (1, 2)})
    for step in range(start + 1, start + 4):
        recorder.write({"step": step, "loss": 1 / step, "train/l1/x": 0.5, "train/mfu": None})
    recorder.close()
"""


@pytest.mark.slow
def test_the_real_package_offline(tmp_path: Path) -> None:
    """Beside the pins: `pip install --target DIR wandb`, then PYTHONPATH=DIR."""
    if importlib.util.find_spec("wandb") is None:
        pytest.skip('wandb is not installed: pip install "vla_jax[wandb]"')
    subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path / "run")],
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        cwd=Path(__file__).resolve().parents[2], timeout=120, check=True,
    )  # fmt: skip
    number = (tmp_path / "run" / wandb_run.ID).read_text().strip()
    files = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert files
    for name in (b"loss", b"train/l1/x", b"robots"):
        assert all(name in file.read_bytes() for file in files)
    assert all(b"train/mfu" not in file.read_bytes() for file in files)
