"""What a robot does for which a policy wrote no chunk."""

import numpy as np

from vla_jax.actions import ActionSpec
from vla_jax.robot.held import at_rest, is_none
from vla_jax.robot.relative import Relative

STATS = {
    "mean": np.zeros(3), "std": np.ones(3), "min": np.full(3, -1.0), "max": np.full(3, 3.0),
    "q01": np.full(3, -1.0), "q99": np.full(3, 3.0),
}  # fmt: skip
NAMES = ("x", "joint", "gripper")
SPEC = ActionSpec.fit(NAMES, (2,), STATS, ("q99",))


def test_motions_are_zero_and_positions_stay():
    chunk = at_rest(SPEC, (0,), 2, np.array([0.4, 2.5, 1.0]), None)
    np.testing.assert_array_equal(chunk, [[0, 2.5, 1]] * 2)
    assert chunk.dtype == np.float32


def test_before_the_first_action_it_is_the_middle_of_what_was_learnt():
    chunk = at_rest(SPEC, (0,), 2, None, None)
    np.testing.assert_array_equal(chunk, [[0, 1.0, 0]] * 2)


def test_what_is_relative_is_where_the_robot_stands():
    spec = ActionSpec.fit(NAMES, (2,), STATS, ("q99",), (Relative("number", (1,), (0,)),))
    chunk = at_rest(spec, (), 3, np.array([0.4, 2.5, 1.0]), np.array([0.7]))
    np.testing.assert_allclose(chunk, [[0.4, 0.7, 1]] * 3, rtol=1e-6)


def test_a_chunk_is_none_where_all_of_it_is_nan():
    assert is_none(np.full((2, 3), np.nan))
    assert not is_none(np.zeros((2, 3)))
