"""What a robot may say to a server, and what is said back.

Two kinds of messages, both maps (client.py says how they are bytes):

Our own have a "type"; FIELDS lists what they hold.
    reset         begins an episode -> {"type": "ready", "id"}
    act           a new frame -> {"type": "actions", "id", "observed_at", "chunk": its number in
                  this session, "actions": float32 [k d], "arm", "gripper", "confidence",
                  "timing": ms, "safety": {"latched": cause or None, "causes": {cause: steps},
                  "stopped": whether all of it is a stop} or None}
                  "sensors" has readings by name (handshake: "sensors"): arrays, of speech a list of
                  samples and how many a second; see sensing.py. "plan" and "delay" are what the
                  robot goes on with meanwhile, see realtime.py (handshake: "realtime")
    stop, safety_reset  of the safety filter, see server.py -> {"type": "safety", "id",
                        "session", "latched"}
    anything wrong -> {"type": "error", "id", "code": see Refusal, "message": one line}
`observed_at` is on the client's clock: it is echoed, and must not go backwards. The watchdog of the
safety filter counts from the arrival of the message, on the clock of this machine, less the `age`
that the client says the frame had when it was sent.

With limits, an act may say that the robot has a filter beside its motors: "limits" is the digest of
that filter's, which must be the server's (see the handshake). Such a robot gets whole chunks, its
filter keeps the limits, and the server refuses and latches. To any other a server's answer is one
small step, and stays here for a period (safety/unseen.py): all that can be promised where nobody
sees when an action is carried out. "chunk", "row" say which action was the last. "pose" is of the
limits' axes in their order; "gripper", here and in safety_reset, is a number where there is one, of
several a map by name.

Those of openpi's client (openpi_client.websocket_client_policy 0.1) have none:
{"observation/image": uint8 [h w 3] or [3 h w], "observation/wrist_image", "observation/state": [p],
"prompt": text}, keys by `Names`, and what an act may say of the robot as "safety/limits",
"safety/pose", "safety/gripper", "safety/distance", "safety/age" -> {"actions": float32 [k d],
"server_timing": {"infer_ms"}, "policy_timing"}; an error is a text frame. The first prompt, and one
that differs from the last, begins an episode; its client has no other word for that, so connect
anew for each episode.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vla_jax.robot.safety.bounds import Limits
from vla_jax.robot.safety.filter import Reading

CAMERA_KEYS = {"primary": "observation/image", "wrist": "observation/wrist_image"}
CLOCK = 1e10  # s: no clock says more

_NONE = type(None)
_NUMBER = (float, int)
# What each request may hold; a field that may be None may be left out.
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "reset": {
        "id": (int, _NONE), "instruction": (str,), "dataset": (str, _NONE), "seed": (int, _NONE),
    },
    "act": {
        "id": (int,), "observed_at": _NUMBER, "images": (dict,), "proprio": (np.ndarray, _NONE),
        "executed": (np.ndarray, _NONE), "chunk": (int, _NONE), "row": (int, _NONE),
        "limits": (str, _NONE), "pose": (np.ndarray, _NONE), "gripper": (*_NUMBER, dict, _NONE),
        "distance": (*_NUMBER, _NONE), "age": (*_NUMBER, _NONE), "sensors": (dict, _NONE),
        "plan": (np.ndarray, _NONE), "delay": (int, _NONE),
    },
    "stop": {
        "id": (int, _NONE), "why": (str,), "session": (str, _NONE), "operator_token": (str, _NONE),
    },
    "safety_reset": {
        "id": (int, _NONE), "by": (str,), "gripper": (*_NUMBER, dict, _NONE),
        "pose": (np.ndarray, _NONE),
        "session": (str, _NONE), "operator_token": (str,),
    },
}  # fmt: skip
SAFETY = ("limits", "pose", "gripper", "distance", "age")  # what any frame may say of its robot


class Refusal(Exception):
    """A request that is not done: a line that says why, and a code: bad_request, bad_image,
    not_ready, unauthorised, too_large, busy or internal.
    """

    def __init__(self, code: str, message: object) -> None:
        super().__init__(" ".join(str(message).split())[:500])
        self.code = code


def printable(text: str) -> str:
    """What a stranger wrote, for a log: one line, of 200 characters, without escapes to a
    terminal.
    """
    line = " ".join(text.split())[:200]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def checked(message: dict[Any, Any]) -> dict[str, Any]:
    """The fields of one of our requests; those left out are None. Raises Refusal for unknown,
    missing and mistyped ones.
    """
    kind = message.get("type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise Refusal(
            "bad_request", f"type: expected one of {', '.join(FIELDS)}, got {str(kind)[:40]!r}"
        )
    fields = FIELDS[kind]
    unknown = [str(name)[:40] for name in message if name not in fields and name != "type"]
    if unknown:
        raise Refusal(
            "bad_request", f"{kind}: expected {', '.join(fields)}, got {', '.join(unknown)} too"
        )
    values = {name: message.get(name) for name in fields}
    check_types(kind, values, fields)
    return values


def check_types(kind: str, values: dict[str, Any], fields: dict[str, tuple[type, ...]]) -> None:
    """Raises Refusal for the first value that is not of its field's types."""
    for name, value in values.items():
        if type(value) not in fields[name]:
            expected = " or ".join(each.__name__ for each in fields[name])
            raise Refusal(
                "bad_request", f"{kind}.{name}: expected {expected}, got {type(value).__name__}"
            )


