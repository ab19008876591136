"""Event-triggered inference: the backbone runs only when something asks for it, otherwise its chunk
goes on.

    trigger = Trigger(load("replay/trigger.json", identity("artefact")))
    policy = EventPolicy(torch_policy.load("artefact"), trigger)
    policy.reset("put the red block on the plate")
    while True:
        step = policy.act({"primary": image}, proprio)  # once per control step
        robot.move(step.action)  # step.reason says why the backbone ran; None: it did not

What asks for a pass, the first that holds counting:
    start         there is no chunk yet
    instruction   other words than those of the chunk
    chunk         as many of its actions were executed as `horizon` allows
    scene         the picture differs from that of the last pass by `scene` or more (`difference`)
    tracking      the measured state is further than `tracking` from where the executed actions
                  should have led
    confidence    the policy was less sure of the chunk's next action, when it made it, than
                  `confidence`
    regret        a small network expects going on to cost more than a pass, see regret.py

`experiments.replay --trigger` learns the settings from held-out episodes. numpy and the standard
library only.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from .calibration import keys, read
from .regret import Regret, signals

HISTORIES = ("gaps", "restart")
GRID = 16  # cells of a picture's luminance, each way
LUMINANCE = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601

Images = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """When to run. What is None never asks for a pass.

    Attributes:
        horizon: how many actions of a chunk may be executed; 1 is a pass at every step.
        scene: least `difference` that counts as another scene, in (0, 1].
        tracking: per measured dim (of the pose, in a Runtime) how far from the expected it may be,
            in robot units; None in it leaves a dim out.
        confidence: least confidence, in (0, 1], of an action of a chunk ("steps" of the policy's
            confidence); the first of a chunk is executed however sure.
        regret: what going on costs; a pass is asked for where that is above 0.
        history: what a policy that looks at several frames sees at a pass that follows skipped
            ones. "gaps": the frames of the last passes, further apart than in training. "restart":
            this frame alone, standing for those before as at the start of an episode. Which errs
            less is measured for each artefact: on the embedded data "gaps" where every other step
            is a pass, "restart" where fewer are.
    """

    horizon: int
    scene: float | None = None
    tracking: tuple[float | None, ...] | None = None
    confidence: float | None = None
    regret: Regret | None = None
    history: str = "gaps"

    def __post_init__(self) -> None:
        _need(self.horizon >= 1, "horizon", "1 action or more", self.horizon)
        for name in ("scene", "confidence"):
            value = getattr(self, name)
            _need(value is None or 0 < value <= 1, name, "a number in (0, 1], or null", value)
        good = all(most is None or 0 <= most < math.inf for most in self.tracking or ())
        _need(
            good,
            "tracking",
            "a finite distance, 0 or more, or null for each dim of the state",
            self.tracking,
        )
        _need(self.history in HISTORIES, "history", " | ".join(HISTORIES), self.history)

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return {
            "horizon": self.horizon,
            "scene": self.scene,
            "tracking": None if self.tracking is None else list(self.tracking),
            "confidence": self.confidence,
            "regret": None if self.regret is None else self.regret.to_json(),
            "history": self.history,
        }

    @classmethod
    def from_json(cls, body: Any) -> "Settings":
        """Raises ValueError for missing, unknown or wrong fields."""
        values = keys(body, "trigger", tuple(field.name for field in dataclasses.fields(cls)))
        horizon, tracking = values["horizon"], values["tracking"]
        _need(
            isinstance(horizon, int) and not isinstance(horizon, bool),
            "horizon",
            "a whole number",
            horizon,
        )
        _need(
            tracking is None or isinstance(tracking, list), "tracking", "a list, or null", tracking
        )
        return cls(
            horizon,
            _number("scene", values["scene"]),
            None if tracking is None else tuple(_number("tracking", value) for value in tracking),
            _number("confidence", values["confidence"]),
            None if values["regret"] is None else Regret.from_json(values["regret"]),
            str(values["history"]),
        )


def load(path: Path | str, artefact: str) -> Settings:
    """The settings in a trigger.json that was fitted for the artefact of this
    `calibration.identity`.

    Raises ValueError for another artefact's file, another schema, and what is not such a file.
    """
    return Settings.from_json(read(path, artefact).get("settings"))


class Look(NamedTuple):
    """What there is to judge by at a step: images uint8 [h w 3] by camera, the instruction, and,
    where the caller has them, where the robot is and where the actions executed since the last pass
    should have led to, in robot units.
    """

    images: Images
    instruction: str
    measured: np.ndarray | None = None
    expected: np.ndarray | None = None


class Trigger:
    """Says at each step whether the backbone is to run.

    `reason` decides; after a pass the caller tells `ran`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()  # steps per reason, "continued" among them
        self.reset()

    def reset(self) -> None:
        """Forgets the last pass: the next step asks for one. The counts go on."""
        self._scene: dict[str, np.ndarray] | None = None
        self._instruction = ""
        self._chunk = np.zeros((0, 0), np.float32)
        self._sure: Sequence[float] | None = None
        self._next, self._end = 0, 0  # of the chunk: the next action, and where it is used up

    def reason(self, look: Look) -> str | None:
        """Why the backbone is to run at this step; None: the chunk's next action is to be executed.

        Raises ValueError for images that are none, and other cameras than at the last pass.
        """
        reason = self._reason(look)
        self.counts[reason or "continued"] += 1
        if reason is None:
            self._next += 1
        return reason

    def ran(self, look: Look, chunk: np.ndarray, sure: Sequence[float] | None) -> None:
        """Tells of a pass of the backbone at this step.

        Args:
            look: of this step.
            chunk: its actions [k d], in robot units; the first is executed in this step.
            sure: the policy's confidence in each; None where it does not say.
        """
        self._scene, self._instruction = luminance(look.images), look.instruction
        self._chunk, self._sure = chunk, sure
        self._next, self._end = 1, min(len(chunk), self.settings.horizon)

    def _reason(self, look: Look) -> str | None:
        settings = self.settings
        if self._scene is None:
            return "start"
        if look.instruction != self._instruction:
            return "instruction"
        if self._next >= self._end:
            return "chunk"
        # Written so that a NaN asks for a pass.
        looks = settings.scene is not None or settings.regret is not None
        scene = luminance(look.images) if looks else {}
        changed = difference(scene, self._scene) if looks else 0.0
        if settings.scene is not None and not changed < settings.scene:
            return "scene"
        if settings.tracking is not None and not _on_track(look, settings.tracking):
            return "tracking"
        sure = None if self._sure is None else self._sure[self._next]
        if settings.confidence is not None and sure is not None and not sure >= settings.confidence:
            return "confidence"
        if settings.regret is not None:
            regret = settings.regret(
                signals(self._chunk, self._next, self._sure, scene, self._scene)
            )
            if not regret <= 0:
                return "regret"
        return None


