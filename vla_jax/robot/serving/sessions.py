"""One robot's connection: messages in (messages.py), answers out, an episode and a safety filter of
its own.
"""

import asyncio
import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np

from vla_jax.robot.client import pack
from vla_jax.robot.realtime import Underway
from vla_jax.robot.safety import cameras, unseen
from vla_jax.robot.safety.bounds import STOP_CAUSES, Limits
from vla_jax.robot.safety.filter import Reading, SafetyFilter
from vla_jax.robot.serving.inference import BadInput, Given, Inference, Model
from vla_jax.robot.serving.messages import (
    CLOCK,
    FIELDS,
    SAFETY,
    Names,
    Refusal,
    check_types,
    checked,
    observed,
    printable,
    reading_of,
)
from vla_jax.robot.serving.metrics import Metrics

log = logging.getLogger("vla_jax.serve")

# Of an instruction, before the tokenizer sees it; the policy has its own limit in tokens.
MAX_CHARACTERS = 4096
TRACEBACKS = 20  # of internal errors, in the log of a process; more are counted
AHEAD = 60.0  # s that a client's clock may go on more than ours between two frames
KEPT = 8  # chunks sent of which a client may still say what was carried out


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the person who starts a server decides.

    Attributes:
        host, port: where it listens; port 0 takes a free one. tls: an ssl.SSLContext.
        token: that every connection must carry; None: not asked for.
        operator_token: that lets a robot move again after a stop; None: nobody can.
        limits: of the safety filter that every session then has; no client can switch it off.
        names: where openpi's messages have what the policy sees.
        dataset: of sessions that name none.
        sessions: how many at once.
        idle: s without a message until a session ends.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tls: Any = None
    token: bytes | None = None
    operator_token: bytes | None = None
    limits: Limits | None = None
    names: Names = dataclasses.field(default_factory=Names)
    dataset: str | None = None
    sessions: int = 8
    idle: float = 600.0


