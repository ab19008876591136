"""Calibration: the scale that made the data is found again; right is counted within episodes."""

from pathlib import Path

import numpy as np
import pytest

from experiments.replaying import calibration, figures
from experiments.replaying.recorded import Recording
from tests.experiments.replaying.fake_policy import K, replayed
from vla_jax.robot.events.calibration import Calibration, Logistic


def test_platt_scaling_finds_the_scale_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    said = rng.uniform(0.5, 0.999, 20_000)
    truth = Logistic(0.4, -0.3)
    fitted = calibration.logistic(said, (rng.random(len(said)) < truth(said)).astype(float))
    assert fitted.slope == pytest.approx(0.4, abs=0.05)
    assert fitted.offset == pytest.approx(-0.3, abs=0.1)
    raw = calibration.reliability(said, truth(said))
    assert calibration.reliability(fitted(said), truth(said))["ece"] < 0.02 < raw["ece"]


def test_a_scale_is_finite_where_nothing_is_wrong_and_flat_where_surer_is_worse() -> None:
    fitted = calibration.logistic(np.linspace(0.5, 1, 50), np.ones(50))
    assert fitted(0.5) > 0.5
    said = np.linspace(0.5, 0.99, 100)
    flat = calibration.logistic(said, (said < 0.7).astype(float))
    np.testing.assert_allclose(flat([0.5, 0.99]), (said < 0.7).mean(), atol=1e-6)


def test_the_curve_falls_and_covers() -> None:
    rng = np.random.default_rng(0)
    agreement = rng.uniform(0.5, 1, 5000)
    error = (1 - agreement) * rng.exponential(1.0, 5000)
    curve = calibration.monotone(agreement, error)
    report = calibration.agreement_report(curve, agreement, error)
    assert report["coverage_90"] == pytest.approx(0.9, abs=0.02)
    assert report["rank_correlation"] > 0.3
    rising = calibration.monotone(agreement, agreement)
    assert len(rising.error) == 1
    assert rising.error[0] == pytest.approx(agreement.mean())


def test_rank_correlation_by_hand() -> None:
    assert calibration.rank_correlation(
        np.array([1, 5, 9.0]), np.array([2, 3, 100.0])
    ) == pytest.approx(1)
    assert calibration.rank_correlation(
        np.array([1, 1, 2.0]), np.array([3, 3, 1.0])
    ) == pytest.approx(-1)
    assert calibration.rank_correlation(np.array([1, 1.0]), np.array([3, 1.0])) is None


def test_right_is_counted_within_the_episode(recording: Recording, artefact: Path) -> None:
    episodes = [replayed(recording, i) for i in range(4)]
    body = calibration.calibrate(artefact, recording.spec, episodes)
    raw = body["report"]["gripper"]["raw"]
    steps = [len(episodes[i].chunks) for i in figures.halves(4)["report"]]
    assert raw["steps"] == sum(K * n - K * (K - 1) // 2 for n in steps)
    assert raw["mean_right"] == 1
    assert Calibration.from_json(body["calibration"]).agreement is None


def test_tokens_are_right_within_a_bin(recording: Recording) -> None:
    one = replayed(recording)
    width = 2 / 10
    chunks = one.chunks.copy()
    rest = np.abs(recording.spec.normalise(chunks)[..., 0]) < 0.5
    chunks[..., 0] += 1.5 * width * recording.spec.units()[0] * rest
    head = {"low": -1.0, "high": 1.0, "bins": 11}
    _, right = calibration.tokens(recording.spec, head, one._replace(chunks=chunks))
    within, _ = figures.ahead(one.episode.actions, K)
    np.testing.assert_allclose(right, np.where(rest, 6 / 7, 1)[within])
