"""Who knows CALVIN's scene D: what to do next in each of its 34 tasks, from what is where now.

Nothing is remembered: the same scene gives the same action, whatever was before, so that whoever
imitates the expert from single frames can, and so that it knows what to do wherever a policy gets
to. A tool comes to where it acts through a funnel: the farther it is off the axis of its goal, the
farther up the axis it is led, and what is in the way is passed above.

The tool hangs down with its fingers apart along x; its yaw is counted from there, and `tilt` leans
it towards the robot, as the shelf and the switch need it.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders.calvin_world import GRASPED, METRES, RADIANS, Scene

OPEN, CLOSED = 1.0, -1.0
FAST, SLOW = 0.8, 0.4  # of 1, as the environment counts, in every number
GAIN = 0.4  # of what is missing, done in a step: the tool follows a step behind
CLEAR = 0.60  # m: above everything but what the tool holds
TOP = 0.72  # m: higher than anything has to be lifted
TABLE_FRONT = 0.0  # m: blocks with smaller y lie before the shelf
ON_TABLE = 0.44  # m: centres of blocks on the table are higher, in the drawer lower
ON_BLOCK, ON_SPOT = 0.475, 0.465  # m: of blocks that lie on others are higher; of one put down
CLOSED_ON = 0.06  # m: fingers that are nearer than that hold what they touch
SHELF_TILT, SWITCH_TILT = 0.45, 0.75  # rad
SHELF_YAW = 0.4  # rad
SWITCH_X, DRAWER_X = 0.30, 0.18  # m
BEFORE_DRAWER = (0.0, 0.3)  # m: blocks at these x fall into the drawer
HANDLE, DOOR = 0.04, 0.28  # m: where the sliding door's handle is, and how far left it goes
SHELF_MIDDLE = -0.08  # m
# A funnel: m off its axis where it is open to the goal, and from where on only above its top; what
# a turn that is missing counts, m for 1 rad.
NECK, RIM, TURN = 0.005, 0.03, 0.06
UP = np.array([0.0, 0.0, 1.0])
OUT = np.array([0.0, -0.53, 0.85])  # of the shelf, leaning

See = Callable[[], Scene]


class Aim(NamedTuple):
    """Where the tool is to be led now.

    Attributes:
        position: m.
        gripper: OPEN or CLOSED.
        yaw: rad from where the fingers are apart along x; None: as it is.
        tilt: rad.
        speed: of 1, at most, in every number.
    """

    position: np.ndarray
    gripper: float
    yaw: float | None = None
    tilt: float = 0.0
    speed: float = FAST


class Goal(NamedTuple):
    """Where the tool is to act, and how it comes there: along `axis`, from `length` m away."""

    position: np.ndarray
    gripper: float
    yaw: float = 0.0
    tilt: float = 0.0
    axis: np.ndarray = UP
    length: float = 0.1
    speed: float = FAST


class Expert:
    """What it does in a task."""

    def __init__(self, see: See, task: str) -> None:
        """Raises ValueError for a task that is none of CALVIN's."""
        self._see, self._rule = see, rule(task)

    def act(self) -> np.ndarray:
        """The next action [7] of the environment (the gripper -1 or 1)."""
        seen = self._see()
        aim = self._rule(seen)
        angles = seen.tool_angles
        if aim.yaw is not None:
            angles = _angles(aim.yaw, aim.tilt)
        turn = GAIN * _wrapped(angles - seen.tool_angles) / RADIANS
        move = GAIN * (aim.position - seen.tool) / METRES
        return np.concatenate([_slowed(move, aim.speed), _slowed(turn, FAST), [aim.gripper]])


Rule = Callable[[Scene], Aim]


def rule(task: str) -> Rule:
    """What a task's next step follows from. Raises ValueError for a name that is none."""
    kind, *words = task.split("_")
    if task in RULES:
        return RULES[task]
    if kind == "lift" and words[-1] in LIFTS:
        lift = LIFTS[words[-1]]
        return lambda seen: lift(seen, words[0])
    if kind == "rotate":
        return lambda seen: _rotate(seen, words[0], 1.0 if words[-1] == "left" else -1.0)
    if kind == "push" and words[-1] in ("left", "right"):
        return lambda seen: _push(seen, words[0], 1.0 if words[-1] == "right" else -1.0)
    raise ValueError(f"expected a task of CALVIN's, got {task!r}")


