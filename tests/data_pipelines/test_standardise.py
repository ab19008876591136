"""The interpreter that makes actions and states of raw columns."""

import zlib

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from data_pipelines.standardise import (
    OPERATORS,
    Constant,
    Moved,
    Recipe,
    binarise,
    rel2abs,
    zlib_f32,
)
from vla_jax.robot.rotations import wrap

euler_from_quat_xyzw = OPERATORS["euler_from_quat_xyzw"]


def test_gripper_settles_backwards():
    assert binarise(np.array([0.5, 0.99, 0.6, 0.4, 0.01, 0.3, 0.7])).tolist() == [
        1,
        1,
        0,
        0,
        0,
        1,
        1,
    ]
    # Never settles: its last value, thresholded.
    assert binarise(np.array([0.2, 0.3])).tolist() == [0, 0]
    # The limits themselves are in between.
    assert binarise(np.array([0.95, 0.05, 0.951])).tolist() == [1, 1, 1]
    assert binarise(np.array([0.049, 0.94, 0.06])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("relative", "absolute"),
    [
        ([0, 0, 1, 0, 0, -1, 0], [1, 1, 0, 0, 0, 1, 1]),  # it closes, so it was open
        ([0, -1, 0, 0.5], [0, 1, 1, 0]),
        ([0, 0.1, -0.1], [1, 1, 1]),  # no event
        ([1], [0]),
        ([], []),
    ],
)
def test_relative_gripper_becomes_absolute(relative, absolute):
    assert rel2abs(np.array(relative, float)[:, None])[:, 0].tolist() == absolute


@pytest.mark.parametrize("sign", [1, -1])
def test_limits_are_compared_as_numbers_are_stored(sign):
    """A stored 0.1 is the limit and not beyond it, as in the reference's float32; in float64 it is
    0.10000000149.
    """
    limit = np.float32(0.1) * sign
    beyond = np.nextafter(limit, np.float32(2 * sign), dtype=np.float32)
    first = sign > 0  # what the opposite command did
    for value, turned in ((limit, False), (beyond, True)):
        commands = np.array([-sign, value, 0], np.float32)
        opened = rel2abs(commands.astype(np.float64))
        assert opened.tolist() == [first, first != turned, first != turned]
    recipe = Recipe(actions=("a[0:1]", "a[1:2]"), idle=0.1)
    rows = np.array([[limit, 0], [beyond, 0], [0, 0], [0, beyond]], np.float32)
    assert recipe({"a": rows}).frames.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("quaternion", "angles"),
    [
        ([0, 0, 0, 1], [0, 0, 0]),
        ([1, 0, 0, 0], [np.pi, 0, 0]),
        ([0.5**0.5, 0, 0, 0.5**0.5], [np.pi / 2, 0, 0]),
        ([0, np.sin(0.3), 0, np.cos(0.3)], [0, 0.6, 0]),
        ([0, 0, -(0.5**0.5), 0.5**0.5], [0, 0, -np.pi / 2]),
    ],
)
def test_angles_of_a_quaternion(quaternion, angles):
    np.testing.assert_allclose(
        euler_from_quat_xyzw(np.array([quaternion], float))[0], angles, atol=1e-12
    )


def test_angles_survive_a_round_trip():
    """Rz(yaw) Ry(pitch) Rx(roll) as a product of quaternions gives its angles back."""
    roll, pitch, yaw = np.random.default_rng(0).uniform(-1.5, 1.5, (3, 50))
    cr, sr, cp, sp, cy, sy = (f(a / 2) for a in (roll, pitch, yaw) for f in (np.cos, np.sin))
    x, y = sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy
    z, w = cr * cp * sy - sr * sp * cy, cr * cp * cy + sr * sp * sy
    # Rounding in the length is divided out.
    angles = euler_from_quat_xyzw(np.stack([x, y, z, w], axis=1) * 1.005)
    np.testing.assert_allclose(angles, np.stack([roll, pitch, yaw], axis=1), atol=1e-12)


@pytest.mark.parametrize("quaternion", [[0, 0, 0, 0], [0, 0, 0, 1.02], [0.5, 0.5, 0.5, 0.4]])
def test_quaternion_of_another_length_is_refused(quaternion):
    with pytest.raises(ValueError, match="step 1: expected a quaternion of length 1"):
        euler_from_quat_xyzw(np.array([[0, 0, 0, 1], quaternion], float))


def test_angles_are_wrapped():
    np.testing.assert_allclose(
        wrap(np.array([0, 6.2, -6.2, np.pi, -np.pi])),
        [0, 6.2 - 2 * np.pi, 2 * np.pi - 6.2] + [-np.pi] * 2,
    )


def test_compressed_column():
    cells = np.array(
        [zlib.compress(np.array([1.5, step], "<f4").tobytes()) for step in range(3)], object
    )
    assert zlib_f32(cells, 2).tolist() == [[1.5, 0], [1.5, 1], [1.5, 2]]
    for bad in (
        b"not zlib",
        zlib.compress(b"abcdef"),
        *(zlib.compress(np.zeros(n, "<f4").tobytes()) for n in (1, 3)),
    ):
        cells[1] = bad
        with pytest.raises(ValueError, match="step 1: zlib_f32: expected 2 compressed float32"):
            zlib_f32(cells, 2)


def test_parts_stand_side_by_side():
    recipe = Recipe(
        actions=("a[1:]", Constant(2.0, 1), "b invert", "a[0:1] zeros"),
        state=("b",),
        drop_first=1,
        stride=2,
    )
    assert recipe.columns == {"a": "a", "b": "b"}
    out = recipe({"a": np.arange(12).reshape(6, 2), "b": np.arange(6)})
    assert out.frames.tolist() == [1, 3, 5]
    assert out.actions.tolist() == [[3, 2, 0, 0], [7, 2, -2, 0], [11, 2, -4, 0]]
    assert out.state.tolist() == [[1], [3], [5]]


def test_moved_is_taken_between_kept_steps_and_drops_the_last():
    recipe = Recipe(actions=(Moved("s[0:2]", angles=(1,)), "g binarise"), stride=2)
    state = np.array([[0, 3.0], [9, 9], [1, -3.0], [9, 9], [4, 0], [9, 9]])
    out = recipe({"s": state, "g": np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0])})
    assert out.frames.tolist() == [0, 2]
    np.testing.assert_allclose(
        out.actions, [[1, 2 * np.pi - 6, 0], [3, 3, 0]], rtol=1e-6
    )  # the gripper settles last


def test_idle_steps_are_left_out():
    recipe = Recipe(actions=("v", "g"), state=("g",), idle=1e-5)
    v = np.array([[0, 0], [0, 0.1], [0, 0], [0, 0], [1e-6, 0], [0, -0.1]])
    out = recipe({"v": v, "g": np.array([1, 1, 1, 0, 0, 0.0])})
    assert out.frames.tolist() == [1, 3, 5]  # at step 3 the arm stands still and the gripper closes
    assert out.state[:, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"action": np.zeros((3, 7))}, r"got none of \['observation/state'\]"),
        (
            {"action": np.zeros((3, 7)), "observation/state": np.zeros((4, 7))},
            "expected columns of one length",
        ),
    ],
)
def test_incomplete_columns_are_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        DATASETS["bridge"].standardise(raw)


@pytest.mark.parametrize(
    "part", ["", "action[0]", "action [0:1]", "action[0:1] flip", "action[0:1]invert"]
)
def test_mistyped_part_is_refused(part):
    with pytest.raises(ValueError, match="standardise"):
        Recipe(actions=(part,))
