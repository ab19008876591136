"""Where a continued run reads on, without training; test_pretrain.py continues real runs."""

import os
import signal
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments import pretrain
from experiments.composition import beginning, plots, workdir
from experiments.composition.config import load_config
from vla_jax.training import train
from vla_jax.training.checkpoint import Checkpointer


def test_a_continued_run_reads_the_batch_of_its_step_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_blocks(tmp_path / "data", train=4, val=2)
    config = load_config(
        "oxe_paligemma.py:tiny",
        [f"--config.data.root={tmp_path / 'data'}", "--config.batch_size=8", "--config.steps=20",
         "--config.optim.warmup_steps=2"],
    )  # fmt: skip
    read: list[list[Any]] = []

    def fit(state: Any, step: Any, batches: Any, config: Any, hooks: Any) -> None:
        read.append([jax.tree.map(np.array, batch) for batch in islice(batches, 3)])
        batches.close()

    def run(step: int) -> list[Any]:
        """The first batches that a run at this step reads."""
        state = SimpleNamespace(step=step)
        monkeypatch.setattr(pretrain, "complete_steps", lambda folder: [step])
        monkeypatch.setattr(pretrain, "check_fits", lambda folder, abstract: None)
        begins = beginning.Begin(step, True, step, step, [], [], "")
        monkeypatch.setattr(beginning, "begin", lambda *args: begins)
        monkeypatch.setattr(Checkpointer, "restore", lambda self, abstract, same_data: state)
        pretrain.pretrain(config, tmp_path / "run")
        return read[-1]

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(plots, "curves", lambda metrics_file, members, out: None)
    whole, continued = run(0), run(2)
    assert (whole[0].actions != whole[2].actions).any()
    jax.tree.map(np.testing.assert_array_equal, continued[0], whole[2])


def test_a_work_directory_that_hosts_do_not_share_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(ValueError, match="a folder that all hosts share"):
        workdir.await_claim(tmp_path)
    assert 60 < sum(slept) < 120  # network file systems may show a file that late
    (tmp_path / "config.json").write_text("{}")
    workdir.await_claim(tmp_path)


def test_sigusr1_before_training_does_not_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_blocks(tmp_path / "data", train=4, val=2)
    heard: list[Any] = []

    def started(config: Any, workdir: Path, peers: Any, change: str) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        heard.append(workdir)

    monkeypatch.setattr(pretrain, "pretrain", started)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        pretrain.main(
            ["--config=oxe_paligemma.py:tiny", f"--config.data.root={tmp_path / 'data'}",
             f"--workdir={tmp_path / 'run'}"]
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [tmp_path / "run"]