# ------------------------------------------------------------------------------------------- ways


def _to(seen: Scene, goal: Goal) -> Aim:
    """Through the goal's funnel: above what is in the way, then along the axis."""
    off = seen.tool - goal.position
    along = float(off @ goal.axis)
    beside = off - along * goal.axis
    missing = float(np.linalg.norm(beside)) + TURN * max(0.0, _turn(seen, goal) - 0.05)
    top = goal.position + goal.length * goal.axis
    if missing < RIM or (missing < 2 * RIM and along > 0.9 * goal.length):
        height = goal.length * float(np.clip((missing - NECK) / (RIM - NECK), 0.0, 1.0))
        ready = float(np.clip(1.0 - (height - along - 0.02) / 0.03, 0.0, 1.0))
        at = goal.position + height * goal.axis + (1.0 - ready) * beside
        return Aim(at, goal.gripper, goal.yaw, goal.tilt, goal.speed)
    if seen.tool[1] > -0.06 and seen.tool[2] < CLEAR - 0.02 and _tilt(seen) > 0.2:
        return Aim(seen.tool + 0.06 * OUT, goal.gripper)
    away = float(np.linalg.norm((top - seen.tool)[:2]))
    high = min(max(CLEAR, top[2]), top[2] + max(0.0, away - RIM))
    if seen.held:
        high = max(high, top[2])
    ready = float(np.clip(1.0 - (high - seen.tool[2] - 0.015) / 0.03, 0.0, 1.0))
    at = seen.tool + ready * (top - seen.tool)
    at[2] = high
    if ready == 0.0:
        return Aim(at, goal.gripper)
    return Aim(at, goal.gripper, goal.yaw, goal.tilt)


def _there(seen: Scene, goal: Goal, near: float = 0.01) -> bool:
    """Whether the tool is where it acts, and turned as it has to be."""
    return bool(np.linalg.norm(seen.tool - goal.position) < near) and _turn(seen, goal) < 0.15


def _turn(seen: Scene, goal: Goal) -> float:
    return float(np.abs(_wrapped(_angles(goal.yaw, goal.tilt) - seen.tool_angles)).max())


def _angles(yaw: float, tilt: float) -> np.ndarray:
    """The tool's, as the simulator counts them [3]."""
    return np.array([np.pi, -tilt, np.pi / 2 + yaw])


def _tilt(seen: Scene) -> float:
    return -float(seen.tool_angles[1])


def _yaw(seen: Scene) -> float:
    return float(_wrapped(seen.tool_angles[2] - np.pi / 2))


def _holds(seen: Scene) -> str:
    """The block that the fingers have closed on; "" for none."""
    return seen.held[0] if seen.held and seen.fingers < CLOSED_ON else ""


def _fist(seen: Scene) -> float:
    """Closed, but not on a block."""
    between = any(np.linalg.norm(at - seen.tool) < 0.035 for at in seen.position.values())
    return OPEN if between else CLOSED


def _up(seen: Scene, gripper: float) -> Aim:
    """Straight up, but not out of the scene."""
    x, y, z = seen.tool
    return Aim(np.array([x, y, min(z + 0.05, TOP)]), gripper)


def _take(seen: Scene, goal: Goal) -> Aim:
    """Closes the fingers where the goal is; those that closed on nothing open on their way up."""
    if seen.fingers < GRASPED and np.linalg.norm(seen.tool - goal.position) < 0.03:
        return Aim(seen.tool + 0.05 * goal.axis, OPEN)
    if _there(seen, goal):
        return Aim(goal.position, CLOSED, goal.yaw, goal.tilt)
    return _to(seen, goal)


