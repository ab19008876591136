"""Rotations: every representation from and to every other, against SciPy, and at the edges."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_jax.robot import rotations

KINDS = list(rotations.WIDTHS)
ANY = Rotation.from_quat(np.random.default_rng(0).normal(size=(500, 4)))


def of_scipy(kind: str, rotation: Rotation) -> np.ndarray:
    """What SciPy says the representation is; the 6-D one by its definition."""
    made = {
        "euler": lambda: rotation.as_euler("xyz"),
        "quat_xyzw": lambda: rotation.as_quat(canonical=True),
        "quat_wxyz": lambda: rotation.as_quat(canonical=True, scalar_first=True),
        "rot6d": lambda: rotation.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6),
        "axis_angle": lambda: rotation.as_rotvec(),
    }
    return made[kind]()


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_each_from_and_to_each(source: str, target: str) -> None:
    given, wanted = of_scipy(source, ANY), of_scipy(target, ANY)
    got = rotations.convert(given, source, target)
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    np.testing.assert_allclose(rotations.convert(got, target, source), given, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_differences_are_composed_in_the_fixed_frame(kind: str) -> None:
    a, b = ANY[:250], ANY[250:]
    delta = rotations.difference(kind, of_scipy(kind, a), of_scipy(kind, b))
    np.testing.assert_allclose(delta, of_scipy(kind, a * b.inv()), atol=1e-12)
    np.testing.assert_allclose(
        rotations.compose(kind, delta, of_scipy(kind, b)), of_scipy(kind, a), atol=1e-12
    )


@pytest.mark.parametrize("off", [0.0, 1e-13, 1e-9, 1e-7, 1e-4])
@pytest.mark.parametrize("side", [1, -1])
def test_in_gimbal_lock_the_rotation_is_kept_and_the_roll_is_nothing(side: int, off: float) -> None:
    angles = np.array([[0.3, side * (np.pi / 2 - off), -1.2]])
    wanted = Rotation.from_euler("xyz", angles).as_matrix()
    got = rotations.from_matrix("euler", wanted)
    np.testing.assert_allclose(rotations.matrix("euler", got), wanted, atol=1e-12)
    assert (got[0, 0] == 0) == (off < 1e-12)
    np.testing.assert_allclose(got[0, 1], angles[0, 1], atol=1e-12)


@pytest.mark.parametrize("axis", [[1, 0, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 1], [-0.6, 0, 0.8]])
def test_half_a_turn_has_one_form(axis: list[float]) -> None:
    """About an axis and about its opposite it is one rotation."""
    half = Rotation.from_rotvec(np.pi * np.array([axis])).as_matrix()
    quaternion = rotations.from_matrix("quat_wxyz", half)[0]
    first = quaternion[1:][np.abs(quaternion[1:]) > 1e-9][0]
    assert first > 0
    vector = rotations.from_matrix("axis_angle", half)[0]
    np.testing.assert_allclose(vector, np.pi * np.array(axis) * np.sign(vector @ axis), atol=1e-12)
    for kind in KINDS:
        same = rotations.matrix(kind, rotations.from_matrix(kind, half))
        np.testing.assert_allclose(same, half, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("angle", [0.0, 1e-300, 1e-12, 1e-8])
def test_next_to_no_rotation(kind: str, angle: float) -> None:
    vector = np.array([[angle, 0, 0]])
    there = rotations.convert(vector, "axis_angle", kind)
    np.testing.assert_allclose(
        rotations.convert(there, kind, "axis_angle"), vector, rtol=1e-6, atol=1e-15
    )


def test_the_difference_of_angles_goes_the_shorter_way() -> None:
    a, b = np.array([[0.0, 0, 3.1]]), np.array([[0.0, 0, -3.1]])
    delta = rotations.difference("euler", a, b)
    np.testing.assert_allclose(delta, [[0, 0, 6.2 - 2 * np.pi]], atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        ("quat_xyzw", [0, 0, 0, 0], "expected a quaternion of length 1, got .* of length 0"),
        ("quat_wxyz", [1.02, 0, 0, 0], "expected a quaternion of length 1"),
        ("quat_xyzw", [np.nan, 0, 0, 1], "expected a quaternion of length 1"),
        ("rot6d", [1, 0, 0, 1, 0, 0], "expected two columns of length 1 at a right angle"),
        ("rot6d", [1, 0, 0, 0, 0.9, 0], "expected two columns of length 1 at a right angle"),
        ("axis_angle", [np.inf, 0, 0], "expected finite angles"),
    ],
)
def test_what_is_no_rotation_is_refused(kind: str, bad: list[float], message: str) -> None:
    good = rotations.from_matrix(kind, np.eye(3)[None])
    with pytest.raises(ValueError, match=f"step 1: {message}"):
        rotations.convert(np.concatenate([good, [bad]]), kind, "euler")


def test_a_network_need_not_say_unit_lengths_but_a_direction() -> None:
    np.testing.assert_allclose(
        rotations.matrix("rot6d", np.array([2.0, 0, 0, 5, 0.5, 0])), np.eye(3), atol=1e-15
    )
    np.testing.assert_allclose(rotations.matrix("quat_wxyz", np.array([0.2, 0, 0, 0])), np.eye(3))
    for kind, none in (("quat_wxyz", np.zeros(4)), ("rot6d", np.array([1.0, 0, 0, 2, 0, 0]))):
        with pytest.raises(ValueError, match="expected a direction"):
            rotations.matrix(kind, none)
