"""Numbers over the steps of an episode as inline SVG: one small chart a dim.

A chart's height is the range of the dim in the whole data (q01 to q99), widened where the episode
leaves it: charts of different episodes look alike, and noise around a constant stays a flat line.
"""

from html import escape
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vla_jax.actions import CONSTANT_SPREAD

WIDTH, HEIGHT = 240, 64  # of a chart, in its own units
EDGE = 3  # free above and below
POINTS = 400  # of a line, at most


class Dim(NamedTuple):
    """One dim of actions or states. `low` and `high` are q01 and q99 of the whole split."""

    label: str  # name and unit
    low: float
    high: float
    constant: bool


def charts(values: Float[np.ndarray, "T d"], dims: list[Dim], changes: list[int]) -> str:
    """HTML of the charts of an episode's T steps.

    Dims that are constant in the data have none, unless they move in this very episode: they are
    listed with their value. `changes` are the steps from which on other words are told, drawn as
    upright lines.
    """
    drawn, still = [], []
    for column, dim in zip(values.T, dims, strict=True):
        if dim.constant and np.ptp(column) < CONSTANT_SPREAD:
            still.append(f"{dim.label} = {column[0]:.4g}")
        else:
            drawn.append(_chart(column, dim, changes))
    note = f'<p class="note">constant, not drawn: {escape(", ".join(still))}</p>' if still else ""
    return f'<div class="charts">{"".join(drawn)}</div>{note}'


def _chart(values: Float[np.ndarray, " T"], dim: Dim, changes: list[int]) -> str:
    low, high = min(dim.low, float(values.min())), max(dim.high, float(values.max()))
    between = f"{low:.3g} to {high:.3g}" if low < high else f"{low:.3g}"
    if high <= low:
        low, high = low - 0.5, high + 0.5
    last = max(1, len(values) - 1)

    def x(step: float) -> str:
        return f"{WIDTH * step / last:.1f}"

    def y(value: float) -> str:
        return f"{EDGE + (HEIGHT - 2 * EDGE) * (high - value) / (high - low):.1f}"

    limits = "".join(
        f'<line class="limit" x1="0" x2="{WIDTH}" y1="{y(limit)}" y2="{y(limit)}"/>'
        for limit in (dim.low, dim.high)
    )
    marks = "".join(
        f'<line class="change" x1="{x(step)}" x2="{x(step)}" y1="0" y2="{HEIGHT}"/>'
        for step in changes
    )
    points = " ".join(f"{x(step)},{y(float(values[step]))}" for step in shown(values).tolist())
    return (
        f"<figure><figcaption><b>{escape(dim.label)}</b>"
        f" <span>{between}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">{limits}{marks}'
        f'<polyline points="{points}"/></svg>'
        f'<div class="axis"><span>0</span><span>step {len(values) - 1}</span></div></figure>'
    )


def shown(values: Float[np.ndarray, " T"]) -> np.ndarray:
    """The steps of a line's points, POINTS at most: all, or of equal stretches the lowest and the
    highest, so that nothing that stands out is lost.
    """
    if len(values) <= POINTS:
        return np.arange(len(values))
    ends = np.linspace(0, len(values), POINTS // 2 + 1).astype(int)
    picked = [
        start + int(find(values[start:stop]))
        for start, stop in pairwise(ends.tolist())
        for find in (np.argmin, np.argmax)
    ]
    return np.unique(picked)
