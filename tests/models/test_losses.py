"""The loss functions against torch and against hand-made cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vla_jax.models import losses
from vla_jax.models.losses import (
    ActionLoss,
    counted_steps,
    huber,
    masked_mean,
    sigmoid_cross_entropy,
    smooth_l1,
)

BINARY = (6,)
action_loss = jax.jit(losses.action_loss, static_argnums=(3, 4))


def example(b: int = 3, t: int = 2, k: int = 4, d: int = 7):
    predicted, actions = np.random.default_rng(0).normal(size=(2, b, t, k, d)).astype(np.float32)
    actions[..., BINARY] = actions[..., BINARY] > 0
    return predicted, actions, np.ones((b, t, k, d), bool)


@pytest.mark.parametrize("delta", [0.3, 1.0, 2.5])
def test_robust_losses_match_torch(delta):
    error = np.linspace(-4, 4, 101, dtype=np.float32)
    zero = torch.zeros(101)
    expected = torch.nn.functional.huber_loss(
        torch.tensor(error), zero, delta=delta, reduction="none"
    )
    np.testing.assert_allclose(huber(error, delta), expected, atol=1e-6)
    expected = torch.nn.functional.smooth_l1_loss(
        torch.tensor(error), zero, beta=delta, reduction="none"
    )
    np.testing.assert_allclose(smooth_l1(error, delta), expected, atol=1e-6)


def test_cross_entropy_matches_torch_and_survives_large_logits():
    logits = np.array([-1000.0, -3.0, 0.0, 0.5, 1000.0], np.float32)
    for target in (np.zeros(5, np.float32), np.ones(5, np.float32)):
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            torch.tensor(logits), torch.tensor(target), reduction="none"
        )
        np.testing.assert_allclose(
            sigmoid_cross_entropy(logits, target), expected, rtol=1e-6, atol=1e-7
        )


def test_masked_mean():
    values, mask = (
        np.array([[1.0, 2.0, np.nan], [4.0, 5.0, 6.0]]),
        np.array([[True, True, False], [False] * 3]),
    )
    np.testing.assert_allclose(masked_mean(values, mask), [1.5, 0.0])


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_total_is_robovlms_formula(kind):
    predicted, actions, mask = example()
    mask[1, 1, 2:] = False  # past the end: whole steps
    loss = action_loss(
        predicted, actions, mask, BINARY, ActionLoss(kind=kind, delta=0.5, gripper=0.01)
    )
    steps = torch.tensor(mask[..., 0])
    p, a = torch.tensor(predicted)[steps], torch.tensor(actions)[steps]
    functional = torch.nn.functional
    robust = {"huber": lambda x, y: functional.huber_loss(x, y, delta=0.5)}.get(
        kind, lambda x, y: functional.smooth_l1_loss(x, y, beta=0.5)
    )
    arm = robust(p[:, :6], a[:, :6])
    gripper = functional.binary_cross_entropy_with_logits(p[:, 6], a[:, 6])
    count = counted_steps(mask).sum()
    assert count == mask[..., 0].sum()
    np.testing.assert_allclose(loss.sum / count, arm + 0.01 * gripper, rtol=1e-5)
    for name, expected in (("arm", arm), ("gripper", gripper)):
        total, weight = loss.metrics[name]
        assert total.shape == weight.shape == (3,)
        np.testing.assert_allclose(total.sum() / weight.sum(), expected, rtol=1e-5)


def test_metrics_by_hand():
    predicted = np.zeros((1, 1, 2, 3), np.float32)
    predicted[0, 0, :, 2] = [20.0, -20.0]
    actions = np.array([[[[0.5, -0.25, 1.0], [0.0, 0.75, 1.0]]]], np.float32)
    mask = np.array([[[[True, True, True], [False, True, True]]]])
    metrics = action_loss(predicted, actions, mask, (2,), ActionLoss()).metrics
    np.testing.assert_allclose(metrics["gripper_accuracy"], ([1.0], [2.0]))
    np.testing.assert_allclose(metrics["l1"][0], [[0.5, 1.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(metrics["l1"][1], [[1.0, 2.0, 2.0]])


def test_a_lacking_dim_does_not_change_a_steps_weight():
    predicted, actions, mask = example()
    mask[:, :, :, 3] = False
    loss = action_loss(predicted, actions, mask, BINARY, ActionLoss())
    assert counted_steps(mask).sum() == 3 * 2 * 4
    keep = [0, 1, 2, 4, 5, 6]
    without = action_loss(
        predicted[..., keep], actions[..., keep], mask[..., keep], (5,), ActionLoss()
    )
    np.testing.assert_allclose(loss.sum, without.sum, rtol=1e-6)


def test_nothing_leaks_through_the_mask():
    predicted, actions, mask = example()
    mask = np.random.default_rng(1).random(mask.shape) < 0.5
    poisoned = np.where(mask, actions, np.nan)

    def value(p, a):
        return action_loss(p, a, mask, BINARY, ActionLoss()).sum

    clean = jax.value_and_grad(value)(jnp.asarray(predicted), actions)
    dirty = jax.value_and_grad(value)(jnp.asarray(predicted), poisoned)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
    assert np.all(np.asarray(dirty[1])[~mask] == 0)
    assert np.all(np.asarray(dirty[1])[mask] != 0)


def test_all_false_mask_is_zero():
    predicted, actions, mask = example()
    loss = action_loss(predicted, actions, ~mask, BINARY, ActionLoss())
    assert jax.tree.all(jax.tree.map(lambda x: bool((x == 0).all()), loss))


def test_metrics_carry_no_gradient():
    predicted, actions, mask = example()
    grad = jax.grad(
        lambda p: action_loss(p, actions, mask, BINARY, ActionLoss()).metrics["arm"][0].sum()
    )(predicted)
    assert not np.any(grad)


@pytest.mark.parametrize("bad", [{"kind": "l2"}, {"delta": 0.0}])
def test_bad_config_is_refused(bad):
    with pytest.raises(ValueError, match="ActionLoss"):
        ActionLoss(**bad)
