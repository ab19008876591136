"""One control step as a pure function: the action to send in place of the one that was asked for,
and why. numpy and the standard library only.

`decide` stands beside the motors: its state is what it sent and when. Limits hold for the commanded
deltas in the time that they had: velocity is a delta over the time since the command before it, at
most a period; acceleration and jerk are its differences over the same. They are kept together
(braking.py), not by one clip after another that could undo the one before. A motion that does not
pass becomes, axis by axis, the nearest one (to 1/256) that does on the way to braking.

A stop is another thing: zero motion in this very step, the gripper as `gripper_at_stop` says. It
overrides acceleration and jerk, and nothing else: velocity, box and gripper rate hold in it. Motion
starts again from rest, and rest is what was commanded: the first step after a pause is zero motion,
since whether the robot stood meanwhile, or the clock jumped, nobody here knows.

unseen.py has the rules of a server, which does not see when its actions are carried out.

Actions are [7] (deltas x y z roll pitch yaw, m and rad, and a gripper, 1 = open), poses [6].
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .braking import MARGIN, Motion, fence, project
from .cameras import Causes
from .limits import AXES, NAMES, Limits

# Periods without a command after which a robot that moved may have come to rest.
PAUSE = 1.5
# Of a period: how early a step may come and still be a whole one; a clock's rounding.
ROUNDING = 1e-7


class Reading(NamedTuple):
    """What an action was computed from: the observation's time on the filter's clock, and what
    sensors say.

    Attributes:
        pose: x y z roll pitch yaw, m and rad, [6]; without it the commands are summed up from the
            last one.
        distance: to the nearest obstacle now, m; inf when there is none in sight.
        measured_at: when the pose was measured, on the filter's clock; None: with the observation.
            What was sent since one period before may or may not be in it.
        gripper: measured, 1 = open. Only a server wants it, which does not see what is carried out.
        cameras: what CameraWatch.look said of its frames; None: nobody looked.
    """

    observed_at: float
    pose: np.ndarray | None = None
    distance: float | None = None
    measured_at: float | None = None
    gripper: float | None = None
    cameras: Causes | None = None


class State(NamedTuple):
    """Everything the filter remembers.

    Attributes:
        gripper: its last command. grippers: lowest and highest that it can be at.
        time: of the last command; -inf: unknown.
        due: when the next step is. resting: how many clean ones rest still. counts: stops by cause.
        recent: (time, delta [6]) of the commands that a measured pose may not have in it.
        begun: when a person said where the robot is; a pose measured before that is older.
        unseen: whether a command may be carried out or not, as far as is known here.
    """

    motion: Motion
    gripper: float
    grippers: tuple[float, float]
    time: float
    due: float
    resting: int
    counts: Mapping[str, int]
    recent: tuple[tuple[float, np.ndarray], ...]
    begun: float
    unseen: bool


class Decision(NamedTuple):
    """The action to send ([7], at a server [k 7]), the state after it, why it differs from the
    request, and what latches, if anything.
    """

    action: np.ndarray
    state: State
    causes: Causes
    stopped: bool
    latch: str | None


class Pace(NamedTuple):
    """When a step comes: the part of a period that it has for itself, and what it comes too soon
    or too long after.
    """

    scale: float
    early: bool
    pause: bool


def start(limits: Limits, gripper: float, pose: np.ndarray | None, begun: float) -> State:
    """A robot that is to be at rest. Without a pose, one is needed with the first reading if
    anything bounds it.
    """
    bounded = np.isfinite([*limits.low, *limits.high]).any()
    if pose is None:
        pose = np.full(6, np.nan if bounded else 0.0)
    motion = at_rest(_turned(limits, Motion(pose, pose, pose, pose)))
    at = float(gripper)
    return State(motion, at, (at, at), -math.inf, -math.inf, 0, {}, (), begun, unseen=False)


def decide(limits: Limits, state: State, action: Any, reading: Reading, now: float) -> Decision:
    """One step beside the motors: the action to send now instead of `action`, which may be anything
    at all.
    """
    request, pace = vector(action, 7), paced(limits, state, now)
    causes = refusals(limits, state, request, reading, now)
    if pace.early:
        causes["early"] = ()
    state = located(limits, timed(limits, state, now), reading, now)
    if causes or state.resting:
        return refuse(limits, state, causes, pace.scale)
    if pace.pause:
        action, after = halt(limits, state, pace.scale)
        return Decision(action, after, {"pause": ()}, True, None)
    assert request is not None
    delta, velocity, lost = project(request[:6], state.motion, limits.per_step, pace.scale)
    if lost.any():
        return refuse(limits, state, {"no_braking_room": _names(lost)}, pace.scale)
    return _move(limits, state, request, np.array([delta, velocity]), pace.scale)


def rest(limits: Limits, state: State, action: Any, reading: Any, now: float) -> Decision:
    """A stop for this one step, for a caller who has no action. `action` and `reading` are not
    looked at.
    """
    pace = paced(limits, state, now)
    sent, after = halt(limits, timed(limits, state, now), pace.scale)
    return Decision(sent, after, {"no_action": ()}, True, None)


def halt(limits: Limits, state: State, scale: float) -> tuple[np.ndarray, State]:
    """The stop: zero motion, the gripper as configured and no faster than its rate in `scale` of a
    period. Returns the action [7] too.
    """
    target = {"hold": state.gripper, "open": 1.0, "close": 0.0}[limits.gripper_at_stop]
    gripper = grip(limits, state, target, scale)
    return np.array([0.0] * 6 + [gripper]), gripped(state, gripper)._replace(
        motion=at_rest(state.motion)
    )


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

    What was sent since one period before the measurement may or may not be in it: the tool is
    between the two, and where the commands say if that is there.
    """
    measured = None if reading.pose is None else vector(reading.pose, 6)
    at = real(_measured_at(reading))
    if measured is None or not np.isfinite(measured).all() or _outdated(state, reading):
        return state
    if not 0 <= now - at <= limits.max_age:
        return state
    since = at - 1 / limits.control_rate
    moved = np.array([np.zeros(6), *(delta for sent, delta in state.recent if not sent <= since)])
    lowest, highest = np.minimum(moved, 0).sum(0), np.maximum(moved, 0).sum(0)
    motion = state.motion
    seen = _turned(limits, motion._replace(lowest=measured + lowest, highest=measured + highest))
    expected = (motion.lowest <= seen.highest + 1e-9) & (seen.lowest <= motion.highest + 1e-9)
    lowest = np.where(expected, np.clip(motion.lowest, seen.lowest, seen.highest), seen.lowest)
    highest = np.where(expected, np.clip(motion.highest, seen.lowest, seen.highest), seen.highest)
    return state._replace(motion=motion._replace(lowest=lowest, highest=highest))


