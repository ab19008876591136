"""What is refused before a run's first step leaves its work directory as it was."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments import pretrain
from experiments.composition import workdir
from experiments.composition.config import load_config, save
from experiments.composition.lock import held
from vla_jax.training import train

SHORT = ("--config.batch_size=8", "--config.steps=2", "--config.optim.warmup_steps=1",
         "--config.eval_batches=1", "--config.log_every=1")  # fmt: skip

# What a person may type -> what the message begins with, or names.
REFUSED = {
    "--config.batch_size=9": r"batch size: expected a multiple of data x fsdp = 8, got 9",
    "--config.accum=3": r"batch_size: expected a multiple of accum x",
    "--config.accum=0": r"--config.accum: expected 1 or more, got 0",
    "--config.log_every=0": r"--config.log_every: expected 1 or more",
    "--config.save_every=0": r"--config.save_every: expected 1 or more",
    "--config.keep_checkpoints=0": r"--config.keep_checkpoints: expected 1 or more",
    "--config.optim.ema=1.5": r"--config.optim.ema: expected 0 to less than 1 \(0: off\), got 1.5",
    "--config.optim.lr=-1.0": r"--config.optim.lr: expected 0 or more",
    "--config.optim.schedule=linear": r"optim.schedule: expected one of",
    "--config.optim.warmup_steps=10": r"optim: expected a warm-up shorter than the 2 steps",
    "--config.optim.warmup_epochs=9.0": r"optim: expected a warm-up shorter than the 2 steps",
    "--config.optim.mu_dtype=float16": r"optim.mu_dtype: expected one of",
    "--config.optim.freeze=backbone/nothing/*": r"freeze: expected 'backbone/nothing/\*' to match",
    "--config.optim.train_decoder_layers=99": r"freeze.train_decoder_layers: expected at most",
    "--config.mesh.fsdp=0": r"--config.mesh.fsdp: expected 1 or more \(-1: all that are left",
    "--config.optim.eps=1e999": r"--config.optim.eps: expected more than 0, got inf",
    "--config.augment.contrast=(0.8,-1.0)": r"--config.augment.contrast: expected more than 0",
    "--config.augment.contrast=0.8": r"augment.contrast: expected two numbers",
    "--config.augment.shift=2.5": r"augment.shift: expected one number per camera .*, whole pixels",
    "--config.mesh.fsdp=3": r"mesh: expected data x fsdp x tensor to give 8 devices",
    "--config.model.dtype=bf16": r"--config.model.dtype: expected one of float32, bfloat16",
    "--config.model.head=lstn": r"model.head: expected one of",
    "--config.model.layout=x": r"model.layout: expected one of",
    "--config.model.window=0": r"--config.model.window: expected 1 or more",
    "--config.model.action_dim=6": r"model.action_dim: expected 7, of blocks",
    "--config.model.prompt_length=2": r"model.prompt_length: expected at least",
    "--config.model.cameras=front": r"none of model.cameras",
    "--config.model.tokenizer=/nowhere": r"model.tokenizer: expected a folder",
    "--config.model.weights=/nowhere": r"weights: nothing at /nowhere",
    "--config.model.weights={data}": r"weights: expected a big_vision .npz",
    "--config.model.start=/nowhere": r"start: no complete checkpoint",
    "--config.loss.kind=l2": r"ActionLoss.kind: expected one of",
    "--config.lora.rank=-1": r"--config.lora.rank: expected 0 or more \(0: off\), got -1",
    "--config.augment.flip=True": r"augment.flip: expected False",
    "--config.data.root=/nowhere": r"not under /nowhere",
    "--config.data.normalise=q98": r"normalisation: expected one of",
    "--config.data.held_out=2.0": r"data.held_out: expected",
    "--config.data.min_length=1000": r"split 'train' is empty",
    "--config.data.quarantine=/nowhere": r"data.quarantine: no file",
    "--config.data.windows_per_visit=0": r"--config.data.windows_per_visit: expected 1 or more",
}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rlds")
    write_blocks(root, train=4, val=2)
    return root


def command(data: Path, folder: Path, *more: str) -> list[str]:
    root = f"--config.data.root={data}"
    return ["--config=oxe_paligemma.py:tiny", root, *SHORT, f"--workdir={folder}", *more]


@pytest.mark.parametrize("flag", REFUSED)
def test_what_is_refused_writes_nothing(flag: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=REFUSED[flag]):
        pretrain.main(command(data, tmp_path / "run", flag.format(data=data)))
    assert not (tmp_path / "run").exists()


def test_what_no_data_can_mend_is_refused_before_any_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args: Any) -> None:
        raise AssertionError("the data was opened, which may take hours")

    monkeypatch.setattr(pretrain, "_open", read)
    for flag in ("schedule=linear", "freeze=nothing/*", "warmup_steps=10"):
        with pytest.raises(ValueError, match=r"optim|freeze"):
            pretrain.main(command(data, tmp_path / "run", f"--config.optim.{flag}"))
    with pytest.raises(ValueError, match=r"accum"):
        pretrain.main(command(data, tmp_path / "run", "--config.accum=3"))


def test_a_folder_that_cannot_be_one_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"--workdir=.*: expected a folder .*got a file"):
            pretrain.main(command(data, folder))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_run_in_the_folder_is_refused_before_data_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "_open", lambda *args: pytest.fail("the data was opened"))
    with held(tmp_path / "run"):
        before = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
        with pytest.raises(ValueError, match=rf"got that of host .*, process {os.getpid()}, which"):
            pretrain.main(command(data, tmp_path / "run"))
        assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == before


def test_a_folder_is_a_runs_from_its_first_logged_or_saved_step_on(tmp_path: Path) -> None:
    one = load_config("oxe_paligemma.py:tiny")
    other = load_config("oxe_paligemma.py:tiny", ["--config.optim.lr=0.5"])
    save(one, tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text("")
    workdir.check(tmp_path, other)  # its step did not compile, say
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    workdir.check(tmp_path, one)
    said = r"optim.lr: there 0.001, now 0.5\n.*--change, .*another --workdir=DIR"
    with pytest.raises(ValueError, match=said):
        workdir.check(tmp_path, other)
    before = workdir.check(tmp_path, other, asked=True)
    assert before is not None
    assert [str(change) for change in before.changes] == ["optim.lr: there 0.001, now 0.5"]


def test_checkpoints_whose_config_file_is_gone_belong_to_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = load_config("oxe_paligemma.py:tiny")
    meta = {"config": one.to_dict(), "datasets": {}}
    monkeypatch.setattr(workdir, "complete_steps", lambda folder: [4])
    monkeypatch.setattr(workdir, "load_meta", lambda folder: meta)
    workdir.check(tmp_path, one)
    with pytest.raises(ValueError, match=rf"{tmp_path} holds a run with another .*\n  optim.lr"):
        workdir.check(tmp_path, load_config("oxe_paligemma.py:tiny", ["--config.optim.lr=0.5"]))


@pytest.mark.slow
def test_the_corrected_command_runs_in_the_same_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def cannot(*args: Any) -> None:
        raise RuntimeError("out of memory while compiling")

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", cannot)
        with pytest.raises(RuntimeError, match="out of memory"):
            pretrain.main(command(data, folder, "--config.batch_size=16"))
    with pytest.raises(ValueError, match=r"optim\.schedule"):
        pretrain.main(command(data, folder, "--config.optim.schedule=linear"))
    assert json.loads((folder / "config.json").read_text())["batch_size"] == 16
    capsys.readouterr()
    pretrain.main(command(data, folder))
    assert "another run ended here before a step" in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["batch_size"] == 8
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert np.isfinite([row["loss"] for row in rows]).all()
    with pytest.raises(ValueError, match="holds a run with another config"):
        pretrain.main(command(data, folder, "--config.batch_size=16"))
