"""What a control loop calls once per step: a frame in, an action that is safe to send out.

    policy = policy_torch.load("artefact", device="cuda")
    safety = SafetyFilter(limits.load("limits.yaml"), gripper=1.0)
    robot = Runtime(policy, safety, Settings(horizon=1))
    robot.reset("put the red block on the plate")
    # A person's decision: until then the robot stands still.
    safety.reset("Ada", gripper=1.0, pose=pose)
    while True:
        command = robot.step({"primary": image}, Reading(observed_at, pose), proprio)
        send(command.action)  # and log `command`, which says why

The policy's numbers reach the caller through the safety filter alone. numpy and the standard
library only; in an artefact this file and those that it imports stand beside the policy's, in
policy_torch/.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from .events.trigger import Acting, EventPolicy, Settings, Trigger
from .safety.bounds import Limits
from .safety.cameras import CameraWatch
from .safety.commands import vector
from .safety.filter import Reading, SafetyFilter


class Named(Acting, Protocol):
    """The torch policy: after `reset`, `action_spec.names` says what its numbers are, and
    `camera_statistics` what its cameras showed in the training data, if that is known.
    """

    action_spec: Any
    camera_statistics: dict[str, Any] | None


class Command(NamedTuple):
    """One control step.

    Attributes:
        action: float64 [d], to send.
        wanted: what the policy asked for, [d]; None when it failed.
        reason: why the backbone ran; None: its chunk went on.
        causes: why `action` is not `wanted`, or why the robot stands still: causes of the filter.
        error: what went wrong in the policy; the emergency stop is latched then.
    """

    action: np.ndarray
    wanted: np.ndarray | None
    reason: str | None
    causes: tuple[str, ...]
    error: str | None


class Runtime:
    """A policy, a trigger that says when its backbone runs, and the filter before the motors.
    `safety` is the filter: its events and its reset are used directly.
    """

    def __init__(self, policy: Named, safety: SafetyFilter, settings: Settings) -> None:
        """`settings`: horizon 1 runs the backbone at every step; trigger.load reads fitted ones.
        Their `tracking` is of the pose, a number for each axis of the limits: where the robot is
        further than that from where the actions sent since the last pass should have led it, the
        backbone runs. Raises ValueError for tolerances of anything else: an axis that is commanded
        by velocity has none, as nobody here knows where it should be.
        """
        limits, tracking = safety.limits, settings.tracking
        if tracking is not None:
            fits = len(tracking) == len(limits.axes) and not any(
                most is not None and dim.command == "velocity"
                for most, dim in zip(tracking, limits.moving, strict=True)
            )
            if not fits:
                wanted = ", ".join(
                    f"null ({dim.name})" if dim.command == "velocity" else dim.name
                    for dim in limits.moving
                )
                raise ValueError(
                    f"trigger.tracking: expected {len(limits.axes)} tolerances, of {wanted}, got"
                    f" {tracking}"
                )
        self.safety, self.policy = safety, EventPolicy(policy, Trigger(settings))
        self._inner, self._watch = policy, CameraWatch(safety.limits.frozen_after)
        self._sent: np.ndarray | None = None
        self._expected: np.ndarray | None = None

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        """Begins an episode, and does not clear a stop. Arguments and errors as of the policy's
        reset; ValueError too for a policy whose actions are not the numbers that the limits are of,
        by name and in their order.
        """
        self.policy.reset(instruction, dataset, seed)
        self.safety.limits.check_policy(self._inner, "Runtime")
        self._sent = self._expected = None

    def step(
        self,
        images: dict[str, np.ndarray],
        reading: Reading,
        proprio: Any = None,
        sensors: Any = None,
    ) -> Command:
        """The action of this control step, whatever happens: where the policy raises, it is a stop
        that stays.

        Args:
            images, proprio, sensors: as of the policy's act. Frames that show that a camera failed
                are a stop, see `cameras` in the limits.
            reading: when the images were taken, by the filter's clock, and what sensors say; see
                decision.Reading.
        """
        wanted = reason = error = None
        limits = self.safety.limits
        before, pose = self.safety.counts, vector(reading.pose, len(limits.axes))
        try:
            seen = self._watch.look(images, self._inner.camera_statistics)
            reading = reading._replace(cameras=seen)
            wanted, reason = self.policy.act(
                images,
                proprio,
                self._sent,
                pose,
                _turned(limits, self._expected, pose),
                sensors,
            )
            if reason is not None:
                self._expected = pose
        except Exception as failure:  # a robot that moves needs an answer at every step
            error = f"{type(failure).__name__}: {failure}"
            self.safety.emergency_stop(f"policy: {error}")
        action = self.safety.step(wanted, reading)
        self._sent = action.astype(np.float32)
        if self._expected is not None:
            moved = action[limits.at_axes]
            self._expected = np.where(limits.by["delta"], self._expected + moved, moved)
        after = self.safety.counts
        causes = tuple(cause for cause, count in after.items() if count > before.get(cause, 0))
        return Command(action, wanted, reason, causes, error)


def _turned(
    limits: Limits, expected: np.ndarray | None, pose: np.ndarray | None
) -> np.ndarray | None:
    """The expected pose [n] with angles that wrap turned to within half a turn of the measured
    ones.
    """
    if expected is None or pose is None:
        return None
    wraps = np.array([dim.wraps for dim in limits.moving], bool)
    turns = np.round((expected - pose) / (2 * np.pi))
    return np.where(wraps, expected - 2 * np.pi * turns, expected)
