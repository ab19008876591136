"""What people do with a run next: extend it, adjust it, branch from it. Training itself is left out
but for one slow test: what it would begin with is looked at.
"""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments import pretrain
from experiments.composition import changes, plots
from experiments.composition.config import load_config
from vla_jax.saved_config import flatten
from vla_jax.training import train
from vla_jax.training.checkpoint import load_data, load_params

SHORT = ("--config=oxe_paligemma.py:tiny", "--config.batch_size=8", "--config.steps=6",
         "--config.optim.warmup_steps=1", "--config.optim.schedule=constant",
         "--config.optim.min_lr_scale=0.0", "--config.eval_every=0",
         "--config.log_every=1", "--config.save_every=2")  # fmt: skip


class Begun(NamedTuple):
    """What a run was about to train with."""

    state: train.TrainState
    batch: Any
    config: train.TrainConfig


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def leave(state: Any, step: Any, batches: Any, config: Any, hooks: Any) -> Begun:
    """In the place of training: the run is at its last step, with a state that moved. Returns what
    it began with.
    """
    batch = jax.tree.map(np.array, next(islice(batches, 1)))
    batches.close()
    first = Begun(jax.device_get(state), batch, config)
    moved = jax.jit(lambda tree: jax.tree.map(lambda x: x + jnp.ones_like(x), tree))
    state = state._replace(
        step=jnp.full_like(state.step, config.steps),
        params=moved(state.params),
        opt_state=moved(state.opt_state),
    )
    hooks.recorder.write({"step": config.steps, "loss": 0.5})
    hooks.checkpointer.save(config.steps, state)
    return first


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Begun]:
    """Fills with what runs begin with; none trains."""
    runs: list[Begun] = []
    monkeypatch.setattr(train, "fit", lambda *args: runs.append(leave(*args)))
    monkeypatch.setattr(plots, "curves", lambda metrics_file, members, out: None)
    return runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rlds")
    write_blocks(root, train=6, val=2)
    return root


def go(data: Path, folder: Path, *flags: str) -> None:
    pretrain.main([*SHORT, f"--config.data.root={data}", f"--workdir={folder}", *flags])


