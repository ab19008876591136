"""Learns when the backbone may rest: passes saved against arm error added, on held-out episodes.

Every setting is run over whole episodes as deployed (`EventPolicy` on the frames). Half of the
episodes choose among them, the others report; the regret is learnt before, from the training split.
In a replay the frames are the demonstrator's whatever is executed: the error of an action is its
difference to the demonstrated one at that step; what a robot's own errors lead to is not seen here.
For the same reason no tolerance of the tracking error can be learnt from recordings: the state
follows the demonstrator.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.composition.executed import arm_error
from experiments.replaying import regret
from experiments.replaying.figures import chunk_errors, gripper_accuracy, halves
from experiments.replaying.recorded import Episode, Images, Recording
from experiments.replaying.rollout import Replayed, sensed, state
from vla_jax.progress import Progress
from vla_jax.robot.events import trigger as events
from vla_jax.robot.events.calibration import SCHEMA, identity
from vla_jax.robot.torch_policy import Policy

TARGET_SAVED = 0.8
# Of what occurs within chunks: thresholds to try. Most steps are sure, the unsure ones decide.
SCENES, SURENESS = np.linspace(0.1, 0.9, 6), np.linspace(0.02, 0.5, 12)
SURE = 1.28  # standard errors: 9 in 10 from one side
# of a pass, in arm error: what hindsight weighs
PRICES = np.array([0.0, *np.geomspace(1e-3, 1.0, 19)])


class Aim(NamedTuple):
    """Arm error that may be added, as a share, and how many episodes of the training split to learn
    the regret from.
    """

    allowed: float
    learn: int


class Trial(NamedTuple):
    """A setting to measure. `value` is the threshold of its family, or the price that its regret
    was learnt for.
    """

    family: str
    value: float | None
    settings: events.Settings


class Point(NamedTuple):
    """One setting, and what it gave in each of e episodes: sums over frames."""

    trial: Trial
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
        """Whether no more than `allowed` is added, with SURE standard errors over the fit half's
        episodes to spare.
        """
        over = (self.error - (1 + allowed) * base.error)[halves(len(self.frames))["fit"]]
        return bool(over.mean() + SURE * over.std(ddof=1) / np.sqrt(len(over)) <= 0)


def fit(
    artefact: Path, policy: Policy, recording: Recording, replayed: list[Replayed], aim: Aim
) -> dict[str, Any]:
    """trigger.json: the settings that save most passes at no more than `aim.allowed` added arm
    error on the fit half.

    `replayed` are the episodes, with the chunks planned at each step.
    """
    parts = {half: [replayed[i] for i in places] for half, places in halves(len(replayed)).items()}
    points = measure(
        policy, recording, replayed, trials(policy, recording, parts["fit"], aim.learn)
    )
    base = points[0]
    chosen = choose(points, base, aim.allowed)
    report = chosen.measured("report", base)
    return {
        "schema": SCHEMA,
        "artefact": identity(artefact),
        "data": {
            "dataset": recording.index.dataset.name,
            "split": recording.split.name,
            "episodes": len(replayed),
        },
        "allowed": aim.allowed,
        "chunk": policy.config["network"]["head"]["chunk"],
        "settings": chosen.trial.settings.to_json(),
        "chosen": _row(chosen.trial),
        "measured": report,
        "target_met": report["saved"] >= TARGET_SAVED and report["added"] <= aim.allowed,
        "points": [
            _row(point.trial) | {half: point.measured(half, base) for half in parts}
            for point in points
        ],
        "hindsight": hindsight(
            recording, parts["report"], base.measured("report", base)["arm_error"]
        ),
    }


def check(episodes: int) -> None:
    """Raises ValueError for fewer than two episodes to fit and two to report on."""
    if episodes < 4:
        raise ValueError(
            f"--trigger: expected four episodes or more, to fit and to report on, got {episodes}"
        )


def trials(policy: Policy, recording: Recording, fitted: list[Replayed], learn: int) -> list[Trial]:
    """What is tried; planning at every step comes first. With a regret, a scene further from the
    pass's than any seen within a chunk asks for a pass too: there the regret knows nothing.
    """
    k = policy.config["network"]["head"]["chunk"]
    one_frame = policy.config["network"]["sequence"]["window"] == 1
    scenes, sure = thresholds(recording, fitted, k)
    regrets = regret.learn(policy, recording, learn) if k > 1 else []
    furthest = float(scenes.max(initial=0.0)) or None
    out = [Trial("every step", None, events.Settings(1))]
    for name in events.HISTORIES[: 1 if one_frame else 2]:
        out += [
            Trial(f"horizon, {name}", None, events.Settings(n, history=name))
            for n in range(2, k + 1)
        ]
        for x in _quantiles(scenes, SCENES):
            out.append(Trial(f"scene, {name}", x, events.Settings(k, scene=x, history=name)))
        for x in _quantiles(sure, SURENESS):
            out.append(
                Trial(f"confidence, {name}", x, events.Settings(k, confidence=x, history=name))
            )
        out += [
            Trial(
                f"regret, {name}",
                float(price),
                events.Settings(k, scene=furthest, regret=regret, history=name),
            )
            for price, regret in zip(regret.PRICES, regrets, strict=bool(regrets))
        ]
    return out


def choose(points: list[Point], base: Point, allowed: float) -> Point:
    """Most passes saved within the allowed error on the fit half; `base` itself always is."""
    return max(
        (point for point in points if point is base or point.within(base, allowed)),
        key=lambda point: point.measured("fit", base)["saved"],
    )


def measure(
    policy: Policy, recording: Recording, replayed: list[Replayed], tried: list[Trial]
) -> list[Point]:
    """Runs each setting over all episodes."""
    sums = np.zeros((len(tried), 4, len(replayed)))
    one_frame = policy.config["network"]["sequence"]["window"] == 1
    with Progress("trigger", len(replayed) * len(tried), "runs") as progress:
        for e, one in enumerate(replayed):
            episode = recording.episode(one.episode.number)
            acting = Planned(one, episode.frames) if one_frame else policy
            for i, (_, _, settings) in enumerate(tried):
                actions, passes = execute(acting, episode, recording.index.dataset.name, settings)
                error = arm_error(recording.spec, actions, episode.actions, episode.state).sum()
                right = gripper_accuracy(recording.spec, actions, episode.actions)
                sums[i, :, e] = (
                    len(actions),
                    passes,
                    error,
                    np.nan if right is None else right * len(actions),
                )
                progress.add(1)
    return [Point(each, *values) for each, values in zip(tried, sums, strict=True)]


class Planned:
    """A policy that sees one frame has planned the same at each step of an episode before: its
    chunks are looked up.
    """

    def __init__(self, one: Replayed, frames: list[Images]) -> None:
        self._one, self._step = one, {id(images): t for t, images in enumerate(frames)}

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        """As of the policy; there is nothing to forget."""

    def act(
        self, images: Images, proprio: Any = None, executed: Any = None, sensors: Any = None
    ) -> dict[str, Any]:
        """As of the policy, for one of the `frames` themselves."""
        step = self._step[id(images)]
        sure = self._one.confidence["steps"][step]
        steps = sure.tolist() if np.isfinite(sure).all() else None
        return {"actions": self._one.chunks[step], "confidence": {"steps": steps}}


def execute(
    policy: events.Acting, episode: Episode, dataset: str, settings: events.Settings
) -> tuple[np.ndarray, int]:
    """The actions [t d] that a control loop executes over the episode's frames, and how often the
    backbone ran.
    """
    loop = events.EventPolicy(policy, events.Trigger(settings))
    loop.reset(episode.instruction, dataset)
    actions = [
        loop.act(
            images,
            state(episode, t),
            executed=episode.actions[t - 1] if t else None,
            sensors=sensed(episode, t),
        ).action
        for t, images in enumerate(episode.frames)
    ]
    return np.stack(actions), len(actions) - loop.trigger.counts["continued"]


def thresholds(
    recording: Recording, replayed: list[Replayed], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """What occurs within chunks: differences of the scene to that of the pass, and confidences."""
    scenes: list[float] = []
    for one in replayed:
        cells = [
            events.luminance(images) for images in recording.episode(one.episode.number).frames
        ]
        for t in range(len(cells)):
            scenes += [events.difference(cells[t], later) for later in cells[t + 1 : t + k]]
    sure = np.concatenate([one.confidence["steps"].ravel() for one in replayed])
    return np.array(scenes), sure[np.isfinite(sure)]


def _quantiles(values: np.ndarray, parts: np.ndarray) -> list[float]:
    """Within (0, 1], each once."""
    levels = np.unique(np.quantile(values, parts)) if len(values) else np.zeros(0)
    return levels[(levels > 0) & (levels <= 1)].tolist()


def _setting(row: dict[str, Any]) -> str:
    return f"{row['family']}, horizon {row['horizon']}" + (
        "" if row["value"] is None else f", {row['value']:.3f}"
    )


def _row(trial: Trial) -> dict[str, Any]:
    """A setting as a file and people have it."""
    return {"family": trial.family, "horizon": trial.settings.horizon, "value": trial.value}


def hindsight(
    recording: Recording, replayed: list[Replayed], every: float
) -> list[dict[str, float]]:
    """Passes saved and arm error added, for each of PRICES, if passes stood where the errors, known
    beforehand, are best: what no trigger for this policy can hope to beat, since its chunks are
    made with the full history.
    """
    # t k of each episode
    tables = [chunk_errors(recording.spec, one.chunks, one.episode) for one in replayed]
    frames, sums = sum(len(table) for table in tables), np.zeros((2, len(PRICES)))  # passes, error
    for table in tables:
        regrets = regret.regret(table, PRICES)  # t k q
        sums += np.array([_cheapest(table, regrets[..., q]) for q in range(len(PRICES))]).T
    return [
        {"saved": float(1 - passes / frames), "added": float(error / frames / every - 1)}
        for passes, error in sums.T
    ]


def _cheapest(error: np.ndarray, regret: np.ndarray) -> tuple[int, float]:
    """Passes and error of an episode when each action whose `regret` [t k] is not above 0 is
    executed.
    """
    t = passes = 0
    total = 0.0
    while t < len(error):
        n = 1
        while n < min(error.shape[1], len(error) - t) and regret[t, n] <= 0:
            n += 1
        t, passes, total = t + n, passes + 1, total + float(error[t, :n].sum())
    return passes, total


def text(body: dict[str, Any]) -> str:
    """The curve, and what was chosen."""
    lines = [
        (
            "event-triggered inference; arm error: Huber, network units, executed against"
            " demonstrated action at each step"
        ),
        f"{'':34s} {'fit half':>25s} {'report half':>27s}",
        (
            f"{'family':20s} {'horizon':>7s} {'value':>6s} {'saved':>8s} {'error':>8s}"
            f" {'added':>8s} {'saved':>9s} {'error':>8s} {'added':>8s}  gripper"
        ),
    ]
    for point in body["points"]:
        value, one, two = point["value"], point["fit"], point["report"]
        lines.append(
            f"{point['family']:20s} {point['horizon']:7d}"
            f" {'' if value is None else f'{value:.3f}':>6s} {one['saved']:8.1%}"
            f" {one['arm_error']:8.4f} {one['added']:8.1%} {two['saved']:9.1%}"
            f" {two['arm_error']:8.4f} {two['added']:8.1%}  {two['gripper_accuracy']:7.4f}"
        )
    measured = body["measured"]
    attainable = [row["saved"] for row in body["hindsight"] if row["added"] <= body["allowed"]]
    lines.append(
        f"chosen on the fit half, most saved at {body['allowed']:.0%} added (90% sure):"
        f" {_setting(body['chosen'])}\nreport half: {measured['saved']:.1%} of passes saved, arm"
        f" error {measured['added']:+.1%}; target {TARGET_SAVED:.0%} at {body['allowed']:.0%}:"
        f" {'met' if body['target_met'] else 'NOT MET'}\nwith the errors known beforehand this"
        f" policy's passes could be cut by {max(attainable, default=0.0):.1%} for that"
    )
    return "\n".join(lines)
