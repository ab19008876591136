"""The rules of a server: it knows what it sent, not what a robot carries out, nor when. numpy and
the standard library only.

`creep` is for a robot of which nothing else is known. Whatever part of the answers it carries out,
no limit is broken, if an answer is carried out after it came and before the next request, and no
answer leaves sooner than one period after its request came: then commands of two answers are a
period apart, and the deltas are so small (half of what acceleration allows, a quarter of what jerk
allows) that any of them may follow any other, or rest. Places are intervals: of the pose, what all
answers that may or may not have been carried out can add up to; of the gripper, all its commands.
Only a measurement makes them narrow again.

`look` is for a robot whose own filter stands beside its motors: that one keeps the limits. Here an
action is passed as it is, or refused.
"""

import math
from typing import Any

import numpy as np

from .braking import fence
from .decision import (
    Causes,
    Decision,
    Reading,
    State,
    at_rest,
    grip,
    gripped,
    located,
    real,
    refusals,
    refuse,
    vector,
)
from .limits import AXES, Limits


def creep(limits: Limits, state: State, action: Any, reading: Reading, now: float) -> Decision:
    """One delta that may be carried out or not. It is as float32 has it, as on the wire."""
    request = vector(action, 7)
    causes = refusals(limits, state, request, reading, now)
    state = _measured(limits, state, reading, now)
    if causes or state.resting:
        return refuse(limits, state, causes, 1.0)
    assert request is not None
    bounds, (lowest, highest, *_) = limits.per_step, state.motion
    most = np.min([bounds.velocity, bounds.change / 2, bounds.ramp / 4], 0)
    low, high = fence(state.motion, bounds)
    near = np.clip(request[:6], -most, most)
    boxed = np.clip(near, low - lowest, high - highest)
    # float32 rounds to 6e-8 of a number.
    delta = (boxed * (1 - 2e-7)).astype(np.float32).astype(np.float64)
    gripper = grip(limits, state, float(request[6]), 1.0)
    causes = {
        "unseen": tuple(np.array(AXES)[near != request[:6]].tolist()),
        "workspace": tuple(np.array(AXES)[boxed != near].tolist()),
        "gripper_rate": ("gripper",) if gripper != request[6] else (),
    }
    motion = at_rest(state.motion)._replace(
        lowest=lowest + np.minimum(delta, 0), highest=highest + np.maximum(delta, 0)
    )
    # A pose that comes next may have been measured before it was carried out, or after.
    after = gripped(state, gripper)._replace(motion=motion, counts={}, recent=((math.nan, delta),))
    changed = {cause: dims for cause, dims in causes.items() if dims}
    return Decision(np.array([*delta, gripper]), after, changed, False, None)


def look(limits: Limits, state: State, actions: Any, reading: Reading, now: float) -> Decision:
    """A chunk [k 7] for a robot with a filter of its own: as it is, or a stop in all its steps."""
    rows = [vector(row, 7) for row in actions]
    causes: Causes = {}
    for row in rows:
        causes = {**refusals(limits, state, row, reading, now), **causes}
    state = _measured(limits, state, reading, now)
    if causes or state.resting:
        refused = refuse(limits, state, causes, 1.0)
        return refused._replace(action=np.tile(refused.action, (len(rows), 1)))
    # Of the gripper only what a later stop is to hold.
    at = min(max(float(actions[0][6]), 0.0), 1.0)
    after = state._replace(gripper=at, grippers=(at, at), counts={})
    return Decision(np.array(rows), after, {}, False, None)


def _measured(limits: Limits, state: State, reading: Reading, now: float) -> State:
    """With this time, the measured pose, and the measured gripper: that is there, or where its last
    command sends it.
    """
    state = located(limits, state._replace(time=max(state.time, now)), reading, now)
    measured = real(reading.gripper)
    if not 0 <= measured <= 1:
        return state
    ends = min(measured, state.gripper), max(measured, state.gripper)
    return state._replace(grippers=ends)
