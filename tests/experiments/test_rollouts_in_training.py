"""Policies act while they are trained: the command as a user runs it, also killed and failing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.builders.navigation import write_navigation
from tests.processes import REPO, alone


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of 8 steps, with a rollout of two episodes at 4 and at 8."""
    root = tmp_path_factory.mktemp("data")
    write_navigation(root, train=8, val=8)
    return [
        sys.executable, "-m", "experiments.pretrain", "--config=navigation.py",
        f"--config.data.root={root}", "--config.steps=8", "--config.batch_size=4",
        "--config.log_every=1", "--config.eval_every=8", "--config.eval_batches=1",
        "--config.save_every=4", "--config.keep_checkpoints=1", "--config.optim.warmup_steps=1",
        "--config.rollouts.sim=navigation", "--config.rollouts.every=4",
        "--config.rollouts.episodes=2",
    ]  # fmt: skip


def run(command: list[str], tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}", *more], cwd=REPO, env=alone(),
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def rows(tmp_path: Path) -> list[dict[str, float]]:
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_killed_it_goes_on_and_every_rollout_is_made_once(
    command: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run" / "rollouts"
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'run'}"], cwd=REPO, env=alone(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 300
    while not list(out.glob("*/episodes.jsonl")):
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)  # the rollout's process lives on
    process.wait()
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    told = [row for row in rows(tmp_path) if "rollout/success" in row]
    assert [row["step"] for row in told] == sorted(int(path.name) for path in out.iterdir())
    assert told[-1]["step"] == 8
    for row in told:
        assert row["rollout/episodes"] == 2
        folder = out / str(row["step"])
        lines = (folder / "episodes.jsonl").read_text().splitlines()
        assert [json.loads(line)["episode"] for line in lines] == [0, 1]
        settings = json.loads((folder / "settings.json").read_text())
        assert settings["policy"]["step"] == row["step"]
    measured = next(row for row in rows(tmp_path) if "val/loss" in row)
    assert measured["val/executed_arm"] == pytest.approx(measured["val/arm"], rel=1e-5)
    assert {"val/gap/images_blanked", "val/drift/linear_x", "val/executed_at/3"} <= measured.keys()
    again = run(command, tmp_path)
    assert "nothing to train" in again.stdout
    assert len([row for row in rows(tmp_path) if "rollout/success" in row]) == len(told)


@pytest.mark.slow
def test_a_world_that_does_not_open_does_not_stop_the_training(
    command: list[str], tmp_path: Path
) -> None:
    done = run(command, tmp_path, "--config.rollouts.sim=navigation:words")
    assert done.returncode == 0, done.stderr
    assert "rollout of step 8: exit code 1" in done.stdout
    assert "TypeError" in done.stdout
    assert rows(tmp_path)[-1]["step"] == 8
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"8"}
    refused = run(command, tmp_path, "--config.rollouts.sim=nowhere")
    assert refused.returncode == 2
    assert "--config.rollouts.sim: expected one of blocks, calvin" in refused.stderr
