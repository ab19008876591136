"""An action's numbers as motions of its axes, and motions as numbers. numpy and the standard
library only.

Axes: d numbers of an action, n of its axes, g of its grippers, as bounds.Limits has them.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .bounds import Limits


class Asked(NamedTuple):
    """What an action wants of its axes, [n] each: its numbers, the motions in the time of the step,
    and their velocities per whole step.
    """

    numbers: np.ndarray
    motion: np.ndarray
    velocity: np.ndarray


def asked(limits: Limits, place: np.ndarray, numbers: np.ndarray, scale: float) -> Asked:
    """Of numbers [n] for a step of `scale` of a period, by a robot that was last sent to `place`
    [n], which counts where positions are commanded. A target of an angle that wraps is taken next
    to the middle of its range, or without one to the last.
    """
    numbers = numbers.copy()
    for i, dim in enumerate(limits.moving):
        if dim.wraps and dim.command == "position":
            free = math.isinf(limits.low[i])
            low, high = (place[i] - math.pi, place[i] + math.pi) if free else ends(limits, i)
            numbers[i] += turns(numbers[i], low, high)
    delta = np.where(limits.by["position"], numbers - place, numbers)
    speed = numbers / limits.control_rate
    motion = np.where(limits.by["velocity"], speed * scale, delta)
    return Asked(numbers, motion, np.where(limits.by["velocity"], speed, delta / scale))


def commanded(limits: Limits, place: np.ndarray, velocity: np.ndarray, scale: float) -> np.ndarray:
    """The numbers [n] that command velocities per whole step [n], as `asked` has them."""
    most = np.array(limits.velocity)
    speed = np.clip(velocity * limits.control_rate, -most, most)
    motion = velocity * scale
    by = limits.by
    return np.where(by["velocity"], speed, np.where(by["position"], place + motion, motion))


def turned(
    limits: Limits, lowest: np.ndarray, highest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bounded angles that wrap next to the middle of their range; an angle within it is not
    touched.
    """
    lowest, highest = lowest.copy(), highest.copy()
    for i, dim in enumerate(limits.moving):
        at = lowest[i] / 2 + highest[i] / 2
        bounded = dim.wraps and math.isfinite(limits.low[i]) and math.isfinite(at)
        if bounded and (turn := turns(at, *ends(limits, i))):
            lowest[i], highest[i] = lowest[i] + turn, highest[i] + turn
    return lowest, highest


def turns(angle: float, low: float, high: float) -> float:
    """The whole turns that lead a finite angle to within half a turn of the middle of low to high;
    0 where it lies between them.
    """
    if low <= angle <= high:
        return 0.0
    off = angle - (low + high) / 2
    return math.remainder(off, 2 * math.pi) - off


def ends(limits: Limits, axis: int) -> tuple[float, float]:
    """The range of an axis."""
    return limits.low[axis], limits.high[axis]


def openings(limits: Limits, gripper: Any) -> np.ndarray:
    """[g] of what a person says the grippers do now: a mapping by name, or a number where there is
    one; None or an empty mapping where there is none. Raises ValueError for what is missing, too
    much or not in [0, 1].
    """
    names = limits.grippers
    if gripper is not None and not isinstance(gripper, Mapping) and len(names) == 1:
        gripper = {names[0]: gripper}
    said = gripper if isinstance(gripper, Mapping) else {}
    values = np.array([real(said.get(name)) for name in names], np.float64)
    good = (gripper is None or isinstance(gripper, Mapping)) and set(said) == set(names)
    if not good or not ((values >= 0) & (values <= 1)).all():
        got = next(iter(gripper.values())) if good and len(names) == 1 else gripper
        which = f" for {', '.join(names)}" if len(names) > 1 else "" if names else " for no gripper"
        raise ValueError(
            f"gripper: expected 0 (closed) to 1 (open){which}, got {got!r}; say where it is now"
        )
    return values


def measured_openings(limits: Limits, gripper: Any) -> np.ndarray:
    """[g] of what a sensor says, as `openings`; NaN where it says nothing, or no place."""
    single = not isinstance(gripper, Mapping)
    said = dict.fromkeys(limits.grippers[:1], gripper) if single else gripper
    if single and len(limits.grippers) > 1:
        said = {}
    values = np.array([real(said.get(name)) for name in limits.grippers], np.float64)
    return np.where((values >= 0) & (values <= 1), values, np.nan)


def vector(value: Any, size: int) -> np.ndarray | None:
    """`value` as float64 [size], or None if it is not that many real numbers."""
    try:
        array = np.asarray(value)
    except Exception:  # whatever the object does: its answer is a stop, not a crash of the loop
        return None
    if array.shape != (size,) or array.dtype.kind not in "fiu":
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float64)


def real(value: Any) -> float:
    """`value` as a float; NaN if it is none."""
    try:
        return float(value)
    except Exception:  # as in `vector`
        return math.nan
