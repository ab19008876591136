"""Rotations as the field writes them, each from and to each, and how far one is from another.

    euler       roll, pitch, yaw in radians, of Rz(yaw) Ry(pitch) Rx(roll): about the fixed axes x,
                y, z in this order, as URDF and TF's RPY have it; the pitch is in [-pi/2, pi/2]. At
                a pitch of +-pi/2 only the sum or difference of the others has a meaning: the roll
                is 0 there
    quat_xyzw   a unit quaternion (Hamilton's), w last, as ROS, SciPy and PyBullet have it
    quat_wxyz   the same, w first, as MuJoCo has it. Of q and -q, which are one rotation, the one
                with w >= 0; with w = 0, the one whose first number that is not 0 is above it
    rot6d       the first two columns of the matrix, one after the other (Zhou et al. 2019, On the
                Continuity of Rotation Representations in Neural Networks, arXiv 1812.07035): what
                is read as such need not be orthonormal, Gram-Schmidt makes it so, the first column
                first
    axis_angle  the axis times the angle, which is in [0, pi], in radians; at pi the axis is the
                quaternion's

Differences are rotations in the fixed (base) frame, as positions' are and as robot controllers take
them (robosuite's OSC_POSE sets the goal delta @ current): `difference` a to b is a b^-1. numpy
alone, all in float64.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

WIDTHS = {"euler": 3, "quat_xyzw": 4, "quat_wxyz": 4, "rot6d": 6, "axis_angle": 3}
UNIT = 0.01  # how far a length may be from 1: float32 is off by 1e-6, padding by 1
NOTHING = 1e-12  # a length, or a number of a matrix, that is 0 but for rounding


def wrap(angles: np.ndarray) -> np.ndarray:
    """Angles in radians to [-pi, pi)."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


def convert(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """Recorded rotations [t n] in the representation `source` as `target` has them, [t m].

    Rounding in a length is divided out. Raises ValueError for another width, and as `check`.
    """
    if values.ndim != 2 or values.shape[1] != WIDTHS[source]:
        raise ValueError(
            f"{target}_from_{source}: expected [T, {WIDTHS[source]}], got shape {values.shape};"
            " mend the entry's slice"
        )
    check(source, values)
    return from_matrix(target, matrix(source, values))


def check(kind: str, values: np.ndarray) -> None:
    """Raises ValueError for another width, and with the first step of [t n] that is no rotation: a
    quaternion that is not of length 1 to 1%, two columns that are no such, or at no right angle.
    Such numbers are padding or another quantity, and any angle made of them would be invented.
    """
    if values.shape[-1] != WIDTHS[kind]:
        raise ValueError(f"{kind}: expected {WIDTHS[kind]} numbers, got {values.shape[-1]}")
    if kind in ("quat_xyzw", "quat_wxyz"):
        length = np.linalg.norm(values, axis=-1)
        good, what = np.abs(length - 1) <= UNIT, "a quaternion of length 1"
    elif kind == "rot6d":
        a, b = values[..., :3], values[..., 3:]
        length = np.maximum(np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1))
        least = np.minimum(np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1))
        good = (length - 1 <= UNIT) & (least - 1 >= -UNIT) & (np.abs((a * b).sum(-1)) <= UNIT)
        what = "two columns of length 1 at a right angle"
    else:
        good, what = np.isfinite(values).all(-1), "finite angles"
        length = np.linalg.norm(values, axis=-1)
    bad = np.flatnonzero(~good)
    if len(bad):
        step = bad[0]
        raise ValueError(
            f"step {step}: expected {what}, got {values[step].tolist()} of length"
            f" {length[step]:.4g}; repair or remove the episode"
        )


def matrix(kind: str, values: np.ndarray) -> np.ndarray:
    """The matrices [... 3 3] of rotations [... n]. Lengths are divided out; raises ValueError where
    one is 0, which has no direction.
    """
    return _FROM[kind](np.asarray(values, np.float64))


def from_matrix(kind: str, rotation: np.ndarray) -> np.ndarray:
    """The inverse of `matrix`, in the one form of the rotation that stands at the top."""
    return _TO[kind](rotation)


