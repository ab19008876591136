"""The pictures of a replay: action traces, passes saved against error added, reliability."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.composition.plots import not_drawn, save
from experiments.replaying.recorded import Recording
from experiments.replaying.rollout import Replayed

matplotlib.use("Agg")  # no screen on a pod
from matplotlib import pyplot as plt  # after the backend is chosen

TARGET = 80  # percent of passes to save: issue 5
# Steps below which a reliability diagram is not drawn: 20 in each of its 10 bins on average, where
# a share is known to 0.1. With fewer it shows chance.
LEAST = 200


def traces(replayed: list[Replayed], recording: Recording, out: Path) -> None:
    """Recorded and executed actions in robot units, a row per dim and a column per episode. Dims
    that are constant in the training data have no row, and are named.
    """
    labels, still = recording.index.dataset.action_labels, recording.spec.constant
    dims = [d for d in range(len(labels)) if d not in still]
    figure, axes = plt.subplots(
        max(1, len(dims)),
        len(replayed),
        figsize=(4 * len(replayed), 1.7 * max(2, len(dims))),
        squeeze=False,
        sharex="col",
        sharey="row",
    )
    for column, one in enumerate(replayed):
        k, steps = one.chunks.shape[1], len(one.chunks)
        for axis, d in zip(axes[:, column], dims, strict=False):
            for border in range(0, steps, k):
                axis.axvline(border, color="lightgrey", linewidth=1)
            axis.plot(one.episode.actions[:, d], label="recorded", color="black")
            axis.plot(one.chunks[:, 0, d], label="planned at each step", color="tab:orange")
            axis.plot(
                one.open_loop[:, d], label=f"whole chunks of {k}", color="tab:blue", linestyle="--"
            )
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(labels[d])
        words = one.episode.instruction
        axes[0, column].set_title(
            f"{one.episode.number}: {words[:34]}{'...' if len(words) > 34 else ''}", size=9
        )
        axes[-1, column].set_xlabel("frame")
    if dims:
        axes[0, 0].legend(fontsize=7)
    figure.suptitle(
        "actions in robot units; grey lines: a new chunk begins"
        + not_drawn([labels[d] for d in still])
    )
    save(figure, out)


def trigger(body: dict[str, Any], out: Path) -> None:
    """Passes saved against arm error added, on the report half; `body` is trigger.json."""
    figure, axis = plt.subplots(figsize=(9.5, 5))
    families = dict.fromkeys(point["family"] for point in body["points"])
    curves = {
        name: [p["report"] for p in body["points"] if p["family"] == name] for name in families
    }
    for name, rows in (curves | {"hindsight (no trigger can)": body["hindsight"]}).items():
        x, y = 100 * np.array(sorted((row["saved"], row["added"]) for row in rows)).T
        axis.plot(x, y, "o-" if name in curves else "k--", label=name, markersize=4, linewidth=1)
    measured, allowed = body["measured"], 100 * body["allowed"]
    axis.axhline(
        allowed,
        color="tab:green",
        linestyle=":",
        label=f"target: {TARGET}% saved, {allowed:g}% added",
    )
    axis.axvline(TARGET, color="tab:green", linestyle=":")
    axis.plot(
        100 * measured["saved"],
        100 * measured["added"],
        "*",
        color="black",
        markersize=14,
        label="chosen on the fit half",
    )
    axis.set(
        xlabel="backbone passes saved, %",
        ylabel="arm error added, %",
        title="held-out episodes, report half",
    )
    axis.set_yscale("symlog", linthresh=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, out)


def reliability(report: dict[str, Any], out: Path) -> None:
    """Confidence against what became of it, before and after calibration, and agreement against
    error; of a kind with fewer than LEAST steps, that there are too few.
    """
    panels = [name for name in ("gripper", "token", "agreement") if name in report]
    figure, axes = plt.subplots(
        1, max(1, len(panels)), figsize=(5 * max(1, len(panels)), 4.4), squeeze=False
    )
    for axis, name in zip(axes[0], panels, strict=False):
        kinds = [report[name]] if name == "agreement" else list(report[name].values())
        steps = kinds[-1]["steps"]
        axis.set_title(f"{name} ({steps} steps)")
        if steps < LEAST:
            text = f"{steps} steps are too few:\na diagram takes {LEAST}, replay more episodes"
            axis.text(0.5, 0.5, text, ha="center", transform=axis.transAxes)
            axis.axis("off")
            continue
        if name == "agreement":
            bins = report[name]["bins"]
            x = [row["agreement"] for row in bins]
            axis.plot(x, [row["error"] for row in bins], "o-", label="found")
            axis.plot(x, [row["expected"] for row in bins], "--", label="expected", color="black")
            axis.set(
                xlabel="agreement with the last chunk",
                ylabel="mean absolute arm error, network units",
            )
        else:
            low = min(
                min(row["confidence"], row["right"])
                for kind in report[name].values()
                for row in kind["bins"]
            )
            axis.plot([min(low, 0.5), 1], [min(low, 0.5), 1], color="grey", linestyle=":")
            for kind, curve in report[name].items():
                confidence, right, count = np.array([list(row.values()) for row in curve["bins"]]).T
                axis.plot(confidence, right, "-", linewidth=1)
                axis.scatter(
                    confidence,
                    right,
                    10 + 200 * count / count.sum(),
                    label=f"{kind}: ECE {curve['ece']:.3f}, Brier {curve['brier']:.3f}",
                )
            axis.set(xlabel="confidence (dot size: share of steps)", ylabel="share right")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, out)
