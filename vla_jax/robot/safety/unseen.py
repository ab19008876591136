"""The rules of a server: it knows what it sent, not what a robot carries out, nor when. numpy and
the standard library only.

`creep` is for a robot of which nothing else is known. Whatever part of the answers it carries out,
no limit is broken, if an answer is carried out after it came and before the next request, and no
answer leaves sooner than one period after its request came: then commands of two answers are a
period apart, and the motions are so small (half of what acceleration allows, a quarter of what jerk
allows) that any of them may follow any other, or rest. Places are intervals: of the pose, what all
deltas that may or may not have been carried out can add up to; of positions and grippers, all their
commands. Only a measurement makes them narrow again. A stop commands the last position again, and
that may be a small motion of a robot which did not carry it out.

`look` is for a robot whose own filter stands beside its motors: that one keeps the limits. Here an
action is passed as it is, or refused.
"""

from typing import Any

import numpy as np

from .bounds import Limits
from .braking import fence
from .cameras import Causes
from .commands import asked, measured_openings, vector
from .decision import Decision, grip, refusals, refuse
from .state import Reading, State, at_rest, gripped, held, located, placed

FLOAT32 = 2e-7  # more than float32, as on the wire, rounds of a number


def creep(limits: Limits, state: State, action: Any, reading: Reading, now: float) -> Decision:
    """One motion that may be carried out or not. Numbers are as float32 has them, as on the
    wire.
    """
    request = vector(action, len(limits.dims))
    causes = refusals(limits, state, request, reading, now)
    state = _measured(limits, state, reading, now)
    if causes or state.resting:
        return refuse(limits, state, causes, 1.0)
    assert request is not None
    by, bounds, (lowest, highest, *_) = limits.by, limits.per_step, state.motion
    wanted = asked(limits, state.hold[limits.at_axes], request[limits.at_axes], 1.0).numbers
    most = np.min([bounds.velocity, bounds.change / 2, bounds.ramp / 4], 0)
    most = most * np.where(by["velocity"], limits.control_rate, 1.0)
    low, high = fence(state.motion, bounds)
    near = np.clip(wanted, -most, most)
    boxed = np.clip(near, low - lowest, high - highest)
    numbers = (boxed * (1 - FLOAT32)).astype(np.float32)
    place = _place(state, limits, wanted, most)
    near = np.where(by["position"], place, near)
    boxed = np.where(by["position"], np.clip(place, low, high), boxed)
    numbers = np.where(by["position"], _within(boxed, low, high), numbers).astype(np.float64)
    grippers = grip(limits, state, request[limits.at_grippers], 1.0)
    sent = np.empty_like(request)
    sent[limits.at_axes], sent[limits.at_grippers] = numbers, grippers
    axes = np.array(limits.axes)
    moved = grippers != request[limits.at_grippers]
    causes = {
        "unseen": tuple(axes[near != wanted].tolist()),
        "workspace": tuple(axes[boxed != near].tolist()),
        "gripper_rate": tuple(np.array(limits.grippers)[moved].tolist()),
    }
    lowest = np.where(by["position"], np.minimum(lowest, numbers), lowest + np.minimum(numbers, 0))
    highest = np.where(
        by["position"], np.maximum(highest, numbers), highest + np.maximum(numbers, 0)
    )
    motion = at_rest(state.motion)._replace(lowest=lowest, highest=highest)
    # A pose that comes next may have been measured before it was carried out, or after.
    after = held(limits, gripped(limits, state, grippers), numbers)
    after = after._replace(motion=motion, counts={}, recent=((np.nan, numbers),))
    changed = {cause: dims for cause, dims in causes.items() if dims}
    return Decision(sent, after, changed, False, None)


def look(limits: Limits, state: State, actions: Any, reading: Reading, now: float) -> Decision:
    """A chunk [k d] for a robot with a filter of its own: as it is, or a stop in all its steps. In
    a stop positions are where they were measured, else where the last chunk began.
    """
    rows = [vector(row, len(limits.dims)) for row in actions]
    causes: Causes = {}
    for row in rows:
        causes = {**refusals(limits, state, row, reading, now), **causes}
    state = _measured(limits, state, reading, now)
    if causes or state.resting:
        pose = None if reading.pose is None else vector(reading.pose, len(limits.axes))
        if pose is not None and placed(limits, pose):
            state = held(limits, state, pose)
        refused = refuse(limits, state, causes, 1.0)
        return refused._replace(action=np.tile(refused.action, (len(rows), 1)))
    # Only what a later stop is to hold.
    first = np.array(rows)[0]
    at = np.clip(first[limits.at_grippers], 0.0, 1.0)
    after = held(limits, gripped(limits, state, at), first[limits.at_axes])
    return Decision(np.array(rows), after._replace(grippers=(at, at), counts={}), {}, False, None)


def _place(state: State, limits: Limits, wanted: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The positions [n] nearest to the wanted ones that are no further than `most` from any place
    the robot can have been sent to; the last command where there are none.
    """
    lowest, highest, *_ = state.motion
    room = most - FLOAT32 * np.maximum(abs(lowest), abs(highest))
    low, high = highest - room, lowest + room
    near = np.minimum(np.maximum(wanted, low), high)
    return np.where((room > 0) & (low <= high), near, state.hold[limits.at_axes])


def _within(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """As float32 that rounding does not lead out of low to high."""
    rounded = values.astype(np.float32)
    rounded = np.where(rounded > high, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    return np.where(rounded < low, np.nextafter(rounded, np.float32(np.inf)), rounded)


def _measured(limits: Limits, state: State, reading: Reading, now: float) -> State:
    """With this time, the measured pose, and the measured grippers: each is there, or where its
    last command sends it.
    """
    state = located(limits, state._replace(time=max(state.time, now)), reading, now)
    measured, last = measured_openings(limits, reading.gripper), state.hold[limits.at_grippers]
    (lowest, highest), known = state.grippers, np.isfinite(measured)
    ends = (
        np.where(known, np.minimum(measured, last), lowest),
        np.where(known, np.maximum(measured, last), highest),
    )
    return state._replace(grippers=ends)