def _free(seen: Scene) -> Aim | None:
    """Puts down what a task before took: on the table, where it is if that is low, or else where no
    other block is. None where the fingers hold nothing.
    """
    held = _holds(seen)
    if not held:
        return None
    at = seen.position[held]
    if at[2] < ON_BLOCK and at[1] < TABLE_FRONT:
        return Aim(seen.tool, OPEN)
    others = [at for block, at in seen.position.items() if block != held]
    spots = [np.array([x, -0.11, 0.0]) for x in (0.05, 0.14, 0.23)]
    spot = max(spots, key=lambda spot: min(abs(other - spot)[0] for other in others))
    spot[2] = ON_SPOT + seen.tool[2] - at[2]
    return _to(seen, Goal(spot, CLOSED, _yaw(seen)))


# ------------------------------------------------------------------------- door, drawer and lights


def _press(seen: Scene) -> Aim:
    goal = Goal(np.array([-0.12, -0.12, 0.455]), _fist(seen))
    return _free(seen) or _to(seen, goal)


def _slide(seen: Scene, sign: float) -> Aim:
    """The sliding door by its handle, towards larger x (sign 1) or smaller, up to its stop."""
    handle, stop = HANDLE - seen.slider, HANDLE - (0.0 if sign > 0 else DOOR)
    beside = np.array([handle - sign * 0.08, -0.015, 0.53])
    off = seen.tool - np.array([handle, -0.015, 0.53])
    if np.abs(off[1:]).max() < 0.02 and -0.13 < sign * off[0] < 0.0 and not _holds(seen):
        return Aim(np.array([stop + sign * 0.03, -0.015, 0.53]), CLOSED, 0.0)
    axis = np.array([-sign * 0.1, -0.53, 0.84])
    goal = Goal(beside, _fist(seen), axis=axis / np.linalg.norm(axis), length=0.08)
    return _free(seen) or _to(seen, goal)


def _open_drawer(seen: Scene) -> Aim:
    inside = np.array([DRAWER_X, -0.208 - seen.drawer, 0.355])
    off = np.abs(seen.tool - inside)
    if off[0] < 0.02 and off[1] < 0.03 and off[2] < 0.02 and not _holds(seen):
        return Aim(np.array([DRAWER_X, seen.tool[1] - 0.06, 0.355]), CLOSED, 0.0)
    return _free(seen) or _to(seen, Goal(inside, _fist(seen), length=0.145))


def _close_drawer(seen: Scene) -> Aim:
    before = np.array([DRAWER_X, -0.31 - seen.drawer, 0.36])
    off = seen.tool - before
    if abs(off[0]) < 0.02 and abs(off[2]) < 0.02 and -0.04 < off[1] < 0.09 and not _holds(seen):
        return Aim(np.array([DRAWER_X, seen.tool[1] + 0.06, 0.36]), CLOSED, 0.0)
    return _free(seen) or _to(seen, Goal(before, _fist(seen), length=0.14))


def _turn_on_lightbulb(seen: Scene) -> Aim:
    """In front of the switch, against it, then up over it."""
    before, against, over = (
        np.array([SWITCH_X, y, z]) for y, z in ((-0.06, 0.484), (0.005, 0.484), (0.065, 0.60))
    )
    goal = _of_way(seen, (np.array([SWITCH_X, -0.14, 0.56]), before, against, over))
    return _free(seen) or goal


def _turn_off_lightbulb(seen: Scene) -> Aim:
    """Over the switch, behind it, then down."""
    ways = tuple(
        np.array([SWITCH_X, y, z]) for y, z in ((-0.04, 0.68), (0.066, 0.645), (-0.005, 0.51))
    )
    return _free(seen) or _of_way(seen, ways)


def _of_way(seen: Scene, points: tuple[np.ndarray, ...]) -> Aim:
    """Along a line of points at the switch: to the end of the last stretch that the tool is on, or
    to the first through a funnel.
    """
    for begin, end in list(itertools.pairwise(points[1:]))[::-1]:
        way = end - begin
        length = float(np.linalg.norm(way))
        share = float((seen.tool - begin) @ way) / length**2
        beside = np.linalg.norm(seen.tool - begin - share * way)
        tilted = abs(_tilt(seen) - SWITCH_TILT) < 0.2
        if beside < 0.018 and -0.012 / length < share and tilted:
            return Aim(end + 0.02 * way / length, CLOSED, 0.0, SWITCH_TILT)
    axis = points[0] - points[1]
    length = float(np.linalg.norm(axis))
    goal = Goal(points[1], _fist(seen), 0.0, SWITCH_TILT, axis / length, length)
    return _to(seen, goal)


