"""How well a classifier tells success: what it gets right, and whether its chances are what they
say (calibration).
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.composition.plots import plt, save
from experiments.rolling.results import wilson

BINS = 10


def chance(logit: np.ndarray) -> np.ndarray:
    """Of success."""
    return 1 / (1 + np.exp(-np.asarray(logit, np.float64)))


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
    bins = reliability(chance(logit), success)
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
        "calibration_error": sum(count * abs(told - was) for told, was, count in bins) / n,
        "bins": bins,
    }


def _counts(said: np.ndarray, success: np.ndarray) -> dict[str, int]:
    return {"successes": int((said & success).sum()), "failures": int((said & ~success).sum())}


def reliability(chances: np.ndarray, success: np.ndarray) -> list[tuple[float, float, int]]:
    """Chances in BINS bins: the mean of them, how often it was a success, and how many there are;
    empty bins are left out.
    """
    place = np.minimum((chances * BINS).astype(int), BINS - 1)
    out = []
    for i in np.unique(place):
        own = place == i
        out.append((float(chances[own].mean()), float(success[own].mean()), int(own.sum())))
    return out


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
    figure, axis = plt.subplots(figsize=(5, 5))
    axis.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle="--")
    for told, was, count in body["bins"]:
        axis.scatter(told, was, s=20 + 4 * count, color="tab:blue")
        axis.annotate(str(count), (told, was), textcoords="offset points", xytext=(6, -4), size=8)
    axis.set(
        xlabel="predicted chance of success", ylabel="how often it was one",
        xlim=(-0.03, 1.03), ylim=(-0.05, 1.05),
        title=f"{body['episodes']} held-out episodes, accuracy {body['accuracy']:.1%}",
    )  # fmt: skip
    save(figure, path)
