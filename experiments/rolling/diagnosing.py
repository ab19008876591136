"""Why a policy fails, by numbers: each cause has a measure and the limit from which it is claimed.

The measures come from states on the expert's way (probing.py), where what would be right is known.
Distances between actions are in standard deviations of the expert's, dim by dim. A claim is no
proof: it says where to look first. The limits were set on policies that fail for one cause each
and on healthy ones (tests/experiments/rolling/test_diagnosing.py), not on data of yours.

Axes: n frames, d action dim, p state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.composition import footage
from experiments.rolling.actors import whose
from experiments.rolling.probing import Evidence
from experiments.rolling.worlds import About
from vla_jax import saved
from vla_jax.actions import ActionSpec
from vla_jax.robot.relative import to_relative
from vla_jax.training.checkpoint import within

MOVES = 0.1  # standard deviations: a plan that changes by less, in all but a tenth, does not change
CHANGE = 0.5  # the expert's action changes: it says whether a plan follows or repeats
FEW = 8  # frames at which it changes: with fewer nothing is said
REPEATS = 0.6  # share of those at which the plan is nearer to the action before
SLOPES = (0.67, 1.5)  # planned over expert's, dim by dim
SHIFT = 0.5  # standard deviations that planned actions lie beside the expert's, in the mean
RELATED = 0.6  # correlation from which a slope or a shift means something
STILL = 0.1  # of the expert's spread: a dim that does not move
PINNED = 0.3  # share of plans at the robot's limit, more than of the expert's
OUTSIDE, BOUND = 0.25, 1.5  # share of numbers beyond 1.5 times the range of the statistics
NARROW = 0.1  # of the statistics' range that the world's numbers take
SAME = 0.5  # share of frames that are the one before
GAP = 0.2  # share of frames that look like none of the training data


class Subject(NamedTuple):
    """A policy and what it was trained with.

    Attributes:
        policy: with `sessions` and `act_together`.
        action: what its numbers mean.
        state: of the state that it sees; None without.
        control_hz: steps a second of its data, if known.
        cameras: cameras.statistics of its data by camera; None: not known.
    """

    policy: Any
    action: ActionSpec
    state: ActionSpec | None
    control_hz: float | None
    cameras: Mapping[str, Any] | None


class Finding(NamedTuple):
    """A cause: whether it is claimed (None: it could not be looked at), and the numbers."""

    cause: str
    claimed: bool | None
    numbers: str


def subject(policy: str, datasets: Sequence[str], data: str | None) -> Subject:
    """What is in a folder. `data` is where the recordings of a checkpoint are, to know how they
    look. Raises ValueError for an artefact and for a folder without a policy.
    """
    folder = Path(policy).expanduser()
    if (folder / "model.safetensors").is_file():
        raise ValueError(f"--diagnose: {folder}: expected the run that this artefact is of")
    directory = within(folder)
    source = saved.open_checkpoint(directory)
    dataset = whose(datasets, source.specs, str(folder))
    spec = source.specs[dataset]
    seen = None
    if data is not None:
        seen = footage.of_checkpoint(directory, None, source, data)[dataset].cameras
    return Subject(
        saved.jax_policy(source, dataset),
        spec.action,
        spec.state if source.state_names else None,
        spec.control_hz,
        seen,
    )


def findings(evidence: Evidence, of: Subject, world: About) -> list[Finding]:
    """What is claimed of a policy, in the order in which it is to be looked at."""
    rate = Finding("another control rate", None, "the data's is not known")
    if of.control_hz is not None:
        rate = Finding(
            "another control rate",
            abs(of.control_hz / world.control_hz - 1) > 0.01,
            f"{of.control_hz:g} steps a second in its data, {world.control_hz:g} here",
        )
    blind, repeats = _blind(evidence), _repeats(evidence)
    copies = _copies(evidence, blind, repeats)
    return [
        rate,
        _statistics("actions", of.action, evidence.expert, evidence.states),
        _state(evidence, of),
        *_dims(evidence, of.action, world),
        _deaf(evidence),
        blind,
        copies,
        *_stale(evidence, blind, copies, repeats),
        _looks(evidence, of),
    ]


def table(found: list[Finding]) -> str:
    """The findings for people."""
    words = {True: "YES", False: "no", None: "?"}
    width = max(len(each.cause) for each in found)
    lines = [
        f"{words[each.claimed]:>4}  {each.cause.ljust(width)}  {each.numbers}" for each in found
    ]
    claimed = sum(each.claimed is True for each in found)
    return "\n".join([*lines, f"{claimed} of {len(found)} causes are claimed"])


def _spread(evidence: Evidence) -> np.ndarray:
    """Standard deviations [d] of the expert's actions; of dims that do not vary, 1."""
    spread = evidence.expert.std(0)
    return np.where(spread > 1e-6, spread, 1.0)


