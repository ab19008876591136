"""Who shows how it is done in navigation_world.py: from any pose that is on course, to the cup.

What it does depends on the pose alone, so that a demonstration can begin anywhere.
"""

import math

import numpy as np

from data_pipelines.builders.navigation_world import (
    FASTEST,
    RADIUS,
    Box,
    Layout,
    Pose,
    cos_sin,
    gap_squared,
)

SPEED = 0.5  # m/s
CLEAR = RADIUS + 0.17  # from the base's middle to a box that it passes
BEHIND = 0.12  # behind a box the base turns to what comes next
PARTS = np.arange(21) / 20  # where on a straight line it looks for boxes
TURN = 1.5  # rad/s per unit of the sine of the cup's bearing


def act(layout: Layout, pose: Pose) -> tuple[float, float, float]:
    """linear_x, linear_y (m/s) and angular_z (rad/s): straight to the next point of the way at full
    speed, the eyes on the cup.
    """
    ahead, aside = _direction(pose, _next(layout, pose[0], pose[1]))
    cup_ahead, cup_aside = _direction(pose, layout.cup)
    turn = TURN * cup_aside if cup_ahead > 0 else math.copysign(FASTEST[2], cup_aside)
    return SPEED * ahead, SPEED * aside, min(max(turn, -FASTEST[2]), FASTEST[2])


def _direction(pose: Pose, point: tuple[float, float]) -> tuple[float, float]:
    """Forward and left to a point, of length 1."""
    x, y, yaw = pose
    cos, sin = cos_sin(yaw)
    away_x, away_y = point[0] - x, point[1] - y
    length = math.sqrt(away_x * away_x + away_y * away_y) or 1.0
    return (away_x * cos + away_y * sin) / length, (away_y * cos - away_x * sin) / length


def _next(layout: Layout, x: float, y: float) -> tuple[float, float]:
    """Where to go straight from (x, y)."""
    for box, side in zip(layout.boxes, layout.sides, strict=True):
        line = box.y + side * (box.half_y + CLEAR)
        before = box.x - box.half_x - CLEAR, line
        behind = box.x + box.half_x + BEHIND, line
        if x >= behind[0] - 0.02:
            continue
        beside = x > box.x - box.half_x - RADIUS and side * (y - box.y) > box.half_y
        return behind if beside or _free(box, (x, y), behind) else before
    return layout.cup


def _free(box: Box, start: tuple[float, float], end: tuple[float, float]) -> bool:
    """Whether the base gets straight from one point to the other, past the box with some room."""
    x, y = (a + (b - a) * PARTS for a, b in zip(start, end, strict=True))
    room = CLEAR - 0.02
    return bool((gap_squared(box, x, y) >= room * room).all())
