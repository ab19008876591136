"""One robot's connection: messages in, answers out, an episode and a safety filter of its own.

Two kinds of messages, both maps (client.py says how they are bytes):

Our own have a "type"; FIELDS lists what they hold.
    reset         begins an episode -> {"type": "ready"}
    act           a new frame -> {"type": "actions", "id", "observed_at", "actions": float32 [k d],
                  "arm", "gripper", "confidence", "timing": ms, "safety": {"latched": cause or None,
                  "causes": {cause: steps}} or None}
    stop, safety_reset  of the safety filter, see server.py -> {"type": "safety", "session",
                        "latched"}
    anything wrong -> {"type": "error", "id", "code": see Refusal, "message": one line}
`observed_at` is on the client's clock: it is echoed, and must not go backwards. The watchdog of the
safety filter counts from the arrival of the message, on the clock of this machine; how old a frame
was then, only the client knows.

Those of openpi's client (openpi_client.websocket_client_policy 0.1) have none:
{"observation/image": uint8 [h w 3] or [3 h w], "observation/wrist_image", "observation/state": [p],
"prompt": text}, names by `Settings.keys` -> {"actions": float32 [k d], "server_timing":
{"infer_ms"}, "policy_timing"}; an error is a text frame. The first prompt, and one that differs
from the last, begins an episode; its client has no other word for that, so connect anew for each
episode.
"""

import asyncio
import dataclasses
import logging
import math
import time
from collections import Counter
from typing import Any

import numpy as np

from vla_jax.robot.client import pack
from vla_jax.robot.safety.filter import Reading, SafetyFilter
from vla_jax.robot.safety.limits import Limits
from vla_jax.robot.serving.inference import BadInput, Inference, Model
from vla_jax.robot.serving.metrics import Metrics

log = logging.getLogger("vla_jax.serve")

STATE, PROMPT = "observation/state", "prompt"
CAMERA_KEYS = {"primary": "observation/image", "wrist": "observation/wrist_image"}
# Of an instruction, before the tokenizer sees it; the policy has its own limit in tokens.
MAX_CHARACTERS = 4096
TRACEBACKS = 20  # of internal errors, in the log of a process; more are counted

_NONE = type(None)
_NUMBER = (float, int)
# What each request may hold; a field that may be None may be left out.
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "reset": {"instruction": (str,), "dataset": (str, _NONE), "seed": (int, _NONE)},
    "act": {
        "id": (int,), "observed_at": _NUMBER, "images": (dict,), "proprio": (np.ndarray, _NONE),
        "executed": (np.ndarray, _NONE), "steps": (int, _NONE), "pose": (np.ndarray, _NONE),
        "distance": (*_NUMBER, _NONE),
    },
    "stop": {"why": (str,), "session": (str, _NONE), "operator_token": (str, _NONE)},
    "safety_reset": {
        "by": (str,), "gripper": _NUMBER, "pose": (np.ndarray, _NONE), "session": (str, _NONE),
        "operator_token": (str,),
    },
}  # fmt: skip


class Refusal(Exception):
    """A request that is not done: a line that says why, and a code: bad_request, bad_image,
    not_ready, unauthorised, too_large, busy or internal.
    """

    def __init__(self, code: str, message: object) -> None:
        super().__init__(" ".join(str(message).split())[:500])
        self.code = code


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the person who starts a server decides.

    Attributes:
        host, port: where it listens; port 0 takes a free one. tls: an ssl.SSLContext.
        token: that every connection must carry; None: not asked for.
        operator_token: that lets a robot move again after a stop; None: nobody can.
        limits: of the safety filter that every session then has; no client can switch it off.
        keys: camera -> its key in openpi's messages, where CAMERA_KEYS has another or none.
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
    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    dataset: str | None = None
    sessions: int = 8
    idle: float = 600.0


