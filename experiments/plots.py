"""Pictures beside the numbers: training curves, predicted against true actions."""

import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen on a pod
from matplotlib import pyplot as plt  # after the backend is chosen


def curves(metrics_file: Path, out: Path) -> None:
    """Draws every loss and accuracy in a metrics.jsonl over steps, train and validation in one panel each."""
    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    names = sorted({key.split("/", 1)[1] for row in rows for key in row if key.startswith("val/")})
    panels = ["loss", *[n for n in names if n != "loss"]]
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(5 * columns, 3 * height), squeeze=False)
    for axis, name in zip(axes.flat, panels, strict=False):
        for label, key in (("train", "loss" if name == "loss" else f"train/{name}"), ("held out", f"val/{name}")):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, marker="." if label == "held out" else None)
        axis.set(title=name, xlabel="step")
        if name == "loss" and all(row["loss"] > 0 for row in rows if row.get("loss") is not None):
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    _save(figure, out)


def actions(predicted: np.ndarray, true: np.ndarray, names: tuple[str, ...], title: str, out: Path) -> None:
    """Draws predicted ["t d"] against true ["t d"] actions of one episode in robot units, one panel per dim."""
    columns = min(4, len(names))
    height = -(-len(names) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(4 * columns, 2.6 * height), squeeze=False)
    for d, name in enumerate(names):
        axis = list(axes.flat)[d]
        axis.plot(true[:, d], label="true", color="black")
        axis.plot(predicted[:, d], label="predicted", color="tab:orange")
        axis.set(title=name, xlabel="frame")
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    for axis in list(axes.flat)[len(names) :]:
        axis.axis("off")
    figure.suptitle(title)
    _save(figure, out)


def _save(figure: plt.Figure, out: Path) -> None:
    figure.tight_layout()
    part = out.with_name(out.name + ".part")
    figure.savefig(part, dpi=100, format="png")
    part.replace(out)  # a picture is there whole or not at all
    plt.close(figure)
