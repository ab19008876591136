"""What the d numbers of an action mean, and the one place that turns robot units into network units
and back.

Numpy only, so that the data pipeline, the policy and the robot side share it. A spec is fitted from
the training statistics of one dataset and then travels with the checkpoint: nobody recomputes it at
inference.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_jax.robot import relative
from vla_jax.robot.relative import Relative

KINDS = ("bounds", "q99", "gaussian", "none")

# Below this spread (in robot units) a dim is noise around a constant: dividing by it would blow the
# noise up to full scale.
CONSTANT_SPREAD = 1e-4

Stats = dict[str, np.ndarray]
# A normalisation as the config writes it: "q99", or ("bounds", -0.65, 0.65) for limits that are not
# the data's.
Rule = str | Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Affine:
    """One normalisation step per dim: clip to [low, high], then (x - offset) / scale.

    Steps without limits (gaussian) hold -inf and +inf.
    """

    kind: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """Names, binary dims and normalisation of a vector of `d` numbers (an action, or the robot's
    state).

    Attributes:
        names: one word per dim, e.g. ("x", "y", "z", "roll", "pitch", "yaw", "gripper").
        binary: indices of dims that are 0 or 1 (gripper: 1 = open). Never normalised; thresholded
            at 0.5 on the way out.
        constant: indices of dims that hardly vary in the training data. They are not scaled, and
            never leave the range that the data has: a policy's noise does not move a robot where
            no demonstration did.
        steps: normalisation steps in the order they are applied; RoboVLMs' OXE models chain q99 and
            bounds(+-0.65).
        relative: the dims that the network sees relative to the robot's state where their chunk
            starts. Statistics, limits, `constant` and `steps` are then of these differences.
    """

    names: tuple[str, ...]
    binary: tuple[int, ...] = ()
    constant: tuple[int, ...] = ()
    steps: tuple[Affine, ...] = ()
    relative: tuple[Relative, ...] = ()

    @classmethod
    def fit(
        cls,
        names: Sequence[str],
        binary: Sequence[int],
        stats: Stats,
        rules: Sequence[Rule],
        relative: tuple[Relative, ...] = (),
    ) -> "ActionSpec":
        """A spec from training statistics (keys mean, std, min, max, q01, q99; each [d], of what
        is learnt) and a chain of rules.

        Rules are applied in order; all but the first must carry explicit limits, because the
        statistics describe raw actions. Raises ValueError for unknown rules, missing or non-finite
        statistics, and wrong lengths.
        """
        d = len(names)
        _check_stats(stats, d)
        rules = [rule for rule in rules if rule != "none"]
        passing = set(binary)
        constant: tuple[int, ...] = ()
        steps = []
        for i, rule in enumerate(rules):
            low, high, offset, scale = _limits(rule, stats, first=i == 0, d=d)
            if i == 0:
                constant = tuple(
                    j for j in range(d) if j not in passing and scale[j] * 2 < CONSTANT_SPREAD
                )
                passing |= set(constant)
            for j in passing:
                low[j], high[j], offset[j], scale[j] = -np.inf, np.inf, 0.0, 1.0
            if i == 0:
                for j in constant:
                    low[j], high[j] = stats["min"][j], stats["max"][j]
            kind = rule if isinstance(rule, str) else rule[0]
            steps.append(
                Affine(kind, *(tuple(float(v) for v in a) for a in (low, high, offset, scale)))
            )
        return cls(tuple(names), tuple(binary), constant, tuple(steps), relative)

    def normalise(
        self,
        values: Float[np.ndarray, "*batch d"],
        state: Float[np.ndarray, "*around p"] | None = None,
    ) -> Float[np.ndarray, "*batch d"]:
        """Robot units to network units, float32. Values outside a step's limits are clipped to
        them.

        `state`, in robot units, is that of the frame where the values' chunk starts, and broadcasts
        against them; only relative dims need it. Raises ValueError where it is missing or bad.
        """
        return self.scaled(relative.to_relative(self.relative, self.checked(values), state))

    def scaled(self, values: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """The same of values that are relative already, as the statistics are."""
        x = self.checked(values)
        for step in self.steps:
            x = (np.clip(x, step.low, step.high) - step.offset) / step.scale
        return x.astype(np.float32)

    def unnormalise(
        self,
        values: Float[np.ndarray, "*batch d"],
        state: Float[np.ndarray, "*around p"] | None = None,
    ) -> Float[np.ndarray, "*batch d"]:
        """Network units to robot units, float32: the exact inverse of `normalise` with the same
        state, within its limits.

        Binary dims come in as probabilities and leave as 0 or 1; constant ones are clipped to their
        range.
        """
        x = self.checked(values)
        for step in reversed(self.steps):
            x = x * step.scale + step.offset
        for j in self.constant:
            x[..., j] = np.clip(x[..., j], self.steps[0].low[j], self.steps[0].high[j])
        for j in self.binary:
            x[..., j] = x[..., j] > 0.5
        return relative.to_absolute(self.relative, x, state).astype(np.float32)

    def checked(self, values: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """The values in float64, a copy. Raises ValueError where they are others than `names`."""
        if values.shape[-1:] != (len(self.names),):
            raise ValueError(
                f"action: expected {len(self.names)} dims ({', '.join(self.names)}) last, got shape"
                f" {values.shape}"
            )
        return np.array(values, np.float64)

    def units(self) -> Float[np.ndarray, " d"]:
        """Robot units per network unit of every dim: turns an error in network units into one in
        robot units.
        """
        out = np.ones(len(self.names))
        for step in self.steps:
            out *= step.scale
        return out.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; infinities are written as None so that any JSON reader takes it."""
        body = dataclasses.asdict(self)
        body["relative"] = [part._asdict() for part in self.relative]
        for step in body["steps"]:
            for key in ("low", "high"):
                step[key] = [v if np.isfinite(v) else None for v in step[key]]
        return json.loads(json.dumps(body))

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "ActionSpec":
        """The inverse of `to_json`. Raises ValueError when a field is missing or unknown."""
        body = {"relative": [], **body}  # until 2026-11-29 nothing was
        expected = {f.name for f in dataclasses.fields(cls)}
        if set(body) != expected:
            raise ValueError(
                f"ActionSpec: expected the fields {sorted(expected)}, got {sorted(body)}; was it"
                " edited by hand?"
            )
        steps = tuple(
            Affine(
                step["kind"],
                tuple(-np.inf if v is None else v for v in step["low"]),
                tuple(np.inf if v is None else v for v in step["high"]),
                tuple(step["offset"]),
                tuple(step["scale"]),
            )
            for step in body["steps"]
        )
        return cls(
            tuple(body["names"]),
            tuple(body["binary"]),
            tuple(body["constant"]),
            steps,
            relative.of_json(body["relative"]),
        )