def luminance(images: Images) -> dict[str, np.ndarray]:
    """The mean luminance, 0 to 255, of GRID x GRID cells of each picture uint8 [h w 3] (fewer cells
    for one of fewer pixels), by camera.
    """
    return {name: _cells(name, image) for name, image in images.items()}


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """How far two scenes are apart, 0 to 1 (black to white): the root mean square over cells, of
    the camera that differs most. Raises ValueError for other cameras or sizes.
    """
    shapes, others = ({name: x.shape for name, x in scene.items()} for scene in (one, other))
    if shapes != others or not one:
        raise ValueError(
            f"images: expected the cameras and sizes of the last pass ({tuple(other)}), got"
            f" {tuple(one)}"
        )
    return max(float(np.sqrt(np.mean((one[name] - other[name]) ** 2))) / 255 for name in one)


def _cells(name: str, image: np.ndarray) -> np.ndarray:
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or not image.size
    ):
        got = (
            f"{image.dtype} {image.shape}"
            if isinstance(image, np.ndarray)
            else type(image).__name__
        )
        raise ValueError(
            f"images[{name!r}]: expected uint8 RGB [h w 3], got {got}; give the frame as the policy"
            " has it"
        )
    cells: np.ndarray = image
    for axis in (0, 1):
        length = cells.shape[axis]
        edges = np.arange(min(GRID, length)) * length // min(GRID, length)
        sizes = np.diff(np.append(edges, length)).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        # Exact: the sum of a column of bytes fits into 32 bits.
        dtype = np.uint32 if axis == 0 else np.float64
        cells = np.add.reduceat(cells, edges, axis=axis, dtype=dtype) / sizes
    return cells @ np.array(LUMINANCE)