# ----------------------------------------------------------------------------------------- blocks


def _across(seen: Scene, block: str, turned: float = 0.0) -> float:
    """The yaw at which the fingers take a block: by its narrow sides, or by the others if that
    saves the tool a long turn, where it then turns by `turned`.
    """
    yaw = float(seen.angles[block][2]) - np.pi / 2
    quarters = {quarter: _wrapped(yaw + quarter * np.pi / 2) for quarter in range(4)}
    wide = {"red": 0.8, "blue": 0.0, "pink": np.pi}[block]  # rad that the other sides cost
    cost = {q: abs(_wrapped(at + turned / 2)) + wide * (q % 2) for q, at in quarters.items()}
    return float(quarters[min(cost, key=lambda quarter: cost[quarter])])


def _lift(seen: Scene, block: str, deeper: float, length: float) -> Aim:
    """From above: grasps at the block's centre plus `deeper` and goes up."""
    if _holds(seen) == block:
        return _up(seen, CLOSED)
    goal = Goal(seen.position[block] + deeper * UP, OPEN, _across(seen, block), length=length)
    return _free(seen) or _take(seen, goal)


def _lift_table(seen: Scene, block: str) -> Aim:
    return _lift(seen, block, 0.005, 0.09)


def _lift_drawer(seen: Scene, block: str) -> Aim:
    return _lift(seen, block, 0.01, 0.13)


def _back(yaw: float) -> np.ndarray:
    """Out of the shelf along the leaning tool."""
    lean = np.sin(SHELF_TILT)
    return np.array([np.sin(yaw) * lean, -np.cos(yaw) * lean, np.cos(SHELF_TILT)])


def _lift_slider(seen: Scene, block: str) -> Aim:
    at, held = seen.position[block], _holds(seen)
    if held == block:
        return Aim(seen.tool + 0.05 * _back(_yaw(seen)), CLOSED, speed=0.5)
    left = at[0] < SHELF_MIDDLE  # the door has to be on the other side
    if not held and abs(seen.slider - (0.0 if left else DOOR)) > 0.02:
        return _slide(seen, 1.0 if left else -1.0)
    yaw = _across(seen, block)
    yaw = yaw if abs(yaw) > SHELF_YAW else 0.0  # fingers that close turn a block so little
    goal = Goal(at + 0.005 * UP, OPEN, yaw, SHELF_TILT, _back(yaw), 0.16, 0.6)
    return _free(seen) or _take(seen, goal)


def _place(seen: Scene, goal: Goal, near: float = 0.015) -> Aim:
    """Opens the fingers where the goal is, and goes back."""
    if not _holds(seen):
        return Aim(seen.tool + 0.05 * goal.axis, OPEN)
    if _there(seen, goal, near):
        return Aim(seen.tool, OPEN)
    return _to(seen, goal)


def _place_in_slider(seen: Scene) -> Aim:
    free = -0.22 if seen.slider < DOOR / 2 else 0.09  # beside the door
    held = _holds(seen)
    deep = seen.tool[2] - seen.position[held][2] if held else 0.0
    at = np.array([free, 0.085, ON_SPOT + max(0.01, deep)])
    return _place(seen, Goal(at, CLOSED, 0.0, SHELF_TILT, _back(0.0), 0.17, 0.5))


def _place_in_drawer(seen: Scene) -> Aim:
    inside = np.array([DRAWER_X, -0.09 - seen.drawer, 0.40])
    return _place(seen, Goal(inside, CLOSED, length=0.15, speed=0.6))


def _on_table(seen: Scene) -> list[str]:
    """The blocks that lie on the table, and nothing holds."""
    return [
        block
        for block, at in seen.position.items()
        if at[1] < TABLE_FRONT and at[2] > ON_TABLE and block != _holds(seen)
    ]


