"""Learns when the backbone may rest: passes saved against arm error added, on held-out episodes.

Every policy of one threshold is run over whole episodes as deployed (`EventPolicy` on the frames). Even episodes fit,
odd ones report. In a replay the frames are the demonstrator's whatever is executed: the error of an action is its
difference to the demonstrated one at that step, and what a robot's own errors lead to is not seen here.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.progress import Progress
from experiments.recorded import Episode, Recording
from experiments.replay_figures import arm_error, gripper_accuracy, state
from vla_jax.robot import trigger as events
from vla_jax.robot.calibration import SCHEMA, identity
from vla_jax.robot.torch_policy import Policy

TARGET_SAVED = 0.8
# Of what occurs within chunks: thresholds to try. Most steps are sure, the unsure ones decide.
SCENES, SURENESS = np.linspace(0.1, 0.9, 8), np.linspace(0.03, 0.45, 8)
HALVES = ("fit", "report")


class Point(NamedTuple):
    """One setting, and what it gave: by half [2], per frame sums."""

    family: str
    settings: events.Settings
    frames: np.ndarray
    passes: np.ndarray
    error: np.ndarray
    gripper: np.ndarray

    def measured(self, half: str, base: "Point") -> dict[str, float]:
        """Figures of a half; `base` plans at each step."""
        i = HALVES.index(half)
        error, every = self.error[i] / self.frames[i], base.error[i] / base.frames[i]
        return {
            "saved": float(1 - self.passes[i] / self.frames[i]),
            "arm_error": float(error),
            "added": float(error / every - 1),
            "gripper_accuracy": float(self.gripper[i] / self.frames[i]),
        }


def fit(artefact: Path, policy: Policy, recording: Recording, numbers: list[int], allowed: float) -> dict[str, Any]:
    """trigger.json: the settings that save most passes at no more than `allowed` added arm error on the fit half.

    Raises ValueError for less than two episodes.
    """
    if len(numbers) < 2:
        raise ValueError(f"--trigger: expected two episodes or more, to fit and to report on, got {len(numbers)}")
    k = policy.config["network"]["head"]["chunk"]
    histories = events.HISTORIES if policy.config["network"]["sequence"]["window"] > 1 else events.HISTORIES[:1]
    scenes, sure = thresholds(policy, recording, numbers[::2], k)
    wanted = [("every step", events.Settings(1))]
    for name in histories:
        wanted += [(f"horizon, {name}", events.Settings(n, history=name)) for n in range(2, k + 1)]
        wanted += [(f"scene, {name}", events.Settings(k, scene=float(x), history=name)) for x in scenes]
        wanted += [(f"confidence, {name}", events.Settings(k, confidence=float(x), history=name)) for x in sure]
    found = measure(policy, recording, numbers, wanted)
    base = found[0]
    chosen = choose(found, base, allowed)
    report = chosen.measured("report", base)
    return {
        "schema": SCHEMA,
        "artefact": identity(artefact),
        "data": {"dataset": recording.index.dataset.name, "split": recording.split.name, "episodes": len(numbers)},
        "allowed": allowed,
        "chunk": k,
        "settings": chosen.settings.to_json(),
        "measured": report,
        "target_met": report["saved"] >= TARGET_SAVED and report["added"] <= allowed,
        "points": [
            {"family": point.family, "settings": point.settings.to_json()}
            | {half: point.measured(half, base) for half in HALVES}
            for point in found
        ],
    }


def choose(found: list[Point], base: Point, allowed: float) -> Point:
    """Most passes saved within the allowed error on the fit half; `base` itself is always within."""
    rows = [(point, point.measured("fit", base)) for point in found]
    within = [(row["saved"], -row["arm_error"], i) for i, (_, row) in enumerate(rows) if row["added"] <= allowed]
    return rows[max(within)[2]][0]


def measure(
    policy: Policy, recording: Recording, numbers: list[int], wanted: list[tuple[str, events.Settings]]
) -> list[Point]:
    """Runs each setting over all episodes."""
    zero = [np.zeros((len(wanted), 2)) for _ in range(4)]
    frames, passes, error, gripper = zero
    with Progress("trigger", len(numbers) * len(wanted), "runs") as progress:
        for place, number in enumerate(numbers):
            episode, half = recording.episode(number), place % 2
            for i, (_, settings) in enumerate(wanted):
                actions, ran = execute(policy, episode, recording.index.dataset.name, settings)
                frames[i, half] += len(actions)
                passes[i, half] += ran
                error[i, half] += arm_error(recording.spec, actions, episode.actions).sum()
                right = gripper_accuracy(recording.spec, actions, episode.actions)
                gripper[i, half] += len(actions) * (np.nan if right is None else right)
                progress.add(1)
    return [Point(*wanted[i], frames[i], passes[i], error[i], gripper[i]) for i in range(len(wanted))]


def execute(policy: Policy, episode: Episode, dataset: str, settings: events.Settings) -> tuple[np.ndarray, int]:
    """The actions [t d] that a control loop executes over the episode's frames, and how often the backbone ran."""
    loop = events.EventPolicy(policy, events.Trigger(settings))
    loop.reset(episode.instruction, dataset)
    actions = [
        loop.act(images, state(episode, t), executed=episode.actions[t - 1] if t else None).action
        for t, images in enumerate(episode.frames)
    ]
    return np.stack(actions), len(actions) - loop.trigger.counts["continued"]


