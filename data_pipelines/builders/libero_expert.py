"""Who acts in LIBERO and knows where all is: it picks things up and puts them where they belong.

Solves the tasks of libero_object and libero_spatial. Everything follows from where hand and things
are now, so it goes on when it is pushed and takes what it dropped up again.
"""

from typing import Any

import numpy as np

from data_pipelines.builders.libero_world import World

SUITES = ("libero_object", "libero_spatial")
REACH = 0.05  # m: an action's 1
TURN = 0.5  # rad: an action's 1
GAIN = 1.5  # the arm gets behind its goal
OPENING = 0.072  # m: what is wider is taken at its rim
FINGERS = 0.028  # m: how deep things get between the fingers
RIM, DEPTH = 0.006, 0.02  # m: how thick a rim is taken for, how far below it is taken
ABOVE = 0.06  # m: over what is to be taken, or is passed by
STILL = 0.0003  # m: fingers that move less in a step have closed
CLOSED = 0.001  # m: fingers that are nearer to each other hold nothing
# The hand as boxes, m: middle and half sizes across, along the fingers' motion and upwards, from
# the point between the fingertips. What is above them is to be free too: it comes from there.
HAND = (
    ((0.0, 0.0, 0.14), (0.03, 0.105, 0.10)),
    ((0.0, 0.048, 0.07), (0.01, 0.014, 0.08)),
    ((0.0, -0.048, 0.07), (0.01, 0.014, 0.08)),
)
_UNIT = np.stack(np.meshgrid(*[np.linspace(-1.0, 1.0, 7)] * 3), -1).reshape(-1, 3)
POINTS = np.concatenate([np.array(middle) + _UNIT * half for middle, half in HAND])
FREE = (0.004, 0.0)  # m: between the hand and anything else, at first and if there is no such room
YAWS = (0, 15, -15, 30, -30, 45, -45, 60, -60, 75, -75, 90)  # degrees, the first with room


