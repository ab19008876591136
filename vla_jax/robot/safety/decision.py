"""One control step as a pure function: the action to send in place of the one that was asked for,
and why. numpy and the standard library only.

`decide` stands beside the motors: its state is what it sent and when. Limits hold for the commanded
motions in the time that they had: velocity is a motion over the time since the command before it,
at most a period; acceleration and jerk are its differences over the same. They are kept together
(braking.py), not by one clip after another that could undo the one before. A motion that does not
pass becomes, axis by axis, the nearest one (to 1/256) that does on the way to braking.

A motion is the delta that is commanded, or the way from the last commanded position to this one; a
commanded velocity is its own, until the next command. A position that is commanded is where the
robot is, for the box; with deltas that is measured, or summed up.

A stop is another thing: zero motion in this very step (of positions the last one again), grippers
as `gripper_at_stop` says. It overrides acceleration and jerk, and nothing else: velocity, box and
gripper rate hold in it. Motion starts again from rest, and rest is what was commanded: the first
step after a pause is zero motion, since whether the robot stood meanwhile, or the clock jumped,
nobody here knows.

unseen.py has the rules of a server, which does not see when its actions are carried out.

Axes: d numbers of an action, n of its axes, g of its grippers, as bounds.Limits has them.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from .bounds import Limits
from .braking import MARGIN, Motion, fence, project, short_of
from .cameras import Causes
from .commands import Asked, asked, commanded, real, turned, vector
from .state import (
    Reading,
    State,
    at_rest,
    beside,
    gripped,
    held,
    located,
    measured_at,
    outdated,
    paced,
    placed,
    timed,
)


class Decision(NamedTuple):
    """The action to send ([d], at a server [k d]), the state after it, why it differs from the
    request, and what latches, if anything.
    """

    action: np.ndarray
    state: State
    causes: Causes
    stopped: bool
    latch: str | None


def decide(limits: Limits, state: State, action: Any, reading: Reading, now: float) -> Decision:
    """One step beside the motors: the action to send now instead of `action`, which may be anything
    at all.
    """
    request, pace = vector(action, len(limits.dims)), paced(limits, state, now)
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
    want = asked(limits, state.motion.lowest, request[limits.at_axes], pace.scale)
    velocity, good, lost = _projected(limits, state, want, pace.scale)
    if lost.any():
        causes = {"no_braking_room": _named(limits.axes, lost)}
        return refuse(limits, state, causes, pace.scale)
    numbers = commanded(limits, state.motion.lowest, velocity, pace.scale)
    numbers = np.where(good, want.numbers, numbers)
    return _move(limits, state, request, want, np.array([numbers, velocity]), pace.scale)


def rest(limits: Limits, state: State, action: Any, reading: Any, now: float) -> Decision:
    """A stop for this one step, for a caller who has no action. `action` and `reading` are not
    looked at.
    """
    pace = paced(limits, state, now)
    sent, after = halt(limits, timed(limits, state, now), pace.scale)
    return Decision(sent, after, {"no_action": ()}, True, None)


def halt(limits: Limits, state: State, scale: float) -> tuple[np.ndarray, State]:
    """The stop: zero motion, grippers as configured and no faster than their rates in `scale` of a
    period. Returns the action [d] too.
    """
    last = state.hold[limits.at_grippers]
    target = {"hold": last, "open": np.ones_like(last), "close": np.zeros_like(last)}
    grippers = grip(limits, state, target[limits.gripper_at_stop], scale)
    after = gripped(limits, state, grippers)
    none = np.full_like(state.targets, np.nan)
    return after.hold.copy(), after._replace(motion=at_rest(state.motion), targets=none)


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
        causes["not_finite"] = _named(limits.names, ~np.isfinite(request))
    elif limits.expected is not None:
        low, high = np.array(limits.expected).T
        outside = (request < low) | (request > high)
        if outside.any():
            causes["distribution"] = _named(limits.names, outside)
    ages = [now - real(reading.observed_at)]
    if reading.pose is not None:
        ages.append(now - real(measured_at(reading)))
    # Written so that a NaN is a cause.
    if not (now >= state.time and math.isfinite(now) and all(0 <= age < math.inf for age in ages)):
        causes["clock"] = ()
    elif max(ages) > limits.max_age:
        causes["stale"] = ()
    if limits.stop_distance is not None and not real(reading.distance) >= limits.stop_distance:
        causes["collision"] = ()
    poses = [] if reading.pose is None else [vector(reading.pose, len(limits.axes))]
    if not poses or outdated(state, reading):
        poses.append(state.motion.lowest)
    if any(pose is None or not placed(limits, pose) for pose in poses):
        causes["pose"] = ()
    return causes


def grip(limits: Limits, state: State, targets: np.ndarray, scale: float) -> np.ndarray:
    """The commands [g] nearest to `targets` that are within each gripper's rate of every place it
    can be at; its last one where there is none.
    """
    commands = state.hold[limits.at_grippers]
    for i, per_second in enumerate(limits.gripper_rate):
        target = min(max(float(targets[i]), 0.0), 1.0)
        lowest, highest = float(state.grippers[0][i]), float(state.grippers[1][i])
        rate = per_second / limits.control_rate * scale
        if state.unseen:
            rate = max(rate - 2e-7, 0.0)  # it is rounded to float32, as was the one before
        low, high = highest - rate * (1 - MARGIN), lowest + rate * (1 - MARGIN)
        if math.isinf(per_second) or highest - rate <= target <= lowest + rate:
            commands[i] = target
        elif low <= high:
            commands[i] = min(max(target, low), high)
    return commands


def _projected(
    limits: Limits, state: State, want: Asked, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`project` of what is wanted. A position is approached so that the braking after it does not
    lead beyond it, unless it goes on at least as fast as that: else one that stays where it is
    would be passed at full speed, back and forth.
    """
    bounds, motion = limits.per_step, state.motion
    velocity, good, lost = project(want.velocity, motion, bounds, scale)
    last = beside(limits, state.targets, want.numbers)
    goes, way = want.numbers - last, want.motion
    joined = (abs(way) <= abs(goes)) & (way * goes >= 0)
    waits = limits.by["position"] & ~joined
    if not waits.any():
        return velocity, good, lost
    before = short_of(np.where(waits, want.numbers, np.nan), motion, bounds)
    slower, reached, late = project(want.velocity, motion, before, scale)
    late = late | ~waits  # too late to brake before it
    return (
        np.where(late, velocity, slower),
        np.where(late, good, reached),
        lost & late,
    )