def difference(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation that leads from b to a, a b^-1, in the same representation: [... n]."""
    return from_matrix(kind, matrix(kind, a) @ np.swapaxes(matrix(kind, b), -1, -2))


def compose(kind: str, delta: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where b gets by `delta`: the inverse of `difference`, [... n]."""
    return from_matrix(kind, matrix(kind, delta) @ matrix(kind, b))


def _of_euler(angles: np.ndarray) -> np.ndarray:
    (cr, cp, cy), (sr, sp, sy) = (np.moveaxis(f(angles), -1, 0) for f in (np.cos, np.sin))
    return _rows(
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )


def _to_euler(r: np.ndarray) -> np.ndarray:
    level = np.hypot(r[..., 0, 0], r[..., 1, 0])
    roll = np.where(level > NOTHING, np.arctan2(r[..., 2, 1], r[..., 2, 2]), 0.0)
    # Of what the roll leaves: so the yaw makes up for a roll that is hardly determined.
    cr, sr = np.cos(roll), np.sin(roll)
    yaw = np.arctan2(sr * r[..., 0, 2] - cr * r[..., 0, 1], cr * r[..., 1, 1] - sr * r[..., 1, 2])
    return np.stack([roll, np.arctan2(-r[..., 2, 0], level), yaw], axis=-1)


def _of_wxyz(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = np.moveaxis(_unit(quaternion, "a quaternion"), -1, 0)
    return _rows(
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def _to_wxyz(r: np.ndarray) -> np.ndarray:
    """Shepperd 1978: of 4 q_i q_j, which are sums of the matrix's numbers, the row of the largest
    q_i.
    """
    d = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    wx, wy, wz = (r[..., i, j] - r[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0)))
    xy, yz, zx = (r[..., i, j] + r[..., j, i] for i, j in ((0, 1), (1, 2), (2, 0)))
    products = np.stack(
        [
            np.stack([1 + d[0] + d[1] + d[2], wx, wy, wz], axis=-1),
            np.stack([wx, 1 + d[0] - d[1] - d[2], xy, zx], axis=-1),
            np.stack([wy, xy, 1 - d[0] + d[1] - d[2], yz], axis=-1),
            np.stack([wz, zx, yz, 1 - d[0] - d[1] + d[2]], axis=-1),
        ],
        axis=-2,
    )
    largest = np.diagonal(products, axis1=-2, axis2=-1).argmax(-1)[..., None, None]
    row = np.take_along_axis(products, largest, axis=-2)[..., 0, :]
    q = row / np.linalg.norm(row, axis=-1, keepdims=True)
    counts = np.abs(q) > NOTHING
    leading = np.take_along_axis(q, counts.argmax(-1)[..., None], axis=-1)
    return np.where(leading < 0, -q, q)


def _of_6d(columns: np.ndarray) -> np.ndarray:
    a = _unit(columns[..., :3], "the first column")
    b = columns[..., 3:] - (a * columns[..., 3:]).sum(-1, keepdims=True) * a
    b = _unit(b, "the second column's part at a right angle to the first")
    return np.stack([a, b, np.cross(a, b)], axis=-1)


def _to_6d(r: np.ndarray) -> np.ndarray:
    return np.concatenate([r[..., :, 0], r[..., :, 1]], axis=-1)


def _of_axis_angle(vector: np.ndarray) -> np.ndarray:
    """By the quaternion of half the angle."""
    half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
    scale = np.sinc(half / np.pi) / 2  # sin(half) / angle, also at 0
    return _of_wxyz(np.concatenate([np.cos(half), vector * scale], axis=-1))


def _to_axis_angle(r: np.ndarray) -> np.ndarray:
    q = _to_wxyz(r)
    sine = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, q[..., :1])
    scale = np.where(sine > 0, angle / np.where(sine > 0, sine, 1), 2.0)
    return q[..., 1:] * scale


def _unit(vector: np.ndarray, what: str) -> np.ndarray:
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    if not (length > NOTHING).all():
        raise ValueError(f"rotation: {what}: expected a direction, got length 0 or no number")
    return vector / length


def _rows(*rows: Any) -> np.ndarray:
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


_FROM: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "euler": _of_euler,
    "quat_xyzw": lambda q: _of_wxyz(np.roll(q, 1, axis=-1)),
    "quat_wxyz": _of_wxyz,
    "rot6d": _of_6d,
    "axis_angle": _of_axis_angle,
}
_TO: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "euler": _to_euler,
    "quat_xyzw": lambda r: np.roll(_to_wxyz(r), -1, axis=-1),
    "quat_wxyz": _to_wxyz,
    "rot6d": _to_6d,
    "axis_angle": _to_axis_angle,
}
