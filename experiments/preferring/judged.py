"""How well a reward model tells which of two clips people prefer: accuracy, and whether its odds
are what they say (calibration).
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.composition.plots import plt, save
from experiments.rolling.results import wilson

BINS = 10


def figures(margin: np.ndarray, choice: np.ndarray) -> dict[str, Any]:
    """JSON-able, of pairs [n]: `margin` is by how much the first clip is worth more, `choice` 1, 0,
    or 0.5 for a tie.

    accuracy: share of the decided pairs whose better clip is worth more, with Wilson's interval.
    cross_entropy: nats a pair, ties included; of a coin 0.693.
    calibration_error: by how much the odds are off, a mean over bins of predicted chances, weighted
    by the pairs in them (ECE; Guo et al. 2017, eq. 3), of decided pairs from the likelier one on.
    """
    decided = choice != 0.5
    n = int(decided.sum())
    chance = 1 / (1 + np.exp(-np.abs(margin[decided])))  # of the likelier one
    right = (margin[decided] > 0) == (choice[decided] > 0.5)
    body: dict[str, Any] = {
        "pairs": len(choice),
        "decided": n,
        "cross_entropy": float(np.mean(np.logaddexp(0, margin) - choice * margin)),
    }
    if n:
        low, high = wilson(int(right.sum()), n)
        bins = reliability(chance, right)
        error = sum(count * abs(said - was) for said, was, count in bins) / n
        body |= {"accuracy": float(right.mean()), "low": low, "high": high}
        body |= {"calibration_error": float(error), "bins": bins}
    return body


def reliability(chance: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """Predicted chances from 0.5 to 1 in BINS bins: the mean of them, how often it was right, and
    how many there are; empty bins are left out.
    """
    place = np.minimum((2 * (chance - 0.5) * BINS).astype(int), BINS - 1)
    out = []
    for i in np.unique(place):
        own = place == i
        out.append((float(chance[own].mean()), float(right[own].mean()), int(own.sum())))
    return out


def text(body: dict[str, Any]) -> str:
    """The figures in a line."""
    interval = f"[{100 * body['low']:.0f}, {100 * body['high']:.0f}]"
    return (
        f"{body['decided']} decided pairs, accuracy {body['accuracy']:.1%} {interval},"
        f" cross-entropy {body['cross_entropy']:.3f} (a coin 0.693), calibration error"
        f" {body['calibration_error']:.3f}"
    )


def draw(body: dict[str, Any], path: Path) -> None:
    """Writes the picture of a reliability diagram."""
    figure, axis = plt.subplots(figsize=(5, 5))
    axis.plot([0.5, 1], [0.5, 1], color="gray", linewidth=1, linestyle="--")
    for said, was, count in body["bins"]:
        axis.scatter(said, was, s=20 + 4 * count, color="tab:blue")
        axis.annotate(str(count), (said, was), textcoords="offset points", xytext=(6, -4), size=8)
    axis.set(
        xlabel="predicted chance of the likelier clip", ylabel="how often it was preferred",
        xlim=(0.48, 1.02), ylim=(-0.05, 1.05),
        title=f"{body['decided']} held-out pairs, accuracy {body['accuracy']:.1%}",
    )  # fmt: skip
    save(figure, path)
