"""The figures of a reward model, on pairs made by hand."""

import numpy as np
import pytest

from experiments.preferring import judged


def test_a_model_whose_odds_hold_has_no_calibration_error() -> None:
    margin = np.full(100, np.log(0.8 / 0.2))
    choice = (np.arange(100) < 80).astype(np.float32)  # four of five as it says
    body = judged.figures(margin, choice)
    assert body["accuracy"] == pytest.approx(0.8)
    assert body["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    assert body["cross_entropy"] == pytest.approx(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2)))
    assert body["low"] < 0.8 < body["high"]


def test_a_model_too_sure_is_told_by_how_much() -> None:
    margin = np.tile([np.log(0.99 / 0.01), -np.log(0.99 / 0.01)], 50)
    choice = np.tile([1, 1], 50).astype(np.float32)  # right every other time
    body = judged.figures(margin, choice)
    assert body["accuracy"] == 0.5
    assert body["calibration_error"] == pytest.approx(0.49)


def test_ties_count_for_the_cross_entropy_alone() -> None:
    body = judged.figures(np.array([0.0, 2.0]), np.array([0.5, 1.0]))
    assert (body["pairs"], body["decided"], body["accuracy"]) == (2, 1, 1.0)
    assert body["cross_entropy"] == pytest.approx((np.log(2) + np.log1p(np.exp(-2.0))) / 2)
    assert "accuracy" not in judged.figures(np.zeros(1), np.full(1, 0.5))