def places(names: Sequence[str], space: Sequence[str]) -> list[int]:
    """Where each of a robot's `names` stands among those of the policy's `space`. Raises ValueError
    for one that does not.
    """
    outside = [name for name in names if name not in space]
    if outside:
        raise ValueError(
            f"expected dims among the policy's {', '.join(space) or '(none)'}, got"
            f" {', '.join(outside)}"
        )
    return [space.index(name) for name in names]


def _limits(rule: Rule, stats: Stats, first: bool, d: int) -> tuple[np.ndarray, ...]:
    """low, high, offset, scale ([d] each, float64) of one rule."""
    kind, *numbers = (rule,) if isinstance(rule, str) else tuple(rule)
    if kind not in KINDS:
        raise ValueError(f"normalisation: expected one of {', '.join(KINDS)}, got {kind!r}")
    if numbers and (kind != "bounds" or len(numbers) != 2 or not numbers[0] < numbers[1]):
        raise ValueError(
            "normalisation: only ('bounds', low, high) with low < high takes numbers, got"
            f" {tuple(rule)!r}"
        )
    if not numbers and not first:
        raise ValueError(
            f"normalisation: {kind!r} after another step needs explicit limits, because the"
            " statistics describe raw actions; write ('bounds', low, high)"
        )
    if kind == "gaussian":
        low, high = np.full(d, -np.inf), np.full(d, np.inf)
        return low, high, np.array(stats["mean"], np.float64), np.array(stats["std"], np.float64)
    if numbers:
        low, high = np.full(d, float(numbers[0])), np.full(d, float(numbers[1]))
    elif kind == "q99":
        low, high = np.array(stats["q01"], np.float64), np.array(stats["q99"], np.float64)
    else:
        low, high = np.array(stats["min"], np.float64), np.array(stats["max"], np.float64)
    return low, high, (high + low) / 2, (high - low) / 2


def _check_stats(stats: Stats, d: int) -> None:
    for key in ("mean", "std", "min", "max", "q01", "q99"):
        if key not in stats:
            raise ValueError(
                f"statistics: {key!r} is missing, got {sorted(stats)}; rebuild the index"
            )
        value = np.asarray(stats[key])
        if value.shape != (d,) or not np.isfinite(value).all():
            raise ValueError(
                f"statistics: {key!r} must be {d} finite numbers, got {value!r}; rebuild the index"
            )
