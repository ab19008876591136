"""The last thing between a policy and a robot: every action passes through here, one step at a
time.

numpy and the standard library only. Limits hold for commanded deltas: velocity is delta *
control_rate, acceleration and jerk are its differences from step to step. They are kept together
(braking.py), not by one clip after another that could undo the one before. A motion that does not
pass becomes, axis by axis, the nearest one (to 1/256) that does on the way to braking.

A stop is another thing: zero motion in this very step, the gripper as `gripper_at_stop` says. It
overrides acceleration and jerk, and nothing else: velocity, box and gripper rate hold in it. Motion
starts again from rest.
"""

import dataclasses
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
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


@dataclasses.dataclass(frozen=True)
class Event:
    """One intervention, or a run of equal ones in steps that follow each other.

    Attributes:
        step: number of the first of `steps` steps since the filter was made. time: its clock then.
        causes: cause -> names of the dims it concerns (none where it concerns all).
        stopped: zero motion was sent. requested, sent: actions of the first step; None where there
            was none.
        note: who reset, or why someone pressed the button.
    """

    step: int
    time: float
    causes: Causes
    stopped: bool
    requested: tuple[float, ...] | None = None
    sent: tuple[float, ...] | None = None
    note: str = ""
    steps: int = 1


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
    seen = _real(reading.observed_at)
    # Written so that a NaN is a cause.
    if not (now >= state.time and math.isfinite(now) and math.isfinite(seen) and seen <= now):
        causes["clock"] = ()
    else:
        if not now - seen <= limits.max_age:
            causes["stale"] = ()
        if now < state.due - limits.jitter / limits.control_rate:
            causes["early"] = ()
    if limits.stop_distance is not None and not _real(reading.distance) >= limits.stop_distance:
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
    except (
        Exception
    ):  # whatever a stranger's object does, the answer is a stop, not a crash of the control loop
        return None
    if array.shape != (size,) or array.dtype.kind not in "fiu":
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float64)


def _rows(actions: Any) -> Sequence[Any]:
    """The steps of a chunk; a single None, which is no action, for what has none."""
    try:
        return list(actions) or [None]
    except Exception:  # as above
        return [None]


def _real(value: Any) -> float:
    try:
        return float(value)
    except Exception:  # as above
        return math.nan


def _names(where: np.ndarray) -> tuple[str, ...]:
    names = NAMES if len(where) == 7 else AXES
    return tuple(names[i] for i in np.flatnonzero(where))