def reading_of(fields: dict[str, Any], arrived: float, limits: Limits | None) -> Reading:
    """What a frame says of its robot. Raises Refusal for a pose or grippers that are not those of
    the limits, and for an age that is none.
    """
    age, pose, gripper = fields["age"] or 0.0, fields["pose"], fields["gripper"]
    if limits is not None and pose is not None and pose.shape != (len(limits.axes),):
        names = " ".join(limits.axes)
        raise Refusal(
            "bad_request", f"pose: expected [{len(limits.axes)}] ({names}), got {pose.shape}"
        )
    several = isinstance(gripper, dict)
    if (
        limits is not None
        and gripper is not None
        and (set(gripper) - set(limits.grippers) if several else len(limits.grippers) != 1)
    ):
        got = ", ".join(str(name)[:40] for name in gripper) if several else gripper
        names = ", ".join(limits.grippers) or "no gripper"
        raise Refusal("bad_request", f"gripper: expected a map of {names}, got {got}")
    if not 0 <= age < CLOCK:
        raise Refusal("bad_request", f"age: expected 0 s or more, got {age}; of one clock")
    return Reading(arrived - age, pose, fields["distance"], gripper=gripper)


@dataclasses.dataclass(frozen=True)
class Names:
    """Where openpi's messages have what a policy sees. A key "a/b" stands for the key "a/b", or for
    "b" in a map under "a".

        DROID  cameras={"primary": "observation/exterior_image_1_left", ...},
               state=("observation/joint_position", "observation/gripper_position")
        ALOHA  cameras={"primary": "images/cam_high", ...}, state=("state",)

    Attributes:
        cameras: camera -> key, where CAMERA_KEYS has another or none.
        state: keys of numbers that follow each other in the state; none of them may be there.
        prompt: the key of the instruction.
    """

    cameras: dict[str, str] = dataclasses.field(default_factory=dict)
    state: tuple[str, ...] = ("observation/state",)
    prompt: str = "prompt"


class Observed(NamedTuple):
    """What a policy sees, of a message of openpi's client."""

    images: dict[str, Any]
    state: np.ndarray | None
    prompt: str


def observed(message: dict[Any, Any], names: Names, cameras: Sequence[str]) -> Observed:
    """What stands under `names`. Raises Refusal for what is missing or mistyped; sizes are for the
    policy to check.
    """
    images = {}
    for camera in cameras:
        key = names.cameras.get(camera) or CAMERA_KEYS.get(camera)
        image = None if key is None else _found(message, key)
        if image is None:
            at = f"under {key!r}" if key else "under a key: start the server with --camera"
            present = ", ".join(str(name)[:40] for name in _keys(message))
            raise Refusal(
                "bad_image", f"images: expected camera {camera} {at}, got the keys {present}"
            )
        if isinstance(image, np.ndarray) and image.dtype.kind == "f":
            raise Refusal(
                "bad_image",
                f"images: camera {camera}: expected bytes (uint8), got {image.dtype}; send the"
                " camera's own, not numbers from 0 to 1",
            )
        images[camera] = _rows_first(image)
    prompt = _found(message, names.prompt)
    if type(prompt) is not str:
        raise Refusal(
            "bad_request",
            f"observation: expected text in {names.prompt!r}, got {type(prompt).__name__}",
        )
    return Observed(images, _state(message, names.state), prompt)


def _state(message: dict[Any, Any], keys: tuple[str, ...]) -> np.ndarray | None:
    parts = [_found(message, key) for key in keys]
    parts = [np.array(part) if type(part) in (float, int) else part for part in parts]
    if all(part is None for part in parts):
        return None
    for key, part in zip(keys, parts, strict=True):
        if not isinstance(part, np.ndarray) or part.ndim > 1 or part.dtype.kind not in "fiu":
            raise Refusal(
                "bad_request",
                f"observation: expected an array of numbers in {key!r}, got {type(part).__name__}"
                f" {getattr(part, 'shape', '')}",
            )
    return np.concatenate([np.atleast_1d(part) for part in parts])


def _found(message: dict[Any, Any], key: str) -> Any:
    """What stands under a key, or one after the other under its parts; None where nothing does."""
    if key in message:
        return message[key]
    value: Any = message
    for part in key.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _keys(message: dict[Any, Any]) -> list[str]:
    """Of a message and the maps in it."""
    out = []
    for name, value in message.items():
        inner = [f"{name}/{each}" for each in value] if isinstance(value, dict) else [str(name)]
        out += inner
    return out[:20]


def _rows_first(image: Any) -> Any:
    """An image [h w 3] of one that comes channels first."""
    first = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] != 3
    if first and image.shape[0] == 3:
        return np.ascontiguousarray(image.transpose(1, 2, 0))
    return image
