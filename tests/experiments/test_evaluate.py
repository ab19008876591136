"""The yardsticks of evaluation: the best constant action, and blanked prompts."""

import numpy as np
from ml_collections import ConfigDict

from experiments.evaluate import best_constant, blanked, robust
from vla_jax.types import Batch, Observation


def config(kind: str, delta: float) -> ConfigDict:
    return ConfigDict({"loss": {"kind": kind, "delta": delta}})


def test_in_the_quadratic_range_the_best_constant_is_the_mean() -> None:
    rng = np.random.default_rng(0)
    targets = rng.uniform(-0.4, 0.4, (50, 2, 3, 4))
    mask = rng.random(targets.shape) < 0.8
    mean = (targets * mask).sum((0, 1)) / mask.sum((0, 1))
    expected = (0.5 * (targets - mean) ** 2 * mask).sum() / mask.sum()
    np.testing.assert_allclose(
        best_constant(targets, mask, robust(config("huber", 1.0))), expected, rtol=1e-6
    )


def test_no_constant_beats_it_in_the_linear_range() -> None:
    targets = np.random.default_rng(1).normal(size=(200, 1, 1, 1)) ** 3
    mask = np.ones_like(targets, bool)
    cost = robust(config("smooth_l1", 0.1))
    best = best_constant(targets, mask, cost)
    tried = [cost(targets - c).mean() for c in np.linspace(-3, 3, 1001)]
    assert best <= min(tried) + 1e-6


def test_masked_targets_do_not_count() -> None:
    targets = np.array([0.1, 0.1, 99.0]).reshape(3, 1, 1, 1)
    mask = np.array([True, True, False]).reshape(3, 1, 1, 1)
    assert best_constant(targets, mask, robust(config("huber", 1.0))) < 1e-9


def test_blanking_replaces_every_prompt_and_its_mask() -> None:
    obs = Observation(
        (np.zeros((2, 1, 4, 4, 3), np.uint8),), np.ones((2, 1, 1), bool),
        np.zeros((2, 1, 7), np.float32),
        np.ones(2, bool), np.full((2, 5), 9, np.int32), np.ones((2, 5), bool),
        np.ones((2, 1), bool),
    )  # fmt: skip
    batch = Batch(
        obs, np.zeros((2, 1, 1, 7), np.float32), np.ones((2, 1, 1, 7), bool), np.zeros(2, np.int32)
    )
    out = blanked(np.array([2, 3]), 5)(batch).obs
    assert out.prompt.tolist() == [[2, 3, 0, 0, 0]] * 2
    assert out.prompt_mask.tolist() == [[True, True, False, False, False]] * 2