class Boxes:
    """What bodies are made of that touches, n boxes."""

    def __init__(self, world: World, bodies: set[int]) -> None:
        sim = world.environment.sim
        model, self._data = sim.model._model, sim.data._data
        touches = model.geom_group == 0  # group 1 is what is seen
        of = np.isin(model.geom_bodyid, list(bodies)) & touches
        self._ids = np.flatnonzero(of & (model.geom_size.min(1) > 0))
        self._sizes = model.geom_size[self._ids]

    def reaches(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest x, y, z (m)."""
        middles, turns = self._data.geom_xpos[self._ids], self._turns()
        half = (np.abs(turns) * self._sizes[:, None]).sum(-1)
        return (middles - half).min(0), (middles + half).max(0)

    def hold(self, points: np.ndarray, margin: float) -> bool:
        """Is one of the points [m 3] in one of them, or nearer than the margin (m)?"""
        away = points[:, None] - self._data.geom_xpos[self._ids]
        inside = np.einsum("mni,nij->mnj", away, self._turns())
        return bool((np.abs(inside) < self._sizes + margin).all(-1).any())

    def _turns(self) -> np.ndarray:
        found: np.ndarray = self._data.geom_xmat[self._ids].reshape(-1, 3, 3)
        return found


class Expert:
    """For one episode of a world.

    Attributes:
        tries: how often it began to take the thing.
    """

    def __init__(self, world: World) -> None:
        """Raises ValueError for a task that it does not know how to solve."""
        if world.suite not in SUITES:
            raise ValueError(
                f"the expert of LIBERO: expected a task of {' or '.join(SUITES)}, got"
                f" {world.suite}'s {world.task}, which it does not know how to solve"
            )
        domain = world.environment.env
        _, thing, where = domain.parsed_problem["goal_state"][0]
        site = domain.object_sites_dict.get(where)
        model, bodies = domain.sim.model._model, domain.obj_body_id
        robot = domain.robots[0].robot_model.root_body
        mine, its = (_below(model, {bodies[thing]}), _below(model, {model.body(robot).id}))
        self._world, self._inside = world, site is not None
        self._thing = Boxes(world, mine)
        self._target = Boxes(world, _below(model, {bodies[site.parent_name if site else where]}))
        self._rest = Boxes(world, set(range(model.nbody)) - mine - its)
        self.tries, self._lifted = 0, 0.0
        self._plan()

    def act(self) -> np.ndarray:
        """The next action [7], as LIBERO takes it. To be called once a step."""
        place, turn, fingers = self._world.hand()
        goal, gripper = self._closed(place, fingers) if self._closing else self._open(place)
        moved = np.clip(GAIN * (goal - place) / REACH, -1.0, 1.0)
        turned = _turned(turn, self._yaw) / TURN
        return np.concatenate([moved, np.clip(turned, -0.5, 0.5), [gripper]])

    def _plan(self) -> None:
        """Chooses how the hand is turned, and where it takes the thing from the middle of."""
        self._closing, self._fingers = 0, np.zeros(2)
        low, high = self._thing.reaches()
        wide = high[1] - low[1]
        if wide <= OPENING:
            height = max((low[2] + high[2]) / 2, high[2] - FINGERS) - high[2]
            self._yaw, self._offset = 0.0, np.array([0.0, 0.0, height])
            return
        ways = []
        for yaw in np.deg2rad(YAWS):
            along = np.array([-np.sin(yaw), np.cos(yaw), 0.0]) * (wide / 2 - RIM)
            ways += [(yaw, side * along - [0.0, 0.0, DEPTH]) for side in (1.0, -1.0)]
        for free in FREE:
            room = [way for way in ways if not self._rest.hold(self._hand(*way), free)]
            if room:
                break
        self._yaw, self._offset = (room or ways)[self.tries % len(room or ways)]

    def _hand(self, yaw: float, offset: np.ndarray) -> np.ndarray:
        """Points [m 3] in and on the hand where it is to close."""
        c, s = np.cos(yaw), np.sin(yaw)
        turned: np.ndarray = POINTS @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
        return turned + self._grip(offset)

    def _grip(self, offset: np.ndarray) -> np.ndarray:
        """Where the fingers are to close."""
        low, high = self._thing.reaches()
        return np.array([*(low + high)[:2] / 2, high[2]]) + offset

    def _open(self, place: np.ndarray) -> tuple[np.ndarray, float]:
        """Where the open hand goes: up, over the thing, down; then it closes."""
        grip, top = self._grip(self._offset), self._thing.reaches()[1][2]
        aside = np.linalg.norm(place[:2] - grip[:2])
        if aside > 0.03 or (aside > 0.01 and place[2] > top):
            if place[2] < top + ABOVE / 2:
                return np.array([*place[:2], top + ABOVE]), -1.0
            return np.array([*grip[:2], max(place[2], top + ABOVE)]), -1.0
        if place[2] - grip[2] < 0.006:
            self._closing = 1
        return grip, -1.0

    def _closed(self, place: np.ndarray, fingers: np.ndarray) -> tuple[np.ndarray, float]:
        """Where the closed hand goes, and 1, or -1 where it opens."""
        self._closing += 1
        low, high = self._thing.reaches()
        moving = np.abs(fingers - self._fingers).max() > STILL
        self._fingers = fingers.copy()
        if self._lifted == 0.0:
            if self._closing > 5 and not moving:
                self._lifted = low[2] + ABOVE
            return place, 1.0
        apart = np.linalg.norm(place - self._grip(self._offset))
        if apart > 0.04 or fingers[0] - fingers[1] < CLOSED:
            self.tries, self._lifted = self.tries + 1, 0.0
            self._plan()
            return place, -1.0
        return self._carried(place, low, high)

    def _carried(
        self, place: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Up, over the target, down, and open."""
        base, rim = self._target.reaches()
        off = ((base + rim) - (low + high))[:2] / 2
        if np.linalg.norm(off) > 0.015:
            up = max(self._lifted, rim[2] + 0.03) - low[2]
            across = off if up < 0.02 else np.zeros(2)
            return place + np.append(across, up), 1.0
        down = low[2] - (base[2] if self._inside else rim[2])
        if self._inside:  # the hand stays out
            down = min(down, place[2] - rim[2])
        return (place + np.append(off, -down), 1.0) if down > 0.01 else (place, -1.0)


def _below(model: Any, bodies: set[int]) -> set[int]:
    """These bodies and all that hang on them."""
    found = set(bodies)
    for body in range(model.nbody):  # parents come first
        if model.body_parentid[body] in found and body > 0:
            found.add(body)
    return found


def _turned(turn: np.ndarray, yaw: float) -> np.ndarray:
    """Axis times angle [3] (rad) that takes the hand from its turn (x y z w) to where it points
    down and its fingers are beside each other along y, turned by the yaw.
    """
    goal = np.array([np.cos(yaw / 2), np.sin(yaw / 2), 0.0, 0.0])
    (a, b), (x, y, z, w) = goal[:2], turn * [-1.0, -1.0, -1.0, 1.0]
    # The goal times the inverse of the turn.
    found = np.array([a * w + b * z, b * w - a * z, a * y - b * x, -a * x - b * y])
    found = found if found[3] >= 0.0 else -found
    length = float(np.linalg.norm(found[:3]))
    angle = 2.0 * np.arctan2(length, found[3])
    turned: np.ndarray = found[:3] * (angle / length if length > 1e-9 else 0.0)
    return turned
