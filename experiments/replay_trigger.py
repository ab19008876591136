"""Learns when the backbone may rest: passes saved against arm error added, on held-out episodes.

Every policy of one threshold is run over whole episodes as deployed (`EventPolicy` on the frames). Half of the episodes
fit, the others report. In a replay the frames are the demonstrator's whatever is executed: the error of an action is
its difference to the demonstrated one at that step; what a robot's own errors lead to is not seen here. For the same
reason no tolerance of the tracking error can be learnt from recordings: the state follows the demonstrator.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.progress import Progress
from experiments.recorded import Episode, Recording
from experiments.replay_figures import Replayed, ahead, arm_error, gripper_accuracy, halves, state
from vla_jax.robot import trigger as events
from vla_jax.robot.calibration import SCHEMA, identity
from vla_jax.robot.torch_policy import Policy

TARGET_SAVED = 0.8
# Of what occurs within chunks: thresholds to try. Most steps are sure, the unsure ones decide.
SCENES, SURENESS = np.linspace(0.1, 0.9, 6), np.linspace(0.02, 0.5, 12)
SURE = 1.28  # standard errors: 9 in 10 from one side
PRICES = (0.0, *np.geomspace(1e-3, 1.0, 19))  # of a pass, in arm error: what hindsight weighs


class Point(NamedTuple):
    """One setting, and what it gave in each of e episodes: sums over frames."""

    family: str
    settings: events.Settings
    frames: np.ndarray
    passes: np.ndarray
    error: np.ndarray
    gripper: np.ndarray  # right ones

    def measured(self, half: str, base: "Point") -> dict[str, float]:
        """Figures of a half; `base` plans at each step."""
        mine = halves(len(self.frames))[half]
        frames, error = self.frames[mine].sum(), self.error[mine].sum()
        return {
            "saved": float(1 - self.passes[mine].sum() / frames),
            "arm_error": float(error / frames),
            "added": float(error / base.error[mine].sum() - 1),
            "gripper_accuracy": float(self.gripper[mine].sum() / frames),
        }

    def within(self, base: "Point", allowed: float) -> bool:
        """Whether no more than `allowed` is added, with SURE standard errors over the fit half's episodes to spare."""
        over = (self.error - (1 + allowed) * base.error)[halves(len(self.frames))["fit"]]
        return bool(over.mean() + SURE * over.std(ddof=1) / np.sqrt(len(over)) <= 0)


def fit(
    artefact: Path, policy: Policy, recording: Recording, replayed: list[Replayed], allowed: float
) -> dict[str, Any]:
    """trigger.json: the settings that save most passes at no more than `allowed` added arm error on the fit half.

    `replayed` are the episodes, with the chunks planned at each step. Raises ValueError for less than four.
    """
    numbers = [one.episode.number for one in replayed]
    if len(numbers) < 4:
        raise ValueError(f"--trigger: expected four episodes or more, to fit and to report on, got {len(numbers)}")
    k = policy.config["network"]["head"]["chunk"]
    histories = events.HISTORIES if policy.config["network"]["sequence"]["window"] > 1 else events.HISTORIES[:1]
    parts = {half: [replayed[i] for i in places] for half, places in halves(len(replayed)).items()}
    scenes, sure = thresholds(recording, parts["fit"], k)
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
            | {half: point.measured(half, base) for half in parts}
            for point in found
        ],
        "hindsight": hindsight(recording, parts["report"], base.measured("report", base)["arm_error"]),
    }


def choose(found: list[Point], base: Point, allowed: float) -> Point:
    """Most passes saved within the allowed error on the fit half; `base` itself always is."""
    return max(
        (point for point in found if point is base or point.within(base, allowed)),
        key=lambda point: point.measured("fit", base)["saved"],
    )


