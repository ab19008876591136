"""What a policy's confidence is worth, as measured on held-out episodes: applied beside a robot.

    calibration = load("replay/calibration.json", identity("artefact"))
    calibration(out["confidence"])
    # {"gripper": 0.97, "token": None, "steps": [0.97, 0.93, ...], "arm_error": 0.02,
    #  "arm_error_90": 0.05}

gripper       probability that the gripper's next action is the one a demonstrator would take
token         share of the next action's numbers that lie within a bin of the demonstrator's (head
              discrete)
steps         the same for each action of the chunk: of "token" where there is one, else of
              "gripper"
arm_error     mean absolute error of the next action's arm to expect, in network units, from its
              agreement with the last chunk; arm_error_90 is what 9 in 10 stay below

`experiments.replay --calibrate` fits and writes the file. numpy and the standard library only.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1
NEAREST = 1e-6  # to 0 and 1 that a confidence counts as, so that its logit is finite


@dataclasses.dataclass(frozen=True)
class Logistic:
    """Platt scaling: probability = sigmoid(slope * logit(confidence) + offset). With offset 0, 1 /
    slope is known as the temperature. The slope is not negative: a surer policy never becomes a
    less sure one.
    """

    slope: float
    offset: float

    def __post_init__(self) -> None:
        good = math.isfinite(self.slope) and math.isfinite(self.offset) and self.slope >= 0
        _need(good, "slope, offset", "finite numbers, slope >= 0", (self.slope, self.offset))

    def __call__(self, confidence: Any) -> np.ndarray:
        """Confidences in [0, 1] of any shape to probabilities."""
        p = np.clip(np.asarray(confidence, np.float64), NEAREST, 1 - NEAREST)
        return np.asarray(1 / (1 + np.exp(-(self.slope * np.log(p / (1 - p)) + self.offset))))


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points (agreement, error) that errors are read from on straight lines, held flat outside.
    More agreement never means more error.
    """

    agreement: tuple[float, ...]
    error: tuple[float, ...]
    error_90: tuple[float, ...]

    def __post_init__(self) -> None:
        points = np.array([self.agreement, self.error, self.error_90], np.float64)
        _need(
            points.ndim == 2 and points.shape[1] >= 1,
            "agreement",
            "as many errors as agreements",
            self,
        )
        good = (
            np.isfinite(points).all()
            and (np.diff(points[0]) > 0).all()
            and (np.diff(points[1:]) <= 0).all()
        )
        _need(
            bool(good and (points[1:] >= 0).all()),
            "agreement",
            "rising agreements, falling errors >= 0",
            self,
        )

    def __call__(self, agreement: Any) -> tuple[np.ndarray, np.ndarray]:
        """Agreements of any shape to errors to expect, and those that 9 in 10 stay below."""
        x = np.asarray(agreement, np.float64)
        expected, most = (np.interp(x, self.agreement, y) for y in (self.error, self.error_90))
        return np.asarray(expected), np.asarray(most)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One artefact's. None where its head has no such confidence."""

    gripper: Logistic | None
    token: Logistic | None
    agreement: Curve | None

    def __call__(self, confidence: dict[str, Any]) -> dict[str, Any]:
        """What "confidence" of Policy.act amounts to; see the top. None for what is None in it."""
        out: dict[str, Any] = {}
        for name, scale in (("gripper", self.gripper), ("token", self.token)):
            value = confidence[name]
            out[name] = None if value is None or scale is None else float(scale(value))
        value, scale = confidence["steps"], self.gripper if self.token is None else self.token
        out["steps"] = None if value is None or scale is None else scale(value).tolist()
        value = confidence["agreement"]
        if value is None or self.agreement is None:
            return out | {"arm_error": None, "arm_error_90": None}
        expected, most = self.agreement(value)
        return out | {"arm_error": float(expected), "arm_error_90": float(most)}

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, body: Any) -> "Calibration":
        """Raises ValueError for missing, unknown or wrong fields."""
        kinds = {"gripper": Logistic, "token": Logistic, "agreement": Curve}
        values = keys(body, "calibration", tuple(kinds))
        return cls(
            **{
                name: None if values[name] is None else _parse(kinds[name], values[name], name)
                for name in kinds
            }
        )


def load(path: Path | str, artefact: str) -> Calibration:
    """The calibration in a file that experiments.replay wrote for the artefact of this `identity`.

    Raises ValueError for another artefact's file, another schema, and what is not such a file.
    """
    return Calibration.from_json(read(path, artefact)["calibration"])


def read(path: Path | str, artefact: str) -> dict[str, Any]:
    """The body of a file that was measured for one artefact. Raises ValueError as `load` does."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: expected JSON from experiments.replay, got {error}; write it again"
        ) from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        got = body.get("schema") if isinstance(body, dict) else type(body).__name__
        raise ValueError(
            f"{path}: expected schema {SCHEMA}, got {got!r}; write it again with experiments.replay"
        )
    if body.get("artefact") != artefact:
        got = str(body.get("artefact"))[:16]
        raise ValueError(
            f"{path}: expected measurements of the artefact {artefact[:16]}..., got {got}...; "
            "write it again with experiments.replay for this artefact"
        )
    return body


def identity(artefact: Path | str) -> str:
    """What names an artefact: sha256 of its SHA256SUMS, in hex."""
    return hashlib.sha256((Path(artefact) / "SHA256SUMS").read_bytes()).hexdigest()


def keys(body: Any, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    """`body`, a mapping with exactly these keys. Raises ValueError otherwise."""
    if not isinstance(body, dict) or set(body) != set(names):
        got = sorted(body) if isinstance(body, dict) else type(body).__name__
        raise ValueError(
            f"{where}: expected the keys {', '.join(names)}, got {got}; write it with"
            " experiments.replay"
        )
    return body


def _parse(kind: Any, body: Any, where: str) -> Any:
    names = tuple(field.name for field in dataclasses.fields(kind))
    values = keys(body, f"calibration.{where}", names)
    try:
        return kind(**{name: _numbers(values[name]) for name in names})
    except (TypeError, ValueError) as error:
        raise ValueError(f"calibration.{where}: {error}") from None


def _numbers(value: Any) -> Any:
    return tuple(float(x) for x in value) if isinstance(value, list) else float(value)


def _need(good: bool, where: str, expected: str, got: object) -> None:
    if not good:
        raise ValueError(f"{where}: expected {expected}, got {got}; fit it again")
