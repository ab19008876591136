"""Replays golden.npz, which holds inputs and what the JAX policy made of them, and compares stage by stage."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .policy import Policy

STAGES = ("vision", "readout", "action")


class Row(NamedTuple):
    """A stage of the replay: the largest difference over all steps, and the largest number it is compared with."""

    stage: str
    difference: float
    largest: float

    def exceeds(self, bound: float) -> bool:
        """True where it differs by more than `bound`, relative to the largest number where that is above 1."""
        return not self.difference <= bound * max(1.0, self.largest)


def replay(policy: Policy, file: Path) -> list[Row]:
    """The rows of STAGES, and of "units": JAX's normalised actions in robot units."""
    with np.load(file, allow_pickle=False) as golden:
        arrays = {name: golden[name] for name in golden.files}
    policy.reset(str(arrays["instruction"]), str(arrays["dataset"]))
    found: dict[str, list[np.ndarray]] = {stage: [] for stage in STAGES}
    for i in range(len(arrays["action"])):
        images = {name: arrays[f"image/{name}"][i] for name in policy.cameras}
        proprio = arrays["proprio"][i] if "proprio" in arrays else None
        # The action before is that of JAX: a difference in one step must not look like one in the next.
        executed = arrays["robot"][i - 1, 0] if i else None
        policy.act(images, proprio, executed, arrays["noise"][i] if "noise" in arrays else None)
        for stage in STAGES:
            found[stage].append(policy.stages[stage].float().cpu().numpy())
    rows = []
    for stage in STAGES:
        wanted, got = arrays[stage], np.stack(found[stage])
        rows.append(_row(stage, got, wanted))
    return [*rows, _row("units", policy.action_spec.unnormalise(arrays["action"]), arrays["robot"])]


def _row(stage: str, got: np.ndarray, wanted: np.ndarray) -> Row:
    return Row(stage, float(np.abs(got - wanted).max()), float(np.abs(wanted).max()))


def table(rows: list[Row], bound: float) -> str:
    """The rows as text."""
    lines = [f"{'stage':10s} {'largest':>10s} {'difference':>11s}   bound {bound:g} x max(1, largest)"]
    for row in rows:
        verdict = "EXCEEDED" if row.exceeds(bound) else "ok"
        lines.append(f"{row.stage:10s} {row.largest:10.3g} {row.difference:11.2e}   {verdict}")
    return "\n".join(lines)
