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

from .bounds import Limits
from .cameras import Causes
from .commands import openings, real, vector
from .decision import Decision, decide, rest
from .state import Reading, State, placed, start

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
        gripper: Any = None,
        clock: Callable[[], float] = time.monotonic,
        unseen: bool = False,
        pose: np.ndarray | None = None,
    ) -> None:
        """`gripper` is what it does now, 1 = open; of several a mapping by name. `pose` is where
        the axes are ([n], m and rad), needed where positions are commanded: what is sent before the
        first reset holds it. `unseen`: not beside the motors but at a server, for the rules of
        unseen.py. Raises ValueError for a gripper outside of [0, 1], and for a pose that is not
        finite.
        """
        self.limits, self._clock = limits, clock
        # Reentrant: a signal handler may press the button in the middle of a step.
        self._lock = threading.RLock()
        if pose is None and limits.by["position"].any():
            raise ValueError(
                f"SafetyFilter: expected a pose, of {', '.join(limits.axes)}, since positions are"
                " commanded, got None; say where they are now"
            )
        hold = np.zeros(len(limits.dims))
        hold[limits.at_grippers] = openings(limits, gripper)
        state = start(limits, hold, self._checked_pose(pose), -math.inf)
        self._state = state._replace(unseen=unseen)
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
        """The action to send now, float64 [d]. Every action that reaches the motors comes out of
        here, once per control step, and is sent at once.

        Whatever `action` and the fields of `reading` are, it answers and does not raise.
        """
        return self.apply(decide, action, reading)

    def rest(self) -> np.ndarray:
        """The action to send now, float64 [d], where there is none to ask for: a stop for this
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
                    self._log(now, decision, vector(action, len(self.limits.dims)))
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

    def reset(self, by: str, gripper: Any = None, pose: np.ndarray | None = None) -> None:
        """Clears the latch; the next step commands rest, and motion begins after it. `by` says who
        took the decision; it is logged.

        `gripper` (a number, of several a mapping by name) and `pose` ([n], m and rad) tell where
        the robot is now; by default grippers are where they were, positions as commanded last, and
        the rest of the pose comes with the next reading. A position that is told is commanded next.
        Raises ValueError, and stays stopped, if they are not finite.
        """
        with self._lock:
            place, hold = self._checked_pose(pose), self._state.hold.copy()
            if gripper is not None:
                hold[self.limits.at_grippers] = openings(self.limits, gripper)
            now = self._now()
            # Without a clock, the first time that there is one.
            begun = now if math.isfinite(now) else math.inf
            unseen = self._state.unseen
            self._state = start(self.limits, hold, place, begun)._replace(unseen=unseen)
            self._latched = None
            self._add(Event(self._step, now, {"reset": ()}, True, note=str(by)[:200]))

    def _checked_pose(self, pose: Any) -> np.ndarray | None:
        axes = self.limits.axes
        place = None if pose is None else vector(pose, len(axes))
        if pose is not None and (place is None or not placed(self.limits, place)):
            raise ValueError(
                f"reset: expected a pose of {len(axes)} finite numbers (m, rad:"
                f" {', '.join(axes)}), got {pose!r}; measure it again"
            )
        return place

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