def thresholds(policy: Policy, recording: Recording, numbers: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds to try, of the scene and of the confidence: quantiles of what occurs within a chunk."""
    scenes, sure = [], []
    for number in numbers:
        episode = recording.episode(number)
        cells = [events.luminance(images) for images in episode.frames]
        for t in range(len(cells)):
            scenes += [events.difference(cells[t], later) for later in cells[t + 1 : t + k]]
        policy.reset(episode.instruction, recording.index.dataset.name)
        for t, images in enumerate(episode.frames):
            out = policy.act(images, state(episode, t), episode.actions[t - 1] if t else None)
            sure += out["confidence"]["steps"] or []
    return _distinct(scenes, SCENES), _distinct(sure, SURENESS)


def _distinct(values: list[float], parts: np.ndarray) -> np.ndarray:
    """Quantiles within (0, 1], each once."""
    found = np.unique(np.quantile(values, parts)) if values else np.zeros(0)
    return found[(found > 0) & (found <= 1)]


def text(body: dict[str, Any]) -> str:
    """The curve, and what was chosen."""
    lines = [
        "event-triggered inference; arm error: Huber, network units, executed against demonstrated action at each step",
        f"{'':34s} {'fit half':>25s} {'report half':>27s}",
        f"{'family':20s} {'horizon':>7s} {'value':>6s} {'saved':>8s} {'error':>8s} {'added':>8s} {'saved':>9s} "
        f"{'error':>8s} {'added':>8s}  gripper",
    ]
    for point in body["points"]:
        settings, one, two = point["settings"], point["fit"], point["report"]
        value = settings["scene"] or settings["confidence"]
        lines.append(
            f"{point['family']:20s} {settings['horizon']:7d} {'' if value is None else f'{value:.3f}':>6s} "
            f"{one['saved']:8.1%} {one['arm_error']:8.4f} {one['added']:8.1%} {two['saved']:9.1%} "
            f"{two['arm_error']:8.4f} {two['added']:8.1%}  {two['gripper_accuracy']:.4f}"
        )
    got = body["measured"]
    lines.append(
        f"chosen on the fit half, most saved at {body['allowed']:.0%} added: {body['settings']}\n"
        f"report half: {got['saved']:.1%} of passes saved, arm error {got['added']:+.1%}; target {TARGET_SAVED:.0%} at "
        f"{body['allowed']:.0%}: {'met' if body['target_met'] else 'NOT MET'}"
    )
    return "\n".join(lines)
