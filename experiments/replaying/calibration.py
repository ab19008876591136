"""Fits what a policy's confidence is worth on held-out episodes: one half of them fits, the other
reports.

What counts as right
    gripper   the gripper's state (with several, all of them) is the demonstrated one, at each step
              of a chunk that lies within the episode; for the head discrete at the next step
    token     the share of an action's numbers within one bin of the demonstrated one, network units
              (discrete), at each step of a chunk that lies within the episode
    agreement nothing is right or wrong: it is mapped to the mean absolute error of the next
    action's arm
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.composition.executed import arm
from experiments.composition.reliability import BINS, bins, error
from experiments.replaying.figures import ahead, correlation, halves
from experiments.replaying.rollout import Replayed
from vla_jax.actions import ActionSpec
from vla_jax.robot.events.calibration import NEAREST, SCHEMA, Calibration, Curve, Logistic, identity


def calibrate(artefact: Path, spec: ActionSpec, replayed: list[Replayed]) -> dict[str, Any]:
    """calibration.json: the fit, and its report. Raises ValueError for less than two episodes."""
    if len(replayed) < 2:
        raise ValueError(
            "--calibrate: expected two episodes or more, to fit and to report on, got"
            f" {len(replayed)}"
        )
    head = json.loads((artefact / "config.json").read_text(encoding="utf-8"))["network"]["head"]
    kinds = {
        "gripper": lambda one: gripper(spec, one),
        "token": lambda one: tokens(spec, head, one),
    }
    if head["kind"] != "discrete":
        del kinds["token"]
    fitted: dict[str, Any] = {"gripper": None, "token": None, "agreement": None}
    report: dict[str, Any] = {}
    parts = [[replayed[i] for i in places] for places in halves(len(replayed)).values()]
    for name, kind in kinds.items():
        fit, test = (joined([kind(one) for one in half]) for half in parts)
        if len(fit[0]) and len(test[0]):
            fitted[name] = scale = logistic(*fit)
            raw, truth = test
            report[name] = {
                "raw": reliability(raw, truth),
                "calibrated": reliability(scale(raw), truth),
            }
    fit, test = (joined([agreement(spec, one) for one in half]) for half in parts)
    if len(fit[0]) and len(test[0]):
        fitted["agreement"] = curve = monotone(*fit)
        report["agreement"] = agreement_report(curve, *test)
    return {
        "schema": SCHEMA,
        "artefact": identity(artefact),
        "calibration": Calibration(**fitted).to_json(),
        "report": report,
    }


Pairs = tuple[np.ndarray, np.ndarray]  # confidences, and what became of them


def gripper(spec: ActionSpec, one: Replayed) -> Pairs:
    """Of an episode: confidences, and 1 where all binary dims are right, 0 elsewhere."""
    within, true = ahead(one.episode.actions, one.chunks.shape[1])
    right = ((one.chunks > 0.5) == (true > 0.5))[..., spec.binary].all(-1).astype(np.float64)
    if np.isfinite(one.confidence["token"]).any():
        return one.confidence["gripper"], right[:, 0]
    return one.confidence["steps"][within], right[within]


def tokens(spec: ActionSpec, head: dict[str, Any], one: Replayed) -> Pairs:
    """Of an episode: confidences, and the share of d numbers; a binary one counts where its state
    is right.
    """
    within, true = ahead(one.episode.actions, one.chunks.shape[1])
    width = (head["high"] - head["low"]) / (head["bins"] - 1)
    state = one.episode.state[:, None]
    error = np.abs(spec.normalise(one.chunks, state) - spec.normalise(true, state))
    close = error <= width * (1 + 1e-6)
    close[..., spec.binary] = ((one.chunks > 0.5) == (true > 0.5))[..., spec.binary]
    return one.confidence["steps"][within], close.mean(-1)[within]


def agreement(spec: ActionSpec, one: Replayed) -> Pairs:
    """Of an episode: agreements, and the mean absolute error of the next action's arm in network
    units.
    """
    true, state = one.episode.actions, one.episode.state
    error = np.abs(spec.normalise(one.chunks[:, 0], state) - spec.normalise(true, state))
    return one.confidence["agreement"], error[:, arm(spec)].mean(1).astype(np.float64)


def joined(parts: list[Pairs]) -> Pairs:
    """All steps that have a confidence."""
    confidence, outcome = (np.concatenate(column) for column in zip(*parts, strict=True))
    finite = np.isfinite(confidence)
    return confidence[finite], outcome[finite]


def logistic(confidence: np.ndarray, right: np.ndarray) -> Logistic:
    """Platt scaling by Newton's method on the log loss; `right` may be shares. A little prior
    weight on the confidence as it is (slope 1, offset 0) keeps it finite where nothing was ever
    wrong.
    """
    c = np.clip(confidence, NEAREST, 1 - NEAREST)
    x = np.stack([np.log(c / (1 - c)), np.ones(len(c))], 1)
    prior, weight = np.array([1.0, 0.0]), 1.0
    theta = prior.copy()

    def loss(theta: np.ndarray) -> float:
        logits = x @ theta
        log_loss = np.logaddexp(0, logits) - right * logits
        return float(log_loss.sum() + weight / 2 * ((theta - prior) ** 2).sum())

    for _ in range(100):
        p = 1 / (1 + np.exp(-(x @ theta)))
        gradient = x.T @ (p - right) + weight * (theta - prior)
        hessian = (x.T * (p * (1 - p))) @ x + weight * np.eye(2)
        step, step_size = np.linalg.solve(hessian, gradient), 1.0
        while loss(theta - step_size * step) > loss(theta) and step_size > 1e-6:
            step_size /= 2
        theta = theta - step_size * step
        if np.abs(step_size * step).max() < 1e-10:
            break
    # The surer, the worse: then it says nothing, and the mean is all that is known.
    if theta[0] < 0:
        mean = np.clip(right.mean(), NEAREST, 1 - NEAREST)
        theta = np.array([0.0, np.log(mean / (1 - mean))])
    return Logistic(float(theta[0]), float(theta[1]))


def monotone(agreement: np.ndarray, error: np.ndarray) -> Curve:
    """Mean and 90th percentile of the error over bins of equal count, made falling by pooling
    neighbours (PAV).
    """
    order = np.argsort(agreement, kind="stable")
    bins = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)]
    # A pool is a list of bins; neighbours that rise become one.
    pools: list[np.ndarray] = []
    for part in bins:
        pools.append(part)
        while len(pools) > 1 and _rises(pools[-2], pools[-1], agreement, error):
            pools[-2:] = [np.concatenate(pools[-2:])]
    at = [float(agreement[pool].mean()) for pool in pools]
    mean = [float(error[pool].mean()) for pool in pools]
    most = np.minimum.accumulate([float(np.quantile(error[pool], 0.9)) for pool in pools])
    return Curve(tuple(at), tuple(mean), tuple(float(x) for x in most))


def _rises(one: np.ndarray, two: np.ndarray, agreement: np.ndarray, error: np.ndarray) -> bool:
    return bool(
        error[two].mean() > error[one].mean() or agreement[two].mean() <= agreement[one].mean()
    )


def reliability(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Over BINS bins of equal width in [0, 1]: mean confidence, share right and count; with the
    expected calibration error (their mean distance, weighted by count) and the Brier score (mean
    squared distance of each).
    """
    found = bins(confidence, right)
    return {
        "steps": len(confidence),
        "mean_confidence": float(confidence.mean()),
        "mean_right": float(right.mean()),
        "ece": error(found),
        "brier": float(((confidence - right) ** 2).mean()),
        "bins": [{"confidence": said, "right": was, "count": count} for said, was, count in found],
    }


