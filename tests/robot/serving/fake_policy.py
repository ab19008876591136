"""A policy for a server's tests: its actions say which frame of which episode they come from."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_jax.robot.realtime import Underway, check
from vla_jax.robot.serving.inference import Model

CAMERAS, SIZE, CHUNK, DATASETS = ("primary", "wrist"), 8, 4, ("blocks", "bridge")
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


class Spec:
    """As of ActionSpec; what has "gripper" in its name is binary."""

    def __init__(self, names: list[str]) -> None:
        self.names = tuple(names)
        self.binary = [i for i, name in enumerate(names) if "gripper" in name]
        self.arm = [i for i, name in enumerate(names) if "gripper" not in name]


class FakePolicy:
    """Stands for torch_policy.policy.Policy. `log` is shared by an episode and all that come of it
    by `new_session`.
    """

    def __init__(self, log: "Log") -> None:
        self.log, self.frames, self.instruction = log, 0, ""
        self.action_spec = Spec(log.names)
        self.camera_statistics = log.camera_statistics

    def new_session(self) -> "FakePolicy":
        return FakePolicy(self.log)

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        if dataset not in DATASETS:
            raise ValueError(f"dataset: expected one of {DATASETS}, got {dataset!r}")
        if len(instruction.split()) > 8:
            raise ValueError(f"instruction: expected at most 8 words: {instruction!r}")
        self.instruction, self.frames = instruction, 0
        self.log.resets.append((instruction, dataset, seed))

    def prepared(
        self,
        images: dict[str, np.ndarray],
        proprio: np.ndarray | None,
        executed: np.ndarray | None,
        noise: np.ndarray | None = None,
        sensors: Any = None,
        underway: Underway | None = None,
    ) -> Any:
        assert noise is None
        if underway is not None:
            check(underway, self.action_spec.names, CHUNK, self.log.inpaints)
        if set(images) != set(CAMERAS):
            raise ValueError(f"images: expected {CAMERAS}, got {tuple(images)}")
        for name, image in images.items():
            if (
                not isinstance(image, np.ndarray)
                or image.dtype != np.uint8
                or image.shape != (SIZE, SIZE, 3)
            ):
                raise ValueError(f"images[{name!r}]: expected uint8 [{SIZE} {SIZE} 3]")
        if proprio is not None and (proprio.shape != (7,) or not np.isfinite(proprio).all()):
            raise ValueError(f"proprio: expected 7 finite numbers,\ngot {proprio}")
        self.log.executed.append(executed)
        self.log.states.append(proprio)
        self.log.sensors.append(sensors)
        self.log.underway.append(underway)
        return images["primary"]


class Log:
    """What a fake of actions of these names was asked. Passes wait at `gate`; `broken` is raised by
    them.
    """

    def __init__(self, names: list[str] = NAMES) -> None:
        self.names = list(names)
        self.resets: list[tuple[str, str | None, int]] = []
        self.batches: list[list[str]] = []
        self.executed: list[np.ndarray | None] = []
        self.states: list[np.ndarray | None] = []
        self.sensors: list[dict[str, Any] | None] = []
        self.underway: list[Underway | None] = []
        self.inpaints = False
        self.gate, self.begun, self.broken = threading.Event(), threading.Event(), False
        self.gate.set()
        self.camera_statistics: dict[str, Any] | None = None
        self.scale = 1.0  # of the arm's motion

    def together(self, policies: list[Any], inputs: list[Any]) -> list[dict[str, Any]]:
        self.begun.set()
        assert self.gate.wait(5)
        if self.broken:
            raise RuntimeError("secret of the server")
        self.batches.append([policy.instruction for policy in policies])
        outs = []
        for policy, image in zip(policies, inputs, strict=True):
            policy.frames += 1
            outs.append(answer(policy.action_spec, image, policy.frames, self.scale))
        return outs

    def model(self) -> Model:
        about = {
            "artefact": "ab" * 32,
            "cameras": list(CAMERAS),
            "image": {"size": SIZE},
            "chunk": CHUNK,
            "control_hz": 10.0,
            "datasets": {
                name: {"action": self.names, "state": None, "control_hz": 10.0} for name in DATASETS
            },
        }
        return Model(FakePolicy(self), self.together, about)


def actions(
    image: np.ndarray, frame: int, scale: float = 1.0, names: Sequence[str] = NAMES
) -> np.ndarray:
    """What the fake answers at the `frame`-th frame of an episode, from 1 on."""
    steps = np.arange(CHUNK, dtype=np.float32)[:, None] * 1e-4
    moves = np.full((CHUNK, len(names)), 1e-3 * frame + image.mean() * 1e-5, np.float32)
    out = scale * (moves + steps)
    out[:, Spec(list(names)).binary] = 1
    return out


def answer(spec: Spec, image: np.ndarray, frame: int, scale: float) -> dict[str, Any]:
    out = actions(image, frame, scale, spec.names)
    confidence = {"gripper": 0.9, "agreement": None, "token": None}
    timing = {"vision": 1.0, "backbone": 2.0, "total": 3.0}
    return {
        "actions": out,
        "arm": out[:, spec.arm],
        "gripper": out[:, spec.binary],
        "confidence": confidence,
        "timing": timing,
    }
