"""Who shows how it is done in blocks_world.py: from anything that is not yet decided, to the end.

What it does depends on where the hand and the block are, so that a demonstration can begin
anywhere.
"""

import math

from data_pipelines.builders.blocks_world import (
    CEILING,
    FASTEST,
    HALF_BLOCK,
    HALF_HAND,
    HEIGHT,
    Task,
    World,
)

LOW = 0.02  # the hand's height when it pushes
GAP = 0.04  # between the hand and the block where it comes down
SLOPE = 1.5  # it comes down along a cone: so much higher for each table width from there
SPEED, PUSH = 0.08, 0.06  # table widths a step, in the air and pushing
AHEAD = HALF_BLOCK + HALF_HAND  # from middle to middle where the hand touches the block
LANE = 0.07  # as far aside it still pushes rather than comes down anew
YAW = {"left": 0.2, "right": -0.2, "up": 0.1, "down": -0.1}  # radians a step of coming down


def act(world: World, task: Task | None = None) -> tuple[float, ...]:
    """x, y, z, roll, pitch, yaw and gripper: over the table to the side of the block from which to
    push, down beside it, and on. `task`: another one than the world's.
    """
    task = task or world.task
    (way_x, way_y), block = task.way, world.blocks[task.block]
    x, y, z = world.pose[:3]
    behind = (block[0] - x) * way_x + (block[1] - y) * way_y
    aside_x = (block[0] - x) * (1.0 - abs(way_x))
    aside_y = (block[1] - y) * (1.0 - abs(way_y))
    aside = abs(aside_x + aside_y)
    in_lane = aside < LANE and AHEAD - 0.01 < behind < AHEAD + 3 * GAP
    if in_lane and z < LOW + 0.015:
        return PUSH * way_x + aside_x, PUSH * way_y + aside_y, LOW - z, 0.0, 0.0, 0.0, 0.0
    place_x, place_y = block[0] - (AHEAD + GAP) * way_x, block[1] - (AHEAD + GAP) * way_y
    off_x, off_y = place_x - x, place_y - y
    away = math.sqrt(off_x * off_x + off_y * off_y)
    if z < min(HEIGHT + 0.01, LOW + SLOPE * away) - 0.02:
        step = 0.0  # up first: there may be blocks in between
    else:
        step = min(1.0, SPEED / away) if away > 0 else 0.0
    rest = away * (1.0 - step)
    rise = min(CEILING, LOW + SLOPE * rest) - z
    rise = min(max(rise, -FASTEST[2]), FASTEST[2])
    turn = min(-rise / FASTEST[2], 1.0) * YAW[task.direction]
    return off_x * step, off_y * step, rise, 0.0, 0.0, turn, 1.0
