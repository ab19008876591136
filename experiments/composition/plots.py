"""Pictures beside the numbers: training curves, predicted against true actions, what a dataset
holds.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.index import Split
from data_pipelines.mixture import Member
from experiments.composition import film
from experiments.composition.executed import drift_unit
from vla_jax.actions import CONSTANT_SPREAD

matplotlib.use("Agg")  # no screen on a pod
from matplotlib import font_manager
from matplotlib import pyplot as plt  # after the backend is chosen

# What matplotlib brings has no Korean: one of these, where it is installed, writes what that lacks.
KOREAN = ("Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic")
INSTALLED = set(font_manager.get_font_names())
plt.rcParams["font.family"] = ["DejaVu Sans", *(name for name in KOREAN if name in INSTALLED)]

# Panels of what evaluations measure of executed actions, and the one of rollouts.
BY_STEP, GAPS, ROLLOUT = "arm error by chunk step", "error with a change / without", "success"
OWN = {
    "executed_arm": "arm",
    "executed": "l1/{}",
    "executed_at": BY_STEP,
    "drift": "drift/{}",
    "gap": GAPS,
}
OWN_LABELS = {"executed_arm": "executed", "executed": "next action, executed", "drift": "held out"}

STRIPS, PIXELS = 3, 128  # of a dataset's film strips: episodes, and their height


def curves(metrics_file: Path, members: list[Member], out: Path) -> None:
    """Draws a metrics.jsonl over steps: every loss and accuracy, train and validation in one panel
    each, and what was carried out by whom: open loop, and in closed loop where rollouts ran. What
    no row has (a gripper, where there is none) is left out, and so are errors of dims that are
    constant in all of `members`, from which nothing is learnt.
    """
    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    still = {f"l1/{name}" for name in constant_dims(members)}
    panels = _panels(rows, still)
    measures = _measures(members)
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(5 * columns, 3 * height), squeeze=False)
    for axis, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        for label, key in lines.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axis.plot(
                    *zip(*sorted(points), strict=True),
                    label=label,
                    marker=None if label == "train" else ".",
                )
        axis.set(title=name, xlabel="step", ylabel=measures.get(name, ""))
        if name == "loss" and all(row["loss"] > 0 for row in rows if row.get("loss") is not None):
            axis.set_yscale("log")
        if name == ROLLOUT:
            _interval(axis, rows)
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    if still:
        figure.suptitle(not_drawn(sorted(still)).strip())
    save(figure, out)


def _panels(rows: list[dict[str, Any]], still: set[str]) -> dict[str, dict[str, str]]:
    """Title of a panel -> its lines: label -> key of the rows."""
    measured = {key for row in rows for key in row if row[key] is not None}
    held_out = sorted(key.removeprefix("val/") for key in measured if key.startswith("val/"))
    steps = [name for name in held_out if name.startswith("executed_at/")]
    held_out = [name for name in held_out if name not in steps] + sorted(steps, key=len)
    out: dict[str, dict[str, str]] = {}
    own: dict[str, dict[str, str]] = {}  # behind the training's
    for name in held_out:
        group, _, word = name.partition("/")
        if group in OWN:
            label = OWN_LABELS.get(group, word.replace("_", " "))
            own.setdefault(OWN[group].format(word), {})[label] = f"val/{name}"
        else:
            train = "loss" if name == "loss" else f"train/{name}"
            out[name] = {"train": train, "held out": f"val/{name}"}
    for title, lines in own.items():
        out[title] = out.get(title, {}) | lines
    if "rollout/success" in measured:
        out[ROLLOUT] = {"success": "rollout/success"}
    loss = out.pop("loss", {"train": "loss"})
    return {"loss": loss} | {name: out[name] for name in sorted(out) if name not in still}


def _interval(axis: plt.Axes, rows: list[dict[str, Any]]) -> None:
    """The intervals of rollouts, in the panel of their success."""
    ends = [
        (row["step"], row["rollout/low"], row["rollout/high"])
        for row in rows
        if "rollout/success" in row
    ]
    axis.vlines(*zip(*sorted(ends), strict=True), alpha=0.4, label="95%")
    axis.set_ylim(0, 1)


def constant_dims(members: list[Member]) -> list[str]:
    """The action dims that hardly vary in the training data of any member that has them."""
    specs = [member.action_spec for member in members]
    varies = {name for spec in specs for i, name in enumerate(spec.names) if i not in spec.constant}
    names = dict.fromkeys(name for spec in specs for name in spec.names)
    return [name for name in names if name not in varies]


def _measures(members: list[Member]) -> dict[str, str]:
    """What the numbers of `curves` are, by name. Dims whose members have different units have none
    here.
    """
    said = {"loss": "network units", "arm": "network units", "gripper": "nats"}
    said |= {BY_STEP: "network units", GAPS: "times as large", ROLLOUT: "share of episodes"}
    said["gripper_accuracy"] = "share right"
    labels: dict[str, set[str]] = {}
    drifts: dict[str, set[str]] = {}
    for member in members:
        dataset = member.index.dataset
        for name, label in zip(dataset.action_names, dataset.action_labels, strict=True):
            labels.setdefault(name, set()).add(label)
            drifts.setdefault(name, set()).add(drift_unit(dataset, name))
    binary = {member.action_spec.names[i] for member in members for i in member.action_spec.binary}
    for name, each in labels.items():
        error = each.pop() if len(each) == 1 else name
        said[f"l1/{name}"] = f"|error| of P({name})" if name in binary else f"|error| of {error}"
        unit = drifts[name].pop() if len(drifts[name]) == 1 else ""
        said[f"drift/{name}"] = f"after a chunk, {unit}" if unit else "after a chunk"
    return said


def actions(predicted: np.ndarray, true: np.ndarray, member: Member, title: str, out: Path) -> None:
    """Draws predicted ["t d"] against true ["t d"] actions of one episode in robot units, one panel
    per dim. Dims that are constant in the training data have none, and are named.
    """
    labels, still = member.index.dataset.action_labels, member.action_spec.constant
    dims = [d for d in range(len(labels)) if d not in still]
    columns = min(4, max(1, len(dims)))
    height = -(-max(1, len(dims)) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(4 * columns, 2.6 * height), squeeze=False)
    for axis, d in zip(axes.flat, dims, strict=False):
        axis.plot(true[:, d], label="true", color="black")
        axis.plot(predicted[:, d], label="predicted", color="tab:orange")
        axis.set(title=labels[d], xlabel="frame")
        axis.grid(alpha=0.3)
    if dims:
        axes.flat[0].legend()
    for axis in list(axes.flat)[len(dims) :]:
        axis.axis("off")
    figure.suptitle(title + not_drawn([labels[d] for d in still]))
    save(figure, out)


def not_drawn(constant: Sequence[str]) -> str:
    """What a title says of the dims that have no panel, "" without any."""
    return f"\nconstant in training, not drawn: {', '.join(constant)}" if constant else ""


def dataset(described: Dataset, split: Split, numbers: dict[str, Any], out: Path) -> None:
    """One page about a split: a histogram of every action dim, and film strips of a few episodes
    with their words.
    """
    episodes = [
        int(e)
        for e in np.unique(np.linspace(0, len(split.length) - 1, STRIPS).astype(int))
        if split.length[e]
    ]
    slots = film.slots(described, split)
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
        row, dim = numbers["actions"][name], names.index(name)
        axis.set(xlabel=described.action_labels[dim], ylabel="frames")
        if row["max"] - row["min"] < CONSTANT_SPREAD:
            axis.text(0.5, 0.5, f"{row['mean']:.4g}", ha="center", transform=axis.transAxes)
            axis.set(xticks=[], yticks=[], ylabel="")
            axis.set_title(f"{name}: constant", size=9)
            continue
        axis.hist(split.actions[:, dim], bins=80, color="tab:blue")
        axis.locator_params("x", nbins=5)
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.5)
        for key in ("q01", "q99"):
            axis.axvline(row[key], color="tab:red", linewidth=1)
        lags = numbers["consistency"].get(name)
        follows = "" if lags is None or lags[0] is None else f", state follows {lags[0]:.2f}"
        axis.set_title(
            f"{name}: {row['clipped']:.1%} clipped{follows}"
            + ", constant but for outliers" * row["constant"],
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
            axis.imshow(film.strip(described, split, episode, slot, PIXELS))
            words = split.words(episode) or "(no instruction)"
            axis.set_title(f"episode {episode}, {slot}: {words!r}", size=9, loc="left")
            axis.axis("off")
    save(figure, out, tight=False)


def save(figure: plt.Figure, out: Path, tight: bool = True) -> None:
    """Writes a picture, whole or not at all, and closes the figure. Words that no font has are
    boxes in it.
    """
    part = out.with_name(out.name + ".part")
    with warnings.catch_warnings():
        # A line for each letter otherwise.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        if tight:
            figure.tight_layout()
        figure.savefig(part, dpi=100, format="png")
    part.replace(out)
    plt.close(figure)
