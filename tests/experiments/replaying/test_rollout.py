"""Frames of an episode go through the network together, and say what they say alone."""

from pathlib import Path

import numpy as np
import pytest

from experiments import replay as command
from experiments.replaying import rollout
from experiments.replaying.recorded import Episode, Recording
from tests.experiments.replaying.fake_policy import FakePolicy, K
from tests.export.test_export import exported
from vla_jax.robot import torch_policy

__all__ = ["exported"]  # the fixture


def drawn(number: int, steps: int) -> Episode:
    rng = np.random.default_rng(number)
    frames = [
        {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("primary", "wrist")}
        for _ in range(steps)
    ]
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    text = ("push the red block", "move", "the green block to the left")[number]
    return Episode(number, "", text, frames, np.zeros((steps, 0)), actions)


@pytest.mark.slow
def test_frames_in_a_row_are_as_frame_by_frame(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than two passes, and what the head draws the same."""
    monkeypatch.setattr(rollout, "act_in_row", torch_policy.act_in_row)
    monkeypatch.setattr(rollout, "ROW", 4)
    policy, episode, told = torch_policy.load(exported), drawn(0, 9), []
    row = rollout.replay(policy, episode, "blocks", told=told.append)
    assert told == [4, 4, 1]
    alone = rollout.replay(policy, episode, "blocks", 9)
    mixed = rollout.replay(policy, episode, "blocks", 3)
    for one in (row, mixed):
        for field in ("chunks", "normalised", "open_loop"):
            np.testing.assert_allclose(
                getattr(one, field), getattr(alone, field), atol=2e-5, err_msg=field
            )
        for name, values in alone.confidence.items():
            np.testing.assert_allclose(one.confidence[name], values, atol=2e-5, err_msg=name)
    assert [len(one.milliseconds) for one in (row, alone, mixed)] == [0, 9, 3]
    assert (alone.milliseconds > 0).all()


def test_a_policy_of_one_frame_runs_once(recording: Recording) -> None:
    episode = recording.episode(0)
    policy = FakePolicy(recording.spec, [episode])
    one = rollout.replay(policy, episode, "blocks")
    assert [t for t, _ in policy.seen] == list(range(len(episode.frames)))
    expected = np.concatenate([one.chunks[t] for t in range(0, len(episode.frames), K)])
    np.testing.assert_array_equal(one.open_loop, expected[: len(episode.frames)])


def test_too_few_episodes_are_told_before_anything_runs(
    root: Path, artefact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch_policy, "load", lambda *_, **__: pytest.fail("it was loaded"))
    out = tmp_path / "out"
    given = ["--artefact", str(artefact), "--data", str(root), "--out", str(out), "--trigger"]
    with pytest.raises(ValueError, match=r"--trigger: expected four episodes or more, .* got 3"):
        command.main([*given, "--episodes", "3"])
    assert not out.exists()