def _on_track(look: Look, tolerance: tuple[float | None, ...]) -> bool:
    if look.measured is None or look.expected is None:
        return True
    measured = np.asarray(look.measured, np.float64)
    expected = np.asarray(look.expected, np.float64)
    if measured.shape != (len(tolerance),) or expected.shape != measured.shape:
        raise ValueError(
            f"tracking: expected {len(tolerance)} measured numbers, as the trigger has tolerances,"
            f" got {measured.shape} and {expected.shape}"
        )
    # A dim without a tolerance may be anything; one with may not be NaN.
    return all(
        abs(a - b) <= most
        for a, b, most in zip(measured, expected, tolerance, strict=True)
        if most is not None
    )


@runtime_checkable
class Acting(Protocol):
    """The torch policy, or anything with its two methods (a client of a server)."""

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None: ...

    def act(self, images: Images, proprio: Any = None, executed: Any = None) -> dict[str, Any]: ...


class Acted(NamedTuple):
    """The action [d] to execute at this step, in robot units, and why the backbone ran for it;
    None: it did not.
    """

    action: np.ndarray
    reason: str | None


class EventPolicy:
    """What a control loop calls once per step: runs the policy when the trigger says so, and goes
    on with its chunk otherwise.

    The policy's "agreement" means nothing here: it compares chunks that are one step apart.
    """

    def __init__(self, policy: Acting, trigger: Trigger) -> None:
        self._policy, self.trigger = policy, trigger
        self._instruction: str | None = None

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        """Begins an episode. Arguments and errors as of the policy's reset."""
        self._policy.reset(instruction, dataset, seed)
        self._instruction, self._dataset, self._seed = instruction, dataset, seed
        self._fresh, self._passes = True, 0
        self._said: dict[str, Any] = {}  # speech of the episode
        self._chunk = np.zeros((0, 0), np.float32)
        self._next = 0
        self.trigger.reset()

    def instruct(self, instruction: str) -> None:
        """Another instruction within the episode: the next step runs the backbone, and the policy's
        history begins anew.
        """
        if instruction != self._instruction:
            self._policy.reset(instruction, self._dataset, self._seed + self._passes)
            self._instruction, self._fresh = instruction, True

    def act(
        self,
        images: Images,
        proprio: Any = None,
        executed: Any = None,
        measured: Any = None,
        expected: Any = None,
        sensors: Any = None,
    ) -> Acted:
        """The action at a new frame.

        Args:
            images, proprio, sensors: as of the policy's act. Speech stands until the next comes,
                whatever passes are left out.
            executed: the action [d] carried out since the last step, where it is not the one that
                was given out (a safety filter changed it); for models that see it.
            measured, expected: where the robot is, and where the actions executed since the last
                pass should have led to, of the same dims; None leaves the tracking error out.

        Raises ValueError as the policy and the trigger do, and before `reset`. After a pass that
        failed the next step asks for one.
        """
        if self._instruction is None:
            raise ValueError("EventPolicy.act: expected reset(instruction) before the first frame")
        look = Look(images, self._instruction, measured, expected)
        reason = self.trigger.reason(look)
        given = sensors or {}
        self._said |= {name: raw for name, raw in given.items() if isinstance(raw, (tuple, list))}
        if reason is None:
            self._next += 1
        else:
            self._run(look, proprio, executed, {**self._said, **given})
        return Acted(self._chunk[self._next], reason)

    def _run(self, look: Look, proprio: Any, executed: Any, sensors: dict[str, Any]) -> None:
        self.trigger.reset()  # should the pass fail, there is no chunk to go on with
        skipped = self._next > 0
        if self.trigger.settings.history == "restart" and skipped and not self._fresh:
            self._policy.reset(look.instruction, self._dataset, self._seed + self._passes)
            self._fresh = True
        if executed is None and not self._fresh:
            executed = self._chunk[self._next]  # by default the policy takes the first of its chunk
        more = {"sensors": sensors} if sensors else {}
        out = self._policy.act(look.images, proprio, executed, **more)
        self._chunk, self._next, self._fresh = out["actions"], 0, False
        self._passes += 1
        self.trigger.ran(look, self._chunk, out["confidence"]["steps"])


def _number(where: str, value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    _need(value is None or good, where, "a number, or null", value)
    return None if value is None else float(value)


def _need(good: bool, where: str, expected: str, got: object) -> None:
    if not good:
        raise ValueError(f"trigger.{where}: expected {expected}, got {got!r}; correct the settings")
