"""The trigger: what is chosen on one half of the episodes, and what it gives on the other."""

from pathlib import Path

import numpy as np
import pytest

from experiments.composition import executed
from experiments.replaying import figures, rollout, trigger
from experiments.replaying.recorded import Recording
from tests.experiments.replaying.fake_policy import FakePolicy, K, fake_of_all, replayed
from vla_jax.robot.events.trigger import Settings


def point(saved: float, fit: list[float], report: float) -> trigger.Point:
    """What gave the errors `fit` in the four episodes of the fit half, and `report` in all of the
    other.
    """
    frames, errors = np.full(8, 10.0), np.full(8, report)
    errors[figures.halves(8)["fit"]] = fit
    trial = trigger.Trial("scene", saved, Settings(2, scene=max(saved, 0.01)))
    return trigger.Point(trial, frames, (1 - saved) * frames, errors, frames)


def test_the_choice_saves_most_within_the_allowed_error_of_the_fit_half_alone() -> None:
    base = point(0.0, [1.0] * 4, 1.0)
    good = point(0.5, [1.04] * 4, 9.0)  # bad on the report half, which must not be looked at
    bad = point(0.9, [1.06] * 4, 0.0)
    assert trigger.choose([base, good, bad], base, 0.05) is good
    assert good.measured("fit", base)["added"] == pytest.approx(0.04)
    assert good.measured("report", base)["added"] == pytest.approx(8.0)
    assert trigger.choose([base, bad], base, 0.05) is base


def test_a_mean_within_the_limit_by_luck_is_not_chosen() -> None:
    base = point(0.0, [1.0] * 4, 1.0)
    lucky = point(0.5, [0.5, 0.5, 0.5, 2.6], 1.0)
    assert lucky.measured("fit", base)["added"] == pytest.approx(0.025)
    assert trigger.choose([base, lucky], base, 0.05) is base


def test_passes_and_actions_of_a_run(recording: Recording) -> None:
    episode = recording.episode(0)
    policy = FakePolicy(recording.spec, [episode])
    actions, passes = trigger.execute(policy, episode, "blocks", Settings(K))
    np.testing.assert_array_equal(actions, episode.actions)
    assert passes == -(-len(actions) // K)
    # The third action of each chunk is unsure.
    _, passes = trigger.execute(policy, episode, "blocks", Settings(K, confidence=0.5))
    assert passes == -(-len(actions) // 2)


def test_hindsight_is_no_worse_than_any_fixed_horizon(recording: Recording) -> None:
    rng = np.random.default_rng(0)
    noisy = []
    for i in range(4):
        one = replayed(recording, i)
        noise = np.zeros_like(one.chunks)
        noise[..., 0] = 0.02 * rng.normal(size=noise.shape[:2])
        noisy.append(one._replace(chunks=one.chunks + noise))
    tables = [
        executed.arm_error(
            recording.spec,
            one.chunks,
            figures.ahead(one.episode.actions, K)[1],
            one.episode.state[:, None],
        )
        for one in noisy
    ]
    frames = sum(map(len, tables))
    every = sum(float(table[:, 0].sum()) for table in tables) / frames
    rows = trigger.hindsight(recording, noisy, every)
    for n in range(1, K + 1):
        error = sum(table[t - t % n, t % n] for table in tables for t in range(len(table))) / frames
        passes = sum(-(-len(table) // n) for table in tables)
        for price, row in zip(trigger.PRICES, rows, strict=True):
            cost = price * (1 - row["saved"]) * frames + (row["added"] + 1) * every * frames
            assert cost <= price * passes + error * frames + 1e-6


@pytest.mark.slow
def test_the_fit_finds_what_the_policy_can_be_trusted_with(
    recording: Recording, artefact: Path, small: None
) -> None:
    policy = fake_of_all(recording, (0.001, 0.001, 0.05))
    episodes = [rollout.replay(policy, recording.episode(i), "blocks") for i in range(4)]
    body = trigger.fit(artefact, policy, recording, episodes, trigger.Aim(0.05, 6))
    # Two actions of three are as good as the first, the third is announced as unsure.
    assert body["chosen"]["horizon"] == 2 or body["chosen"]["family"].split(",")[0] in (
        "confidence",
        "regret",
    )
    assert 0.3 < body["measured"]["saved"] < 0.6
    assert abs(body["measured"]["added"]) < 0.05
    assert not body["target_met"]
    assert "NOT MET" in trigger.text(body)
    assert Settings.from_json(body["settings"]).horizon == body["chosen"]["horizon"]


def test_a_policy_of_one_frame_is_looked_up(recording: Recording) -> None:
    episode, one = recording.episode(0), replayed(recording)
    policy = FakePolicy(recording.spec, [episode])
    for settings in (Settings(1), Settings(K), Settings(K, confidence=0.5)):
        wanted, passes = trigger.execute(policy, episode, "blocks", settings)
        actions, looked_up = trigger.execute(
            trigger.Planned(one, episode.frames), episode, "blocks", settings
        )
        np.testing.assert_array_equal(actions, wanted)
        assert looked_up == passes
