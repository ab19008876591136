"""Pictures beside the numbers: training curves, predicted against true actions, what a dataset
holds.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from data_pipelines import images
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.index import Split

matplotlib.use("Agg")  # no screen on a pod
from matplotlib import pyplot as plt  # after the backend is chosen

STRIPS, FRAMES, PIXELS = 3, 10, 128  # of a dataset's film strips


def curves(metrics_file: Path, out: Path) -> None:
    """Draws every loss and accuracy in a metrics.jsonl over steps, train and validation in one
    panel each.
    """
    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    names = sorted({key.split("/", 1)[1] for row in rows for key in row if key.startswith("val/")})
    panels = ["loss", *[n for n in names if n != "loss"]]
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(5 * columns, 3 * height), squeeze=False)
    for axis, name in zip(axes.flat, panels, strict=False):
        for label, key in (
            ("train", "loss" if name == "loss" else f"train/{name}"),
            ("held out", f"val/{name}"),
        ):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label=label,
                    marker="." if label == "held out" else None,
                )
        axis.set(title=name, xlabel="step")
        if name == "loss" and all(row["loss"] > 0 for row in rows if row.get("loss") is not None):
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    _save(figure, out)


def actions(
    predicted: np.ndarray, true: np.ndarray, names: tuple[str, ...], title: str, out: Path
) -> None:
    """Draws predicted ["t d"] against true ["t d"] actions of one episode in robot units, one panel
    per dim.
    """
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


def dataset(described: Dataset, split: Split, numbers: dict[str, Any], out: Path) -> None:
    """One page about a split: a histogram of every action dim, and film strips of a few episodes
    with their words.
    """
    episodes = [
        int(e)
        for e in np.unique(np.linspace(0, len(split.length) - 1, STRIPS).astype(int))
        if split.length[e]
    ]
    slots = [slot for slot in described.cameras if slot in split.frames]
    names, columns = described.action_names, 4
    height = -(-len(names) // columns)
    strips = len(episodes) * len(slots)
    figure = plt.figure(figsize=(16, 1 + 2.2 * height + 1.75 * strips))
    parts = figure.subfigures(
        2 if strips else 1, 1, height_ratios=[2.2 * height, 1.75 * strips] if strips else None
    )
    upper, *lower = parts if isinstance(parts, np.ndarray) else [parts]
    idle = numbers["idle_frames"] / numbers["frames"]
    figure.suptitle(
        f"{described.name}, {split.label}: {numbers['episodes']} episodes, {numbers['frames']}"
        f" frames, {described.control_hz or '?'} Hz, {numbers['instructions']} instructions"
        f" ({numbers['steps_without_words']} frames without), {idle:.1%} idle",
        y=0.995,
    )
    axes = list(upper.subplots(height, columns, squeeze=False).flat)
    for axis, name in zip(axes, names, strict=False):
        row = numbers["actions"][name]
        axis.hist(split.actions[:, names.index(name)], bins=80, color="tab:blue")
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.5)
        for key in ("q01", "q99"):
            axis.axvline(row[key], color="tab:red", linewidth=1)
        lags = numbers["consistency"].get(name)
        follows = "" if lags is None or lags[0] is None else f", state follows {lags[0]:.2f}"
        axis.set_title(
            f"{name}: {row['clipped']:.1%} clipped{follows}"
            + (" (constant)" if row["constant"] else ""),
            size=9,
        )
    for axis in axes[len(names) :]:
        axis.axis("off")
    upper.subplots_adjust(hspace=0.55, left=0.04, right=0.98, top=0.88)
    if lower:
        rows = lower[0].subplots(strips, 1, squeeze=False)[:, 0]
        lower[0].subplots_adjust(hspace=0.25, left=0.04, right=0.98, top=0.97, bottom=0.01)
        for axis, (episode, slot) in zip(
            rows, ((e, s) for e in episodes for s in slots), strict=True
        ):
            axis.imshow(_strip(split, episode, slot, slot in described.bgr))
            words = split.words(episode) or "(no instruction)"
            axis.set_title(f"episode {episode}, {slot}: {words!r}", size=9, loc="left")
            axis.axis("off")
    _save(figure, out, tight=False)


def _strip(split: Split, episode: int, slot: str, bgr: bool) -> np.ndarray:
    """FRAMES frames of an episode, evenly spaced, side by side: [PIXELS, FRAMES * PIXELS, 3]."""
    steps = np.linspace(0, split.length[episode] - 1, FRAMES).astype(int) + int(
        split.first[episode]
    )
    stored = split.pictures(slot, steps)
    return np.concatenate([images.decode(each, PIXELS, bgr) for each in stored], axis=1)


def _save(figure: plt.Figure, out: Path, tight: bool = True) -> None:
    if tight:
        figure.tight_layout()
    part = out.with_name(out.name + ".part")
    figure.savefig(part, dpi=100, format="png")
    part.replace(out)  # a picture is there whole or not at all
    plt.close(figure)