class Session:
    """An episode on the model, from connection to disconnection. Used from the event loop alone."""

    def __init__(
        self, name: str, model: Model, inference: Inference, settings: Settings, metrics: Metrics
    ) -> None:
        self.name, self.model, self.settings = name, model, settings
        self.errors: Counter[str] = Counter()
        self.answered = 0
        self.openpi = False  # whose messages they are, as far as they could be read
        self.task: asyncio.Task[None] | None = None  # the request in flight
        self._inference, self._metrics = inference, metrics
        self._policy = model.policy.new_session()
        self._instruction: str | None = None  # of the episode; None: there is none
        self._observed_at = -math.inf
        self._sent: np.ndarray | None = None  # the last actions
        # Made by the first safety_reset, which says where the gripper is: before it no stop could
        # hold the gripper there.
        self._filter: SafetyFilter | None = None
        # Whether a chunk was sent since that reset; the filter knows nothing of earlier chunks.
        self._planned = False

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
        return {"type": "ready"}

    async def _begin(self, instruction: str, dataset: str | None, seed: int) -> None:
        # If the new episode cannot begin, the last one must not go on.
        self._instruction = self._sent = None
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
        except ValueError as error:
            raise Refusal("bad_request", error) from None
        self._instruction = instruction

    async def _act(self, fields: dict[str, Any], arrived: float) -> dict[str, Any]:
        observed_at, steps = fields["observed_at"], fields["steps"]
        chunk = self.model.about["chunk"]
        if not self._observed_at <= observed_at < math.inf:  # NaN fails too
            raise Refusal(
                "bad_request",
                f"observed_at: expected at least the last one, {self._observed_at}, got"
                f" {observed_at}; send a clock that never goes backwards (time.monotonic)",
            )
        if steps is not None and not 0 <= steps <= chunk:
            raise Refusal("bad_request", f"steps: expected 0 to {chunk}, got {steps}")
        if fields["pose"] is not None and fields["pose"].shape != (6,):
            raise Refusal(
                "bad_request",
                f"pose: expected [6] (x y z roll pitch yaw), got {fields['pose'].shape}",
            )
        if self._instruction is None:
            raise Refusal("not_ready", "act: expected a reset with the instruction first")
        self._observed_at = observed_at
        distance = fields["distance"]
        reading = Reading(arrived, fields["pose"], None if distance is None else float(distance))
        out, safety = await self._chunk(
            fields["images"], fields["proprio"], fields["executed"], reading, steps
        )
        return {
            "type": "actions",
            "id": fields["id"],
            "observed_at": observed_at,
            **out,
            "safety": safety,
        }

    async def _observation(self, message: dict[Any, Any], arrived: float) -> dict[str, Any]:
        images = {}
        for camera in self.model.about["cameras"]:
            key = self.settings.keys.get(camera) or CAMERA_KEYS.get(camera)
            if key is None or key not in message:
                at = f"under {key!r}" if key else "under a key: start the server with --camera"
                present = ", ".join(str(name)[:40] for name in message)
                raise Refusal(
                    "bad_image", f"images: expected camera {camera} {at}, got the keys {present}"
                )
            images[camera] = _rows_first(message[key], self.model.about["image"]["size"])
        prompt, state = message.get(PROMPT), message.get(STATE)
        if type(prompt) is not str or type(state) not in FIELDS["act"]["proprio"]:
            raise Refusal(
                "bad_request",
                f"observation: expected text in {PROMPT!r} and an array or nothing in {STATE!r},"
                f" got {type(prompt).__name__}, {type(state).__name__}",
            )
        if prompt != self._instruction:
            await self._begin(prompt, None, 0)
        out, _ = await self._chunk(images, state, None, Reading(arrived), None)
        timing = out["timing"]
        return {
            "actions": out["actions"],
            "server_timing": {"infer_ms": timing["total"]},
            "policy_timing": timing,
        }

    async def _chunk(
        self, images: Any, proprio: Any, executed: Any, reading: Reading, steps: int | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The policy's answer, through the filter where there is one, and what the filter did."""
        if self.settings.limits is not None and self._filter is None:
            raise Refusal(
                "not_ready",
                "the robot stands still until an operator sends safety_reset with its gripper",
            )
        if executed is None and self._sent is not None:
            # What was sent, not what the policy asked for.
            executed = self._sent[max(steps or 1, 1) - 1]
        arrived = reading.observed_at
        out = await self._inference.act(self._policy, images, proprio, executed, arrived)
        safety = None
        if self._filter is not None:
            begun, before, held = time.monotonic(), Counter(self._filter.counts), self.latched
            # In the event loop, not on the inference thread: a stop that was answered before this
            # line is in the plan.
            actions = self._filter.plan(
                out["actions"], reading, steps if self._planned else None
            ).astype(np.float32)
            self._planned = True
            spec = self._policy.action_spec
            out |= {
                "actions": actions,
                "arm": actions[:, spec.arm],
                "gripper": actions[:, spec.binary],
            }
            causes = Counter(self._filter.counts) - before
            for cause, count in causes.items():
                self._metrics.count("safety_steps_total", cause, count)
            safety = {"latched": self.latched, "causes": dict(causes)}
            if self.latched != held:
                log.warning("session %s: stopped by its filter: %s", self.name, self.latched)
            out["timing"]["safety"] = 1e3 * (time.monotonic() - begun)
        self._sent = out["actions"]
        out["timing"]["total"] = 1e3 * (time.monotonic() - arrived)
        self._metrics.timing(out["timing"])
        return out, safety

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
        log.warning("session %s: stopped: %s", self.name, " ".join(why.split())[:200])

    def safety_reset(self, by: str, gripper: float, pose: np.ndarray | None) -> None:
        """Lets the robot move again, from where it stands. Raises Refusal without limits, for a
        robot that moves, and for a gripper or pose that is not finite.
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
            fresh = self._filter or SafetyFilter(self.settings.limits, gripper)
            fresh.reset(by, gripper, pose)
        except ValueError as error:
            raise Refusal("bad_request", error) from None
        self._filter, self._planned = fresh, False
        log.warning("session %s: may move again, by %s", self.name, " ".join(by.split())[:200])

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


def checked(message: dict[Any, Any]) -> dict[str, Any]:
    """The fields of one of our requests; those left out are None. Raises Refusal for unknown,
    missing and mistyped ones.
    """
    kind = message.get("type")
    fields = FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise Refusal(
            "bad_request", f"type: expected one of {', '.join(FIELDS)}, got {str(kind)[:40]!r}"
        )
    unknown = [str(name)[:40] for name in message if name not in fields and name != "type"]
    if unknown:
        raise Refusal(
            "bad_request", f"{kind}: expected {', '.join(fields)}, got {', '.join(unknown)} too"
        )
    values = {name: message.get(name) for name in fields}
    for name, types in fields.items():
        if type(values[name]) not in types:
            expected = " or ".join(each.__name__ for each in types)
            raise Refusal(
                "bad_request",
                f"{kind}.{name}: expected {expected}, got {type(values[name]).__name__}",
            )
    return values


def _rows_first(image: Any, size: int) -> Any:
    """An image of openpi's client, whose cameras may come channels first."""
    if isinstance(image, np.ndarray) and image.shape == (3, size, size):
        return np.ascontiguousarray(image.transpose(1, 2, 0))
    return image
