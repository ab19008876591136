"""A small world to push blocks in: a table, three blocks, and a hand that flies over them, comes
down and pushes.

Positions and ways are fractions of the table, x to the right, y downwards, z upwards; an action is
what changes in one control step. The hand and the blocks are upright boxes that do not turn. Below
the height of the blocks the hand pushes whatever it drives into, and a block pushes other blocks;
above it passes over them, and coming down on one it stays on top. An episode succeeds when the
block of the task was pushed PUSHED in the direction of the task while nothing moved more than
LITTLE otherwise: no other block, and that one neither back nor sideways.

Numpy and Python floats, of which only operations are used that IEEE 754 defines to the last bit:
the same episode is the same bits on any machine.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

CONTROL_HZ = 5.0
# Most that an action does in a step: x, y, z (table widths), roll, pitch, yaw (radians).
FASTEST = (0.08, 0.08, 0.06, 0.2, 0.2, 0.2)
LIMIT = 60  # steps of an episode
COLOURS = ("red", "green", "blue")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
HALF_BLOCK, HALF_HAND = 0.09, 0.05  # half sides
HEIGHT, CEILING = 0.07, 0.15  # of the blocks; as high as the hand comes
PUSHED, LITTLE = 0.12, 0.03
SLOTS = ((0.24, 0.62), (0.5, 0.33), (0.76, 0.62))  # where blocks are before chance moves them
PARTS = 8  # of a step, each of which moves less than a block is wide
TOUCH = 1e-9  # boxes that share less than this are beside each other

SIZE = 32  # pixels of a picture's side, where nobody asks for another
WRIST = 0.45  # of the table's width is what the camera on the wrist sees
NEARER = 3.0  # the camera sees a hand that is up by z larger by this times z
TABLE, FLOOR = (128, 128, 128), (70, 70, 75)
OPEN_MARK, CLOSED_MARK = (255, 255, 255), (0, 0, 0)

Point = tuple[float, float]
Shade = tuple[int, int, int]  # RGB


class Layout(NamedTuple):
    """What an episode begins with: the middle and the shade of each block, in the order of COLOURS,
    and the hand, which is up.
    """

    blocks: tuple[Point, ...]
    shades: tuple[Shade, ...]
    hand: Point


class Task(NamedTuple):
    """Which block to push where."""

    colour: str
    direction: str

    @property
    def block(self) -> int:
        """Its place in COLOURS."""
        return COLOURS.index(self.colour)

    @property
    def way(self) -> Point:
        """One table width in the direction."""
        return DIRECTIONS[self.direction]


TASKS = {f"{c} {d}": Task(c, d) for d in DIRECTIONS for c in COLOURS}


def scatter(draw: np.random.Generator, shades: tuple[Shade, ...]) -> Layout:
    """A layout with blocks in these shades: side by side, the middle one above or below the others,
    far enough apart for the hand to come down between them.
    """
    places = [SLOTS[i] for i in draw.permutation(len(SLOTS))]
    blocks = tuple((_around(draw, x, 0.03), _around(draw, y, 0.04)) for x, y in places)
    return Layout(blocks, shades, (_around(draw, 0.5, 0.4), _around(draw, 0.5, 0.4)))


def _around(draw: np.random.Generator, middle: float, reach: float) -> float:
    return middle + reach * float(draw.uniform(-1.0, 1.0))


class World:
    """One episode.

    Attributes:
        blocks: where their middles are, [x, y] each, in the order of COLOURS.
        pose: of the hand: x, y, z, roll, pitch, yaw.
        gripper: 1 open, 0 closed; it is seen and does nothing.
        steps: taken.
        outcome: "" while it goes on, then "success", "wrong block" (another one moved),
            "wrong direction" (the right one moved back or sideways) or "out of time".
    """

    def __init__(self, layout: Layout, task: Task) -> None:
        self.layout, self.task = layout, task
        self.blocks = [list(point) for point in layout.blocks]
        self.pose = [*layout.hand, CEILING, 0.0, 0.0, 0.0]
        self.gripper = 1.0
        self.steps, self.outcome = 0, ""

    def step(self, action: Sequence[float]) -> None:
        """Carries out what changes x, y, z, roll, pitch and yaw, no faster than FASTEST, and what
        the gripper is to be, open from 0.5 on.
        """
        *wanted, gripper = (float(value) for value in action)
        change = [min(max(v, -most), most) / PARTS for v, most in zip(wanted, FASTEST, strict=True)]
        self.gripper = 1.0 if gripper >= 0.5 else 0.0
        for _ in range(PARTS):
            self._move(change)
        self.steps += 1
        self.outcome = self._judged()

    def _move(self, change: list[float]) -> None:
        """A part of a step: first across the table, then up or down."""
        hand = self.pose
        for i in (0, 1):
            hand[i] = min(max(hand[i] + change[i], 0.0), 1.0)
        if hand[2] < HEIGHT:
            for block in range(len(self.blocks)):
                if _shove(hand, HALF_HAND, self.blocks[block]):
                    self._pass_on(block)
        hand[2] = min(max(hand[2] + change[2], 0.0), CEILING)
        if hand[2] < HEIGHT and any(_shared(hand, HALF_HAND, block) for block in self.blocks):
            hand[2] = HEIGHT  # on top of it
        for i in (3, 4, 5):
            hand[i] += change[i]

    def _pass_on(self, moved: int, before: tuple[int, ...] = ()) -> None:
        """A block that was moved moves those that it drives into, and they others."""
        before = (*before, moved)
        for other in range(len(self.blocks)):
            if other not in before and _shove(self.blocks[moved], HALF_BLOCK, self.blocks[other]):
                self._pass_on(other, before)

    def moved(self) -> list[Point]:
        """How far each block is from where it was at first, x and y."""
        return [
            (now[0] - was[0], now[1] - was[1])
            for now, was in zip(self.blocks, self.layout.blocks, strict=True)
        ]

    def pushed(self) -> float:
        """How far the block of the task came in the task's direction."""
        (x, y), (way_x, way_y) = self.moved()[self.task.block], self.task.way
        return x * way_x + y * way_y

    def _judged(self) -> str:
        moved = self.moved()
        x, y = moved.pop(self.task.block)
        if any(max(abs(dx), abs(dy)) > LITTLE for dx, dy in moved):
            return "wrong block"
        along = self.pushed()
        aside = abs(y) if self.task.way[0] else abs(x)
        if along < -LITTLE or aside > LITTLE:
            return "wrong direction"
        if along >= PUSHED:
            return "success"
        return "out of time" if self.steps >= LIMIT else ""

    def state(self) -> Float[np.ndarray, "7"]:
        """The pose and the gripper."""
        return np.array([*self.pose, self.gripper], np.float32)

    def picture(self, size: int = SIZE) -> UInt8[np.ndarray, "h w 3"]:
        """The table from above, `size` pixels wide and high."""
        return self._drawn((0.0, 0.0), 1.0, size)

    def wrist(self, size: int = SIZE) -> UInt8[np.ndarray, "h w 3"]:
        """What a camera on the wrist sees: the surroundings of the hand."""
        x, y = self.pose[:2]
        return self._drawn((x - WRIST / 2, y - WRIST / 2), WRIST, size)

    def _drawn(self, corner: Point, width: float, size: int) -> UInt8[np.ndarray, "h w 3"]:
        """The square of this corner and width, each pixel the mean of what lies in it."""
        canvas = np.empty((size, size, 3))
        canvas[:] = FLOOR
        hand = HALF_HAND * (1.0 + NEARER * self.pose[2])
        boxes = [((0.5, 0.5), 0.5, TABLE)]
        boxes += [
            ((x, y), HALF_BLOCK, shade)
            for (x, y), shade in zip(self.blocks, self.layout.shades, strict=True)
        ]
        boxes.append(((self.pose[0], self.pose[1]), hand, _mark(self.gripper)))
        for middle, half, shade in boxes:
            x, y = (
                _covered((middle[i] - corner[i]) / width * size, half / width * size, size)
                for i in (0, 1)
            )
            canvas += (y[:, None] * x)[:, :, None] * (np.array(shade) - canvas)
        return np.floor(canvas + 0.5).astype(np.uint8)


def _mark(gripper: float) -> Shade:
    return OPEN_MARK if gripper >= 0.5 else CLOSED_MARK


def _covered(middle: float, half: float, size: int) -> np.ndarray:
    """How much of each of `size` pixels lies between middle - half and middle + half."""
    pixel = np.arange(size)
    inside = np.minimum(middle + half, pixel + 1) - np.maximum(middle - half, pixel)
    return np.minimum(np.maximum(inside, 0.0), 1.0)


def _shared(mover: list[float], half: float, block: list[float]) -> bool:
    """Whether a box with this half side at `mover` and a block are in the same place."""
    reach = half + HALF_BLOCK - TOUCH
    return abs(block[0] - mover[0]) < reach and abs(block[1] - mover[1]) < reach


def _shove(mover: list[float], half: float, block: list[float]) -> bool:
    """Moves a block out of the place that a box with this half side has taken, the shortest way."""
    if not _shared(mover, half, block):
        return False
    x, y = block[0] - mover[0], block[1] - mover[1]
    axis, off = (0, x) if abs(x) >= abs(y) else (1, y)
    block[axis] = mover[axis] + (half + HALF_BLOCK if off >= 0 else -(half + HALF_BLOCK))
    return True