def _moves(evidence: Evidence, way: str) -> float:
    """How far a plan changes when it is asked another way, in the tenth of the frames at which it
    changes most: the mean over dims, in standard deviations.
    """
    change = np.abs(evidence.planned[way] - evidence.planned["as it is"]) / _spread(evidence)
    return float(np.quantile(change.mean(1), 0.9))


def _deaf(evidence: Evidence) -> Finding:
    none, other = _moves(evidence, "no words"), _moves(evidence, "other words")
    said = f"a plan changes by {other:.2f} with other words, {none:.2f} without (under {MOVES})"
    if evidence.instructions < 2:
        return Finding("ignores language", None, "this world says one thing")
    return Finding("ignores language", other < MOVES, said)


def _blind(evidence: Evidence) -> Finding:
    none, other = _moves(evidence, "no pictures"), _moves(evidence, "other pictures")
    said = (
        f"a plan changes by {other:.2f} with other pictures, {none:.2f} with grey (under {MOVES})"
    )
    return Finding("ignores pictures", other < MOVES, said)


def _repeats(evidence: Evidence) -> tuple[float, int]:
    """At which share of the frames where the expert's action changes the plan is nearer to the
    action before than to the expert's, and how many these are.
    """
    spread = _spread(evidence)
    change = np.abs((evidence.expert - evidence.executed) / spread).max(1)
    at = np.nan_to_num(change) > CHANGE
    plan = evidence.planned["as it is"][at]
    before = np.abs((plan - evidence.executed[at]) / spread).mean(1)
    right = np.abs((plan - evidence.expert[at]) / spread).mean(1)
    return (float((before < right).mean()) if at.any() else 0.0), int(at.sum())


def _copies(evidence: Evidence, blind: Finding, repeats: tuple[float, int]) -> Finding:
    cause = "copies the last action"
    share, count = repeats
    if count < FEW:
        return Finding(cause, None, f"the expert's action changes at {count} frames only")
    told = _moves(evidence, "other action")
    said = (
        f"{share:.0%} of {count} plans where the action changes are nearer to the one before (over"
        f" {REPEATS:.0%}); told of another one a plan changes by {told:.2f}"
    )
    return Finding(cause, share > REPEATS and (told >= MOVES or bool(blind.claimed)), said)


def _stale(
    evidence: Evidence, blind: Finding, copies: Finding, repeats: tuple[float, int]
) -> list[Finding]:
    same = float(evidence.same.mean())
    frozen = Finding(
        "pictures stand still",
        same > SAME,
        f"{same:.0%} of the frames are the one before, though the robot moved (over {SAME:.0%})",
    )
    share, count = repeats
    if count < FEW:
        late = Finding("pictures come late", None, f"the action changes at {count} frames only")
        return [frozen, late]
    late = Finding(
        "pictures come late",
        share > REPEATS and not copies.claimed and not blind.claimed,
        f"{share:.0%} of {count} plans where the action changes fit the frame before (over"
        f" {REPEATS:.0%}), though the last action is not copied",
    )
    return [frozen, late]


