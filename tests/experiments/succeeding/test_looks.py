"""Which frames are learnt from, what a classifier earns as a reward, and what is refused."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.datasets import DATASETS
from data_pipelines.files.outcomes import FAILURE, SUCCESS, UNKNOWN
from experiments.learning import judging
from experiments.learning.judging import Learned
from experiments.succeeding import looks
from tests.experiments.trials import trial
from vla_jax.rl import reward as preferred

BLOCKS = DATASETS["blocks"]


def test_the_end_and_earlier_frames_are_learnt_from() -> None:
    draw = np.random.default_rng(0)
    for success in (True, False):
        steps = looks.chosen(20, success, 3, draw)
        assert steps[:3] == [17, 18, 19]
        assert len(set(steps)) == 3 + looks.EARLY
        most = 10 if success else 17
        assert all(step < most for step in steps[3:])
    drawn = {step for _ in range(99) for step in looks.chosen(20, False, 1, draw)}
    assert drawn == set(range(20))
    assert looks.chosen(2, True, 3, draw) == [0, 1]
    assert looks.chosen(2, True, 1, draw) == [1, 0]


def index(outcome: str = "next.success", **changes: Any) -> Any:
    return SimpleNamespace(dataset=dataclasses.replace(BLOCKS, outcome=outcome, **changes))


def split(successes: int, failures: int, unknown: int = 0) -> Any:
    counts = (successes, failures, unknown)
    return SimpleNamespace(outcome=np.repeat([SUCCESS, FAILURE, UNKNOWN], counts), label="train")


def test_data_that_say_too_little_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"blocks: expected a dataset that says .* `outcome` in"):
        looks.check_says(BLOCKS)
    with pytest.raises(ValueError, match=r"at least 5 successes .* got 9 and 0, and 2 unknown"):
        looks.check(index(), (split(9, 0, 2),))
    with pytest.raises(ValueError, match="got 4 and 9"):
        looks.check(index(), (split(4, 9), split(1, 1)))
    with pytest.raises(ValueError, match=r"at least 1 successes .* got 3 and 0"):
        looks.check(index(), (split(5, 5), split(3, 0)))
    with pytest.raises(ValueError, match=r"reads those alone whose \w+/path holds"):
        looks.check(index(require="episode_metadata/path"), (split(9, 0),))
    looks.check(index(), (split(5, 5), split(1, 1)))


def spec(names: tuple[str, ...]) -> Any:
    named = SimpleNamespace(names=names)
    return SimpleNamespace(action=named, state=SimpleNamespace(names=BLOCKS.state_names))


def test_a_dataset_is_read_as_the_one_with_its_dims() -> None:
    own, other = spec(BLOCKS.action_names), spec(("left", "right"))
    mine = dataclasses.replace(BLOCKS, name="mine")

    def saved(**specs: Any) -> Any:
        return SimpleNamespace(specs=specs, state_names=BLOCKS.state_names)

    assert looks.robot(saved(blocks=own, wheels=other), mine, "RUN") == "blocks"
    assert looks.robot(saved(blocks=own, mine=own), mine, "RUN") == "mine"
    with pytest.raises(ValueError, match="RUN: expected a policy that knows mine"):
        looks.robot(saved(wheels=other), mine, "RUN")
    with pytest.raises(ValueError, match="2 of them have its dims"):
        looks.robot(saved(blocks=own, again=own), mine, "RUN")


def test_what_an_episode_ends_with_is_worth_as_much_as_if_it_went_on() -> None:
    """As RewardModel.scores counts clips: to end early is no gain in itself."""
    reward = Learned.__new__(Learned)
    reward._asked, reward._window, reward._spread, reward._at_end = str(Path("x")), 1, 2.0, False
    reward._every, reward._steps = 4, 30  # of the longest clip
    worth = np.array([-1.0, -2.0, -3.0], np.float32)
    reward._worth = lambda windows: np.resize(worth, len(windows.step_mask))
    played = trial(0, [4, 4, 2], success=False)
    played = played._replace(last=played.frames[0])
    for each in reward([played, played]):
        np.testing.assert_allclose(each, np.array([-0.5 * 4, -1.0 * 2, -1.5 * 24]) / 34)
    reward._steps = 10  # as long as this one
    np.testing.assert_allclose(reward([played])[0], np.array([-0.5 * 4, -1.0 * 2, -1.5 * 4]) / 14)


def test_a_classifier_rewards_the_end_alone() -> None:
    reward = Learned.__new__(Learned)
    reward._asked, reward._window, reward._spread, reward._at_end = str(Path("x")), 1, 1.0, True
    logits = np.array([-9.0, 4.0, 1.0], np.float32)
    reward._worth = lambda windows: np.resize(logits, len(windows.step_mask))
    played = trial(0, [4, 4, 2], success=False)
    played = played._replace(last=played.frames[0])
    np.testing.assert_allclose(reward([played])[0], [0, 0, 1 / (1 + np.exp(-1))], rtol=1e-6)
    reward._worth = lambda windows: np.full(len(windows.step_mask), -9.0, np.float32)
    with pytest.raises(ValueError, match="nothing is learnt from a constant"):
        reward([played, played])
    # One in which nothing moved says nothing of the model.
    reward._worth = lambda windows: np.array([-9.0, -9.0, -9.0, -9.0, 4.0, 1.0], np.float32)
    still, moved = reward([played, played])
    assert still[-1] < moved[-1]


def test_a_reward_model_of_before_is_refused_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    """Its reward.json does not say how long its clips counted, so nobody knows what it means."""
    seen = {"tokenizer": {"sha256": "the same"}}
    own = {"rl": {"algorithm": preferred.ALGORITHM}, "model": dict.fromkeys(judging.SAME, 1)}
    worth = SimpleNamespace(config=ConfigDict(own), meta=seen, where=tmp_path / "checkpoints")
    monkeypatch.setattr(judging, "Worth", lambda folder, asked: worth)
    monkeypatch.setattr(judging, "load_meta", lambda folder: seen)
    (tmp_path / "reward.json").write_text('{"spread": 2.0}', encoding="utf-8")
    mine = ConfigDict({"model": {**own["model"], "start": "RUN/checkpoints"}})
    with pytest.raises(ValueError, match="an earlier version; train it again") as refused:
        Learned(tmp_path, mine)
    assert str(refused.value).startswith(f"--config.rl.reward={tmp_path}: expected a model")