class Times(NamedTuple):
    """Where a session's time comes from, s; the clock never goes back."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


TIMES = Times()


class Session:
    """An episode on the model, from connection to disconnection. Used from the event loop alone."""

    def __init__(
        self,
        name: str,
        model: Model,
        inference: Inference,
        settings: Settings,
        metrics: Metrics,
        times: Times = TIMES,
    ) -> None:
        self.name, self.model, self.settings = name, model, settings
        self.errors: Counter[str] = Counter()
        self.answered = 0
        self.openpi = False  # whose messages they are, as far as they could be read
        self.task: asyncio.Task[None] | None = None  # the request in flight
        self._inference, self._metrics = inference, metrics
        self._policy = model.policy.new_session()
        self._instruction: str | None = None  # of the episode; None: there is none
        self._times = times
        self._observed_at, self._heard_at = -math.inf, -math.inf  # the last frame's, its arrival
        self._chunks = 0
        self._sent: dict[int, np.ndarray] = {}  # the last chunks of this episode, by number
        # Made by the first safety_reset, which says where the gripper is: before it no stop could
        # hold the gripper there.
        self._filter: SafetyFilter | None = None
        # Whether the robot has a filter of its own; None: no frame has said since the reset.
        self._seen: bool | None = None
        limits = settings.limits
        self._watch = cameras.CameraWatch(
            cameras.FROZEN_AFTER if limits is None else limits.frozen_after
        )
        self._failed_cameras: cameras.Causes = {}

    def error(
        self, code: str, message: object, request: dict[Any, Any] | None = None
    ) -> bytes | str:
        """An error in the protocol of whoever sent the request, counted. None: a request that could
        not be read.
        """
        refusal = Refusal(code, message)
        self.errors[code] += 1
        self._metrics.count("errors_total", code)
        if self.openpi if request is None else "type" not in request:
            return f"{code}: {refusal}"
        number = None if request is None else request.get("id")
        number = number if type(number) is int else None
        return pack({"type": "error", "id": number, "code": code, "message": str(refusal)})

    async def answer(self, message: dict[Any, Any], arrived: float) -> bytes | str:
        """The answer to a reset, an act or openpi's observation. Never raises; a bad request leaves
        the episode as it was.
        """
        try:
            if "type" not in message:
                reply = await self._observation(message, arrived)
            else:
                fields = checked(message)
                reply = await (
                    self._act(fields, arrived) if message["type"] == "act" else self._reset(fields)
                )
            self.answered += 1
            self._metrics.count("requests_total", "ok")
            return pack(reply)
        except Refusal as error:
            refused = self.error(error.code, error, message)
        except BadInput as error:  # whose message begins with the argument that is wrong
            refused = self.error(
                "bad_image" if str(error).startswith("images") else "bad_request", error, message
            )
        except Exception:
            self._instruction = None  # how far the episode got is unknown
            self.failed()
            refused = self.error(
                "internal", "the server failed; its log says why. Begin the episode again", message
            )
        self._metrics.count("requests_total", "error")
        return refused

    def failed(self) -> None:
        """Logs the exception that is being handled."""
        if self._metrics.count("failures_total") <= TRACEBACKS:
            log.exception("session %s: internal error", self.name)

    async def _reset(self, fields: dict[str, Any]) -> dict[str, Any]:
        await self._begin(fields["instruction"], fields["dataset"], fields["seed"] or 0)
        return {"type": "ready", "id": fields["id"]}

    async def _begin(self, instruction: str, dataset: str | None, seed: int) -> None:
        # If the new episode cannot begin, the last one must not go on.
        self._instruction, self._observed_at = None, -math.inf
        self._sent.clear()
        if len(instruction) > MAX_CHARACTERS:
            raise Refusal(
                "bad_request",
                f"instruction: expected at most {MAX_CHARACTERS} characters, got"
                f" {len(instruction)}",
            )
        try:
            await self._inference.call(
                self._policy.reset, instruction, dataset or self.settings.dataset, seed
            )
            if self.settings.limits is not None:
                self.settings.limits.check_policy(self._policy, "limits")
        except ValueError as error:
            raise Refusal("bad_request", error) from None
        self._instruction = instruction

    async def _act(self, fields: dict[str, Any], arrived: float) -> dict[str, Any]:
        observed_at = fields["observed_at"]
        latest = CLOCK
        if math.isfinite(self._observed_at):
            latest = min(CLOCK, self._observed_at + arrived - self._heard_at + AHEAD)
        if not max(self._observed_at, -CLOCK) <= observed_at <= latest:  # NaN fails too
            raise Refusal(
                "bad_request",
                f"observed_at: expected at least the last one, {self._observed_at}, and at most"
                f" {latest}, got {observed_at}; send a clock that never goes backwards"
                " (time.monotonic), or begin the episode again",
            )
        if self._instruction is None:
            raise Refusal("not_ready", "act: expected a reset with the instruction first")
        reading = reading_of(fields, arrived, self.settings.limits)
        executed = fields["executed"]
        if fields["chunk"] is not None and executed is None:
            executed = self._carried_out(fields["chunk"], fields["row"])
        self._check_seen(fields["limits"])
        self._observed_at, self._heard_at = observed_at, arrived
        plan, delay = fields["plan"], fields["delay"] or 0
        underway = None if plan is None else Underway(plan, delay)
        given = Given(fields["images"], fields["proprio"], executed, fields["sensors"], underway)
        out, safety = await self._chunk(given, reading, arrived)
        return {
            "type": "actions",
            "id": fields["id"],
            "observed_at": observed_at,
            "chunk": self._chunks,
            **out,
            "safety": safety,
        }

    def _carried_out(self, number: int, row: int | None) -> np.ndarray:
        """The action that a client says was the last."""
        sent = self._sent.get(number)
        if sent is None or row is None or not 0 <= row < len(sent):
            known = ", ".join(map(str, self._sent)) or "none"
            raise Refusal(
                "bad_request",
                f"chunk, row: expected one of the chunks {known} of this episode and an action of"
                f" it, got {number}, {row}; leave both out where it is not known",
            )
        return sent[row]

    def _check_seen(self, digest: str | None) -> None:
        """Whether the robot has a filter beside its motors is said once, by the first frame."""
        limits, seen = self.settings.limits, digest is not None
        if limits is None:
            return
        if digest is not None and digest != limits.digest:
            raise Refusal(
                "bad_request",
                f"limits: expected the digest {limits.digest}, got {digest[:80]}; the robot's"
                " filter and the server need the same file of limits",
            )
        if self._seen not in (None, seen):
            raise Refusal(
                "bad_request",
                "limits: expected what the first frame said of a filter beside the motors; connect"
                " anew",
            )
        self._seen = seen

    async def _observation(self, message: dict[Any, Any], arrived: float) -> dict[str, Any]:
        images, state, prompt = observed(message, self.settings.names, self.model.about["cameras"])
        fields = {name: message.get(f"safety/{name}") for name in SAFETY}
        check_types("safety", fields, FIELDS["act"])
        reading = reading_of(fields, arrived, self.settings.limits)
        self._check_seen(fields["limits"])
        if prompt != self._instruction:
            await self._begin(prompt, None, 0)
        out, _ = await self._chunk(Given(images, state, None), reading, arrived)
        timing = out["timing"]
        return {
            "actions": out["actions"],
            "server_timing": {"infer_ms": timing["total"]},
            "policy_timing": timing,
        }

    async def _chunk(
        self, given: Given, reading: Reading, arrived: float
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The policy's answer, through the filter where there is one, and what the filter did."""
        if self.settings.limits is not None and self._filter is None:
            raise Refusal(
                "not_ready",
                "the robot stands still until an operator sends safety_reset with its gripper",
            )
        if given.executed is None and self._sent:
            # What was sent, not what the policy asked for.
            given = given._replace(executed=next(reversed(self._sent.values()))[0])
        out = await self._inference.act(self._policy, given, arrived)
        reading = reading._replace(cameras=self._look(given.images))
        safety = None
        if self._filter is not None:
            before, held = Counter(self._filter.counts), self.latched
            actions = await self._limited(self._filter, out["actions"], reading, arrived)
            spec = self._policy.action_spec
            out |= {
                "actions": actions,
                "arm": actions[:, spec.arm],
                "gripper": actions[:, spec.binary],
            }
            causes = Counter(self._filter.counts) - before
            for cause, count in causes.items():
                self._metrics.count("safety_steps_total", cause, count)
            stopped = bool(causes.keys() & {*STOP_CAUSES, *cameras.CAUSES, "latched", "resting"})
            safety = {"latched": self.latched, "causes": dict(causes), "stopped": stopped}
            if self.latched != held:
                log.warning("session %s: stopped by its filter: %s", self.name, self.latched)
        self._chunks += 1
        self._sent[self._chunks] = out["actions"]
        self._sent.pop(self._chunks - KEPT, None)
        out["timing"]["total"] = 1e3 * (self._times.now() - arrived)
        self._metrics.timing(out["timing"])
        return out, safety

    def _look(self, images: dict[str, np.ndarray]) -> cameras.Causes:
        """What CameraWatch says of frames that the policy took: counted, and logged when it
        changes.
        """
        found = self._watch.look(images, self._policy.camera_statistics)
        for cause in found:
            self._metrics.count("camera_frames_total", cause)
        if found != self._failed_cameras:
            told = "; ".join(f"{cause}: {', '.join(names)}" for cause, names in found.items())
            log.warning("session %s: cameras: %s", self.name, told or "good again")
        self._failed_cameras = found
        return found

    async def _limited(
        self, safety: SafetyFilter, actions: np.ndarray, reading: Reading, arrived: float
    ) -> np.ndarray:
        """What is sent in place of the policy's actions, float32 [k d]."""
        limits, shape = safety.limits, actions.shape
        if self._seen:
            sent = safety.apply(unseen.look, actions, reading)
            return np.broadcast_to(sent, shape).astype(np.float32)
        # An answer leaves a period after its request came, see unseen.py; a stop that is answered
        # meanwhile is in it.
        leaves = arrived + 1 / limits.control_rate
        while (wait := leaves - self._times.now()) > 0:
            await self._times.sleep(wait)
        sent = safety.apply(unseen.creep, actions[0], reading)
        chunk = np.broadcast_to(sent, shape).astype(np.float32)
        chunk[1:, limits.at_axes[~limits.by["position"]]] = 0
        return chunk

    @property
    def latched(self) -> str | None:
        """Why this robot stands still until a safety_reset; None while it may move."""
        if self._filter is None:
            return "start" if self.settings.limits is not None else None
        event = self._filter.latched
        return (
            next((cause for cause in event.causes if cause != "latch"), "latch") if event else None
        )

    def stop(self, why: str) -> None:
        """Latches the filter. Raises Refusal on a server without limits, which has none."""
        if self.settings.limits is None:
            raise Refusal(
                "bad_request", "stop: this server was started without --limits; stop at the robot"
            )
        if self._filter is not None:
            self._filter.emergency_stop(why)
        log.warning("session %s: stopped: %s", self.name, printable(why))

    def safety_reset(self, by: str, gripper: Any, pose: np.ndarray | None) -> None:
        """Lets the robot move again, from where it stands; what it says of grippers and pose is as
        of SafetyFilter.reset, but neither grippers nor positions have a default. Raises Refusal
        without limits, for a robot that moves, and for a gripper or pose that is missing or not
        finite.
        """
        if self.settings.limits is None:
            raise Refusal("bad_request", "safety_reset: this server was started without --limits")
        if self.latched is None:
            raise Refusal(
                "bad_request",
                "safety_reset: expected a robot that stands still, and this one moves; stop it"
                " first",
            )
        try:
            # Made anew, also where there is one: it checks that both are there.
            made = SafetyFilter(
                self.settings.limits, gripper, self._times.now, unseen=True, pose=pose
            )
            fresh = self._filter or made
            fresh.reset(by, gripper, pose)
        except ValueError as error:
            raise Refusal("bad_request", error) from None
        self._filter, self._seen = fresh, None
        log.warning("session %s: may move again, by %s", self.name, printable(by))

    def close(self) -> str:
        """After the connection. Returns what there was, for the log."""
        self._inference.forget(self._policy)
        safety = Counter() if self._filter is None else self._filter.counts
        parts = {"errors": self.errors, "safety": safety}
        told = (
            f"{name}: {', '.join(f'{key} {count}' for key, count in sorted(counts.items()))}"
            for name, counts in parts.items()
            if counts
        )
        return "; ".join((f"{self.answered} answered", *told))
