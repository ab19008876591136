"""Braking by itself: within its limits from any state, to a full rest, and as short as it
can be.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.robot.safety.limits_of_tests import make_limits
from vla_jax.robot.safety.braking import MARGIN, brake

FREE = {"low": (-np.inf,) * 6, "high": (np.inf,) * 6}


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.sampled_from([0.03, 0.3, 1.0, 5.0]),
    st.sampled_from([0.1, 0.5, 9.0]),
)
def test_braking_keeps_its_limits_and_ends_in_rest(
    v: float, c: float, acceleration: float, jerk: float
) -> None:
    """Also where acceleration has to be let go first, or deceleration, so that it swings through
    zero.
    """
    a = tuple(x * 10 * acceleration for x in (0.2, 0.2, 0.1, 1.0, 1.0, 1.0))
    limits = make_limits(acceleration=a, jerk=tuple(x * 10 * jerk for x in a), **FREE)
    bounds = limits.per_step
    velocity, change = v * bounds.velocity, c * bounds.change * (1 - MARGIN)
    for _ in range(2 * limits.braking_steps(0)):
        after = brake(velocity, change, bounds)
        assert (abs(after - velocity) <= bounds.change).all()
        assert (abs(after - velocity - change) <= bounds.ramp).all()
        velocity, change = after, after - velocity
    assert not velocity.any()
    assert not change.any()


@pytest.mark.parametrize(("speed", "steps"), [(1, 1), (1.5, 2), (3, 2), (6, 3), (10, 4), (15, 6)])
def test_braking_takes_the_fewest_steps(speed: float, steps: int) -> None:
    """In units of the ramp J with decelerations up to 4 J: n J + ... + 2 J + J stops n (n + 1) / 2
    J in n steps.

    From 15 J it would be 5 J first, were it not for the limit of 4 J: six steps. The ramp that is
    planned with is a millionth slower than the one allowed, hence the speeds a little below.
    """
    limits = make_limits(
        control_rate=1.0, velocity=(20.0,) * 6, acceleration=(4.0,) * 6, jerk=(1.0,) * 6, **FREE
    )  # fmt: skip
    bounds = limits.per_step
    # Already decelerating by the step before the first, so that only letting go is left.
    first = min(steps, 4)
    velocity, change, taken = np.full(6, speed * (1 - 1e-5)), np.full(6, -float(first)), 0
    while velocity.any():
        after = brake(velocity, change, bounds)
        velocity, change, taken = after, after - velocity, taken + 1
    assert taken == steps