def measure(
    policy: Policy, recording: Recording, numbers: list[int], wanted: list[tuple[str, events.Settings]]
) -> list[Point]:
    """Runs each setting over all episodes."""
    sums = np.zeros((len(wanted), 4, len(numbers)))
    with Progress("trigger", len(numbers) * len(wanted), "runs") as progress:
        for e, number in enumerate(numbers):
            episode = recording.episode(number)
            for i, (_, settings) in enumerate(wanted):
                actions, passes = execute(policy, episode, recording.index.dataset.name, settings)
                error = arm_error(recording.spec, actions, episode.actions).sum()
                right = gripper_accuracy(recording.spec, actions, episode.actions)
                sums[i, :, e] = len(actions), passes, error, np.nan if right is None else right * len(actions)
                progress.add(1)
    return [Point(*name, *values) for name, values in zip(wanted, sums, strict=True)]


def execute(policy: Policy, episode: Episode, dataset: str, settings: events.Settings) -> tuple[np.ndarray, int]:
    """The actions [t d] that a control loop executes over the episode's frames, and how often the backbone ran."""
    loop = events.EventPolicy(policy, events.Trigger(settings))
    loop.reset(episode.instruction, dataset)
    actions = [
        loop.act(images, state(episode, t), executed=episode.actions[t - 1] if t else None).action
        for t, images in enumerate(episode.frames)
    ]
    return np.stack(actions), len(actions) - loop.trigger.counts["continued"]


def thresholds(recording: Recording, replayed: list[Replayed], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds to try, of the scene and of the confidence: quantiles of what occurs within a chunk."""
    scenes: list[float] = []
    for one in replayed:
        cells = [events.luminance(images) for images in recording.episode(one.episode.number).frames]
        for t in range(len(cells)):
            scenes += [events.difference(cells[t], later) for later in cells[t + 1 : t + k]]
    sure = np.concatenate([one.confidence["steps"].ravel() for one in replayed])
    return _distinct(np.array(scenes), SCENES), _distinct(sure[np.isfinite(sure)], SURENESS)


def _distinct(values: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Quantiles within (0, 1], each once."""
    found = np.unique(np.quantile(values, parts)) if len(values) else np.zeros(0)
    return found[(found > 0) & (found <= 1)]


def hindsight(recording: Recording, replayed: list[Replayed], every: float) -> list[dict[str, float]]:
    """Passes saved and arm error added if passes stood where the errors, known beforehand, are best: what no trigger
    for this policy can hope to beat, since the chunks it picks from are made with the full history.

    For each price of a pass the cheapest way through an episode, from its end backwards.
    """
    tables = []
    for one in replayed:
        within, true = ahead(one)
        tables.append(np.where(within, arm_error(recording.spec, one.chunks, true), 0.0).cumsum(1))  # t k
    frames, rows = sum(len(table) for table in tables), []
    for price in PRICES:
        passes, error = 0, 0.0
        for table in tables:
            length, k = table.shape
            best = [(0.0, 0, 0.0)] * (length + 1)  # cost, passes, error from a step on
            for t in range(length - 1, -1, -1):
                ways = [(n, best[t + n], float(table[t, n - 1])) for n in range(1, min(k, length - t) + 1)]
                best[t] = min((price + mine + cost, 1 + more, mine + rest) for _, (cost, more, rest), mine in ways)
            passes, error = passes + best[0][1], error + best[0][2]
        rows.append({"saved": 1 - passes / frames, "added": error / frames / every - 1})
    return rows


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
            f"{two['arm_error']:8.4f} {two['added']:8.1%}  {two['gripper_accuracy']:7.4f}"
        )
    got, free = body["measured"], [row["saved"] for row in body["hindsight"] if row["added"] <= body["allowed"]]
    lines.append(
        f"chosen on the fit half, most saved at {body['allowed']:.0%} added (90% sure): {body['settings']}\n"
        f"report half: {got['saved']:.1%} of passes saved, arm error {got['added']:+.1%}; target {TARGET_SAVED:.0%} at "
        f"{body['allowed']:.0%}: {'met' if body['target_met'] else 'NOT MET'}\n"
        f"with the errors known beforehand this policy's passes could be cut by {max(free, default=0.0):.1%} for that"
    )
    return "\n".join(lines)
