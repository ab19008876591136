"""How well a reward model tells which of two clips people prefer: accuracy, and whether its odds
are what they say (calibration).
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.composition import reliability
from experiments.rolling.results import wilson

LIKELIER = 0.5  # the smallest chance of the likelier of two


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
        bins = reliability.bins(chance, right, LIKELIER)
        body |= {"accuracy": float(right.mean()), "low": low, "high": high}
        body |= {"calibration_error": reliability.error(bins), "bins": bins}
    return body


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
    title = f"{body['decided']} held-out pairs, accuracy {body['accuracy']:.1%}"
    words = "predicted chance of the likelier clip", "how often it was preferred", title
    reliability.draw(body["bins"], LIKELIER, words, path)