def refuse(limits: Limits, state: State, causes: Causes, scale: float) -> Decision:
    """A stop for `causes`; without any, the rest that follows one."""
    action, after = halt(limits, state, scale)
    if not causes:
        resting = state.resting - 1
        after = after._replace(resting=resting, counts={} if resting == 0 else state.counts)
        return Decision(action, after, {"resting": ()}, True, None)
    counts = {**state.counts, **{cause: state.counts.get(cause, 0) + 1 for cause in causes}}
    patience = {cause: limits.patience[cause] for cause in causes}
    latch = next(
        (cause for cause, n in patience.items() if n is not None and counts[cause] >= n), None
    )
    return Decision(
        action, after._replace(resting=limits.clean_steps, counts=counts), causes, True, latch
    )


def refusals(
    limits: Limits, state: State, request: np.ndarray | None, reading: Reading, now: float
) -> Causes:
    """Why there is to be no motion at all."""
    causes: Causes = {}
    if isinstance(reading.cameras, dict):
        failed = limits.cameras.keys() & reading.cameras.keys()
        causes |= {cause: reading.cameras[cause] for cause in sorted(failed)}
    if request is None:
        causes["malformed"] = ()
    elif not np.isfinite(request).all():
        causes["not_finite"] = _names(~np.isfinite(request))
    elif limits.expected is not None:
        low, high = np.array(limits.expected).T
        outside = (request < low) | (request > high)
        if outside.any():
            causes["distribution"] = _names(outside)
    ages = [now - real(reading.observed_at)]
    if reading.pose is not None:
        ages.append(now - real(_measured_at(reading)))
    # Written so that a NaN is a cause.
    if not (now >= state.time and math.isfinite(now) and all(0 <= age < math.inf for age in ages)):
        causes["clock"] = ()
    elif max(ages) > limits.max_age:
        causes["stale"] = ()
    if limits.stop_distance is not None and not real(reading.distance) >= limits.stop_distance:
        causes["collision"] = ()
    poses = [] if reading.pose is None else [vector(reading.pose, 6)]
    if not poses or _outdated(state, reading):
        poses.append(state.motion.lowest)
    if any(pose is None or not np.isfinite(pose).all() for pose in poses):
        causes["pose"] = ()
    return causes


