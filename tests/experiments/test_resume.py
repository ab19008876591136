"""Where a continued run reads on, without training; test_pretrain.py continues real runs."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments import pretrain
from experiments.composition import plots
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
        monkeypatch.setattr(Checkpointer, "restore", lambda self, abstract: state)
        pretrain.pretrain(config, tmp_path / "run")
        return read[-1]

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(plots, "curves", lambda metrics_file, out: None)
    whole, continued = run(0), run(2)
    assert (whole[0].actions != whole[2].actions).any()
    jax.tree.map(np.testing.assert_array_equal, continued[0], whole[2])
