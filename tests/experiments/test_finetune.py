"""The config finetune.py: a policy of ours onto another robot, as a user does it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments.composition import changes, spaces
from experiments.composition.config import load_config, save
from tests.older.unpack import unpack
from tests.processes import REPO, alone
from vla_jax import build
from vla_jax import params as flat
from vla_jax.saved_config import complete
from vla_jax.training.checkpoint import find, load_meta


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a run whose config has fewer fields than today's."""
    return unpack("run", tmp_path_factory.mktemp("older")) / "checkpoints"


def test_the_policy_is_that_of_the_run_and_the_rest_is_new(checkpoints: Path) -> None:
    config = load_config(f"finetune.py:{checkpoints}", ["--config.data.mixture=blocks"])
    spaces.resolve(config)
    run = complete(load_meta(checkpoints)["config"], checkpoints)
    assert flat.abstract(build.model(config))[1] == flat.abstract(build.model(run))[1]
    assert (config.model.dtype, config.model.resize) == ("bfloat16", "lanczos")
    assert (config.model.start, config.model.weights) == (str(checkpoints), "none")
    assert (config.model.tokenizer, run.model.tokenizer) == ("", "train")
    assert config.optim.lr == run.optim.lr == 1e-3
    assert (config.optim.freeze_backbone, run.optim.freeze_backbone) == (False, True)
    assert config.augment.crop_scale == load_config("oxe_paligemma.py").augment.crop_scale
    assert load_config(f"finetune.py:{checkpoints}").data.mixture == ""


def test_an_imported_policy_begins_as_a_run_does(tmp_path: Path) -> None:
    folder = unpack("import", tmp_path)
    config = load_config(f"finetune.py:{folder}", ["--config.data.mixture=blocks"])
    spaces.resolve(config)
    imported = complete(load_meta(folder)["config"], folder)
    assert flat.abstract(build.model(config))[1] == flat.abstract(build.model(imported))[1]
    assert config.model.layout == imported.model.layout != "prefix"
    assert config.model.cameras == ("primary", "wrist")


def test_it_takes_overrides_as_the_other_files_do(checkpoints: Path, tmp_path: Path) -> None:
    config = load_config(
        f"finetune.py:{checkpoints}",
        ["--config.model.cameras=primary,wrist", "--config.model.chunk=16",
         "--config.model.allow_missing=head/*", "--config.model.head_mlp=64,32",
         "--config.optim.lr=1e-4"],
    )  # fmt: skip
    assert config.model.cameras == ("primary", "wrist")
    assert config.model.allow_missing == ("head/*",)
    assert config.model.head_mlp == (64, 32)
    save(config, tmp_path / "config.json")
    again = complete(json.loads((tmp_path / "config.json").read_text()), tmp_path)
    assert not changes.since(again, config)


def test_adapters_have_a_rate_of_their_own(checkpoints: Path, tmp_path: Path) -> None:
    config = load_config(f"finetune.py:{checkpoints},lora")
    assert (config.lora.rank, config.optim.lr) == (16, 5e-4)
    adapters = unpack("run", tmp_path) / "checkpoints"
    file = adapters / "4" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    meta["config"]["lora"]["rank"] = 8
    file.write_text(json.dumps(meta))
    config = load_config(f"finetune.py:{adapters}")
    assert (config.lora.rank, config.optim.lr) == (0, 2e-5)


@pytest.mark.parametrize("arg", ["", "lora", "tiny", "/nowhere,lora", "one,two"])
def test_without_one_checkpoint_it_says_how(arg: str) -> None:
    with pytest.raises(
        ValueError, match=rf"expected the checkpoints of one run or import, got '{arg}'[^\n]*\n"
    ) as refused:
        load_config(f"finetune.py:{arg}")
    assert "--config=finetune.py:RUN/checkpoints --config.data.root=ROOT" in str(refused.value)


def pretrain(*args: str) -> str:
    """What the command printed, alone on one device."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.pretrain", *args],
        cwd=REPO,
        env=alone(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_ten_episodes_of_another_robot(checkpoints: Path, tmp_path: Path) -> None:
    """A second camera and shorter chunks; a rate at which the held-out loss soon rises."""
    mine, folder = tmp_path / "mine", tmp_path / "run"
    write_blocks(mine, train=10, val=2, seed=5)
    command = (
        f"--config=finetune.py:{checkpoints}", f"--config.data.root={mine}",
        "--config.data.mixture=blocks", f"--workdir={folder}",
        "--config.model.cameras=primary,wrist", "--config.model.chunk=3",
        "--config.model.allow_missing=head/*", "--config.epochs=6", "--config.batch_size=8",
        "--config.eval_batches=2", "--config.early_stop=1", "--config.optim.lr=0.1",
    )  # fmt: skip
    said = pretrain(*command, "--then=evaluate,replay,export")
    for line in (
        "  new      4 arrays\n    head/outputs/arm/layers/1/bias: shape (18,), there (24,)",
        "6 epochs of 97 windows in batches of 8: 73 steps, the first 7 of them warm-up, an"
        " evaluation every 3",
        "GiB per device: 0.", "73 steps of ", "$ python -m experiments.evaluate",
        "$ python -m experiments.export", "$ python -m experiments.replay",
    ):  # fmt: skip
        assert line in said
    best = int(find(folder / "checkpoints", None).name)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}
    assert min(held_out, key=held_out.__getitem__) == best
    assert max(held_out) == rows[-1]["step"] == best + 3 < 73
    assert f"held-out loss: lowest at step {best} (" in said
    assert json.loads((folder / "evaluation.json").read_text())["step"] == best
    assert json.loads((folder / "replay/replay.json").read_text())["origin"]["step"] == best
    assert f"already at step {best + 3} of 73: nothing to train" in pretrain(*command)
