"""Learning by trial as a user runs it, in the world of the demo."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vla_jax
from data_pipelines import quarantine
from data_pipelines.builders.blocks import write_blocks
from experiments import collect_preferences, judge, record, rollout
from experiments.composition.config import diff, load_config
from experiments.finetune_rl import main, with_start
from experiments.sims import SIMS
from tests.processes import REPO, alone
from vla_jax.rl.learner import CRITIC
from vla_jax.saved import open_checkpoint
from vla_jax.training.checkpoint import load_params

SMALL = (
    "--config=blocks_ppo.py", "--config.rl.episodes=12", "--config.rl.environments=4",
    "--config.rl.epochs=1", "--config.batch_size=32", "--config.save_every=1",
)  # fmt: skip


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=REPO, env=alone(), capture_output=True,
        text=True, timeout=900, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("start")
    write_blocks(folder / "data", train=6, val=6)
    done = call(
        "experiments.pretrain", "--config=blocks.py",
        f"--config.data.root={folder / 'data'}", "--config.steps=2", "--config.batch_size=4",
        "--config.eval_batches=1", "--config.optim.warmup_steps=1",
        "--config.model.prompt_length=32", f"--workdir={folder / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_run_goes_on_bit_for_bit_and_leaves_an_ordinary_policy(
    start: Path, tmp_path: Path, algorithm: str
) -> None:
    own = [*SMALL, f"--config.model.start={start}", f"--config.rl.algorithm={algorithm}"]
    if algorithm == "grpo":
        own += ["--config.rl.trials=3", "--config.rl.episodes=4", "--config.rl.head_only=False"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, steps in ((whole, 2), (cut, 1), (cut, 2)):
        done = call(
            "tests.experiments.earning", *own, f"--config.steps={steps}",
            *(["--change=yes"] if steps == 2 and folder == cut else []), f"--workdir={folder}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, other = (load_params(folder / "checkpoints") for folder in (whole, cut))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
    before = load_params(start / "checkpoints")
    moved = [name for name, value in before.items() if not np.array_equal(value, one[name])]
    assert any(name.startswith("head/") for name in moved)
    assert any(not name.startswith("head/") for name in moved) == (algorithm == "grpo")
    assert [row["step"] for row in rows(whole)] == [1, 2]
    assert rows(whole)[0]["rl/episodes"] == 12
    same = ("loss", "rl/success", "rl/steps", "train/update")
    assert [[row[key] for key in same] for row in rows(whole)] == [
        [row[key] for key in same] for row in rows(cut)
    ]
    saved = open_checkpoint(whole / "checkpoints")
    assert not any(name.startswith(CRITIC) for name in saved.params)
    assert saved.params.keys() == before.keys()
    policy = vla_jax.load_policy(whole, dataset="blocks")
    policy.reset("push the red block left")
    images = {name: np.zeros((32, 32, 3), np.uint8) for name in policy.cameras}
    assert policy.act(images, np.zeros(7, np.float32)).shape == (4, 7)


@pytest.mark.slow
def test_a_world_has_numbers_of_its_own(start: Path) -> None:
    blocks, world = (
        load_config(f"{name}_ppo.py:{start}/checkpoints").to_dict()
        for name in ("blocks", "metaworld")
    )
    own = ("sim", "episodes", "environments", "discount")
    assert diff(blocks, world).keys() == {
        "batch_size", "save_every", "optim.lr", *(f"rl.{name}" for name in own)
    }  # fmt: skip
    assert world["rl"]["sim"] in SIMS


@pytest.mark.slow
def test_what_cannot_learn_is_refused_by_name(start: Path, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        done = call(
            "experiments.finetune_rl", *SMALL, f"--config.model.start={start}",
            f"--workdir={tmp_path / 'run'}", *words,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert not (tmp_path / "run").exists()
        return done.stderr

    assert "OFTHead gives actions without a density here" in refused(
        "--config.model.head=oft", "--config.model.allow_missing=critic/*,head/*,readout*"
    )
    assert "expected a policy for navigation" in refused("--config.rl.sim=navigation")
    assert "rl.keep: expected one of" in refused("--config.rl.keep=moon")


@pytest.mark.slow
def test_what_is_kept_holds_a_run_that_goes_on_bit_for_bit(start: Path, tmp_path: Path) -> None:
    def learnt(folder: Path, steps: int, weight: float, *words: str) -> list[dict[str, float]]:
        done = call(
            "tests.experiments.keeping", *SMALL, f"--config.model.start={start}",
            "--config.rl.keep=blocks:others", "--config.rl.keep_episodes=12",
            f"--config.rl.keep_weight={weight}", "--config.rl.epochs=4", "--config.optim.lr=3e-3",
            f"--config.steps={steps}", f"--workdir={folder}", *words,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return rows(folder)

    whole = learnt(tmp_path / "whole", 2, 1.0)
    learnt(tmp_path / "cut", 1, 1.0)
    cut = learnt(tmp_path / "cut", 2, 1.0, "--change=yes")
    assert [row["train/kept"] for row in whole] == [row["train/kept"] for row in cut]
    loose = learnt(tmp_path / "loose", 2, 1e-6)
    assert 0 < whole[-1]["train/kept"] < 0.5 * loose[-1]["train/kept"]


@pytest.mark.slow
def test_tasks_that_are_learnt_cannot_be_kept(start: Path, tmp_path: Path) -> None:
    own = [
        "experiments.finetune_rl", *SMALL, f"--config.model.start={start}", "--config.steps=1",
        f"--workdir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = call(*own, "--config.rl.keep=blocks")
    assert done.returncode == 2
    assert "expected tasks that rl.sim=blocks does not play" in done.stderr
    done = call(*own, "--config.rl.keep=navigation", "--change=yes")
    assert done.returncode == 2
    assert "expected a world of blocks as rl.sim is, got one of navigation" in done.stderr


@pytest.mark.slow
def test_preferences_become_a_reward_that_is_learnt_from(start: Path, tmp_path: Path) -> None:
    rollouts = [tmp_path / who for who in ("expert", "random")]
    for out in rollouts:
        own = ["--policy", out.name, "--sim", "blocks", "--episodes", "10", "--out", str(out)]
        assert not rollout.main(own)
    chosen, model, run = (tmp_path / name for name in ("chosen", "model", "run"))
    collect_preferences.main(
        ["--rollouts", *map(str, rollouts), "--out", str(chosen), "--judge", "scripted"]
    )
    words = [
        "experiments.train_reward", "--config=blocks_reward.py", f"--config.model.start={start}",
        f"--preferences={chosen}", f"--workdir={model}", "--config.steps=2",
        "--config.optim.warmup_steps=1", "--config.batch_size=4", "--config.log_every=1",
    ]  # fmt: skip
    done = call(*words)
    assert done.returncode == 0, done.stderr
    told = json.loads((model / "reward.json").read_text())
    assert (told["pairs"], told["decided"]) == (2, 2)  # a fifth, whose judge knows who succeeded
    assert [row["step"] for row in rows(model)] == [1, 2]
    assert (model / "calibration.png").exists()
    direct = tmp_path / "direct"
    words = [
        "experiments.finetune_preferences", "--config=blocks_dpo.py", *words[2:4],
        f"--workdir={direct}", "--config.steps=3", "--config.optim.warmup_steps=1", *words[7:],
        "--config.rl.budget=1e-9",
    ]  # fmt: skip
    done = call(*words)
    assert done.returncode == 0, done.stderr
    # The first update is at a rate of 0; the second spends the budget.
    assert [row["step"] for row in rows(direct)] == [1, 2]
    assert rows(direct)[0]["val/divergence"] <= 1e-9 < rows(direct)[1]["val/divergence"]
    assert (
        open_checkpoint(direct / "checkpoints").params.keys()
        == load_params(start / "checkpoints").keys()
    )
    with pytest.raises(ValueError, match="expected a policy, got a reward model"):
        open_checkpoint(model / "checkpoints")
    own = [
        "experiments.finetune_rl", *SMALL, f"--config.model.start={start}", "--config.steps=1",
        f"--workdir={run}",
    ]  # fmt: skip
    done = call(*own, f"--config.rl.reward={start}")
    assert done.returncode == 2
    assert "expected a work directory of experiments.train_reward" in done.stderr
    done = call(*own, f"--config.rl.reward={model}")
    assert done.returncode == 0, done.stderr
    [row] = rows(run)
    assert row["rl/reward"] != row["rl/success"]
    assert (run / "reward.png").exists()


@pytest.mark.slow
def test_outcomes_become_a_classifier_that_rewards_and_filters(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = [tmp_path / who for who in ("expert", "random")]
    for out in rollouts:
        own = ["--policy", out.name, "--sim", "blocks", "--episodes", "8", "--out", str(out)]
        assert not rollout.main(own)
    record.main(["--rollouts", *map(str, rollouts), "--out", str(tmp_path), "--dataset", "tried"])
    model, run = tmp_path / "model", tmp_path / "run"
    held_out = tmp_path / "held_out.txt"
    quarantine.write(held_out, [("data/chunk-000/file-000.parquet", n, "") for n in (0, 15)])
    words = [
        "experiments.train_success", "--config=blocks_success.py", f"--config.model.start={start}",
        f"--config.data.root={tmp_path}", "--config.data.mixture=tried",
        f"--config.data.datasets={tmp_path / 'tried.py'}", f"--workdir={model}",
        f"--config.data.held_out={held_out}",
        "--config.steps=2", "--config.optim.warmup_steps=1", "--config.batch_size=8",
        "--config.log_every=1",
    ]  # fmt: skip
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert "tried: its numbers are read as those of blocks" in done.stdout
    told = json.loads((model / "success.json").read_text())
    assert (told["episodes"], told["always_success"]) == (2, 0.5)
    assert [row["step"] for row in rows(model)] == [1, 2]
    assert (model / "calibration.png").exists()
    with pytest.raises(ValueError, match="expected a policy, got a success classifier"):
        open_checkpoint(model / "checkpoints")
    own = ["--root", str(tmp_path), "--dataset", "tried", "--out", str(tmp_path / "judged")]
    judge.main([*own, "--reward", str(model), "--threshold", "0.99"])
    assert "of which 8 are left out" in capsys.readouterr().out  # it has learnt next to nothing
    with pytest.raises(ValueError, match=r"--reward=.*got a run that learns a policy"):
        judge.main([*own, "--reward", str(start)])
    done = call(
        "experiments.finetune_rl", *SMALL, f"--config.model.start={start}", "--config.steps=1",
        f"--config.rl.reward={model}", f"--workdir={run}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [row] = rows(run)
    assert row["rl/success"] == 0.0 < row["rl/reward"] < 1.0
    assert (run / "reward.png").exists()


def test_the_start_is_named_once_and_understood(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    words = with_start(["--config=x.py:lora", "--config.model.start", str(tmp_path), "--workdir=w"])
    folder = tmp_path / "checkpoints"
    assert words == [
        f"--config=x.py:lora,{folder}",
        f"--config.model.start={folder}",
        "--workdir=w",
    ]
    with pytest.raises(ValueError, match=r"expected --config\.model\.start=RUN/checkpoints"):
        with_start(["--config=x.py"])


def test_a_world_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected --config\.model\.start"):
        main(["--config=blocks_ppo.py"])
