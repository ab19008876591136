"""How well a classifier tells success: what it gets right, and whether its chances are what they
say (calibration).
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.composition import reliability
from experiments.rolling.results import wilson
from vla_jax.rl.success import chance


def figures(logit: np.ndarray, success: np.ndarray) -> dict[str, Any]:
    """JSON-able, of how episodes [n] ended.

    accuracy: share that is told rightly at a chance of 0.5, with Wilson's interval; always_success
    and always_failure: what saying one thing of all would get right.
    called_success, called_failure: by how they ended, how many are called so.
    cross_entropy: nats an episode.
    calibration_error: by how much the chances are off, a mean over bins of them, weighted by the
    episodes in them (ECE; Guo et al. 2017, eq. 3).
    """
    success = np.asarray(success, bool)
    n, said = len(success), np.asarray(logit) > 0
    right = int((said == success).sum())
    low, high = wilson(right, n)
    bins = reliability.bins(chance(logit), success)
    return {
        "episodes": n,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "always_success": float(success.mean()),
        "always_failure": float((~success).mean()),
        "called_success": _counts(said, success),
        "called_failure": _counts(~said, success),
        "cross_entropy": float(np.mean(np.logaddexp(0, logit) - success * logit)),
        "calibration_error": reliability.error(bins),
        "bins": bins,
    }


def _counts(said: np.ndarray, success: np.ndarray) -> dict[str, int]:
    return {"successes": int((said & success).sum()), "failures": int((said & ~success).sum())}


def text(body: dict[str, Any]) -> str:
    """The figures in two lines."""
    good, bad = body["called_success"], body["called_failure"]
    base = max(body["always_success"], body["always_failure"])
    return (
        f"{body['episodes']} episodes, accuracy {body['accuracy']:.1%}"
        f" [{100 * body['low']:.0f}, {100 * body['high']:.0f}] (one answer for all {base:.1%}),"
        f" cross-entropy {body['cross_entropy']:.3f}, calibration error"
        f" {body['calibration_error']:.3f}\n"
        f"of {good['successes'] + bad['successes']} successes {good['successes']} are called so, of"
        f" {good['failures'] + bad['failures']} failures {bad['failures']}"
    )


def draw(body: dict[str, Any], path: Path) -> None:
    """Writes the picture of a reliability diagram."""
    title = f"{body['episodes']} held-out episodes, accuracy {body['accuracy']:.1%}"
    words = "predicted chance of success", "how often it was one", title
    reliability.draw(body["bins"], 0.0, words, path)
