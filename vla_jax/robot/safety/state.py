"""What a filter remembers, and what it learns of time and place in a step. numpy and the standard
library only.

Axes: d numbers of an action, n of its axes, g of its grippers, as bounds.Limits has them.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .bounds import Limits
from .braking import Motion
from .cameras import Causes
from .commands import real, turned, turns, vector

# Periods without a command after which a robot that moved may have come to rest.
PAUSE = 1.5
# Of a period: how early a step may come and still be a whole one; a clock's rounding.
ROUNDING = 1e-7


class Reading(NamedTuple):
    """What an action was computed from: the observation's time on the filter's clock, and what
    sensors say.

    Attributes:
        pose: where the axes are, m and rad, [n]; without it the commands are summed up from the
            last one. What it says of axes that are commanded by velocity is not looked at.
        distance: to the nearest obstacle now, m; inf when there is none in sight.
        measured_at: when the pose was measured, on the filter's clock; None: with the observation.
            What was sent since one period before may or may not be in it.
        gripper: measured, 1 = open; of several a mapping by name. Only a server wants it, which
            does not see what is carried out.
        cameras: what CameraWatch.look said of its frames; None: nobody looked.
    """

    observed_at: float
    pose: np.ndarray | None = None
    distance: float | None = None
    measured_at: float | None = None
    gripper: float | Mapping[str, float] | None = None
    cameras: Causes | None = None


class State(NamedTuple):
    """Everything the filter remembers.

    Attributes:
        hold: [d], the command that changes nothing: 0 of deltas and velocities, the last of
            positions and grippers. grippers: lowest and highest that they can be at, [g].
        time: of the last command; -inf: unknown.
        due: when the next step is. resting: how many clean ones rest still. counts: stops by cause.
        targets: the positions that were asked for last, [n]; NaN where there are none.
        recent: (time, motion [n]) of the commands that a measured pose may not have in it.
        begun: when a person said where the robot is; a pose measured before that is older.
        unseen: whether a command may be carried out or not, as far as is known here.
    """

    motion: Motion
    hold: np.ndarray
    grippers: tuple[np.ndarray, np.ndarray]
    time: float
    due: float
    resting: int
    counts: Mapping[str, int]
    targets: np.ndarray
    recent: tuple[tuple[float, np.ndarray], ...]
    begun: float
    unseen: bool


class Pace(NamedTuple):
    """When a step comes: the part of a period that it has for itself, and what it comes too soon
    or too long after.
    """

    scale: float
    early: bool
    pause: bool


def start(limits: Limits, hold: np.ndarray, pose: np.ndarray | None, begun: float) -> State:
    """A robot that is to be at rest, by `hold` [d] (see State). Without a pose, one is needed with
    the first reading if anything bounds axes that are commanded by deltas.
    """
    by, last = limits.by, hold[limits.at_axes]
    if pose is None:
        bounded = (np.isfinite([*limits.low]) & by["delta"]).any()
        pose = np.where(by["delta"] & bounded, np.nan, last)
    place = np.where(by["velocity"], 0.0, pose)
    ends = turned(limits, place, place)
    hold = hold.copy()
    hold[limits.at_axes] = np.where(by["position"], ends[0], 0.0)
    at = hold[limits.at_grippers]
    motion = at_rest(Motion(*ends, place, place))
    none = np.full_like(last, np.nan)
    return State(motion, hold, (at, at), -math.inf, -math.inf, 0, {}, none, (), begun, unseen=False)


def paced(limits: Limits, state: State, now: float) -> Pace:
    """How long after the last command this step comes.

    After a pause it has no time that it could count on, as the clock may have jumped; nor has it
    without a clock. A server's have a period: unseen.py.
    """
    periods = (now - state.time) * limits.control_rate
    if state.unseen:
        return Pace(1.0, early=False, pause=False)
    if not periods >= 0 or periods > PAUSE:
        return Pace(0.0, early=False, pause=periods > PAUSE)
    early = now < state.due - limits.jitter / limits.control_rate
    early = early or periods < 1 - limits.jitter - ROUNDING
    return Pace(1.0 if periods >= 1 - ROUNDING else periods, early, pause=False)


def timed(limits: Limits, state: State, now: float) -> State:
    """The state with this step's time. What another time left behind, before a clock that went
    back or failed, goes.
    """
    if not math.isfinite(now):
        return state._replace(time=-math.inf, due=-math.inf)
    due = state.due if now >= state.time else now + 1 / limits.control_rate
    kept = now - limits.max_age - 2 / limits.control_rate
    recent = tuple((min(at, now), delta) for at, delta in state.recent if not at < kept)
    return state._replace(time=now, due=due, recent=recent, begun=min(state.begun, now))


def located(limits: Limits, state: State, reading: Reading, now: float) -> State:
    """The state with the measured pose, if there is a good one.

    What was sent since one period before the measurement may or may not be in it: the robot is
    between the two, and where the commands say if that is there. A commanded position is where it
    was sent to; a server, which does not see whether it was, takes what was measured as well.
    """
    measured = None if reading.pose is None else vector(reading.pose, len(limits.axes))
    at = real(measured_at(reading))
    if measured is None or not placed(limits, measured) or outdated(state, reading):
        return state
    if not 0 <= now - at <= limits.max_age:
        return state
    since = at - 1 / limits.control_rate
    sent = [delta for then, delta in state.recent if not then <= since]
    moved = np.array([np.zeros_like(measured), *sent])
    lowest, highest = np.minimum(moved, 0).sum(0), np.maximum(moved, 0).sum(0)
    motion = state.motion
    low, high = turned(limits, measured + lowest, measured + highest)
    expected = (motion.lowest <= high + 1e-9) & (low <= motion.highest + 1e-9)
    lowest = np.where(expected, np.clip(motion.lowest, low, high), low)
    highest = np.where(expected, np.clip(motion.highest, low, high), high)
    ends = motion.lowest, motion.highest
    if state.unseen:
        hold = state.hold[limits.at_axes]
        near = beside(limits, measured, hold)
        ends = np.minimum(near, hold), np.maximum(near, hold)
    by_delta = limits.by["delta"]
    lowest, highest = np.where(by_delta, lowest, ends[0]), np.where(by_delta, highest, ends[1])
    return state._replace(motion=motion._replace(lowest=lowest, highest=highest))


def gripped(limits: Limits, state: State, grippers: np.ndarray) -> State:
    """The state after a command [g] to the grippers."""
    hold = state.hold.copy()
    hold[limits.at_grippers] = grippers
    lowest, highest = state.grippers if state.unseen else (grippers, grippers)
    ends = np.minimum(lowest, grippers), np.maximum(highest, grippers)
    return state._replace(hold=hold, grippers=ends)


def at_rest(motion: Motion) -> Motion:
    """Where it is, without motion."""
    still = np.zeros_like(motion.lowest)
    return motion._replace(velocity=still, change=still)


def held(limits: Limits, state: State, numbers: np.ndarray) -> State:
    """The state after a command to the axes, [n]: it holds the positions."""
    hold = state.hold.copy()
    hold[limits.at_axes] = np.where(limits.by["position"], numbers, 0.0)
    return state._replace(hold=hold)


def measured_at(reading: Reading) -> float:
    return reading.observed_at if reading.measured_at is None else reading.measured_at


def outdated(state: State, reading: Reading) -> bool:
    """Whether the pose is older than what a person said of it."""
    return not real(measured_at(reading)) >= state.begun


def placed(limits: Limits, pose: np.ndarray) -> bool:
    """Whether all axes of a pose [n] are finite that have a place."""
    return bool((np.isfinite(pose) | limits.by["velocity"]).all())


def beside(limits: Limits, pose: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A pose [n] with the angles that wrap, of those that are commanded by position, within half a
    turn of a place [n].
    """
    near = pose.copy()
    for i, dim in enumerate(limits.moving):
        if dim.wraps and dim.command == "position":
            near[i] += turns(pose[i], place[i] - math.pi, place[i] + math.pi)
    return near
