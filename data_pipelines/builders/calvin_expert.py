"""Who knows CALVIN's scene D: plans for its 34 tasks, carried out step by step from what is where.

A plan is a number of ways, each looked at when the one before has ended: where the tool is to go
and how it is turned there. The tool hangs down with its fingers apart along x; its yaw is counted
from there, and `tilt` leans it towards the robot, as the shelf and the switch need it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders.calvin_world import GRASPED, METRES, RADIANS, Scene

OPEN, CLOSED = 1.0, -1.0
CLEAR = 0.60  # m: above everything but what the tool holds
TABLE_FRONT = 0.0  # m: blocks with smaller y lie before the shelf
ON_TABLE = 0.44  # m: centres of blocks on the table are higher, in the drawer lower
ON_BLOCK, ON_SPOT = 0.475, 0.465  # m: of blocks that lie on others are higher; of one put down
SHELF_TILT, SWITCH_TILT = 0.45, 0.75  # rad
SHELF_YAW = 0.4  # rad
TURNED = 0.8  # rad: a tool turned more than that is turned back before anything else
SWITCH_X, DRAWER_X = 0.30, 0.18  # m
BEFORE_DRAWER = (0.0, 0.3)  # m: blocks at these x fall into the drawer
HANDLE, DOOR = 0.04, 0.28  # m: where the sliding door's handle is, and how far left it goes
SHELF_MIDDLE = -0.08  # m

See = Callable[[], Scene]


class Way(NamedTuple):
    """Where the tool goes next, or, without a position, how long it stays.

    Attributes:
        position: m; None: stay.
        gripper: OPEN or CLOSED.
        yaw: rad from where the fingers are apart along x.
        tilt: rad.
        near: m, when it has arrived.
        limit: steps at most.
        speed: of 1, as the environment counts, in every number.
    """

    position: np.ndarray | None
    gripper: float
    yaw: float = 0.0
    tilt: float = 0.0
    near: float = 0.008
    limit: int = 90
    speed: float = 0.8


Plan = Iterator[Way]


class Expert:
    """Carries out a task's plan; where that ends without success, another from what is then."""

    def __init__(self, see: See, task: str) -> None:
        self._see, self._task = see, task
        self._steps = _steps(see, task)

    def act(self) -> np.ndarray:
        """The next action [7] of the environment (the gripper -1 or 1)."""
        for _ in range(2):
            for action in self._steps:
                return action
            self._steps = _steps(self._see, self._task)
        return np.array([0, 0, 0, 0, 0, 0, OPEN])  # a plan for what is not there has no step


def _steps(see: See, task: str) -> Iterator[np.ndarray]:
    for way in plan(see, task):
        yield from _along(see, way)


def _along(see: See, way: Way) -> Iterator[np.ndarray]:
    """The actions that take the tool along a way: the target is led, the tool follows it."""
    if way.position is None:
        for _ in range(way.limit):
            yield np.array([0, 0, 0, 0, 0, 0, way.gripper])
        return
    angles = np.array([np.pi, -way.tilt, np.pi / 2 + way.yaw])
    for _ in range(way.limit):
        seen = see()
        turn = _slowed(_wrapped(angles - seen.target_angles) / RADIANS, way.speed)
        if np.linalg.norm(seen.tool - way.position) < way.near and np.abs(turn).max() < 0.2:
            return
        move = _slowed((way.position - seen.target) / METRES, way.speed)
        yield np.concatenate([move, turn, [way.gripper]])


def plan(see: See, task: str) -> Plan:
    """The ways of a task of CALVIN's. Raises ValueError for a name that is none."""
    kind, *words = task.split("_")
    if task in ("turn_on_led", "turn_off_led"):
        return _press(see)
    if task in PLANS:
        return PLANS[task](see)
    if kind == "lift" and words[-1] in LIFTS:
        return LIFTS[words[-1]](see, words[0])
    if kind == "rotate":
        return _rotate(see, words[0], 1.0 if words[-1] == "left" else -1.0)
    if kind == "push" and words[-1] in ("left", "right"):
        return _push(see, words[0], 1.0 if words[-1] == "right" else -1.0)
    raise ValueError(f"expected a task of CALVIN's, got {task!r}")