def agreement_report(curve: Curve, agreement: np.ndarray, error: np.ndarray) -> dict[str, Any]:
    """How well the curve tells the error: rank correlation, share of errors below the 90% line, and
    the bins.
    """
    expected, most = curve(agreement)
    order = np.argsort(agreement, kind="stable")
    parts = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)]
    return {
        "steps": len(error),
        "rank_correlation": rank_correlation(-agreement, error),
        "coverage_90": float((error <= most).mean()),
        "mean_error": float(error.mean()),
        "mean_expected": float(expected.mean()),
        "bins": [
            {
                "agreement": float(agreement[part].mean()),
                "expected": float(expected[part].mean()),
                "error": float(error[part].mean()),
            }
            for part in parts
        ],
    }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rho, ties at their mean rank; None where one does not vary."""
    ranks = []
    for values in (a, b):
        _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count + 1) / 2)[inverse])
    return correlation(ranks[0], ranks[1])


def text(body: dict[str, Any]) -> str:
    """The report half's figures."""
    lines = ["confidence on the report half:"]
    for name, what in (
        ("gripper", "P(gripper state right)"),
        ("token", "share of numbers within a bin"),
    ):
        if name in body["report"]:
            raw, scaled = body["report"][name]["raw"], body["report"][name]["calibrated"]
            fit = body["calibration"][name]
            lines.append(
                f"  {what}: right {raw['mean_right']:.4f}, said {raw['mean_confidence']:.4f},"
                f" calibrated {scaled['mean_confidence']:.4f}; ECE {raw['ece']:.4f} ->"
                f" {scaled['ece']:.4f}, Brier {raw['brier']:.4f} -> {scaled['brier']:.4f} (slope"
                f" {fit['slope']:.3f}, offset {fit['offset']:.3f})"
            )
    if "agreement" in body["report"]:
        quality = body["report"]["agreement"]
        rho = (
            "none" if quality["rank_correlation"] is None else f"{quality['rank_correlation']:.3f}"
        )
        lines.append(
            f"  chunk agreement: rank correlation with the arm's mean absolute error {rho} (1: less"
            f" agreement is more error); expected {quality['mean_expected']:.4f}, found"
            f" {quality['mean_error']:.4f}; below the 90% line {quality['coverage_90']:.1%}"
            " of errors"
        )
    return "\n".join(lines)