def _dims(evidence: Evidence, spec: ActionSpec, world: About) -> list[Finding]:
    """Dims that are planned too large, too small or shifted; that stand still; that are pinned."""
    plan, expert = evidence.planned["as it is"], evidence.expert
    scaled, still, pinned = [], [], []
    room = 0.01 * (world.high - world.low)
    for i, name in enumerate(spec.names):
        spread = expert[:, i].std()
        if i in spec.binary or spread < 1e-6:
            continue
        own = plan[:, i].std()
        if own < STILL * spread:
            still.append(f"{name} {own / spread:.2f} of the expert's spread")
            continue
        related = float(np.corrcoef(plan[:, i], expert[:, i])[0, 1])
        slope = related * own / spread
        shift = (plan[:, i] - expert[:, i]).mean() / spread
        if related > RELATED and not SLOPES[0] <= own / spread <= SLOPES[1]:
            scaled.append(f"{name} {slope:.2f} times the expert's")
        elif related > RELATED and abs(shift) > SHIFT:
            scaled.append(f"{name} shifted by {shift:+.2f} standard deviations")
        at = [
            float(
                ((x[:, i] <= world.low[i] + room[i]) | (x[:, i] >= world.high[i] - room[i])).mean()
            )
            for x in (plan, expert)
        ]
        if at[0] > at[1] + PINNED:
            pinned.append(f"{name} in {at[0]:.0%} of plans, of the expert {at[1]:.0%}")
    return [
        Finding("mis-scaled dims", bool(scaled), "; ".join(scaled) or "none"),
        Finding("dims that stand still", bool(still), "; ".join(still) or "none"),
        Finding("saturated dims", bool(pinned), "; ".join(pinned) or "none"),
    ]


def _state(evidence: Evidence, of: Subject) -> Finding:
    if of.state is None or evidence.states is None:
        return Finding("other statistics, state", None, "it sees none")
    return _statistics("state", of.state, evidence.states, None)


def _statistics(
    what: str, spec: ActionSpec, values: np.ndarray, states: np.ndarray | None
) -> Finding:
    """Whether the world's numbers lie where the statistics say that they do."""
    x = to_relative(spec.relative, values.astype(np.float64), states)
    for step in spec.steps:
        x = (x - step.offset) / step.scale
    wrong = []
    bound = BOUND * (3.0 if spec.steps and spec.steps[0].kind == "gaussian" else 1.0)
    for i, name in enumerate(spec.names):
        if i in spec.binary or not spec.steps:
            continue
        if i in spec.constant:
            if values[:, i].std() > 1e-3:
                wrong.append(f"{name} varies here, in the data it did not")
            continue
        outside = float((np.abs(x[:, i]) > bound).mean())
        width = float(np.ptp(np.quantile(x[:, i], [0.02, 0.98]))) / (2 * bound / BOUND)
        if outside > OUTSIDE:
            wrong.append(f"{name} {outside:.0%} outside")
        elif width < NARROW and values[:, i].std() > 1e-6:
            wrong.append(f"{name} takes {width:.0%} of the range")
    return Finding(f"other statistics, {what}", bool(wrong), "; ".join(wrong) or "none")


def _looks(evidence: Evidence, of: Subject) -> Finding:
    cause = "pictures unlike the data's"
    if of.cameras is None:
        return Finding(cause, None, "give --data to have them compared")
    causes = [kind for look in evidence.looks for kind in look if kind != "frozen"]
    share = float(np.mean([any(kind != "frozen" for kind in look) for look in evidence.looks]))
    kinds = ", ".join(sorted(set(causes)))
    said = f"{share:.0%} of the frames{': ' + kinds if kinds else ''} (over {GAP:.0%})"
    return Finding(cause, share > GAP, said)
