"""What a policy is told of the plan that is underway."""

import numpy as np
import pytest

from vla_jax.robot.client import freeze
from vla_jax.robot.realtime import Underway, check, soft_mask, towards

NAMES = ("x", "gripper")


def test_the_mask_is_the_papers() -> None:
    """Eq. 5 with H = 6, s = 1, d = 2, by hand."""
    c = np.array([3 / 4, 2 / 4, 1 / 4])
    expected = [1, 1, *(c * (np.exp(c) - 1) / (np.e - 1)), 0]
    np.testing.assert_allclose(soft_mask(5, 2, 6), expected, rtol=1e-6)
    assert soft_mask(5, 2, 6).dtype == np.float32
    np.testing.assert_array_equal(soft_mask(3, 3, 5), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(soft_mask(0, 2, 3), [0, 0, 0])


@pytest.mark.parametrize(("left", "delay"), [(4, 0), (4, 2), (3, 3), (1, 1)])
def test_it_is_what_freeze_blends_with(left: int, delay: int) -> None:
    blended = freeze(np.ones((left, 1)), np.zeros((4, 1)), delay)
    np.testing.assert_allclose(soft_mask(left, delay, 4), blended[:, 0], rtol=1e-6)


def test_the_plan_stands_among_the_policys_dims() -> None:
    target, weight = towards(Underway(np.ones((2, 2)), 1), lambda x: 3 * x, [2, 0], (4, 3))
    np.testing.assert_array_equal(target, [[3, 0, 3], [3, 0, 3], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(weight, soft_mask(2, 1, 4))
    target, weight = towards(Underway(np.zeros((0, 2)), 3), lambda x: x / 0, [2, 0], (4, 3))
    assert not target.any()
    assert not weight.any()


@pytest.mark.parametrize(
    ("actions", "delay", "inpaints", "told"),
    [
        (np.zeros((4, 2)), 4, True, "delay: expected 0 to 3 control steps, fewer than a chunk"),
        (np.zeros((4, 2)), -1, True, "delay: expected 0 to 3"),
        (np.zeros((2, 2)), 3, True, r"actions: expected 3 or more, those of the delay, got 2"),
        (np.zeros((5, 2)), 1, True, r"at most 4 of 2 numbers \(x, gripper\), got \[5, 2\]"),
        (np.zeros((3, 7)), 1, True, r"got \[3, 7\]"),
        (np.zeros(2), 1, True, r"got \[2\]"),
        (np.full((3, 2), np.nan), 1, True, "finite"),
        (np.zeros((3, 2)), 1, False, "expected a policy that flows"),
    ],
)
def test_what_is_no_plan_is_refused(
    actions: np.ndarray, delay: int, inpaints: bool, told: str
) -> None:
    with pytest.raises(ValueError, match=f"underway: .*{told}"):
        check(Underway(actions, delay), NAMES, 4, inpaints)
    check(Underway(np.zeros((0, 2)), 3), NAMES, 4, True)  # nothing is underway