def _rise(see: See, gripper: float) -> Plan:
    """Up to where nothing is in the way; out of the shelf it goes as it came in, leaning."""
    seen = see()
    tilt, yaw = max(0.0, -seen.target_angles[1]), seen.target_angles[2] - np.pi / 2
    at = seen.target
    if at[1] > -0.05 and tilt > 0.2:
        yield Way(at + np.array([0, -0.05, 0.08]), gripper, yaw, tilt, near=0.02, limit=20)
        at = np.array([see().target[0], -0.12, see().target[2]])
    if at[2] < CLEAR - 0.02:
        up = np.array([at[0], at[1], CLEAR])
        yield Way(up, gripper, yaw, tilt, near=0.03, limit=25)


def _free(see: See, gripper: float) -> Plan:
    """Puts down what a task before took, and rises with the fingers as they are: a block may still
    be between them.
    """
    if see().held:
        yield from _put_down(see)
    yield from _rise(see, OPEN if see().fingers > GRASPED else gripper)
    seen = see()
    if abs(_wrapped(seen.target_angles[2] - np.pi / 2)) > TURNED:
        yield Way(np.array([seen.target[0], -0.15, CLEAR]), gripper, near=0.03, limit=40)


def _put_down(see: See) -> Plan:
    """On the table, where it is if that is low, or else where no other block is."""
    seen = see()
    yaw = seen.target_angles[2] - np.pi / 2
    at = seen.position[seen.held[0]]
    if at[2] > ON_BLOCK or at[1] > TABLE_FRONT:
        others = [at for block, at in seen.position.items() if block not in seen.held]
        spots = [np.array([x, -0.11, CLEAR]) for x in (0.05, 0.14, 0.23)]
        spot = max(spots, key=lambda spot: min(abs(other - spot)[0] for other in others))
        yield from _rise(see, CLOSED)
        yield Way(spot, CLOSED, yaw)
        seen = see()
        low = ON_SPOT + seen.target[2] - seen.position[seen.held[0]][2] if seen.held else 0.48
        yield Way(np.array([spot[0], spot[1], low]), CLOSED, yaw, limit=30)
    yield Way(None, OPEN, limit=8)


def _press(see: See) -> Plan:
    above, on = np.array([-0.12, -0.12, 0.56]), np.array([-0.12, -0.12, 0.455])
    yield from _free(see, CLOSED)
    yield Way(above, CLOSED)
    yield Way(on, CLOSED, limit=30)
    yield Way(above, CLOSED)


def _slide(see: See, sign: float) -> Plan:
    """The sliding door by its handle, towards larger x (sign 1) or smaller, up to its stop."""
    yield from _free(see, CLOSED)
    handle, stop = HANDLE - see().slider, HANDLE - (0.0 if sign > 0 else DOOR)
    yield Way(np.array([handle - sign * 0.09, -0.06, CLEAR]), CLOSED, near=0.02)
    yield Way(np.array([handle - sign * 0.08, -0.015, 0.53]), CLOSED)
    yield Way(np.array([stop + sign * 0.03, -0.015, 0.53]), CLOSED, limit=50)
    yield Way(np.array([see().tool[0] - sign * 0.03, -0.1, CLEAR]), CLOSED, near=0.02, limit=30)


def _open_drawer(see: See) -> Plan:
    out = see().drawer
    yield from _free(see, CLOSED)
    yield Way(np.array([DRAWER_X, -0.21 - out, 0.50]), CLOSED, near=0.015)
    yield Way(np.array([DRAWER_X, -0.208 - out, 0.355]), CLOSED)
    yield Way(np.array([DRAWER_X, -0.42 - out, 0.355]), CLOSED, limit=80)


def _close_drawer(see: See) -> Plan:
    out = see().drawer
    yield from _free(see, CLOSED)
    yield Way(np.array([DRAWER_X, -0.32 - out, 0.50]), CLOSED, near=0.02)
    yield Way(np.array([DRAWER_X, -0.31 - out, 0.36]), CLOSED, near=0.015)
    yield Way(np.array([DRAWER_X, -0.26, 0.36]), CLOSED, limit=80)


def _turn_on_lightbulb(see: See) -> Plan:
    yield from _free(see, CLOSED)
    for y, z, near, limit in (
        (-0.14, 0.56, 0.02, 90),
        (-0.06, 0.484, 0.01, 90),
        (0.005, 0.484, 0.01, 30),
        (0.065, 0.60, 0.01, 40),
    ):
        at = np.array([SWITCH_X, y, z])
        yield Way(at, CLOSED, tilt=SWITCH_TILT, near=near, limit=limit)