def grip(limits: Limits, state: State, target: float, scale: float) -> float:
    """The command nearest to `target` that is within the gripper's rate of every place it can be
    at; its last one where there is none.
    """
    target, (lowest, highest) = min(max(target, 0.0), 1.0), state.grippers
    if math.isinf(limits.gripper_rate):
        return target
    rate = limits.gripper_rate / limits.control_rate * scale
    if state.unseen:
        rate = max(rate - 2e-7, 0.0)  # it is rounded to float32, as was the one before
    if highest - rate <= target <= lowest + rate:
        return target
    low, high = highest - rate * (1 - MARGIN), lowest + rate * (1 - MARGIN)
    return min(max(target, low), high) if low <= high else state.gripper


def gripped(state: State, gripper: float) -> State:
    """The state after a command to the gripper."""
    lowest, highest = state.grippers if state.unseen else (gripper, gripper)
    return state._replace(gripper=gripper, grippers=(min(lowest, gripper), max(highest, gripper)))


def at_rest(motion: Motion) -> Motion:
    """Where it is, without motion."""
    return motion._replace(velocity=np.zeros(6), change=np.zeros(6))


def _move(
    limits: Limits, state: State, request: np.ndarray, moves: np.ndarray, scale: float
) -> Decision:
    """`moves`: the delta and its velocity, [2 6]."""
    delta, velocity = moves
    gripper = grip(limits, state, float(request[6]), scale)
    sent = np.array([*delta, gripper])
    change = (velocity - state.motion.velocity) / scale
    motion = Motion(
        state.motion.lowest + delta,
        state.motion.highest + delta,
        velocity,
        change if delta.any() else np.zeros(6),  # zero motion is a stop, whoever wanted it
    )
    after = gripped(state, gripper)._replace(
        motion=_turned(limits, motion),
        due=max(state.time, state.due) + 1 / limits.control_rate,
        counts={},
        recent=(*state.recent, (state.time, delta)),
    )
    return Decision(sent, after, _adjustments(limits, state, request, sent, scale), False, None)


def _adjustments(
    limits: Limits, state: State, request: np.ndarray, sent: np.ndarray, scale: float
) -> Causes:
    """Which limits the request would have broken, of the dims that were changed."""
    bounds, motion, delta = limits.per_step, state.motion, request[:6]
    changed = request != sent
    low, high = fence(motion, bounds)
    outside = (motion.lowest + delta < low) | (motion.highest + delta > high)
    change = (delta / scale - motion.velocity) / scale
    linear = np.arange(6) < 3
    broken = {
        "velocity": abs(delta) > bounds.velocity * scale,
        "acceleration": abs(change) > bounds.change,
        "jerk": abs(change - motion.change) > bounds.ramp * scale,
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


def _measured_at(reading: Reading) -> float:
    return reading.observed_at if reading.measured_at is None else reading.measured_at


def _outdated(state: State, reading: Reading) -> bool:
    """Whether the pose is older than what a person said of it."""
    return not real(_measured_at(reading)) >= state.begun


def _turned(limits: Limits, motion: Motion) -> Motion:
    """Bounded angles next to the middle of their range; an angle within it is not touched."""
    lowest, highest = motion.lowest.copy(), motion.highest.copy()
    for i in (3, 4, 5):
        low, high, at = limits.low[i], limits.high[i], lowest[i] / 2 + highest[i] / 2
        if math.isfinite(low) and math.isfinite(at) and not low <= at <= high:
            off = at - (low + high) / 2
            turn = math.remainder(off, 2 * math.pi) - off
            lowest[i], highest[i] = lowest[i] + turn, highest[i] + turn
    return motion._replace(lowest=lowest, highest=highest)


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
