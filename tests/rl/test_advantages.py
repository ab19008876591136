"""How much better than expected, beside the sums written out."""

import numpy as np

from vla_jax.rl import advantages


def test_generalised_advantages_are_the_discounted_sums_of_errors() -> None:
    draw = np.random.default_rng(0)
    n, discount, decay = 5, 0.97, 0.9
    rewards, values = draw.normal(size=n), draw.normal(size=n)
    steps = np.array([10, 10, 10, 10, 3])
    got, returns = advantages.generalised(rewards, values, steps, discount, decay)
    after = [*values[1:], 0.0]
    errors = [rewards[i] + discount ** steps[i] * after[i] - values[i] for i in range(n)]
    for i in range(n):
        want, weight = 0.0, 1.0
        for j in range(i, n):
            want += weight * errors[j]
            weight *= discount ** steps[j] * decay
        np.testing.assert_allclose(got[i], want, rtol=1e-6)
    np.testing.assert_allclose(returns, got + values, rtol=1e-6)


def test_without_decay_of_the_trust_the_critic_is_told_what_was_earned() -> None:
    rewards, steps = np.array([0.0, 0.0, 1.0]), np.array([4, 4, 2])
    _, returns = advantages.generalised(rewards, np.array([3.0, -1.0, 0.5]), steps, 0.9, 1.0)
    np.testing.assert_allclose(returns, [0.9**8, 0.9**4, 1.0], rtol=1e-6)


def test_groups_are_compared_within() -> None:
    returns = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], np.float32)
    got = advantages.of_groups(returns, np.array([7, 7, 7, 7, 9, 9]))
    third = np.sqrt(1 / 3)
    np.testing.assert_allclose(got, [np.sqrt(3), -third, -third, -third, 0, 0], atol=1e-4)


def test_normalised_advantages_are_those_of_all_decisions() -> None:
    got = np.concatenate(advantages.normalised([np.array([1.0, 2.0]), np.array([6.0])]))
    np.testing.assert_allclose([got.mean(), got.std()], [0, 1], atol=1e-5)
    assert np.argsort(got).tolist() == [0, 1, 2]