def _turn_off_lightbulb(see: See) -> Plan:
    yield from _free(see, CLOSED)
    for y, z, near, limit in (
        (-0.04, 0.68, 0.03, 50),
        (0.066, 0.645, 0.012, 40),
        (-0.005, 0.51, 0.008, 60),
    ):
        at = np.array([SWITCH_X, y, z])
        yield Way(at, CLOSED, tilt=SWITCH_TILT, near=near, limit=limit)


def _across(see: See, block: str, turned: float = 0.0) -> float:
    """The yaw at which the fingers take a block: by its narrow sides, or by the others if that
    saves the tool a long turn, where it then turns by `turned`.
    """
    yaw = float(see().angles[block][2]) - np.pi / 2
    quarters = {quarter: _wrapped(yaw + quarter * np.pi / 2) for quarter in range(4)}
    wide = {"red": 0.8, "blue": 0.0, "pink": np.pi}[block]  # rad that the other sides cost
    cost = {q: abs(_wrapped(at + turned / 2)) + wide * (q % 2) for q, at in quarters.items()}
    return float(quarters[min(cost, key=lambda quarter: cost[quarter])])


def _lift(see: See, block: str, above: float, deeper: float, to: float) -> Plan:
    """From above: grasps at the block's centre plus `deeper` and goes up to `to`, m."""
    yield from _free(see, OPEN)
    at, yaw = see().position[block], _across(see, block)
    yield Way(np.array([at[0], at[1], above]), OPEN, yaw)
    yield Way(at + np.array([0, 0, deeper]), OPEN, yaw, near=0.006)
    yield Way(None, CLOSED, limit=12)
    yield Way(np.array([at[0], at[1], to]), CLOSED, yaw, limit=50)


def _lift_table(see: See, block: str) -> Plan:
    return _lift(see, block, 0.56, 0.005, 0.58)


def _lift_drawer(see: See, block: str) -> Plan:
    return _lift(see, block, 0.52, 0.01, 0.52)


def _door_from(see: See, x: float) -> Plan:
    """The sliding door to the side of the shelf where x is not, where it stopped on its way."""
    left = x < SHELF_MIDDLE
    if abs(see().slider - (0.0 if left else DOOR)) > 0.02:
        yield from _slide(see, 1.0 if left else -1.0)


def _lift_slider(see: See, block: str) -> Plan:
    yield from _free(see, OPEN)
    yield from _door_from(see, see().position[block][0])
    at, yaw = see().position[block], _across(see, block)
    yaw = yaw if abs(yaw) > SHELF_YAW else 0.0  # fingers that close turn a block so little
    lean = np.sin(SHELF_TILT)
    back = np.array([np.sin(yaw) * lean, -np.cos(yaw) * lean, np.cos(SHELF_TILT)])
    yield Way(at + 0.16 * back, OPEN, yaw, SHELF_TILT, near=0.015)
    yield Way(at + np.array([0, 0, 0.005]), OPEN, yaw, SHELF_TILT, near=0.006, speed=0.6)
    yield Way(None, CLOSED, limit=12)
    yield Way(at + 0.15 * back, CLOSED, yaw, SHELF_TILT, limit=50, speed=0.5)


def _place_in_slider(see: See) -> Plan:
    free = -0.22 if see().slider < DOOR / 2 else 0.09  # beside the door
    at = np.array([free, 0.085, 0.475])
    back = np.array([0, -np.sin(SHELF_TILT), np.cos(SHELF_TILT)])
    yield from _rise(see, CLOSED)
    yield Way(at + 0.17 * back, CLOSED, tilt=SHELF_TILT, near=0.015)
    yield Way(at, CLOSED, tilt=SHELF_TILT, speed=0.5, limit=50)
    yield Way(None, OPEN, limit=10)
    yield Way(at + 0.17 * back, OPEN, tilt=SHELF_TILT)


def _place_in_drawer(see: See) -> Plan:
    above = np.array([DRAWER_X, -0.09 - see().drawer, 0.55])
    inside = np.array([DRAWER_X, -0.09 - see().drawer, 0.40])
    yield from _rise(see, CLOSED)
    yield Way(above, CLOSED, near=0.015)
    yield Way(inside, CLOSED, near=0.01, speed=0.6)
    yield Way(None, OPEN, limit=10)
    yield Way(above, OPEN)


def _on_table(seen: Scene) -> list[str]:
    """The blocks that lie on the table, and nothing holds."""
    return [
        block
        for block, at in seen.position.items()
        if at[1] < TABLE_FRONT and at[2] > ON_TABLE and block not in seen.held
    ]


