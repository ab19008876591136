"""Standardisation as data: which columns an action is made of, run by one interpreter.

A vector is a tuple of parts, put side by side:

    "action[0:6]"                          six columns of the feature `action`
    "action[-1:] clip01 invert"            its last column, through two operators of OPERATORS
    Constant(0.0, 3)                       three columns of zeros
    Moved("observation/state[0:6]", ...)   how far these columns get until the next step
    Turned("observation/state[3:7]", ...)  the rotation from these columns to those of the next step
    Offset("action[0:6]", "state[0:6]")    how far a target is from the state at the same step

A feature of one number a step is one column. Numbers are taken as float64 and returned as float32.
"""

import dataclasses
import functools
import itertools
import math
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vla_jax.robot import relative, rotations

# Limits are compared in float32, as numbers are stored: 0.1 in a file is 0.1 here, and not beyond
# it, as a float64 0.1 would have it.
# A gripper beyond these is open or closed; in between it is on its way.
OPEN, CLOSED = np.float32(0.95), np.float32(0.05)
EVENT = np.float32(0.1)  # a relative gripper command beyond this opens or closes

Columns = dict[str, np.ndarray]


class Standardised(NamedTuple):
    """One episode in the house convention. Rows of all three belong together."""

    actions: np.ndarray  # T d, float32; a binary dim is 1 = open
    state: np.ndarray  # T p, float32
    frames: np.ndarray  # T, int: the raw step of each row; its images are that step's


class Constant(NamedTuple):
    """`width` columns of one number."""

    value: float
    width: int


class Moved(NamedTuple):
    """Difference of a part between a kept step and the next one kept: the motion reached, not the
    one commanded.

    `angles` are columns in radians, whose differences are wrapped to [-pi, pi). The last step has
    no next one: a recipe with a Moved part drops it.
    """

    part: str
    angles: tuple[int, ...] = ()


class Turned(NamedTuple):
    """Rotation of a part from a kept step to the next one kept, composed and not subtracted: what
    takes this step's to the next one's in the base frame. `kind` is what the part is and the motion
    becomes, one of rotations.WIDTHS. Drops a step, as Moved.
    """

    part: str
    kind: str


class Offset(NamedTuple):
    """How far a part is from another at the same step: of recorded targets and the state, the
    motion commanded. A robot that is told positions is told the measured state and it
    (relative.compose). `kind` is one of relative.KINDS, of both parts.
    """

    part: str
    origin: str
    kind: str = "number"


class Waypoint(NamedTuple):
    """Motion in the plane as the robot sees it: forward, left, in the units of the recorded action.
    Drops a step.

    `pose` has the columns x, y, yaw. Positions may be in other units than actions, so the recorded
    action of the first step that moves gives the scale.
    """

    pose: str
    action: str


