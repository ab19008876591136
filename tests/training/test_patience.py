"""Early stopping: when a run ends, which checkpoint is the policy then, and that a killed run goes
on counting.
"""

import functools
import json
import math
from pathlib import Path

import jax
import pytest

from tests.training import tiny_run
from vla_jax import sharding
from vla_jax.training import kept
from vla_jax.training.checkpoint import complete_steps, find
from vla_jax.training.patience import Patience, resumed

FELL_UNTIL_6 = {2: 0.5, 4: 0.4, 6: 0.3, 8: 0.35, 10: 0.3, 12: 0.31}  # held-out loss by step


def test_it_is_over_after_so_many_that_are_no_better() -> None:
    patience = Patience(2)
    assert [patience.saw(*each) for each in FELL_UNTIL_6.items()] == [True] * 3 + [False] * 3
    assert (patience.step, patience.loss, patience.count) == (6, 0.3, 3)
    assert patience.over
    assert not patience.saw(14, math.nan)
    assert patience.saw(16, 0.2)
    assert not patience.over


def test_it_is_that_of_the_rows_until_the_step(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0}]
    rows += [{"step": step, "val/loss": loss} for step, loss in FELL_UNTIL_6.items()]
    rows[3]["val/loss"] = None  # of step 6: it was not finite
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 1')
    steps = range(20)

    def state(step: int, kept: range = steps) -> tuple[int | None, int]:
        patience = resumed(2, file, step, kept)
        return patience.step, patience.count

    assert [state(step) for step in (0, 1, 4, 7, 8, 10)] == [
        (None, 0), (None, 0), (4, 0), (4, 1), (8, 0), (10, 0)
    ]  # fmt: skip
    assert state(7, range(5, 20)) == (None, 0)  # the checkpoint of step 4 is gone
    assert resumed(2, tmp_path / "none.jsonl", 9, steps).step is None


@pytest.mark.parametrize(
    ("field", "count"), [("loss.arm", 0), ("data.mixture", 0), ("data.root", 1), ("optim.lr", 1)]
)
def test_another_loss_is_not_compared(field: str, count: int) -> None:
    rows = [{"step": 2, "val/loss": 0.1}, {"step": 2, "changed": {field: ["1", "2"]}}]
    patience = Patience(3, [*rows, {"step": 4, "val/loss": 0.2}])
    assert (patience.step, patience.count) == ((2, 1) if count else (4, 0))


@functools.cache
def setup() -> tiny_run.Setup:
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    return tiny_run.Setup(mesh, tiny_run.config(steps=20, eval_every=2, save_every=100))


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: int) -> tuple[int, list[int]]:
    """The step at which a run with a patience of 2 ends, and the steps that it evaluated."""
    asked: list[int] = []

    def evaluate(state: tiny_run.train.TrainState) -> dict[str, float]:
        asked.append(int(state.step))
        return {"loss": FELL_UNTIL_6.get(asked[-1], 0.9)}

    monkeypatch.setattr(setup(), "evaluate", evaluate)
    state = setup().fit(folder, patience=2, **changes)
    return int(state.step), asked


@pytest.mark.slow
def test_a_run_ends_early_and_its_best_checkpoint_is_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, monkeypatch) == (10, [2, 4, 6, 8, 10])
    checkpoints = tmp_path / "checkpoints"
    assert complete_steps(checkpoints) == [6, 10]  # two are kept
    assert find(checkpoints, None).name == "6"
    assert run(tmp_path, monkeypatch) == (10, [])  # and again: it is over


def test_a_killed_run_goes_on_counting_and_keeps_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved at step 9, as SIGTERM does, with one evaluation that was no better behind it."""
    assert run(tmp_path, monkeypatch, steps=7, eval_every=2)[0] == 7
    assert kept.marked(tmp_path / "checkpoints") == 6
    assert run(tmp_path, monkeypatch) == (8, [8])  # those of steps 7 and 8 were no better
    assert complete_steps(tmp_path / "checkpoints") == [6, 7, 8]
    assert find(tmp_path / "checkpoints", None).name == "6"


def test_without_it_the_newest_is_the_policy(tmp_path: Path) -> None:
    kept.mark(tmp_path, 4)
    assert kept.chosen(tmp_path, [2, 4, 6]) == 4
    assert kept.chosen(tmp_path, [2, 6]) == 6  # somebody removed it
    kept.mark(tmp_path, None)
    assert kept.chosen(tmp_path, [2, 4, 6]) == 6
