"""The pictures of a replay: action traces, passes saved against error added, reliability."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.replaying.rollout import Replayed

matplotlib.use("Agg")  # no screen on a pod
from matplotlib import pyplot as plt  # after the backend is chosen

TARGET = 80  # percent of passes to save: issue 5


def traces(replayed: list[Replayed], names: tuple[str, ...], out: Path) -> None:
    """Recorded and executed actions in robot units, a row per dim and a column per episode."""
    figure, axes = plt.subplots(
        len(names),
        len(replayed),
        figsize=(4 * len(replayed), 1.7 * len(names)),
        squeeze=False,
        sharex="col",
        sharey="row",
    )
    for column, one in enumerate(replayed):
        k, steps = one.chunks.shape[1], len(one.chunks)
        for d, name in enumerate(names):
            axis = axes[d, column]
            for border in range(0, steps, k):
                axis.axvline(border, color="lightgrey", linewidth=1)
            axis.plot(one.episode.actions[:, d], label="recorded", color="black")
            axis.plot(one.chunks[:, 0, d], label="planned at each step", color="tab:orange")
            axis.plot(
                one.open_loop[:, d], label=f"whole chunks of {k}", color="tab:blue", linestyle="--"
            )
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(name)
        words = one.episode.instruction
        axes[0, column].set_title(
            f"{one.episode.number}: {words[:34]}{'...' if len(words) > 34 else ''}", size=9
        )
        axes[-1, column].set_xlabel("frame")
    axes[0, 0].legend(fontsize=7)
    figure.suptitle("actions in robot units; grey lines: a new chunk begins")
    _save(figure, out)


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
    _save(figure, out)


def reliability(report: dict[str, Any], out: Path) -> None:
    """Confidence against what became of it, before and after calibration, and agreement against
    error.
    """
    panels = [name for name in ("gripper", "token", "agreement") if name in report]
    figure, axes = plt.subplots(
        1, max(1, len(panels)), figsize=(5 * max(1, len(panels)), 4.4), squeeze=False
    )
    for axis, name in zip(axes[0], panels, strict=False):
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
            axis.set(xlabel="confidence", ylabel="share right", title="dot size: share of steps")
        axis.set_title(
            f"{name} ({report[name]['steps'] if name == 'agreement' else curve['steps']} steps)"
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(figure, out)


def _save(figure: plt.Figure, out: Path) -> None:
    figure.tight_layout()
    part = out.with_name(out.name + ".part")
    figure.savefig(part, dpi=100, format="png")
    part.replace(out)  # a picture is there whole or not at all
    plt.close(figure)