def _push_into_drawer(seen: Scene) -> Aim:
    """From behind; a block that would fall beside the drawer is carried into it."""
    if _holds(seen):
        return _place_in_drawer(seen)
    for block in _on_table(seen)[:1]:
        x, y, _ = seen.position[block]
        if not BEFORE_DRAWER[0] < x < BEFORE_DRAWER[1]:
            return _lift_table(seen, block)
        off = seen.tool - np.array([x, y, 0.475])
        if abs(off[0]) < 0.025 and abs(off[2]) < 0.02 and 0.03 < off[1] < 0.11:
            return Aim(seen.tool * UP + np.array([x, seen.tool[1] - 0.03, 0]), CLOSED, -np.pi / 2,
                       speed=0.5)  # fmt: skip
        return _to(seen, Goal(np.array([x, y + 0.075, 0.475]), _fist(seen), -np.pi / 2))
    return _up(seen, CLOSED)


def _stack_block(seen: Scene) -> Aim:
    held = _holds(seen)
    for under in _on_table(seen)[:1] if held else ():
        at, off = seen.position[under], seen.tool - seen.position[held]
        on = np.array([at[0] + off[0], at[1] + off[1], at[2] + 0.06 + off[2]])
        goal = Goal(on, CLOSED, _yaw(seen), length=0.1, speed=SLOW)
        return _place(seen, goal, 0.008)
    return _up(seen, OPEN)


def _unstack_block(seen: Scene) -> Aim:
    position = seen.position
    if _holds(seen):
        return _up(seen, CLOSED)
    top = max(position, key=lambda block: position[block][2])
    goal = Goal(position[top] + 0.01 * UP, OPEN, _across(seen, top), speed=0.5)
    return _take(seen, goal)


def _rotate(seen: Scene, block: str, sign: float) -> Aim:
    """Takes a block and turns it, left (sign 1) or right."""
    if _holds(seen) == block:
        return Aim(seen.tool, CLOSED, _yaw(seen) + sign * 0.12)
    yaw = _across(seen, block, sign * np.deg2rad(78))
    return _free(seen) or _take(seen, Goal(seen.position[block] + 0.004 * UP, OPEN, yaw))


def _push(seen: Scene, block: str, sign: float) -> Aim:
    """Pushes a block along x, right (sign 1) or left."""
    at = seen.position[block]
    off = seen.tool - np.array([at[0], at[1], 0.475])
    if np.abs(off[1:]).max() < 0.02 and -0.13 < sign * off[0] < -0.03 and not _holds(seen):
        return Aim(np.array([seen.tool[0] + sign * 0.03, at[1], 0.475]), CLOSED, 0.0, speed=SLOW)
    beside = np.array([at[0] - sign * 0.085, at[1], 0.475])
    return _free(seen) or _to(seen, Goal(beside, _fist(seen), length=0.08))


RULES: dict[str, Rule] = {
    "move_slider_left": lambda seen: _slide(seen, -1.0),
    "move_slider_right": lambda seen: _slide(seen, 1.0),
    "open_drawer": _open_drawer,
    "close_drawer": _close_drawer,
    "turn_on_lightbulb": _turn_on_lightbulb,
    "turn_off_lightbulb": _turn_off_lightbulb,
    "turn_on_led": _press,
    "turn_off_led": _press,
    "place_in_slider": _place_in_slider,
    "place_in_drawer": _place_in_drawer,
    "push_into_drawer": _push_into_drawer,
    "stack_block": _stack_block,
    "unstack_block": _unstack_block,
}
LIFTS: dict[str, Callable[[Scene, str], Aim]] = {
    "table": _lift_table,
    "slider": _lift_slider,
    "drawer": _lift_drawer,
}


def _wrapped(angle: Any) -> Any:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _slowed(numbers: np.ndarray, speed: float) -> np.ndarray:
    """In the same direction, no number larger than `speed`."""
    return numbers * min(1.0, speed / max(1e-9, float(np.abs(numbers).max())))