def _move(
    limits: Limits,
    state: State,
    request: np.ndarray,
    want: Asked,
    moves: np.ndarray,
    scale: float,
) -> Decision:
    """`moves`: the numbers to command and their velocities, [2 n]."""
    numbers, velocity = moves
    lowest, highest = state.motion.lowest, state.motion.highest
    by_position = limits.by["position"]
    low, high = fence(state.motion, limits.per_step)
    numbers = np.where(by_position, np.clip(numbers, low, high), numbers)
    delta = np.where(by_position, numbers - lowest, numbers)
    grippers = grip(limits, state, request[limits.at_grippers], scale)
    change = (velocity - state.motion.velocity) / scale
    ends = turned(
        limits,
        np.where(by_position, numbers, lowest + delta),
        np.where(by_position, numbers, highest + delta),
    )
    # Zero motion is a stop, whoever wanted it.
    motion = Motion(*ends, velocity, change if delta.any() else np.zeros_like(change))
    after = held(limits, gripped(limits, state, grippers), numbers)
    sent = np.empty_like(request)
    sent[limits.at_axes], sent[limits.at_grippers] = numbers, grippers
    after = after._replace(
        motion=motion,
        targets=np.where(by_position, want.numbers, np.nan),
        due=max(state.time, state.due) + 1 / limits.control_rate,
        counts={},
        recent=(*state.recent, (state.time, delta)),
    )
    return Decision(
        sent, after, _adjustments(limits, state, want, sent, request, scale), False, None
    )


def _adjustments(
    limits: Limits,
    state: State,
    want: Asked,
    sent: np.ndarray,
    request: np.ndarray,
    scale: float,
) -> Causes:
    """Which limits the request would have broken, of the dims that were changed."""
    bounds, motion, delta = limits.per_step, state.motion, want.motion
    changed = want.numbers != sent[limits.at_axes]
    low, high = fence(motion, bounds)
    outside = (motion.lowest + delta < low) | (motion.highest + delta > high)
    change = (delta / scale - motion.velocity) / scale
    linear = np.array([dim.unit == "m" for dim in limits.moving], bool)
    broken = {
        "velocity": abs(delta) > bounds.velocity * scale,
        "acceleration": abs(change) > bounds.change,
        "jerk": abs(change - motion.change) > bounds.ramp * scale,
        "workspace": outside & linear,
        "rotation": outside & ~linear,
    }
    broken = {cause: where & changed for cause, where in broken.items()}
    # Fine in itself, but there would be no way to brake after it.
    broken["braking"] = changed & ~np.any(list(broken.values()), 0)
    causes = {cause: _named(limits.axes, where) for cause, where in broken.items() if where.any()}
    wanted, got = request[limits.at_grippers], sent[limits.at_grippers]
    within = (wanted >= 0) & (wanted <= 1)
    for cause, where in (("gripper_rate", within), ("gripper_range", ~within)):
        if (where & (wanted != got)).any():
            causes[cause] = _named(limits.grippers, where & (wanted != got))
    return causes


def _named(names: tuple[str, ...], where: np.ndarray) -> tuple[str, ...]:
    return tuple(names[i] for i in np.flatnonzero(where))
