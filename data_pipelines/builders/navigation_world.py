"""A small world to navigate in: a floor, one or two boxes, a cup behind them, and a base that
drives in any direction and carries a wide camera.

Metres, radians, seconds; x is forward, y to the left, angles turn to the left. A base is a circle.
An episode succeeds within REACH of the cup, with every box passed on the side that the scenario
says, without touching one. The document that names the scenarios does not draw them. Here boxes
stand one behind the other on the way to the cup, "vert" along it and "hori" across it. Left and
right are the side on which boxes are passed; "between both boxes" (2box_vert) begins on that side
of the first and leads through between them, to the other side of the second.

Numpy and Python floats, of which only operations are used that IEEE 754 defines to the last bit:
the same episode is the same bits on any machine. So there is no library's sine here.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

CONTROL_HZ = 5.0
FASTEST = (0.5, 0.5, 1.0)  # m/s forward and sideways, rad/s: the base does not do more
LIMIT = 120  # steps of an episode
RADIUS, REACH = 0.2, 0.4  # of the base; from the cup's middle
SHORT, LONG = 0.2, 0.4  # half sides of a box
BOX_HEIGHT, CUP_HEIGHT, CUP_RADIUS = 0.35, 0.4, 0.12
# Where boxes and cup stand on the way, x, before chance moves them.
PLACES = {"1box": (1.6, 3.1), "2box_hori": (1.4, 2.7, 4.0), "2box_vert": (1.3, 3.2, 4.7)}

SIZE = 64  # pixels of a side
FIELD = 3.84  # the camera's angle of view from left to right: a fisheye's 220 degrees
EYE, HORIZON, FOCAL = 0.6, 4.0, 60.0  # height, m; row of what is far away, rows per unit of slope
WALL, FLOOR = (225, 225, 215), (120, 125, 120)
# Top, front and flank of each object: the boxes by nearness at the start, the cup.
COLOURS = (
    ((235, 190, 120), (200, 140, 70), (160, 105, 50)),
    ((150, 180, 235), (80, 120, 200), (50, 80, 150)),
    ((255, 255, 255), (220, 30, 30), (220, 30, 30)),
)
PALETTE = np.array([WALL, FLOOR, *(c for colours in COLOURS for c in colours)], np.uint8)

Pose = tuple[float, float, float]  # x, y, yaw


class Box(NamedTuple):
    """A box on the floor: its middle, and half of its sides along x and y."""

    x: float
    y: float
    half_x: float
    half_y: float


class Layout(NamedTuple):
    """What an episode begins with. `sides`: 1 where a box is to be passed on its left, -1 right."""

    boxes: tuple[Box, ...]
    sides: tuple[int, ...]
    cup: tuple[float, float]
    start: Pose


def scatter(draw: np.random.Generator, scenario: str) -> Layout:
    """A layout of the scenario. What lies where does not depend on the side to pass on."""
    count, lie, side = scenario.split("_")
    *places, end = PLACES[count if count == "1box" else f"{count}_{lie}"]
    half_x, half_y = (LONG, SHORT) if lie == "vert" else (SHORT, LONG)
    boxes = tuple(
        Box(_around(draw, x, 0.1), _around(draw, 0.0, 0.15), half_x, half_y) for x in places
    )
    cup = _around(draw, end, 0.15), _around(draw, 0.0, 0.3)
    start = _around(draw, 0.0, 0.1), _around(draw, 0.0, 0.2), _around(draw, 0.0, 0.25)
    first = 1 if side == "left" else -1
    second = -first if lie == "vert" else first
    return Layout(boxes, (first, second)[: len(boxes)], cup, start)


def _around(draw: np.random.Generator, middle: float, reach: float) -> float:
    return middle + reach * float(draw.uniform(-1.0, 1.0))


class World:
    """One episode. `outcome` is "" while it goes on."""

    def __init__(self, layout: Layout, pose: Pose | None = None) -> None:
        """`pose`: where the base is, if not at the layout's start."""
        self.layout, self.pose = layout, pose or layout.start
        self.steps, self.outcome = 0, ""
        x, y, _ = self.pose
        # On which side boxes were passed; 0: not yet.
        self._passed = [_side(box, y) if x >= box.x else 0 for box in layout.boxes]

    def step(self, linear_x: float, linear_y: float, angular_z: float) -> None:
        """Moves for one control step, no faster than FASTEST."""
        wanted = zip((linear_x, linear_y, angular_z), FASTEST, strict=True)
        forward, left, turn = (min(max(float(v), -most), most) for v, most in wanted)
        x, y, yaw = self.pose
        cos, sin = cos_sin(yaw)
        self.pose = (
            x + (forward * cos - left * sin) / CONTROL_HZ,
            y + (forward * sin + left * cos) / CONTROL_HZ,
            wrapped(yaw + turn / CONTROL_HZ),
        )
        self.steps += 1
        for i, box in enumerate(self.layout.boxes):
            if (x >= box.x) != (self.pose[0] >= box.x):
                self._passed[i] = _side(box, self.pose[1]) if self.pose[0] >= box.x else 0
        self.outcome = self._judged()

    def on_course(self) -> bool:
        """Whether no box is touched or was passed on the wrong side."""
        right = zip(self._passed, self.layout.sides, strict=True)
        return not self._touches() and all(side in (0, wanted) for side, wanted in right)

    def _judged(self) -> str:
        if self._touches():
            return "collision"
        x, y, _ = self.pose
        cup_x, cup_y = self.layout.cup
        if (x - cup_x) * (x - cup_x) + (y - cup_y) * (y - cup_y) <= REACH * REACH:
            return "success" if tuple(self._passed) == self.layout.sides else "wrong side"
        return "out of time" if self.steps >= LIMIT else ""

    def _touches(self) -> bool:
        x, y, _ = self.pose
        return any(gap_squared(box, x, y) < RADIUS * RADIUS for box in self.layout.boxes)

    def odometry(self) -> np.ndarray:  # float32 [3]
        """The pose as seen from the start of the drive."""
        x0, y0, yaw0 = self.layout.start
        x, y, yaw = self.pose
        cos, sin = cos_sin(yaw0)
        ahead, left = (x - x0) * cos + (y - y0) * sin, (y - y0) * cos - (x - x0) * sin
        return np.array([ahead, left, wrapped(yaw - yaw0)], np.float32)

    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """What the camera sees: each column is a direction, each row a slope."""
        x, y, yaw = self.pose
        cos, sin = cos_sin(yaw)
        dx, dy = cos * RAYS[0] - sin * RAYS[1], sin * RAYS[0] + cos * RAYS[1]
        seen = [_ray_box(box, x, y, dx, dy) for box in self.layout.boxes]
        seen.append(_ray_cup(*self.layout.cup, x, y, dx, dy))
        near, far, flank = (np.stack(part) for part in zip(*seen, strict=True))  # [objects w] each
        count = len(seen)
        drop = np.full((count, 1), EYE - BOX_HEIGHT)
        drop[-1] = EYE - CUP_HEIGHT
        kind = 2 + 3 * np.array([*range(count - 1), len(COLOURS) - 1])[:, None]
        rows = [HORIZON + FOCAL * part for part in (drop / far, drop / near, EYE / near)]
        back, edge, foot = (_starts(part) for part in rows)
        canvas = FLAT.copy()
        # In each column the furthest first.
        order = np.argsort(-near, axis=0, kind="stable")
        for each in order:
            of = each, COLUMN
            top, face = kind[each, 0], kind[each, 0] + 1 + flank[of]
            below = edge[of] <= ROW
            painted = (back[of] <= ROW) & (foot[of] > ROW)
            canvas = np.where(painted, np.where(below, face, top), canvas)
        return PALETTE[canvas]


