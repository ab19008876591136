"""The figures of a success classifier, on episodes made by hand."""

import numpy as np
import pytest

from experiments.succeeding import figures


def test_what_is_right_is_counted_by_how_episodes_ended() -> None:
    body = figures.figures(
        np.array([2.0, 2.0, -1.0, -1.0, 3.0]), np.array([True, False, True, False, True])
    )
    assert (body["episodes"], body["accuracy"]) == (5, 0.6)
    assert body["called_success"] == {"successes": 2, "failures": 1}
    assert body["called_failure"] == {"successes": 1, "failures": 1}
    assert body["always_success"] == pytest.approx(0.6)
    assert body["low"] < 0.6 < body["high"]
    assert "of 3 successes 2 are called so, of 2 failures 1" in figures.text(body)


def test_chances_that_hold_have_no_calibration_error() -> None:
    logit = np.repeat([np.log(0.8 / 0.2), np.log(0.3 / 0.7)], 10)
    success = np.array([True] * 8 + [False] * 2 + [True] * 3 + [False] * 7)
    assert figures.figures(logit, success)["calibration_error"] == pytest.approx(0, abs=1e-12)
    sure = figures.figures(np.full(10, 20.0), success[:10])
    assert sure["calibration_error"] == pytest.approx(0.2, abs=1e-6)
    said = 0.8 * np.log1p(np.exp(-20.0)) + 0.2 * np.log1p(np.exp(20.0))
    assert sure["cross_entropy"] == pytest.approx(said)
