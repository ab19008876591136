"""Actions relative to the robot's state where their chunk starts, and back: what a policy learns of
targets that are recorded as positions.

openpi calls it DeltaActions and AbsoluteActions: action [t, k] - state [t], for the dims that are
listed; grippers stay as they are. Angles wrap, and rotations are composed (rotations.py), so that
the way is always the shorter one. numpy alone, all in float64.

Axes: k chunk step, d action dim, p state dim, n dims of one quantity.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import rotations

# What numbers are that go together: those that are subtracted one by one, angles in radians modulo
# a full turn, also one by one, and rotations.
KINDS = ("number", "angle", *rotations.WIDTHS)


class Relative(NamedTuple):
    """Dims of the action [d] and the dims of the state [p] that they are relative to, one by one;
    of a rotation, all that it has.
    """

    kind: str  # one of KINDS
    action: tuple[int, ...]
    state: tuple[int, ...]


def of_json(body: Sequence[dict[str, Any]]) -> tuple[Relative, ...]:
    """Of an action spec in a checkpoint or an artefact. Raises ValueError for a kind that this
    version does not know.
    """
    unknown = sorted({part["kind"] for part in body} - {*KINDS})
    if unknown:
        raise ValueError(
            f"relative: expected the kinds {', '.join(KINDS)}, got {', '.join(unknown)}; a later"
            " version wrote it"
        )
    return tuple(
        Relative(part["kind"], tuple(part["action"]), tuple(part["state"])) for part in body
    )


def difference(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far a [... n] is from b [... n]."""
    if kind == "number":
        return a - b
    return rotations.wrap(a - b) if kind == "angle" else rotations.difference(kind, a, b)


def compose(kind: str, delta: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where b gets by `delta`, the inverse of `difference`: angles come out in [-pi, pi), rotations
    in the one form of rotations.py.
    """
    if kind == "number":
        return b + delta
    return rotations.wrap(b + delta) if kind == "angle" else rotations.compose(kind, delta, b)


def integrate(kind: str, deltas: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Where each of k steps [k n] leads to from the measured state [n], one after the other: a
    chunk of motions per step for a robot that is told positions. [k n]
    """
    reached = []
    for delta in np.asarray(deltas, np.float64):
        start = compose(kind, delta, start)
        reached.append(start)
    return np.array(reached).reshape(np.shape(deltas))


def to_relative(
    parts: Sequence[Relative], actions: np.ndarray, state: np.ndarray | None
) -> np.ndarray:
    """Actions [... d] as seen from states [... p], which broadcast against each other: a new array.
    Raises ValueError as `checked`, and for an action that should be a rotation and is none.
    """
    out = np.array(actions, np.float64)
    if parts:
        origin = checked(parts, state)
        for kind, dims, origins in parts:
            _check_rotations("action", kind, out[..., dims])
            out[..., dims] = difference(kind, out[..., dims], origin[..., origins])
    return out


def to_absolute(
    parts: Sequence[Relative], actions: np.ndarray, state: np.ndarray | None
) -> np.ndarray:
    """The inverse of `to_relative`. Raises ValueError as `checked`; a network's own rotations need
    only have a direction.
    """
    out = np.array(actions, np.float64)
    if parts:
        origin = checked(parts, state)
        for kind, dims, origins in parts:
            out[..., dims] = compose(kind, out[..., dims], origin[..., origins])
    return out


def checked(parts: Sequence[Relative], state: np.ndarray | None) -> np.ndarray:
    """The states [... p]. Raises ValueError when there are none, they are too short, a number that
    is needed is not finite, or what should be a rotation is none.
    """
    needed = sorted(i for part in parts for i in part.state)
    shape = None if state is None else np.shape(state)
    if state is None or not shape or shape[-1] <= needed[-1]:
        raise ValueError(
            "state: the actions are relative to the robot's state where their chunk starts:"
            f" expected its dims {needed}, got {'none' if state is None else f'shape {shape}'}"
        )
    values = np.asarray(state, np.float64)
    if not np.isfinite(values[..., needed]).all():
        raise ValueError(f"state: expected finite numbers in its dims {needed}")
    for kind, _, origins in parts:
        _check_rotations("state", kind, values[..., origins])
    return values


def starting_state(
    parts: Sequence[Relative], names: Sequence[str], proprio: np.ndarray | None
) -> np.ndarray:
    """The state [p] called `names` that relative actions start from. Raises ValueError when a
    policy was not given it, and as `checked`.
    """
    needed = ", ".join(names[i] for part in parts for i in part.state)
    why = f"; the actions are relative to {needed}"
    return checked(parts, finite("proprio", proprio, names, why))


def finite(what: str, values: np.ndarray | None, names: Sequence[str], why: str = "") -> np.ndarray:
    """Numbers called `names`, float32. Raises ValueError, which ends with `why`, when they are
    others, or one is not finite.
    """
    numbers = np.asarray(np.nan if values is None else values, np.float32)
    if numbers.shape != (len(names),) or not np.isfinite(numbers).all():
        raise ValueError(
            f"{what}: expected {len(names)} finite numbers ({', '.join(names)}), got {values}{why}"
        )
    return numbers


def _check_rotations(what: str, kind: str, values: np.ndarray) -> None:
    if kind in rotations.WIDTHS:
        try:
            rotations.check(kind, values.reshape(-1, values.shape[-1]))
        except ValueError as error:
            raise ValueError(f"{what}: {kind}: {error}") from error


def errors(parts: Sequence[Relative], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b [... d] in the actions' own units, the shorter way round for angles."""
    out = np.asarray(a, np.float64) - b
    for kind, dims, _ in parts:
        if kind in ("angle", "euler"):
            out[..., dims] = rotations.wrap(out[..., dims])
    return out
