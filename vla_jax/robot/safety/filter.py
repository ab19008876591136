"""The last thing between a policy and a robot: every action passes through here, one step at a
time. decision.py says what a step's action becomes; here are the latch, the log and the clock.

numpy and the standard library only.
"""

import dataclasses
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .decision import Causes, Decision, Reading, State, decide, halt, real, start, vector
from .limits import Limits

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
            now, period = self._now(), 1 / self.limits.control_rate
            last = max(len(self._plan) - 1, 0)
            if steps is None:
                passed = (now - self._planned_at) / period if self._plan else 0.0
                steps = min(max(round(passed), 0), last) if math.isfinite(passed) else 0
            if not 0 <= steps <= last:
                raise ValueError(
                    f"steps: expected 0 to {last}, the steps of the last plan, got {steps}"
                )
            if self._plan:
                # A caller who executed more steps than there was time for is early, not from the
                # future: its state's time may not be after now.
                before = self._plan[steps]
                self._state = before._replace(
                    time=min(before.time, now) if math.isfinite(now) else before.time
                )
            self._plan, self._planned_at, out = [self._state], now, []
            for i, action in enumerate(_steps(actions)):
                later = reading._replace(observed_at=real(reading.observed_at) + i * period)
                if i:  # the pose was measured before the first step
                    later = later._replace(pose=None)
                out.append(self._one(action, later, now + i * period))
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
        sent = tuple(decision.action.tolist())
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


def _steps(actions: Any) -> Sequence[Any]:
    """The steps of a chunk; a single None, which is no action, for what has none."""
    try:
        return list(actions) or [None]
    except Exception:  # whatever the object does: its answer is a stop, as of `vector`
        return [None]
