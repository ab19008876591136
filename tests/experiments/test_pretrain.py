"""The user's commands, run as a user runs them: train, kill, continue, evaluate, dry run, and what
is missing.
"""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.builders.blocks import write_blocks
from tests.processes import REPO, alone

SHORT = [
    "--config=oxe_paligemma.py:tiny", "--config.steps=12", "--config.batch_size=8",
    "--config.log_every=1",
    "--config.eval_every=12", "--config.eval_batches=1", "--config.save_every=4",
    "--config.optim.warmup_steps=2",
]  # fmt: skip


def command(*args: str, module: str = "experiments.pretrain") -> list[str]:
    return [sys.executable, "-m", module, *args]


def run(*args: str, module: str = "experiments.pretrain") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args, module=module),
        cwd=REPO,
        env=alone(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def losses(workdir: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rlds")
    write_blocks(root, train=12, val=4, seed=0)
    return root


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    done = run(*SHORT, f"--config.data.root={data}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_a_run_leaves_everything_and_evaluates(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "curves.png",
        "tokenizer",
    } <= names
    assert [step for step, _ in losses(uninterrupted)] == list(range(1, 13))
    done = run(f"--workdir={uninterrupted}", module="experiments.evaluate")
    assert done.returncode == 0, done.stderr
    result = json.loads((uninterrupted / "evaluation.json").read_text())
    assert result["step"] == 12
    assert f"{result['datasets']['blocks']['arm_loss']:.5f}" in done.stdout
    assert (uninterrupted / "actions.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_started_again_gives_the_same_losses(
    sent: signal.Signals, data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    args = [*SHORT, f"--config.data.root={data}", f"--workdir={tmp_path}"]
    process = subprocess.Popen(
        command(*args),
        cwd=REPO,
        env=alone(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        metrics = tmp_path / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 6:
            process.send_signal(sent)
            break
        time.sleep(0.005)
    assert process.wait(timeout=300) == (143 if sent == signal.SIGTERM else -signal.SIGKILL)
    assert run(*args).returncode == 0
    assert losses(tmp_path) == losses(uninterrupted)  # bit for bit, each step once


# A package wandb that writes down its calls.
WANDB = """
import json, os

class Run:
    def __init__(self):
        self.config = self

    def __getattr__(self, name):
        return lambda *args, **given: note(name, args or given)

def note(name, what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps([name, what]) + "\\n")

def init(**given):
    note("init", given)
    return Run()
"""


@pytest.mark.slow
def test_a_continued_run_goes_on_at_wandb(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    args = (*SHORT, f"--config.data.root={data}", f"--workdir={tmp_path / 'run'}")
    args = (*args, "--config.wandb=robots", "--config.eval_every=0")
    for more in (("--config.steps=4",), ("--config.steps=6", "--change=yes")):
        done = run(*args, *more)
        assert done.returncode == 0, done.stderr
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    first, second = [what for name, what in notes if name == "init"]
    assert first["id"] == second["id"]
    assert [what[0]["steps"] for name, what in notes if name == "update"] == [4, 6]
    sent = [what[0] for name, what in notes if name == "log"]
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "changed" not in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert sent == [{key: x for key, x in row.items() if x is not None} for row in rows]
    assert [name for name, _ in notes].count("finish") == 2


@pytest.mark.slow
def test_the_3b_job_names_all_that_is_missing_in_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(
        "--config=oxe_paligemma.py",
        f"--config.data.root={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode != 0
    assert time.monotonic() - began < 60
    for word in (
        "weights/paligemma-3b-pt-224",
        "hf download",
        "fractal20220817_data",
        "bridge",
        str(tmp_path),
    ):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()  # nothing was written


@pytest.mark.slow
@pytest.mark.parametrize("head", ["gpt", "attention", "flow,lora"])
def test_other_heads_and_adapters_train_from_the_command_line(
    head: str, data: Path, tmp_path: Path
) -> None:
    args = [each for each in SHORT if not each.startswith("--config=")]
    args += [
        f"--config=oxe_paligemma.py:tiny,{head}",
        "--config.steps=4",
        "--config.optim.warmup_steps=1",
    ]
    done = run(*args, f"--config.data.root={data}", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in losses(tmp_path)][-1] == 4
    done = run(f"--workdir={tmp_path}", module="experiments.evaluate")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "actions.png").is_file()


@pytest.mark.slow
def test_the_3b_dry_run_counts_and_shards() -> None:
    done = run(
        "--config=oxe_paligemma.py",
        "--config.model.weights=none",
        "--config.mesh.fsdp=8",
        "--dry_run",
    )
    assert done.returncode == 0, done.stderr
    assert "backbone 2,923,466,480" in done.stdout
    # The token embedding, 257216 x 2048 in float32, is split over the eight devices.
    assert re.search(r"backbone/embed/embedding .* 263,389,184\n", done.stdout)


@pytest.mark.slow
def test_another_config_in_the_same_workdir_is_refused(data: Path, uninterrupted: Path) -> None:
    done = run(
        *SHORT, f"--config.data.root={data}", f"--workdir={uninterrupted}", "--config.optim.lr=0.5"
    )
    assert done.returncode != 0
    assert "optim.lr: there 0.001, now 0.5" in done.stderr


@pytest.mark.slow
def test_the_real_bridge_sample_trains(bridge_root: Path, tmp_path: Path) -> None:
    done = run(
        *SHORT, f"--config.data.root={bridge_root}", "--config.data.mixture=bridge",
        f"--workdir={tmp_path}",
        "--config.steps=40", "--config.eval_every=20", "--config.save_every=40",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held_out = [row["val/loss"] for row in rows if "val/loss" in row]
    assert held_out[-1] < held_out[0]