def cos_sin(angle: float) -> tuple[float, float]:
    """Cosine and sine of an angle in [-pi, pi], to 1e-14: Taylor's series of an eighth of it, and
    three times the formulas of the double angle.
    """
    x = angle / 8
    q = x * x
    sin = x * (1 - q / 6 * (1 - q / 20 * (1 - q / 42 * (1 - q / 72 * (1 - q / 110)))))
    cos = 1 - q / 2 * (1 - q / 12 * (1 - q / 30 * (1 - q / 56 * (1 - q / 90 * (1 - q / 132)))))
    for _ in range(3):
        cos, sin = cos * cos - sin * sin, 2 * cos * sin
    return cos, sin


def wrapped(angle: float) -> float:
    """The angle in [-pi, pi]; it is at most one turn outside."""
    if angle > np.pi:
        return float(angle - 2 * np.pi)
    return float(angle + 2 * np.pi) if angle < -np.pi else float(angle)


def gap_squared(box: Box, x: float | np.ndarray, y: float | np.ndarray) -> Any:
    """Squared distance of a point, or of points, to a box; 0 inside."""
    beside = np.maximum(np.abs(y - box.y) - box.half_y, 0.0)
    along = np.maximum(np.abs(x - box.x) - box.half_x, 0.0)
    return beside * beside + along * along


def _side(box: Box, y: float) -> int:
    return 1 if y >= box.y else -1


ROW, COLUMN = np.arange(SIZE)[:, None], np.arange(SIZE)
RAYS = np.array([cos_sin(FIELD * (0.5 - (column + 0.5) / SIZE)) for column in range(SIZE)]).T
FLAT = np.where(ROW < HORIZON, 0, 1) + np.zeros((SIZE, SIZE), np.int64)


def _starts(rows: np.ndarray) -> np.ndarray:
    """The first row of pixels whose middle is at `rows` or below it."""
    return np.ceil(np.minimum(rows, SIZE) - 0.5)


Seen = tuple[np.ndarray, np.ndarray, np.ndarray]  # distance to front and back, 1 where flank; [w]


def _ray_box(box: Box, x: float, y: float, dx: np.ndarray, dy: np.ndarray) -> Seen:
    """Where rays enter and leave a box (slab by slab); infinitely far where they miss it."""
    dx, dy = np.where(dx == 0, 1e-12, dx), np.where(dy == 0, 1e-12, dy)
    x1, x2 = (box.x - box.half_x - x) / dx, (box.x + box.half_x - x) / dx
    y1, y2 = (box.y - box.half_y - y) / dy, (box.y + box.half_y - y) / dy
    into_x, into_y = np.minimum(x1, x2), np.minimum(y1, y2)
    near = np.maximum(into_x, into_y)
    far = np.minimum(np.maximum(x1, x2), np.maximum(y1, y2))
    hit = (far > near) & (near > 0)
    flank = (into_y > into_x).astype(np.int64)
    return np.where(hit, near, np.inf), np.where(hit, far, np.inf), flank


def _ray_cup(
    cup_x: float, cup_y: float, x: float, y: float, dx: np.ndarray, dy: np.ndarray
) -> Seen:
    """The same of the cup."""
    ahead = (cup_x - x) * dx + (cup_y - y) * dy
    aside = (cup_x - x) * dy - (cup_y - y) * dx
    inside = CUP_RADIUS * CUP_RADIUS - aside * aside
    hit = (inside > 0) & (ahead > CUP_RADIUS)
    half = np.sqrt(np.maximum(inside, 0.0))
    flank = np.zeros(len(dx), np.int64)
    return np.where(hit, ahead - half, np.inf), np.where(hit, ahead + half, np.inf), flank
