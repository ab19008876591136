"""Motion within limits that can always be braked: velocity, acceleration, jerk and box of each axis
kept together.

A velocity is admissible if it is within all limits *and* the hardest braking after it, which keeps
acceleration and jerk, comes to rest without leaving velocity and box. After an admissible step the
first step of that braking is admissible, so one exists always (from rest inside the box on). numpy
only; every array is [6], per step.
"""

from typing import NamedTuple

import numpy as np

from .limits import MAX_BRAKING_STEPS, Limits

# Braking plans keep this part of a limit away from it, so that rounding never crosses it.
MARGIN = 1e-9
FRACTIONS = np.linspace(0, 1, 17)[:, None]


class Motion(NamedTuple):
    """Where the tool is, its last delta, and how much that differed from the one before."""

    pose: np.ndarray
    velocity: np.ndarray
    change: np.ndarray


class Bounds(NamedTuple):
    """Limits per step, [6] each: |delta|, |delta's change|, |change of that|, and the box."""

    velocity: np.ndarray
    change: np.ndarray
    ramp: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bounds_per_step(limits: Limits) -> Bounds:
    """The limits in robot units per step. What an axis cannot exceed anyway replaces infinity."""
    rate = limits.control_rate
    velocity = np.array(limits.velocity) / rate
    change = np.minimum(np.array(limits.acceleration) / rate**2, 2 * velocity)
    ramp = np.minimum(np.array(limits.jerk) / rate**3, 2 * change)
    return Bounds(velocity, change, ramp, np.array(limits.low), np.array(limits.high))


def brake(velocity: np.ndarray, change: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The velocity ([... 6], per step) of the next step of the hardest stop that keeps acceleration
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


def fence(pose: np.ndarray, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """The box, as far as a pose needs it: one outside of it may stay or come back, never go further
    out.
    """
    return np.minimum(bounds.low, pose), np.maximum(bounds.high, pose)


def admissible(velocity: np.ndarray, motion: Motion, bounds: Bounds) -> np.ndarray:
    """For candidate velocities [c 6]: which keep all limits and can be braked from within them.
    Axes are independent.

    The braking is simulated with exactly the arithmetic that the coming steps will use: rounding
    cannot make a difference between what is promised here and what is done then.
    """
    low, high = fence(motion.pose, bounds)
    good: np.ndarray = np.ones(velocity.shape, bool)
    pose, before, change = (value[None] for value in motion)
    for _ in range(MAX_BRAKING_STEPS):
        change, last = velocity - before, change
        pose = pose + velocity
        good = good & (low <= pose) & (pose <= high) & (abs(velocity) <= bounds.velocity)
        good = good & (abs(change) <= bounds.change) & (abs(change - last) <= bounds.ramp)
        moving = good & ((velocity != 0) | (abs(change) > bounds.ramp * (1 - MARGIN)))
        if not moving.any():
            return good
        # A candidate that has failed may have any value, even NaN: it goes on as one at rest.
        before, change = np.where(good, velocity, 0.0), np.where(good, change, 0.0)
        velocity = brake(before, change, bounds)
    return good & ~moving


def project(request: np.ndarray, motion: Motion, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """The admissible velocity [6] nearest to a finite request [6] on the way to braking; and where
    there is none.
    """
    good = admissible(request[None], motion, bounds)[0]
    if good.all():
        return request, ~good
    room, reach = bounds.change * (1 - MARGIN), bounds.ramp * (1 - MARGIN)
    (low, high), steady = fence(motion.pose, bounds), motion.velocity + motion.change
    lowest = (-bounds.velocity, motion.velocity - room, steady - reach, low - motion.pose)
    highest = (bounds.velocity, motion.velocity + room, steady + reach, high - motion.pose)
    lower, upper = np.max(lowest, 0), np.min(highest, 0)
    near = np.minimum(np.maximum(request, lower), upper)
    far = brake(motion.velocity, motion.change, bounds)
    lost = np.zeros(6, bool)
    for _ in range(2):  # a grid, then a finer one where the first changed its mind
        tries = near[None] + FRACTIONS * (far - near)[None]
        tries[-1] = far
        ok = admissible(tries, motion, bounds)
        first, lost = ok.argmax(0), np.asarray(~ok.any(0))
        near, far = tries[np.maximum(first - 1, 0), np.arange(6)], tries[first, np.arange(6)]
    return np.where(good, request, far), lost & ~good