@pytest.fixture(scope="module")
def at_six(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a run at step 6."""
    folder = tmp_path_factory.mktemp("six") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", leave)
        patch.setattr(plots, "curves", lambda metrics_file, members, out: None)
        go(data, folder)
    return folder


@pytest.fixture
def run(at_six: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(at_six, tmp_path / "run")


@pytest.mark.slow
def test_a_change_is_refused_then_listed_then_made_and_recorded(
    data: Path, run: Path, begun: list[Begun], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--config.steps=12", "--config.optim.lr=0.01", "--config.optim.clip=0.0")
    with pytest.raises(
        ValueError, match=r"lr: there 0.001, now 0.01\n  steps: there 6, now 12\n.*--change"
    ):
        go(data, run, *flags)
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"--change: .* is as it was; --change=yes goes on so"):
        go(data, run, *flags, "--change")
    listed = capsys.readouterr().out
    assert "from step 6 on:\n  optim.clip: there 1.0, now 0.0" in listed
    assert re.search(r"  steps: there 6, now 12 +the run ends at another step", listed)
    assert "learning rate: until now 0.001, now 0.01" in listed
    assert not begun
    assert json.loads((run / "config.json").read_text())["steps"] == 6
    go(data, run, *flags, "--change=yes")
    (now,) = begun
    assert (int(now.state.step), now.config.steps) == (6, 12)
    (row,) = map(json.loads, (run / changes.HISTORY).read_text().splitlines())
    assert row["step"] == 6
    assert row["changes"]["steps"] == ["6", "12"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [6, 6, 12]
    assert rows[1]["changed"] == row["changes"]
    assert json.loads((run / "config.json").read_text())["steps"] == 12
    go(data, run, *flags)  # the same command goes on
    assert len((run / changes.HISTORY).read_text().splitlines()) == 1


@pytest.mark.slow
def test_another_batch_size_and_seed_go_on_in_the_new_order(
    data: Path, run: Path, begun: list[Begun], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--config.steps=9", "--config.batch_size=16", "--config.seed=5")
    with pytest.raises(ValueError, match=r"batch_size: there 8, now 16\n  seed: there"):
        go(data, run, *flags)
    go(data, run, *flags, "--change=yes")
    said = capsys.readouterr().out
    assert "data: read up to window 48 of" in said
    assert "goes on at window 48 of" in said
    assert "blocks: 48 windows of this epoch were read; " in said
    (now,) = begun
    assert now.batch.actions.shape[0] == 16
    assert int(now.state.step) == 6
    saved = load_data(run / "checkpoints")
    assert (saved["position"], saved["identity"]["batch_size"]) == (3 + 3, 16)
    assert load_data(run / "checkpoints", 6)["position"] == 6
    go(data, run, "--config.steps=10", *flags[1:], "--change=yes")
    np.testing.assert_array_equal(  # the same order from position 6 on
        begun[1].batch.actions, _batch(data, run, flags[1:], 6).actions
    )


def _batch(data: Path, run: Path, flags: tuple[str, ...], position: int) -> Any:
    from experiments.composition import sources

    config = load_config(SHORT[0].removeprefix("--config="), [*SHORT[1:], *flags])
    with config.unlocked():
        config.data.root = str(data)
    source = sources.data(config, run)
    return sources.loader(config, source, source.train, shuffle=True).batch(position)


@pytest.mark.slow
def test_killed_after_a_change_and_before_a_save(
    data: Path, run: Path, begun: list[Begun], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--config.steps=9", "--config.seed=5")

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            go(data, run, *flags, "--change=yes")
    go(data, run, *flags)  # needs no second word
    assert int(begun[0].state.step) == 6


@pytest.mark.slow
def test_data_that_grew_are_another_run_unless_asked_for(
    run: Path, begun: list[Begun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = tmp_path / "grown"
    write_blocks(grown, train=9, val=2)
    flags = ("--config.steps=8",)
    with pytest.raises(ValueError, match=r"data or statistics differ from those of this run") as e:
        go(grown, run)
    assert re.search(r"statistics of blocks: \d+ numbers, as \S+: checkpoint", str(e.value))
    go(grown, run, *flags, "--change=yes")
    said = capsys.readouterr().out
    assert "blocks: gone, or not the data it was: which windows of the epoch come again" in said
    assert int(begun[0].state.step) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("model.window=3", "model.window: there 2, now 3\nthese make another policy"),
        ("model.head=gpt", "another policy.*model.start=.*checkpoints"),
        ("optim.ema=0.9", "does not fit this configuration"),
        ("data.normalise=bounds", "data.normalise"),
    ],
)
def test_what_cannot_change_in_place_says_how_to_branch(
    flag: str, said: str, data: Path, run: Path, begun: list[Begun]
) -> None:
    with pytest.raises(ValueError, match=said):
        go(data, run, f"--config.{flag}", "--change=yes")
    assert not begun


@pytest.mark.slow
def test_fewer_steps_than_were_done(data: Path, run: Path) -> None:
    with pytest.raises(ValueError, match=r"--config.steps: expected 6 or more, which"):
        go(data, run, "--config.steps=4", "--change=yes")


def test_every_field_changes_in_place_or_is_said_not_to() -> None:
    fields = flatten(load_config("oxe_paligemma.py:tiny").to_dict())
    unused = [
        pattern
        for pattern in changes.EFFECTS
        if not any(changes.fnmatch.fnmatchcase(field, pattern) for field in fields)
    ]
    assert not unused
    fixed = {field for field in fields if changes.effect(field) is None}
    assert {"model.window", "model.chunk", "data.normalise", "lora.rank", "model.start"} <= fixed
    assert not {"steps", "optim.lr", "batch_size", "accum", "data.mixture"} & fixed


@pytest.mark.slow
def test_a_branch_takes_over_the_whole_state(
    data: Path, run: Path, begun: list[Begun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"--config.model.start={run / 'checkpoints'}"
    branch = tmp_path / "branch"
    flags = (start, "--config.model.start_state=full", "--config.optim.ema=0.5", "--config.steps=9")
    go(data, branch, *flags)
    said = capsys.readouterr().out
    assert f"start: parameters, optimizer and step 6 of {run / 'checkpoints' / '6'}" in said
    assert "  new      0 arrays" in said
    (now,) = begun
    assert int(now.state.step) == 6
    there = load_params(run / "checkpoints", 6)
    for name, value in now.state.params.items():
        np.testing.assert_array_equal(value, there[name])
        np.testing.assert_array_equal(now.state.ema[name], there[name])
    assert int(now.state.opt_state[1].count) > 0
    np.testing.assert_array_equal(now.batch.actions, _batch(data, run, (), 6).actions)
    (row,) = map(json.loads, (branch / changes.HISTORY).read_text().splitlines())
    assert row["said"][0].startswith("start: parameters, optimizer and step 6")
    with pytest.raises(ValueError, match=r"--config.steps: expected more than the 6 that"):
        go(data, tmp_path / "late", *flags[:2], "--config.steps=6")


@pytest.mark.slow
def test_a_branch_with_another_head_must_say_so(
    data: Path, run: Path, begun: list[Begun], tmp_path: Path
) -> None:
    start = (f"--config.model.start={run / 'checkpoints'}", "--config.model.chunk=3")
    with pytest.raises(ValueError, match=r"would begin at random: head/.*allow_missing=head/\*"):
        go(data, tmp_path / "branch", *start)
    assert not (tmp_path / "branch").exists()
    go(data, tmp_path / "branch", *start, "--config.model.allow_missing=head/*")
    (now,) = begun
    assert int(now.state.step) == 0
    there = load_params(run / "checkpoints", 6)
    same = [n for n, v in now.state.params.items() if there.get(n, v[None]).shape == v.shape]
    for name in same:
        np.testing.assert_array_equal(now.state.params[name], there[name])
    assert len(same) < len(now.state.params)
    with pytest.raises(
        ValueError, match=r"start_state: expected params, or full with model\.start"
    ):
        go(data, tmp_path / "other", "--config.model.start_state=full")


@pytest.mark.slow
def test_an_extended_run_is_the_longer_run_bit_for_bit(data: Path, tmp_path: Path) -> None:
    """With a constant rate nothing depends on where a run was to end."""
    go(data, tmp_path / "whole", "--config.steps=6")
    go(data, tmp_path / "parts", "--config.steps=4")
    go(data, tmp_path / "parts", "--config.steps=6", "--change=yes")
    whole, parts = (load_params(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name])
    full = ("--config.model.start_state=full", "--config.steps=6")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    go(
        data,
        tmp_path / "branch",
        f"--config.model.start={tmp_path / 'parts' / 'checkpoints'}",
        *full,
    )
    branch = load_params(tmp_path / "branch" / "checkpoints")
    for name, value in whole.items():
        np.testing.assert_array_equal(value, branch[name])
