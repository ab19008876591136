"""One control step as a pure function: the action to send in place of the one that was asked for,
and why. numpy and the standard library only.

Limits hold for commanded deltas: velocity is delta * control_rate, acceleration and jerk are its
differences from step to step. They are kept together (braking.py), not by one clip after another
that could undo the one before. A motion that does not pass becomes, axis by axis, the nearest one
(to 1/256) that does on the way to braking.

A stop is another thing: zero motion in this very step, the gripper as `gripper_at_stop` says. It
overrides acceleration and jerk, and nothing else: velocity, box and gripper rate hold in it. Motion
starts again from rest.

Actions are [7] (deltas x y z roll pitch yaw, m and rad, and a gripper, 1 = open), poses [6].
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .braking import MARGIN, Motion, bounds_per_step, fence, project
from .limits import AXES, NAMES, Limits

Causes = dict[str, tuple[str, ...]]


class Reading(NamedTuple):
    """What an action was computed from: the observation's time on the filter's clock, and what
    sensors say now.

    `pose` (x y z roll pitch yaw, m and rad, [6]) is measured; without it the commands are summed up
    from the last one. `distance` to the nearest obstacle, m; inf when there is none in sight.
    """

    observed_at: float
    pose: np.ndarray | None = None
    distance: float | None = None


class State(NamedTuple):
    """Everything the filter remembers. `due` is when the next step is, `resting` how many clean
    ones rest still.
    """

    motion: Motion
    gripper: float
    time: float
    due: float
    resting: int
    counts: Mapping[str, int]


class Decision(NamedTuple):
    """The action to send ([7]), the state after it, why it differs from the request, and what
    latches, if anything.
    """

    action: np.ndarray
    state: State
    causes: Causes
    stopped: bool
    latch: str | None


def start(
    limits: Limits, gripper: float, pose: np.ndarray | None = None, now: float = -math.inf
) -> State:
    """A robot at rest. Without a pose, one is needed with the first reading if anything
    bounds it.
    """
    bounded = np.isfinite([*limits.low, *limits.high]).any()
    if pose is None:
        pose = np.full(6, np.nan if bounded else 0.0)
    return State(_at_rest(_wrapped(limits, pose)), float(gripper), now, now, 0, {})


def decide(limits: Limits, state: State, action: Any, reading: Reading, now: float) -> Decision:
    """One step, as a pure function: the action to send instead of `action`, which may be anything
    at all.
    """
    request = vector(action, 7)
    backwards = not now >= state.time
    causes = _refusals(limits, state, request, reading, now)
    measured = None if reading.pose is None else vector(reading.pose, 6)
    if measured is not None and np.isfinite(measured).all():
        state = state._replace(motion=state.motion._replace(pose=_wrapped(limits, measured)))
    period = 1 / limits.control_rate
    if backwards and math.isfinite(now):
        state = state._replace(due=now + period)  # the old one belongs to another time
    state = state._replace(time=now if math.isfinite(now) else state.time)
    if not causes and state.resting == 0:
        assert request is not None
        velocity, lost = project(request[:6], state.motion, bounds_per_step(limits))
        if not lost.any():
            return _move(limits, state, request, velocity, max(now, state.due) + period)
        causes = {"no_braking_room": _names(lost)}
    return _refuse(limits, state, causes)


def halt(limits: Limits, state: State) -> tuple[np.ndarray, State]:
    """The stop: zero motion, the gripper as configured and no faster than its rate. Returns the
    action [7] too.
    """
    target = {"hold": state.gripper, "open": 1.0, "close": 0.0}[limits.gripper_at_stop]
    gripper = _gripper(limits, state.gripper, target)
    return np.array([0.0] * 6 + [gripper]), state._replace(
        motion=_at_rest(state.motion.pose), gripper=gripper
    )


def _move(
    limits: Limits, state: State, request: np.ndarray, velocity: np.ndarray, due: float
) -> Decision:
    gripper = _gripper(limits, state.gripper, float(request[6]))
    motion = Motion(
        _wrapped(limits, state.motion.pose + velocity), velocity, velocity - state.motion.velocity
    )
    after = State(motion, gripper, state.time, due, 0, {})
    sent = np.array([*velocity, gripper])
    return Decision(sent, after, _adjustments(limits, state, request, sent), False, None)


def _refuse(limits: Limits, state: State, causes: Causes) -> Decision:
    """A stop for `causes`; without any, the rest that follows one."""
    action, after = halt(limits, state)
    if not causes:
        resting = state.resting - 1
        after = after._replace(resting=resting, counts={} if resting == 0 else state.counts)
        return Decision(action, after, {"resting": ()}, True, None)
    counts = {**state.counts, **{cause: state.counts.get(cause, 0) + 1 for cause in causes}}
    patience = {cause: limits.latch_after[cause] for cause in causes}
    latch = next(
        (cause for cause, n in patience.items() if n is not None and counts[cause] >= n), None
    )
    return Decision(
        action, after._replace(resting=limits.clean_steps, counts=counts), causes, True, latch
    )


def _refusals(
    limits: Limits, state: State, request: np.ndarray | None, reading: Reading, now: float
) -> Causes:
    """Why there is to be no motion at all."""
    causes: Causes = {}
    if request is None:
        causes["malformed"] = ()
    elif not np.isfinite(request).all():
        causes["not_finite"] = _names(~np.isfinite(request))
    elif limits.expected is not None:
        low, high = np.array(limits.expected).T
        outside = (request < low) | (request > high)
        if outside.any():
            causes["distribution"] = _names(outside)
    observed_at = real(reading.observed_at)
    # Written so that a NaN is a cause.
    if not (now >= state.time and math.isfinite(now) and -math.inf < observed_at <= now):
        causes["clock"] = ()
    else:
        if not now - observed_at <= limits.max_age:
            causes["stale"] = ()
        if now < state.due - limits.jitter / limits.control_rate:
            causes["early"] = ()
    if limits.stop_distance is not None and not real(reading.distance) >= limits.stop_distance:
        causes["collision"] = ()
    pose = state.motion.pose if reading.pose is None else vector(reading.pose, 6)
    if pose is None or not np.isfinite(pose).all():
        causes["pose"] = ()
    return causes


def _adjustments(limits: Limits, state: State, request: np.ndarray, sent: np.ndarray) -> Causes:
    """Which limits the request would have broken, of the dims that were changed."""
    bounds, (place, velocity, last), delta = bounds_per_step(limits), state.motion, request[:6]
    changed = request != sent
    low, high = fence(place, bounds)
    outside = (place + delta < low) | (place + delta > high)
    change = delta - velocity
    linear = np.arange(6) < 3
    broken = {
        "velocity": abs(delta) > bounds.velocity,
        "acceleration": abs(change) > bounds.change,
        "jerk": abs(change - last) > bounds.ramp,
        "workspace": outside & linear,
        "rotation": outside & ~linear,
    }
    broken = {cause: where & changed[:6] for cause, where in broken.items()}
    # Fine in itself, but there would be no way to brake after it.
    broken["braking"] = changed[:6] & ~np.any(list(broken.values()), 0)
    causes = {cause: _names(where) for cause, where in broken.items() if where.any()}
    if changed[6]:
        causes["gripper_rate" if 0 <= request[6] <= 1 else "gripper_range"] = ("gripper",)
    return causes


def _gripper(limits: Limits, before: float, target: float) -> float:
    target, rate = min(max(target, 0.0), 1.0), limits.gripper_rate / limits.control_rate
    if abs(target - before) <= rate:
        return target
    return before + math.copysign(rate * (1 - MARGIN), target - before)


def _at_rest(pose: np.ndarray) -> Motion:
    return Motion(pose, np.zeros(6), np.zeros(6))


def _wrapped(limits: Limits, pose: np.ndarray) -> np.ndarray:
    """Bounded angles next to the middle of their range; an angle within it is not touched."""
    pose = pose.copy()
    for i in (3, 4, 5):
        low, high = limits.low[i], limits.high[i]
        if math.isfinite(low) and math.isfinite(pose[i]) and not low <= pose[i] <= high:
            middle = (low + high) / 2
            pose[i] = middle + math.remainder(pose[i] - middle, 2 * math.pi)
    return pose


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


def _names(where: np.ndarray) -> tuple[str, ...]:
    names = NAMES if len(where) == 7 else AXES
    return tuple(names[i] for i in np.flatnonzero(where))
