"""The last thing between a policy and a robot: every action passes through here, one step at a
time. decision.py says what a step's action becomes; here are the latch, the log and the clock.

numpy and the standard library only.
"""

import dataclasses
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from .decision import Causes, Decision, Reading, State, decide, real, rest, start, vector
from .limits import Limits

Rule = Callable[[Limits, State, Any, Any, float], Decision]

# With Reading, which every caller of a filter needs.
__all__ = ["Event", "Reading", "SafetyFilter"]


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


class SafetyFilter:
    """The state machine round `decide`: the latch, the log, the clock. Safe to call from several
    threads and handlers.

    It begins stopped, and so does a process that was restarted after an emergency stop: `reset` is
    a person's word. Then every executed step is `sent = safety.step(action, Reading(...))`.
    """

    # For client.py, which is copied without this package.
    new_reading = Reading

    def __init__(
        self,
        limits: Limits,
        gripper: float,
        clock: Callable[[], float] = time.monotonic,
        unseen: bool = False,
    ) -> None:
        """`gripper` is what it does now, 1 = open. `unseen`: not beside the motors but at a server,
        for the rules of unseen.py. Raises ValueError for a gripper outside of [0, 1].
        """
        self.limits, self._clock = limits, clock
        # Reentrant: a signal handler may press the button in the middle of a step.
        self._lock = threading.RLock()
        self._state = start(limits, _checked_gripper(gripper), None, -math.inf)._replace(
            unseen=unseen
        )
        self._events: deque[Event] = deque(maxlen=limits.events)
        self._counts: Counter[str] = Counter()
        self._step, self._logged = 0, 0
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
        """The action to send now, float64 [7]. Every action that reaches the motors comes out of
        here, once per control step, and is sent at once.

        Whatever `action` and the fields of `reading` are, it answers and does not raise.
        """
        return self.apply(decide, action, reading)

    def rest(self) -> np.ndarray:
        """The action to send now, float64 [7], where there is none to ask for: a stop for this
        step.
        """
        return self.apply(rest, None, None)

    def apply(self, rule: Rule, action: Any, reading: Any) -> np.ndarray:
        """What `rule` makes of an action: `decide`, or one of unseen.py. A server takes the same
        ones always.
        """
        with self._lock:
            self._step += 1
            now = self._now()
            if self._latched is None:
                decision = rule(self.limits, self._state, action, reading, now)
                if decision.causes:
                    self._log(now, decision, vector(action, 7))
                if decision.latch is not None and self._latched is None:
                    patience = self.limits.patience[decision.latch]
                    self._latch(decision.latch, f"stop {patience} of its cause", now)
                # The button may have been pressed by a handler since the top; it wins.
                if self._latched is None or decision.stopped:
                    self._state = decision.state
                    return decision.action
            self._counts["latched"] += 1
            decision = rest(self.limits, self._state, None, None, now)
            self._state = decision.state
            return decision.action

    def emergency_stop(self, why: str) -> None:
        """The button: the next step is a stop, and so is every one until `reset`. Pressed again, it
        is logged again.
        """
        with self._lock:
            self._latch("emergency", why, self._now())

    def reset(self, by: str, gripper: float | None = None, pose: np.ndarray | None = None) -> None:
        """Clears the latch; the next step commands rest, and motion begins after it. `by` says who
        took the decision; it is logged.

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
            at = self._state.gripper if gripper is None else _checked_gripper(gripper)
            now = self._now()
            # Without a clock, the first time that there is one.
            begun = now if math.isfinite(now) else math.inf
            unseen = self._state.unseen
            self._state = start(self.limits, at, place, begun)._replace(unseen=unseen)
            self._latched = None
            self._add(Event(self._step, now, {"reset": ()}, True, note=str(by)[:200]))

    def _now(self) -> float:
        try:
            return real(self._clock())
        except Exception:  # a broken clock stops the robot, but the stop button must still work
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
        sent = tuple(np.atleast_2d(decision.action)[0].tolist())
        self._add(Event(self._step, now, decision.causes, decision.stopped, requested, sent))

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._logged += 1


def _checked_gripper(gripper: float) -> float:
    value = real(gripper)
    if not 0 <= value <= 1:
        raise ValueError(
            f"gripper: expected 0 (closed) to 1 (open), got {gripper!r}; say where it is now"
        )
    return value
