"""What the differences of a policy's actions to the recorded ones amount to.

Axes: t steps of an episode, n of all episodes, k chunk step, d action dim, a arm dims. "Network
units" are normalised: an error of 1 is half of a dim's range in the training data (q99).
"""

from typing import Any

import numpy as np

from experiments.composition.executed import Tally, arm, arm_error, right
from experiments.replaying.recorded import Episode, Recording
from experiments.replaying.rollout import TIMES, Replayed
from vla_jax.actions import ActionSpec
from vla_jax.robot.relative import errors

LAGS = (-2, -1, 0, 1, 2)
WORST = 5


# A policy repeats the recorded actions at another time where its error there is less than this
# share of its error now, and of the mean action's.
SHIFTED = 0.5


def halves(count: int) -> dict[str, np.ndarray]:
    """Places of `count` episodes, "fit" and "report": drawn, because recordings often come in turns
    of tasks.
    """
    order = np.random.default_rng(0).permutation(count)
    return {"fit": np.sort(order[: count // 2]), "report": np.sort(order[count // 2 :])}


def figures(recording: Recording, replayed: list[Replayed]) -> dict[str, Any]:
    """All figures as a JSON-able dict."""
    spec, k = recording.spec, replayed[0].chunks.shape[1]
    true = np.concatenate([one.episode.actions for one in replayed])
    step = np.concatenate([one.chunks[:, 0] for one in replayed])
    open_loop = np.concatenate([one.open_loop for one in replayed])
    state = np.concatenate([one.episode.state for one in replayed])
    mean = np.broadcast_to(recording.mean, true.shape)
    constant = spec.unnormalise(spec.scaled(mean), state)
    others = (("open_loop", open_loop), ("mean_action", constant))
    times = np.concatenate([one.milliseconds for one in replayed])
    told = tally(spec, replayed).figures()

    def away(actions: np.ndarray) -> np.ndarray:
        return errors(spec.relative, actions, true)

    arm_errors = {name: float(arm_error(spec, a, true, state).mean()) for name, a in others}
    return {
        "episodes": len(replayed),
        "frames": len(true),
        "chunk": k,
        "arm_loss": told["arm_loss"],
        "arm_error": {"every_step": told["arm_error"], **arm_errors},
        "gripper_accuracy": {
            "every_step": told["gripper_accuracy"],
            **{name: gripper_accuracy(spec, a, true) for name, a in others},
        },
        "dims": {
            name: {
                "every_step": spread(away(step)[:, i]),
                "open_loop": spread(away(open_loop)[:, i]),
                "mean_action": spread(away(constant)[:, i]),
                "correlation": correlation(step[:, i], true[:, i]),
            }
            for i, name in enumerate(spec.names)
            if i not in spec.binary
        },
        "lag": {str(lag): lagged(spec, replayed, lag) for lag in LAGS},
        "jerk": jerks(spec, replayed),
        "worst": worst(spec, replayed),
        "milliseconds": {
            name: {
                "p50": float(np.percentile(times[:, i], 50)),
                "p95": float(np.percentile(times[:, i], 95)),
            }
            for i, name in enumerate(TIMES)
        },
    }


def tally(spec: ActionSpec, replayed: list[Replayed]) -> Tally:
    """The figures that experiments.evaluate prints, of what the policy's runtime gave the robot."""
    out = Tally(spec)
    for one in replayed:
        within, true = ahead(one.episode.actions, one.chunks.shape[1])
        out.add(one.chunks, true, within, one.episode.state)
    return out


def ahead(actions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Which steps of chunks lie within an episode of `actions` [t d]: [t k], and the actions there
    [t k d].
    """
    at = np.arange(len(actions))[:, None] + np.arange(k)
    return at < len(actions), actions[np.minimum(at, len(actions) - 1)]


def chunk_errors(spec: ActionSpec, chunks: np.ndarray, episode: Episode) -> np.ndarray:
    """`arm_error` [t k] of chunks [t k d] against an episode's actions; 0 past its end."""
    within, true = ahead(episode.actions, chunks.shape[1])
    return np.where(within, arm_error(spec, chunks, true, episode.state[:, None]), 0.0)


def gripper_accuracy(spec: ActionSpec, actions: np.ndarray, true: np.ndarray) -> float | None:
    """Share of binary numbers that are right; None without any."""
    if not spec.binary:
        return None
    return float(np.mean(right(spec, actions, true)))


def spread(error: np.ndarray) -> dict[str, float]:
    """Mean absolute error, root mean square and 95th percentile of the absolute error."""
    size = np.abs(error.astype(np.float64))
    return {
        "mae": float(size.mean()),
        "rms": float(np.sqrt((size**2).mean())),
        "p95": float(np.percentile(size, 95)),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's r; None where the recorded dim does not move."""
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if b.std() > 1e-6 and size > 0 else None


def lagged(spec: ActionSpec, replayed: list[Replayed], lag: int) -> float:
    """Mean arm error of the next action against the recorded one `lag` steps later; at most as many
    steps count.
    """
    errors = []
    for one in replayed:
        low, high = max(0, -lag), len(one.chunks) - max(0, lag)
        if low < high:
            errors.append(
                arm_error(
                    spec,
                    one.chunks[low:high, 0],
                    one.episode.actions[low + lag : high + lag],
                    one.episode.state[low:high],
                )
            )
    return float(np.concatenate(errors).mean()) if errors else float("nan")


def jerks(spec: ActionSpec, replayed: list[Replayed]) -> dict[str, float]:
    """Root mean square of the actions' second difference a[t+1] - 2 a[t] + a[t-1], arm, network
    units.

    Where actions are motions per step (deltas) that is the jerk, in units per step^3. "border"
    counts the three actions that are not all of the same chunk; planned at each step, all are.
    """
    k = replayed[0].chunks.shape[1]
    parts: dict[str, list[np.ndarray]] = {
        "demonstration": [],
        "every_step": [],
        "border": [],
        "inside": [],
    }
    for one in replayed:
        plan = np.arange(len(one.chunks)) // k
        border = plan[2:] != plan[:-2]
        open_loop = _jerk(spec, one.open_loop)
        parts["demonstration"].append(_jerk(spec, one.episode.actions))
        parts["every_step"].append(_jerk(spec, one.chunks[:, 0]))
        parts["border"].append(open_loop[border])
        parts["inside"].append(open_loop[~border])
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return {
        name: float(np.sqrt(x.mean())) if len(x) else float("nan") for name, x in joined.items()
    }


def _jerk(spec: ActionSpec, actions: np.ndarray) -> np.ndarray:
    """[t d] -> [t-2]: mean square over the arm. Relative targets are compared as positions, which
    no limit of the differences clips: their states move too.
    """
    x = actions / spec.units() if spec.relative else spec.normalise(actions)
    x = x.astype(np.float64)[:, arm(spec)]
    return (np.diff(x, 2, axis=0) ** 2).mean(-1)


def worst(spec: ActionSpec, replayed: list[Replayed]) -> list[dict[str, Any]]:
    """The episodes with the largest arm error, planned at each step."""
    rows: list[dict[str, Any]] = []
    for one in replayed:
        step, true = one.chunks[:, 0], one.episode.actions
        state = one.episode.state
        by_dim = np.abs(spec.normalise(step, state) - spec.normalise(true, state)).mean(0)
        rows.append(
            {
                "episode": one.episode.number,
                "record": one.episode.where,
                "instruction": one.episode.instruction,
                "steps": len(true),
                "arm_error": float(arm_error(spec, step, true, state).mean()),
                "worst_dim": spec.names[max(arm(spec), key=lambda i: by_dim[i])],
                "gripper_accuracy": gripper_accuracy(spec, step, true),
            }
        )
    return sorted(rows, key=lambda row: -row["arm_error"])[:WORST]


def text(body: dict[str, Any]) -> str:
    """The figures as a reader wants them."""
    data, error, jerk = body["data"], body["arm_error"], body["jerk"]
    width = max(10, *map(len, body["dims"]))
    lines = [
        (
            f"{data['dataset']}/{data['split']}: {body['episodes']} episodes, {body['frames']}"
            f" frames through {body['artefact']}; its statistics are those of the data"
        ),
        (
            f"arm loss over whole chunks of {body['chunk']} (as experiments.evaluate prints it):"
            f" {body['arm_loss']:.5f}"
        ),
        (
            "arm error of executed actions, the same units: planned at each step"
            f" {error['every_step']:.5f}, whole chunks {error['open_loop']:.5f}, mean action"
            f" {error['mean_action']:.5f}"
        ),
        "in robot units".ljust(width + 11)
        + "planned at each step           whole chunks  mean action of training",
        (
            f"{'dim':{width}s} {'MAE':>10s} {'RMS':>10s} {'p95':>10s} {'MAE':>13s} {'MAE':>10s}"
            f" {'RMS':>10s}  correlation"
        ),
    ]
    for name, row in body["dims"].items():
        step, mean = row["every_step"], row["mean_action"]
        r = "does not move" if row["correlation"] is None else f"{row['correlation']:.3f}"
        flag = (
            ""
            if row["correlation"] is None or step["mae"] < mean["mae"]
            else "  WORSE THAN THE MEAN ACTION"
        )
        lines.append(
            f"{name:{width}s} {step['mae']:10.4g} {step['rms']:10.4g} {step['p95']:10.4g}"
            f" {row['open_loop']['mae']:13.4g} {mean['mae']:10.4g} {mean['rms']:10.4g}  {r}{flag}"
        )
    grip = {
        name: "none" if value is None else f"{value:.4f}"
        for name, value in body["gripper_accuracy"].items()
    }
    lines.append(
        f"gripper accuracy: planned at each step {grip['every_step']}, whole chunks"
        f" {grip['open_loop']}, always the commoner state {grip['mean_action']}"
    )
    best = min(body["lag"], key=lambda lag: body["lag"][lag])
    # A policy that learnt little fits every action badly, and one of them least so: that it repeats
    # what was recorded, at another time, is said where it does repeat it.
    least = SHIFTED * min(body["lag"]["0"], error["mean_action"])
    shifted = best != "0" and body["lag"][best] < least
    late = f": THE RECORDED ACTION {best} STEPS LATER FITS BETTER" if shifted else ""
    lines.append("arm error against the action at lag " + _row(body["lag"], "{}: {:.4f}") + late)
    lines.append(
        "jerk (RMS second difference of actions, network units): " + _row(jerk, "{} {:.4f}")
    )
    lines.append(f"worst episodes{'':9s} steps  arm error  worst dim  gripper  instruction")
    for row in body["worst"]:
        grip_row = "" if row["gripper_accuracy"] is None else f"{row['gripper_accuracy']:.2f}"
        lines.append(
            f"  {row['episode']:5d} {row['record'][-14:]:14s} {row['steps']:5d} "
            f" {row['arm_error']:9.4f}  {row['worst_dim']:>9s}  {grip_row:>7s} "
            f" {row['instruction']!r}"
        )
        lines += [f"        {row['view']}"] if "view" in row else []
    times = {name: f"{p['p50']:.2f} / {p['p95']:.2f}" for name, p in body["milliseconds"].items()}
    lines.append(
        f"milliseconds per frame, alone, on {body['device']}, p50 / p95: " + _row(times, "{} {}")
    )
    return "\n".join(lines)


def _row(values: dict[str, Any], form: str) -> str:
    return ", ".join(form.format(name.replace("_", " "), value) for name, value in values.items())