class SafetyFilter:
    """The state machine round `decide`: the latch, the log, the clock. Safe to call from several
    threads and handlers.

    It begins stopped, and so does a process that was restarted after an emergency stop: `reset` is
    a person's word. Then every executed step is `sent = safety.step(action, Reading(...))`.
    """

    def __init__(
        self, limits: Limits, gripper: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`gripper` is what it does now, 1 = open. Raises ValueError outside of [0, 1]."""
        self.limits, self._clock = limits, clock
        # Reentrant: a signal handler may press the button in the middle of a step.
        self._lock = threading.RLock()
        self._state = start(limits, _checked_gripper(gripper))
        self._events: deque[Event] = deque(maxlen=limits.events)
        self._counts: Counter[str] = Counter()
        self._step, self._logged = 0, 0
        self._plan: list[State] = []  # before each step of the last plan, and after it
        self._planned_at = math.nan
        self._latched: Event | None = None
        self._latch("start", "no motion before the first reset", self._now())

    @property
    def latched(self) -> Event | None:
        """What latched the stop that only `reset` clears; None while motion is allowed."""
        return self._latched

    @property
    def events(self) -> tuple[Event, ...]:
        """The newest interventions, oldest first; `dropped` older ones are gone."""
        with self._lock:
            return tuple(self._events)

    @property
    def dropped(self) -> int:
        """How many events the bounded log has let go."""
        with self._lock:
            return self._logged - len(self._events)

    @property
    def counts(self) -> dict[str, int]:
        """Steps per cause since the filter was made, "latched" among them."""
        with self._lock:
            return dict(self._counts)

    def step(self, action: Any, reading: Reading) -> np.ndarray:
        """The action to send, float64 [7], for one control step.

        Whatever `action` and the fields of `reading` are, it answers and does not raise.
        """
        with self._lock:
            self._plan = []
            return self._one(action, reading, self._now())

    def plan(self, actions: Any, reading: Reading, steps: int | None = None) -> np.ndarray:
        """The actions to send in the next k control steps, float64 [k 7], one per period, the first
        one now.

        For a caller that gets chunks and executes as much of one as it likes before it asks again.
        A stop pressed after this call comes with the next one: who must stop within one step runs
        `step` beside the robot as well.

        Args:
            actions: [k 7]. What is not k > 0 rows is answered by one stop.
            reading: as the first of them is sent; later ones count on the commands.
            steps: of the last plan were executed. None: one per period since then.

        Raises ValueError, and moves nothing, when the last plan has no so many steps.
        """
        with self._lock:
            now, period, last = (
                self._now(),
                1 / self.limits.control_rate,
                max(len(self._plan) - 1, 0),
            )
            if steps is None:
                passed = (now - self._planned_at) / period if self._plan else 0.0
                steps = min(max(round(passed), 0), last) if math.isfinite(passed) else 0
            if not 0 <= steps <= last:
                raise ValueError(
                    f"steps: expected 0 to {last}, the steps of the last plan, got {steps}"
                )
            if (
                self._plan
            ):  # a caller who says more steps than time allows is early, and its clock is right
                before = self._plan[steps]
                self._state = before._replace(
                    time=min(before.time, now) if math.isfinite(now) else before.time
                )
            self._plan, self._planned_at, out = [self._state], now, []
            for i, row in enumerate(_rows(actions)):
                later = reading._replace(observed_at=_real(reading.observed_at) + i * period)
                out.append(
                    self._one(row, later._replace(pose=None) if i else later, now + i * period)
                )
                self._plan.append(self._state)
            return np.stack(out)

    def _one(self, action: Any, reading: Reading, now: float) -> np.ndarray:
        self._step += 1
        if self._latched is None:
            decision = decide(self.limits, self._state, action, reading, now)
            if decision.causes:
                self._log(now, decision, vector(action, 7))
            if decision.latch is not None and self._latched is None:
                self._latch(
                    decision.latch,
                    f"stop {self.limits.latch_after[decision.latch]} of its cause",
                    now,
                )
            # The button may have been pressed by a handler since the top; it wins.
            if self._latched is None or decision.stopped:
                self._state = decision.state
                return decision.action
        self._counts["latched"] += 1
        action, self._state = halt(self.limits, self._state)
        return action

    def emergency_stop(self, why: str) -> None:
        """The button: the next step is a stop, and so is every one until `reset`. Pressed again, it
        is logged again.
        """
        with self._lock:
            self._latch("emergency", why, self._now())

    def reset(self, by: str, gripper: float | None = None, pose: np.ndarray | None = None) -> None:
        """Clears the latch and begins at rest. `by` says who took the decision; it is logged.

        `gripper` and `pose` ([6], m and rad) tell where the robot is now; by default the gripper is
        where it was, and the pose comes with the next reading. Raises ValueError, and stays
        stopped, if they are not finite.
        """
        with self._lock:
            place = None if pose is None else vector(pose, 6)
            if pose is not None and (place is None or not np.isfinite(place).all()):
                raise ValueError(
                    f"reset: expected a pose of 6 finite numbers (m, rad), got {pose!r}; measure it"
                    " again"
                )
            now, self._plan = self._now(), []
            self._state = start(
                self.limits, self._state.gripper if gripper is None else _checked_gripper(gripper),
                place,
                now if math.isfinite(now) else -math.inf,
            )  # fmt: skip
            self._latched = None
            self._add(Event(self._step, now, {"reset": ()}, True, note=str(by)[:200]))

    def _now(self) -> float:
        try:
            return _real(self._clock())
        except (
            Exception
        ):  # a broken clock stops the robot, and does not keep the button from doing so
            return math.nan

    def _latch(self, cause: str, note: str, now: float) -> None:
        event = Event(self._step, now, {"latch": (), cause: ()}, True, note=str(note)[:200])
        self._latched = self._latched or event
        self._add(event)

    def _log(self, now: float, decision: Decision, request: np.ndarray | None) -> None:
        self._counts.update(decision.causes.keys())
        last = self._events[-1] if self._events else None
        if last and (last.causes, last.stopped, last.step + last.steps) == (
            decision.causes,
            decision.stopped,
            self._step,
        ):
            self._events[-1] = dataclasses.replace(last, steps=last.steps + 1)
            return
        requested = None if request is None else tuple(request.tolist())
        sent = tuple(decision.action.tolist())
        self._add(Event(self._step, now, decision.causes, decision.stopped, requested, sent))

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._logged += 1


def _checked_gripper(gripper: float) -> float:
    value = _real(gripper)
    if not 0 <= value <= 1:
        raise ValueError(
            f"gripper: expected 0 (closed) to 1 (open), got {gripper!r}; say where it is now"
        )
    return value
