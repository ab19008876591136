"""Replays golden.npz, which holds inputs and what the JAX policy made of them, and compares stage
by stage.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..sensing import Sensor
from . import contents
from .policy import Policy

STAGES = ("vision", "readout", "action")


class Row(NamedTuple):
    """A stage of the replay: the largest number, the largest difference over all steps, and what
    that may be.
    """

    stage: str
    largest: float
    difference: float
    bound: float

    @property
    def exceeds(self) -> bool:
        """True where torch differs too much, and where it gives no number."""
        return not self.difference <= self.bound


def replay(policy: Policy, file: Path, dtype: str) -> list[Row]:
    """The rows of STAGES, and of "units": JAX's normalised actions in robot units.

    `dtype` is what the policy computes in. Raises ValueError when the artefact was not proven in
    it, and where the file, or the policy, is none that can be replayed.
    """
    return contents.made(file, lambda: _replayed(policy, file, dtype))


def _replayed(policy: Policy, file: Path, dtype: str) -> list[Row]:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as golden:
        arrays = {name: golden[name] for name in golden.files}
    if f"bound/{dtype}" not in arrays:
        raise ValueError(
            f"{file}: holds no bounds for {dtype}: export it with --dtype={dtype} to have it proven"
        )
    policy.reset(str(arrays["instruction"]), str(arrays["dataset"]))
    per_step: dict[str, list[np.ndarray]] = {stage: [] for stage in STAGES}
    for i in range(len(arrays["action"])):
        images = {name: arrays[f"image/{name}"][i] for name in policy.cameras}
        proprio = arrays["proprio"][i] if "proprio" in arrays else None
        # The action before is that of JAX: otherwise a difference in one step would show up as one
        # in the next too.
        executed = arrays["robot"][i - 1, 0] if i else None
        noise = arrays["noise"][i] if "noise" in arrays else None
        policy.act(images, proprio, executed, noise, given(policy.sensors, arrays, i))
        for stage in STAGES:
            per_step[stage].append(policy.stages[stage].float().cpu().numpy())
    measured = arrays["proprio"][:, None] if policy.action_spec.relative else None
    got = {stage: np.stack(values) for stage, values in per_step.items()}
    bounds = dict(zip(STAGES, arrays[f"bound/{dtype}"].tolist(), strict=True))
    # Artefacts of before 2026-11-29 hold the tokens of each camera apart.
    arrays["vision"] = arrays["vision"].reshape(got["vision"].shape)
    rows = [row(stage, got[stage], arrays[stage], bounds[stage]) for stage in STAGES]
    units, robot = policy.robot_units(arrays["action"], measured), arrays["robot"]
    # Where there was no chunk the robot was held, as the steps before had left it.
    robot = np.where(np.isnan(units), np.nan, robot)
    return [*rows, row("units", units, robot, 0.0)]


def given(sensors: tuple[Sensor, ...], arrays: dict[str, np.ndarray], step: int) -> dict[str, Any]:
    """The recorded readings of a step; where all are NaN there was none."""
    out: dict[str, Any] = {}
    for sensor in sensors:
        raw = arrays[f"sensor/{sensor.name}"][step]
        if raw.dtype.kind == "f" and not np.isfinite(raw).any():
            continue
        out[sensor.name] = (raw, sensor.sizes[0]) if sensor.kind == "audio" else raw
    return out


def row(stage: str, got: np.ndarray, wanted: np.ndarray, bound: float) -> Row:
    """Of a stage; NaN, which is no chunk, has to be in the same places."""
    none = np.isnan(wanted) & np.isnan(got)
    there = np.abs(wanted[~np.isnan(wanted)])
    difference = np.where(none, 0.0, np.abs(got - wanted))
    return Row(stage, float(there.max(initial=0.0)), float(difference.max()), bound)


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = [f"{'stage':10s} {'largest':>10s} {'difference':>11s} {'bound':>9s}"]
    for row in rows:
        verdict = "EXCEEDED" if row.exceeds else "ok"
        lines.append(
            f"{row.stage:10s} {row.largest:10.3g} {row.difference:11.2e} {row.bound:9.1e} {verdict}"
        )
    return "\n".join(lines)
