"""Losses as pure functions of arrays: sums over the steps that count; whoever holds the whole batch
divides.

Axes: b batch, t window step, k chunk step, d action dim. Masks are True where valid; what lies
outside a mask, NaN included, changes neither the loss nor its gradient.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vla_jax.types import Array, Batch, Loss

KINDS = ("huber", "smooth_l1", "l1")


@dataclass(frozen=True)
class ActionLoss:
    """What an action error costs: `arm * robust(error) + gripper * cross_entropy`.

    `delta` is where the robust loss turns from quadratic to linear: huber's delta, smooth L1's
    beta; l1 is linear throughout.
    """

    kind: str = "huber"
    delta: float = 1.0
    arm: float = 1.0
    gripper: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"ActionLoss.kind: expected one of {KINDS}, got {self.kind!r}; set loss.kind"
            )
        if self.delta <= 0:
            raise ValueError(
                f"ActionLoss.delta: expected a number > 0, got {self.delta}; 1.0 is RoboVLMs' value"
            )


def huber(error: Float[Array, "*s"], delta: float) -> Float[Array, "*s"]:
    """`e^2 / 2` near zero, `delta * (|e| - delta / 2)` beyond `delta`: slope at most delta."""
    size = jnp.abs(error)
    return jnp.where(size < delta, 0.5 * error**2, delta * (size - 0.5 * delta))


def smooth_l1(error: Float[Array, "*s"], beta: float) -> Float[Array, "*s"]:
    """`e^2 / (2 beta)` near zero, `|e| - beta / 2` beyond `beta`: slope at most 1, so `huber /
    beta`.
    """
    return huber(error, beta) / beta


def sigmoid_cross_entropy(
    logits: Float[Array, "*s"], targets: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Binary cross-entropy of targets in [0, 1], stable for large logits of either sign."""
    return jax.nn.softplus(logits) - logits * targets


def masked_mean(values: Float[Array, "*s d"], mask: Bool[Array, "*s d"]) -> Float[Array, "*s"]:
    """Mean over the valid entries of the last axis; 0 where none is valid."""
    count = jnp.sum(mask, axis=-1)
    return jnp.sum(jnp.where(mask, values, 0.0), axis=-1) / jnp.maximum(count, 1)


def action_mask(batch: Batch) -> Bool[Array, "b t k d"]:
    """The actions that count: there, and of a step of the episode."""
    return batch.action_mask & batch.obs.step_mask[:, :, None, None]


def counted_steps(mask: Bool[Array, "*s d"]) -> Bool[Array, "*s"]:
    """Which steps count in an action loss: those with a valid dim."""
    return jnp.any(mask, axis=-1)


def action_loss(
    predicted: Float[Array, "b t k d"],
    actions: Float[Array, "b t k d"],
    mask: Bool[Array, "b t k d"],
    binary: tuple[int, ...],
    config: ActionLoss,
) -> Loss:
    """Robust loss on arm dims, cross-entropy on `binary` dims, where `predicted` holds logits and
    `actions` 0 or 1.

    The sum is over steps (b, t, k); one that counts (`counted_steps`) costs `arm * mean
    over its valid arm dims + gripper * mean over its valid binary dims`. So a robot that lacks a
    dim weighs as much as one that has all.

    Metrics, as (sum, weight) per example: "arm" and "gripper" (the unweighted terms),
    "gripper_accuracy", all [b]; "l1" [b d], the absolute error in normalised units (for a binary
    dim, of its probability).
    """
    dims = np.isin(np.arange(predicted.shape[-1]), binary)
    is_binary = jnp.asarray(dims)[None, None, None]  # 1 1 1 d
    predicted = predicted.astype(jnp.float32)
    # Invalid targets are replaced before any arithmetic: a NaN there would otherwise come back
    # through the gradient.
    target = jnp.where(mask, actions.astype(jnp.float32), 0.0)
    error = predicted - target
    robust = {
        "huber": huber(error, config.delta),
        "smooth_l1": smooth_l1(error, config.delta),
        "l1": jnp.abs(error),
    }[config.kind]
    cost = jnp.where(is_binary, sigmoid_cross_entropy(predicted, target), robust)  # b t k d

    arm_mask, gripper_mask = mask & ~is_binary, mask & is_binary
    # b t k, zero where nothing is valid
    arm, gripper = masked_mean(cost, arm_mask), masked_mean(cost, gripper_mask)
    total = jnp.sum(config.arm * arm + config.gripper * gripper)
    metrics = {
        "arm": _per_example(arm, jnp.any(arm_mask, axis=-1)),
        "gripper": _per_example(gripper, jnp.any(gripper_mask, axis=-1)),
        "gripper_accuracy": _per_example(
            ((predicted > 0) == (target > 0.5)).astype(jnp.float32), gripper_mask
        ),
        "l1": _l1(predicted, target, mask, is_binary),
    }
    return Loss(total, jax.lax.stop_gradient(metrics))


def _per_example(values: Array, mask: Array) -> tuple[Array, Array]:
    """Sum and count of the valid entries over every axis but the batch: [b], [b]."""
    axes = tuple(range(1, values.ndim))
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=axes)
    return total, jnp.sum(mask, axis=axes, dtype=jnp.float32)


def _l1(predicted: Array, target: Array, mask: Array, is_binary: Array) -> tuple[Array, Array]:
    """Absolute error summed over time and chunk, and its count: [b d], [b d]."""
    error = jnp.abs(jnp.where(is_binary, jax.nn.sigmoid(predicted), predicted) - target)
    total = jnp.sum(jnp.where(mask, error, 0.0), axis=(1, 2))
    return total, jnp.sum(mask, axis=(1, 2), dtype=jnp.float32)
