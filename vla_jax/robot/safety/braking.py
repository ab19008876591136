"""Motion within limits that can always be braked: velocity, acceleration, jerk and box of each axis
kept together.

A velocity is admissible if it is within all limits *and* the hardest braking after it, which keeps
acceleration and jerk, comes to rest without leaving velocity and box. After an admissible step the
first step of that braking is admissible, so one exists always (from rest inside the box on). numpy
only; every array is [n], per step: of all axes, in what their commands move them.

A step that comes early lasts only `scale` of a period, and so much less may change in it; the
braking after it is planned in whole ones. Braking is planned with a reserve, which such steps use
up; only where that is gone, with all that is allowed.
"""

from typing import NamedTuple

import numpy as np

from .bounds import MAX_BRAKING_STEPS, Bounds

# Braking plans keep this part of a limit away from it, so that rounding never crosses it.
MARGIN = 1e-9
RESERVE = 0.2  # of acceleration and jerk
GAP = 0.02  # to the box, of the way of a step at full speed
FRACTIONS = np.linspace(0, 1, 17)[:, None]


class Motion(NamedTuple):
    """Where the axes can be, from lowest to highest, their velocity (of the last motion, per whole
    step), and how much that differed from the one before.
    """

    lowest: np.ndarray
    highest: np.ndarray
    velocity: np.ndarray
    change: np.ndarray


def brake(velocity: np.ndarray, change: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The velocity ([... n], per step) of the next step of the hardest stop that keeps acceleration
    and jerk.

    The deceleration is the largest d that can fall to 0 in steps of the ramp r before the speed s
    is used up: d + (d - r) + (d - 2r) + ... <= s.
    """
    sign = np.where(velocity < 0, -1.0, 1.0)
    speed, slowing = velocity * sign, -change * sign
    # A slightly slower ramp than is allowed: the difference absorbs rounding.
    ramp = np.maximum(bounds.ramp * (1 - 1e-6), 1e-300)
    steps = np.floor((np.sqrt(1 + 8 * speed / ramp) - 1) / 2)  # in which d falls to 0
    deceleration = (speed + ramp * steps * (steps + 1) / 2) / (steps + 1)
    reach = bounds.ramp * (1 - MARGIN)
    most = bounds.change * (1 - MARGIN)
    deceleration = np.minimum(np.maximum(deceleration, slowing - reach), slowing + reach)
    return sign * (speed - np.minimum(np.maximum(deceleration, -most), most))


def fence(motion: Motion, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """The box, as far as a place needs it: one outside of it may stay or come back, never go
    further out.
    """
    return np.minimum(bounds.low, motion.lowest), np.maximum(bounds.high, motion.highest)


def reserved(bounds: Bounds) -> Bounds:
    """What braking is planned with, at first."""
    part, gap = 1 - RESERVE, np.minimum(GAP * bounds.velocity, (bounds.high - bounds.low) / 4)
    change, ramp = bounds.change * part, bounds.ramp * part
    return bounds._replace(change=change, ramp=ramp, low=bounds.low + gap, high=bounds.high - gap)


def short_of(target: np.ndarray, motion: Motion, bounds: Bounds) -> Bounds:
    """Bounds of which the box ends at a target [n], whichever way it lies: the braking that is
    planned then does not lead beyond it. NaN is no target.
    """
    gap = GAP * bounds.velocity  # which the plan leaves
    low = np.where(target < motion.lowest, np.maximum(bounds.low, target - gap), bounds.low)
    high = np.where(target > motion.highest, np.minimum(bounds.high, target + gap), bounds.high)
    return bounds._replace(low=low, high=high)


def admissible(
    velocity: np.ndarray, motion: Motion, bounds: Bounds, plan: Bounds, scale: float = 1.0
) -> np.ndarray:
    """For candidate velocities [c n]: which keep all limits and can be braked from as planned.
    Axes are independent.

    The braking is simulated with exactly the arithmetic that the coming steps will use: rounding
    cannot make a difference between what is promised here and what is done then.
    """
    low, high = fence(motion, bounds)
    good: np.ndarray = np.ones(velocity.shape, bool)
    lowest, highest, before, change = (value[None] for value in motion)
    for _ in range(MAX_BRAKING_STEPS):
        change, last = (velocity - before) / scale, change
        lowest, highest = lowest + velocity * scale, highest + velocity * scale
        good = good & (low <= lowest) & (highest <= high) & (abs(velocity) <= bounds.velocity)
        good = good & (abs(change) <= bounds.change) & (abs(change - last) <= bounds.ramp * scale)
        moving = good & ((velocity != 0) | (abs(change) > bounds.ramp * (1 - MARGIN)))
        if not moving.any():
            return good
        # A candidate that has failed may have any value, even NaN: it goes on as one at rest.
        before, change = np.where(good, velocity, 0.0), np.where(good, change, 0.0)
        velocity, scale = brake(before, change, plan), 1.0
        low, high = fence(motion, plan)
    return good & ~moving


def project(
    wanted: np.ndarray, motion: Motion, bounds: Bounds, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The admissible velocity [n] nearest to a finite wanted one [n] on the way to braking, where
    that is the wanted one, and where there is none.
    """
    plan = reserved(bounds)
    good = admissible(wanted[None], motion, bounds, plan, scale)[0]
    if good.all():
        return wanted, good, ~good
    velocity, lost = _nearest(wanted, motion, bounds, plan, scale)
    if (lost & ~good).any():
        last, none = _nearest(wanted, motion, bounds, bounds, scale)
        velocity, lost = np.where(lost, last, velocity), lost & none
    return np.where(good, wanted, velocity), good, lost & ~good


def _nearest(
    wanted: np.ndarray, motion: Motion, bounds: Bounds, plan: Bounds, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """The admissible velocity [n] nearest to a wanted one, and where there is none."""
    room, reach = bounds.change * (1 - MARGIN) * scale, bounds.ramp * (1 - MARGIN) * scale
    (low, high), steady = fence(motion, bounds), motion.velocity + motion.change * scale
    lowest = (
        -bounds.velocity, motion.velocity - room, steady - reach * scale,
        (low - motion.lowest) / scale,
    )  # fmt: skip
    highest = (
        bounds.velocity, motion.velocity + room, steady + reach * scale,
        (high - motion.highest) / scale,
    )  # fmt: skip
    near = np.minimum(np.maximum(wanted, np.max(lowest, 0)), np.min(highest, 0))
    far = brake(motion.velocity, motion.change, plan)
    if scale < 1:
        change = np.clip(far - motion.velocity, motion.change - reach, motion.change + reach)
        far = motion.velocity + change * scale
    axes = np.arange(len(wanted))
    lost = np.zeros(len(axes), bool)
    for _ in range(2):  # a grid, then a finer one where the first changed its mind
        tries = near[None] + FRACTIONS * (far - near)[None]
        tries[-1] = far
        ok = admissible(tries, motion, bounds, plan, scale)
        first, lost = ok.argmax(0), np.asarray(~ok.any(0))
        near, far = tries[np.maximum(first - 1, 0), axes], tries[first, axes]
    return far, lost