Part = str | Constant | Moved | Turned | Offset | Waypoint


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How raw columns (feature key -> [T_raw, ...]) become one standardised episode. Call it as
    Dataset.standardise.

    Attributes:
        actions: the parts of an action.
        state: the parts of the state; () when the robot's state was not recorded.
        drop_first: steps to leave out at the beginning.
        stride: keep every stride-th step.
        idle: leave out steps at which nothing is commanded: no number of the action but the last
            beyond +-idle, and the last (the gripper) where it was. None keeps all steps.

    Operators see the whole episode before any step is left out: the step that settles a gripper may
    be one of those.
    """

    actions: tuple[Part, ...]
    state: tuple[Part, ...] = ()
    drop_first: int = 0
    stride: int = 1
    idle: float | None = None

    def __post_init__(self) -> None:
        for part in self._parts():
            _parse(
                part
            )  # a typing error is reported when the entry is read, not when its files are
        for each in (*self.actions, *self.state):
            known = relative.KINDS if isinstance(each, Offset) else (*rotations.WIDTHS,)
            if isinstance(each, Turned | Offset) and each.kind not in known:
                raise ValueError(
                    f"standardise: {each}: expected a kind of {', '.join(known)}, got {each.kind!r}"
                )

    @property
    def columns(self) -> dict[str, str]:
        """The features this recipe needs, as Dataset.columns wants them: feature key -> feature
        key.
        """
        keys = dict.fromkeys(_parse(part).source for part in self._parts())
        return {key: key for key in keys}

    def __call__(self, columns: Columns) -> Standardised:
        """One episode. `columns` is left as it is. May keep no step at all.

        Raises ValueError when a column is missing, when columns differ in length, and when an
        operator gets numbers that it has no meaning for.
        """
        missing = [key for key in self.columns if key not in columns]
        if missing:
            raise ValueError(
                f"standardise: expected the columns {sorted(self.columns)}, got none of {missing}"
            )
        lengths = {key: len(columns[key]) for key in self.columns}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"standardise: expected columns of one length, got {lengths}; download the file"
                " again"
            )
        raw = next(iter(lengths.values()), 0)
        steps = np.arange(self.drop_first, raw, self.stride)
        frames = (
            steps[:-1]
            if any(isinstance(part, Moved | Turned | Waypoint) for part in self.actions)
            else steps
        )
        actions = _vector(self.actions, columns, steps)[: len(frames)]
        state = _vector(self.state, columns, steps)[: len(frames)]
        if self.idle is not None:
            stored, least = actions.astype(np.float32), np.float32(self.idle)
            turned = np.abs(np.diff(stored[:, -1], prepend=stored[:1, -1])) > least
            busy = (np.abs(stored[:, :-1]) > least).any(axis=1) | turned
            actions, state, frames = actions[busy], state[busy], frames[busy]
        return Standardised(actions.astype(np.float32), state.astype(np.float32), frames)

    def _parts(self) -> list[str]:
        """The text of every part that reads a column."""
        texts: list[str] = []
        for part in (*self.actions, *self.state):
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, Moved | Turned):
                texts.append(part.part)
            elif isinstance(part, Offset):
                texts += [part.part, part.origin]
            elif isinstance(part, Waypoint):
                texts += [part.pose, part.action]
        return texts


def binarise(gripper: np.ndarray) -> np.ndarray:
    """Opening in [0, 1] to 1 (open) or 0 (closed), along the first axis.

    A value in between is on its way: it becomes what the gripper next settles at. A run in between
    that never settles takes its last value, thresholded at 0.5.
    """
    stored = gripper.astype(np.float32)
    decided = (stored > OPEN) | (stored < CLOSED)
    decided[-1:] = True
    # The first decided step at or after each step.
    filled = _fill((gripper > 0.5)[::-1], decided[::-1])
    return filled[::-1].astype(np.float32)


def rel2abs(gripper: np.ndarray) -> np.ndarray:
    """Relative commands (+ closes, - opens, 0 leaves it) to 1 (open) or 0 (closed), along the first
    axis.

    Before its first event the gripper is the opposite of what that event makes it: a command is
    taken to do something. An episode without an event is open.
    """
    event = np.abs(gripper.astype(np.float32)) > EVENT
    opens = gripper < 0
    first = np.take_along_axis(opens, event.argmax(axis=0)[None], axis=0) if len(gripper) else opens
    before = np.where(event.any(axis=0), ~first, True)
    return np.where(np.maximum.accumulate(event, axis=0), _fill(opens, event), before).astype(
        np.float32
    )


def zlib_f32(column: np.ndarray, width: int) -> np.ndarray:
    """[T] (or [T, 1]) byte strings, each `width` zlib-compressed little-endian float32, to [T,
    width].
    """
    out = np.empty((len(column), width))
    for step, cell in enumerate(column.reshape(-1)):
        try:
            # reshape: one number would spread over the row
            out[step] = np.frombuffer(zlib.decompress(cell), "<f4").reshape(width)
        except (zlib.error, ValueError, TypeError) as error:
            raise ValueError(
                f"step {step}: zlib_f32: expected {width} compressed float32, got {error}; download"
                " the file again"
            ) from error
    return out


OPERATORS: dict[str, Callable[..., np.ndarray]] = {  # an argument stands behind a colon
    "binarise": binarise,
    "rel2abs": rel2abs,
    # euler_from_quat_xyzw and all others, by the words of vla_jax/robot/rotations.py
    **{
        f"{target}_from_{source}": functools.partial(
            rotations.convert, source=source, target=target
        )
        for source, target in itertools.permutations(rotations.WIDTHS, 2)
    },
    "zlib_f32": zlib_f32,
    "clip01": lambda x: np.clip(x, 0.0, 1.0),
    "invert": lambda x: 1.0 - x,
    "div": lambda x, by: x / by,
    "zeros": np.zeros_like,  # as wide as the column
}


class _Parsed(NamedTuple):
    source: str
    columns: slice
    operators: tuple[tuple[str, tuple[int, ...]], ...]  # names and arguments


@functools.cache
def _parse(text: str) -> _Parsed:
    """A part that reads a column. Raises ValueError when it is none."""
    match = re.fullmatch(
        r"(?P<source>[^\s\[\]]+)(\[(?P<begin>-?\d*):(?P<end>-?\d*)\])?(?P<operators>("
        r" \w+(:\d+)?)*)",
        text,
    )
    if match is None:
        raise ValueError(
            f"standardise: expected a part like 'action[-1:] clip01 invert', got {text!r}"
        )
    words = [word.split(":") for word in match["operators"].split()]
    for name, *_ in words:
        if name not in OPERATORS:
            raise ValueError(
                f"standardise: {text!r}: expected operators among {', '.join(OPERATORS)}, got"
                f" {name!r}"
            )
    operators = tuple(
        (name, tuple(int(number) for number in arguments)) for name, *arguments in words
    )
    begin, end = (int(match[name]) if match[name] else None for name in ("begin", "end"))
    return _Parsed(match["source"], slice(begin, end), operators)


def _vector(parts: tuple[Part, ...], columns: Columns, steps: np.ndarray) -> np.ndarray:
    """The parts side by side at the kept steps: [len(steps), d] float64."""
    blocks = [np.zeros((len(steps), 0))]
    for part in parts:
        if isinstance(part, Constant):
            blocks.append(np.full((len(steps), part.width), part.value))
        elif isinstance(part, Moved):
            change = _moved(_values(part.part, columns)[steps])
            angles = list(part.angles)
            change[:, angles] = rotations.wrap(change[:, angles])
            blocks.append(change)
        elif isinstance(part, Turned):
            blocks.append(_turned(part.kind, _values(part.part, columns)[steps]))
        elif isinstance(part, Offset):
            blocks.append(_offset(part, columns)[steps])
        elif isinstance(part, Waypoint):
            blocks.append(_waypoints(part, columns, steps))
        else:
            blocks.append(_values(part, columns)[steps])
    return np.concatenate(blocks, axis=1)


def _values(text: str, columns: Columns) -> np.ndarray:
    """A part that reads a column, at all raw steps: [T_raw, n]."""
    parsed = _parse(text)
    column = columns[parsed.source]
    values = column if column.dtype == object else column.astype(np.float64)
    values = values.reshape(len(values), math.prod(values.shape[1:]))[:, parsed.columns]
    for name, arguments in parsed.operators:
        values = OPERATORS[name](values, *arguments)
    return values


def _moved(values: np.ndarray) -> np.ndarray:
    """Difference to the next row: [T, n] -> [T, n], whose last row is 0."""
    return np.diff(values, axis=0, append=values[-1:])


def _turned(kind: str, values: np.ndarray) -> np.ndarray:
    """Rotation to the next row: [T, n] -> [T, n], whose last row is none."""
    rotations.check(kind, values)
    return rotations.difference(kind, np.concatenate([values[1:], values[-1:]]), values)


def _offset(part: Offset, columns: Columns) -> np.ndarray:
    """[T_raw, n]."""
    ours, theirs = _values(part.part, columns), _values(part.origin, columns)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"standardise: {part}: expected two parts of one width, got {ours.shape[1]} and"
            f" {theirs.shape[1]}"
        )
    every = tuple(range(ours.shape[1]))
    return relative.to_relative((relative.Relative(part.kind, every, every),), ours, theirs)


def _waypoints(part: Waypoint, columns: Columns, steps: np.ndarray) -> np.ndarray:
    """[len(steps), 2], the last row of no meaning."""
    pose, action = _values(part.pose, columns), _values(part.action, columns)
    reached = np.linalg.norm(_moved(pose[:, :2]), axis=1)
    moving = np.flatnonzero(reached)
    scale = np.linalg.norm(action[moving[0]]) / reached[moving[0]] if len(moving) else 0.0
    change, yaw = _moved(pose[steps, :2]) * scale, pose[steps, 2]
    forward = np.cos(yaw) * change[:, 0] + np.sin(yaw) * change[:, 1]
    left = np.cos(yaw) * change[:, 1] - np.sin(yaw) * change[:, 0]
    return np.stack([forward, left], axis=1)


def _fill(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The latest known value at or before each step; the first step's where none is known yet."""
    index = np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1))
    latest = np.maximum.accumulate(np.where(known, index, 0), axis=0)
    return np.take_along_axis(values, latest, axis=0)
