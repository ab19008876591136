"""Paths out of noise: Euler's without a width, as likely as numpy says, and of the same
distribution at their end.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl.steps import one_by_one
from vla_jax.models.heads.euler import STEPS, integrate
from vla_jax.rl import paths
from vla_jax.types import Array

pytestmark = pytest.mark.slow

B, K, A = 3, 2, 3
DATA, SPREAD = 0.4, 0.6  # the mean and the deviation of the actions of a flow that is known
THERE = np.array([[True, True, True], [True, False, True], [True, True, False]])


def wavy(x: Array, at: Array) -> Array:
    """Some velocity, [b 1 k a]."""
    return jnp.sin(3 * x) + at * jnp.flip(x, axis=2)


def exact(x: Array, at: Array) -> Array:
    """That of noise from a standard normal and actions from one of DATA and SPREAD:
    E[noise - actions | s noise + (1 - s) actions = x].
    """
    variance = at**2 + (1 - at) ** 2 * SPREAD**2
    slope = (at - (1 - at) * SPREAD**2) / variance
    return slope * (x - (1 - at) * DATA) - DATA


@pytest.fixture(scope="module")
def path() -> np.ndarray:
    start = jax.random.normal(jax.random.key(0), (B, K, A))
    std = jnp.array([0.3, 0.5, 0.7])
    return np.asarray(paths.draw(wavy, start, std, THERE, jax.random.key(1)))


def test_without_a_width_a_path_is_that_of_euler() -> None:
    start = jax.random.normal(jax.random.key(0), (B, K, A))
    got = paths.draw(wavy, start, jnp.zeros(A), THERE, jax.random.key(1))
    wanted = integrate(wavy, start[:, None], THERE[:, None, None].astype(np.float32))
    np.testing.assert_allclose(got[:, -1], wanted[:, 0], atol=1e-6)
    assert got.shape == (B, STEPS + 1, K, A)


def test_a_path_is_as_likely_as_its_steps(path: np.ndarray) -> None:
    std = np.array([0.3, 0.5, 0.7], np.float32)
    velocity = paths.along(wavy, path)
    other = velocity + 0.3 * jax.random.normal(jax.random.key(2), velocity.shape)
    got = paths.log_prob(velocity, std, path, THERE)
    apart = paths.divergence(velocity, other, std, THERE)
    for b in range(B):
        for q in range(STEPS):
            v = wavy(path[b, q][None, None], 1 - q / STEPS)[0, 0]
            np.testing.assert_allclose(velocity[b, q], v, atol=1e-5)
        likely, far = one_by_one(path[b], np.asarray(velocity[b]), np.asarray(other[b]), std)
        np.testing.assert_allclose(got[b], likely[THERE[b]].sum(), rtol=1e-4)
        np.testing.assert_allclose(apart[b], far[THERE[b]].sum(), rtol=1e-4)


def test_what_is_not_there_stays_still(path: np.ndarray) -> None:
    assert not np.abs(path[1, :, :, 1]).any()
    assert np.abs(path[1, :, :, [0, 2]]).all()


def test_the_noise_keeps_mean_and_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a known flow, in steps small enough for the equation: within four deviations of the
    statistic, and what steps of 1/200 leave.
    """
    steps, count = 200, 20_000
    times = 1 - np.arange(steps, dtype=np.float32) / steps
    sigma = np.sqrt(times / (1 - np.minimum(times, 1 - 1 / steps))).astype(np.float32)
    for name, value in (("DT", 1 / steps), ("TIMES", times), ("SIGMA", sigma), ("STEPS", steps)):
        monkeypatch.setattr(paths, name, value)
    start = jax.random.normal(jax.random.key(0), (count, 1, 1))
    there = np.ones((count, 1), bool)
    drawn = paths.draw(exact, start, jnp.array([0.5]), there, jax.random.key(3))
    for place in (steps // 2, steps):
        s = 1 - place / steps
        x = np.asarray(drawn[:, place, 0, 0], np.float64)
        wanted = np.sqrt(s**2 + (1 - s) ** 2 * SPREAD**2)
        assert abs(x.mean() - (1 - s) * DATA) < 4 * wanted / count**0.5 + 0.005
        assert abs(x.std() / wanted - 1) < 4 / (2 * count) ** 0.5 + 0.01
    # It is no flow that forgets its noise: an end is told by more than its beginning.
    assert abs(np.corrcoef(drawn[:, 0, 0, 0], drawn[:, -1, 0, 0])[0, 1]) < 0.9