def _push_into_drawer(see: See) -> Plan:
    """From behind; a block that would fall beside the drawer is carried into it."""
    yield from _free(see, CLOSED)
    for block in _on_table(see())[:1]:
        x, y, _ = see().position[block]
        if not BEFORE_DRAWER[0] < x < BEFORE_DRAWER[1]:
            yield from _lift_table(see, block)
            yield from _place_in_drawer(see)
            return
        yield Way(np.array([x, y + 0.085, 0.56]), CLOSED, -np.pi / 2, near=0.015)
        yield Way(np.array([x, y + 0.075, 0.475]), CLOSED, -np.pi / 2, near=0.01)
        yield Way(np.array([x, -0.235, 0.475]), CLOSED, -np.pi / 2, speed=0.5, limit=70)
        yield Way(np.array([x, -0.20, 0.56]), CLOSED, -np.pi / 2)
        yield Way(None, CLOSED, limit=5)


def _stack_block(see: See) -> Plan:
    seen = see()
    held = seen.held[0] if seen.held else None
    for under in _on_table(seen)[:1]:
        at, yaw = seen.position[under], seen.target_angles[2] - np.pi / 2
        yield from _rise(see, CLOSED)
        yield Way(np.array([at[0], at[1], CLEAR + 0.03]), CLOSED, yaw)
        seen = see()  # the block hangs otherwise since it came out of the shelf
        off = seen.target - seen.position[held] if held else np.zeros(3)
        on = np.array([at[0] + off[0], at[1] + off[1], at[2] + 0.065])
        yield Way(on, CLOSED, yaw, speed=0.3, near=0.006)
        yield Way(None, OPEN, limit=12)
        yield Way(np.array([on[0], on[1], 0.62]), OPEN, yaw, speed=0.4)


def _unstack_block(see: See) -> Plan:
    yield from _free(see, OPEN)
    position = see().position
    top = max(position, key=lambda block: position[block][2])
    at, yaw = position[top], _across(see, top)
    yield Way(np.array([at[0], at[1], max(CLEAR, at[2] + 0.08)]), OPEN, yaw)
    yield Way(at + np.array([0, 0, 0.01]), OPEN, yaw, near=0.006, speed=0.5)
    yield Way(None, CLOSED, limit=12)
    yield Way(np.array([at[0], at[1], 0.66]), CLOSED, yaw, limit=40)


def _rotate(see: See, block: str, sign: float) -> Plan:
    """Takes a block and turns it, left (sign 1) or right."""
    yield from _free(see, OPEN)
    turn = sign * np.deg2rad(78)
    at, yaw = see().position[block], _across(see, block, turn)
    yield Way(np.array([at[0], at[1], 0.56]), OPEN, yaw)
    yield Way(at + np.array([0, 0, 0.004]), OPEN, yaw, near=0.006)
    yield Way(None, CLOSED, limit=12)
    yield Way(see().target, CLOSED, yaw + turn, speed=0.6, limit=60)
    yield Way(None, CLOSED, limit=8)


def _push(see: See, block: str, sign: float) -> Plan:
    """Pushes a block along x, right (sign 1) or left."""
    yield from _free(see, CLOSED)
    x, y, _ = see().position[block]
    yield Way(np.array([x - sign * 0.09, y, 0.55]), CLOSED)
    yield Way(np.array([x - sign * 0.08, y, 0.475]), CLOSED)
    yield Way(np.array([x + sign * 0.10, y, 0.475]), CLOSED, speed=0.4)


PLANS: dict[str, Callable[[See], Plan]] = {
    "move_slider_left": lambda see: _slide(see, -1.0),
    "move_slider_right": lambda see: _slide(see, 1.0),
    "open_drawer": _open_drawer,
    "close_drawer": _close_drawer,
    "turn_on_lightbulb": _turn_on_lightbulb,
    "turn_off_lightbulb": _turn_off_lightbulb,
    "place_in_slider": _place_in_slider,
    "place_in_drawer": _place_in_drawer,
    "push_into_drawer": _push_into_drawer,
    "stack_block": _stack_block,
    "unstack_block": _unstack_block,
}
LIFTS: dict[str, Callable[[See, str], Plan]] = {
    "table": _lift_table,
    "slider": _lift_slider,
    "drawer": _lift_drawer,
}


def _wrapped(angle: Any) -> Any:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _slowed(numbers: np.ndarray, speed: float) -> np.ndarray:
    """In the same direction, no number larger than `speed`."""
    return numbers * min(1.0, speed / max(1e-9, float(np.abs(numbers).max())))
