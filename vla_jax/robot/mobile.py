"""Arm actions for a mobile base: (x y z roll pitch yaw gripper) to (linear_x linear_y angular_z).
For policies of an arm; a policy may as well be trained on a base's own commands. navigation.py has
the instructions of its tasks.

Two mappings, because the document that asks for one states two that contradict each other (its
section 9.1):

| | `snippet`: its code | `table`: its table |
|---|---|---|
| linear_x | length of (x, y) | position: we take x, its forward part |
| linear_y | y | rotation: we take yaw, the one a base has |
| angular_z | yaw | gripper, 1 = open |

`snippet` is the default: its numbers keep their kind (m stay m, rad stay rad), while the table
turns an angle into a sideways motion and lets an open gripper turn the robot on the spot. It has
two faults of its own. The length is never negative, so that the base cannot reverse; `signed=True`
gives it the sign of x. And y counts twice: a step to the side (0, y) drives forward by |y| too. For
a base that is to go where the action points, use neither but (x, y, yaw).

numpy and the standard library only.
"""

from typing import Literal

import numpy as np

Mapping = Literal["snippet", "table"]
ARM = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
BASE = ("linear_x", "linear_y", "angular_z")
X, Y, YAW, GRIPPER = (ARM.index(name) for name in ("x", "y", "yaw", "gripper"))
# Dims that a mapping does not read: their values are lost.
LOST = {"snippet": ("z", "roll", "pitch", "gripper"), "table": ("y", "z", "roll", "pitch")}


def to_base(action: np.ndarray, mapping: Mapping = "snippet", signed: bool = False) -> np.ndarray:
    """Actions [... d] of ARM as base motions [... b] of BASE, in the units of the action: m and rad
    per step stay per step.

    Multiply by the control rate for velocities. `signed` lets `snippet` reverse where x < 0;
    `table` always can. Raises ValueError for another width, a number that is not finite, an unknown
    mapping, or `signed` with `table`.
    """
    _check(action, "action", ARM, mapping, signed)
    if mapping == "table":
        return np.stack([action[..., X], action[..., YAW], action[..., GRIPPER]], -1)
    length = np.hypot(action[..., X], action[..., Y])
    forward = np.where(action[..., X] < 0, -length, length) if signed else length
    return np.stack([forward, action[..., Y], action[..., YAW]], -1)


def from_base(base: np.ndarray, mapping: Mapping = "snippet", signed: bool = False) -> np.ndarray:
    """Base motions [... b] of BASE as actions [... d] of ARM that `to_base` maps onto; the dims
    of LOST come back as 0.

    With `table`, and with `snippet` when signed, the other dims are those that went in (x up to
    rounding; where it was much smaller than y it is lost to that). Without `signed` the sign of x
    is lost: it comes back as x >= 0. Raises ValueError as `to_base` does, and where `snippet` has
    no such action: |linear_x| < |linear_y|, or linear_x < 0 unsigned.
    """
    _check(base, "base motion", BASE, mapping, signed)
    action = np.zeros((*base.shape[:-1], len(ARM)), base.dtype)
    forward, side, turn = base[..., 0], base[..., 1], base[..., 2]
    if mapping == "table":
        action[..., X], action[..., YAW], action[..., GRIPPER] = forward, side, turn
        return action
    if (abs(forward) < abs(side)).any() or (not signed and (forward < 0).any()):
        raise ValueError(
            "from_base: expected |linear_x| >= |linear_y|, and linear_x >= 0 unless signed,"
            " because linear_x is the length of (x, y) in the snippet's mapping, got"
            f" {base.tolist()}; use mapping='table' or other motions"
        )
    # Not sqrt(f^2 - s^2), which under- and overflows.
    rest = np.sqrt(abs(forward) - abs(side)) * np.sqrt(abs(forward) + abs(side))
    # At least the smallest number, so that a motion in reverse stays one.
    action[..., X] = np.where(forward < 0, -np.maximum(rest, np.finfo(base.dtype).tiny), rest)
    action[..., Y], action[..., YAW] = side, turn
    return action


def _check(
    values: np.ndarray, what: str, names: tuple[str, ...], mapping: str, signed: bool
) -> None:
    if mapping not in LOST:
        raise ValueError(
            f"mobile: expected the mapping snippet or table, got {mapping!r}; see this file's head"
        )
    if signed and mapping == "table":
        raise ValueError(
            "mobile: expected signed with the snippet's mapping only, got it with table, which is"
            " signed"
        )
    if values.shape[-1:] != (len(names),) or values.dtype.kind != "f":
        raise ValueError(
            f"{what}: expected floats with {len(names)} numbers last ({' '.join(names)}), got"
            f" {values.dtype} {values.shape}; pass what the policy returns"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"{what}: expected finite numbers, got {values.tolist()}; pass it through the"
            " safety filter first"
        )
