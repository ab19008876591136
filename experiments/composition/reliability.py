"""Whether chances are what they say (calibration): by bins, as a number, and as a picture."""

from pathlib import Path

import numpy as np

from experiments.composition.plots import plt, save

BINS = 10


# The mean of the chances in it, how often what they are of was so, and how many there are.
Bin = tuple[float, float, int]


def bins(chance: np.ndarray, right: np.ndarray, low: float = 0.0) -> list[Bin]:
    """Of chances [n] from `low` to 1 and whether (or how far) each was so [n], in BINS bins of
    equal width; empty ones are left out.
    """
    place = np.minimum(((chance - low) / (1 - low) * BINS).astype(int), BINS - 1)
    out = []
    for i in np.unique(place):
        own = place == i
        out.append((float(chance[own].mean()), float(right[own].mean()), int(own.sum())))
    return out


def error(found: list[Bin]) -> float:
    """By how much chances are off, the mean over what is in the bins (ECE; Guo et al. 2017, eq.
    3).
    """
    total = sum(count for _, _, count in found)
    return sum(count * abs(said - was) for said, was, count in found) / total


def draw(found: list[Bin], low: float, words: tuple[str, str, str], path: Path) -> None:
    """Writes the diagram of chances from `low` on; `words` are those of the x and y axis, and the
    title.
    """
    figure, axis = plt.subplots(figsize=(5, 5))
    axis.plot([low, 1], [low, 1], color="gray", linewidth=1, linestyle="--")
    for said, was, count in found:
        axis.scatter(said, was, s=20 + 4 * count, color="tab:blue")
        axis.annotate(str(count), (said, was), textcoords="offset points", xytext=(6, -4), size=8)
    margin = 0.04 * (1 - low)
    axis.set(
        xlabel=words[0], ylabel=words[1], title=words[2],
        xlim=(low - margin, 1 + margin), ylim=(-0.05, 1.05),
    )  # fmt: skip
    save(figure, path)
