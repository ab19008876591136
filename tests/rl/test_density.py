"""What a chunk's probability is, beside plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.rl import density

B, K, D, BINARY = 3, 4, 5, (1,)
ARM = (0, 2, 3, 4)


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    raw, other = (draw.normal(size=(B, K, D)).astype(np.float32) for _ in range(2))
    chunk = draw.normal(size=(B, K, D)).astype(np.float32)
    chunk[..., 1] = draw.integers(0, 2, (B, K))
    carried_out = np.arange(K)[None] < np.array([[4], [2], [1]])
    mask = carried_out[:, :, None] & (np.arange(D) != 4)[None, None]
    log_std = draw.normal(size=D).astype(np.float32)
    return {"raw": raw, "other": other, "chunk": chunk, "mask": mask, "log_std": log_std}


def covariance(steps: int, std: float) -> np.ndarray:
    alike = np.full((steps, steps), density.CORRELATION)
    np.fill_diagonal(alike, 1.0)
    return std**2 * alike


def test_log_prob_is_that_of_normals_that_stray_together_and_of_coins(
    given: dict[str, np.ndarray],
) -> None:
    got = density.log_prob(given["raw"], given["log_std"], BINARY, given["chunk"], given["mask"])
    for i, steps in enumerate((4, 2, 1)):
        want = 0.0
        for dim in range(D - 1):
            mean, x = (given[name][i, :steps, dim].astype(np.float64) for name in ("raw", "chunk"))
            if dim in BINARY:
                p = 1 / (1 + np.exp(-mean))
                want += np.sum(np.log(np.where(x == 1, p, 1 - p)))
                continue
            c = covariance(steps, float(np.exp(given["log_std"][dim])))
            want -= 0.5 * (x - mean) @ np.linalg.inv(c) @ (x - mean)
            want -= 0.5 * np.log(np.linalg.det(2 * np.pi * c))
        np.testing.assert_allclose(got[i], want, rtol=2e-5)


def test_what_was_not_carried_out_does_not_count(given: dict[str, np.ndarray]) -> None:
    holes = np.where(given["mask"], given["chunk"], np.nan)
    args = given["raw"], given["log_std"], BINARY
    whole = density.log_prob(*args, given["chunk"], given["mask"])
    np.testing.assert_array_equal(density.log_prob(*args, holes, given["mask"]), whole)


def test_the_divergence_is_the_mean_of_the_logarithms_difference() -> None:
    raw = jnp.array([[[0.3, 0.4], [0.1, 0.2]]])
    other = jnp.array([[[-0.2, -0.7], [0.0, 0.5]]])
    log_std, mask = jnp.array([-0.5, 0.0]), jnp.ones((1, 2, 2), bool)
    count = 200_000
    many = [jnp.tile(each, (count, 1, 1)) for each in (raw, other)]
    draws = density.draw(many[0], log_std, BINARY, jax.random.key(0))
    own, others = (
        density.log_prob(each, log_std, BINARY, draws, jnp.ones(draws.shape, bool)) for each in many
    )
    apart = own - others
    got = float(density.divergence(raw, other, log_std, BINARY, mask)[0])
    assert abs(got - float(apart.mean())) < 4 * float(apart.std()) / count**0.5
    assert float(density.divergence(raw, raw, log_std, BINARY, mask)[0]) == 0


def test_draws_are_as_wide_as_they_say() -> None:
    raw = jnp.tile(jnp.array([[[0.5, 1.0, -2.0, 0.0, 0.0]]]), (20_000, 1, 1))
    log_std = jnp.log(jnp.array([0.1, 9.0, 0.2, 0.3, 1.0]))
    drawn = np.asarray(density.draw(raw, log_std, BINARY, jax.random.key(1)))[:, 0]
    np.testing.assert_allclose(drawn.std(0)[list(ARM)], [0.1, 0.2, 0.3, 1.0], rtol=0.03)
    both = np.asarray(density.draw(jnp.zeros((20_000, 2, 1)), jnp.zeros(1), (), jax.random.key(2)))
    together = np.corrcoef(both[:, 0, 0], both[:, 1, 0])[0, 1]
    np.testing.assert_allclose(together, density.CORRELATION, atol=0.01)
    np.testing.assert_allclose(drawn.mean(0), [0.5, 0.7311, -2.0, 0.0, 0.0], atol=0.03)
    assert set(np.unique(drawn[:, 1])) == {0.0, 1.0}
