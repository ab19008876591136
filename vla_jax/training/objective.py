"""The optimised value: the sum over tasks of loss weight * sum / count, in parts of a batch.

The count of a task is that of the whole batch, so that the sum over parts is the value of the batch
however it is cut.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vla_jax.training.reports import TASK, Pairs, Units, reduce


class TaskWeight(NamedTuple):
    """What a task's sum is multiplied by and divided by."""

    loss_weight: float
    total: jax.Array  # how much of the task is in the whole batch


def task_weights(model: Any, batch: Any) -> dict[str, TaskWeight]:
    """Those of the tasks of a model in a batch, from its masks alone."""
    loss_weights = dict(model.config.loss_weights)
    counts = model.mask_counts(batch)
    return {name: TaskWeight(loss_weights[name], count) for name, count in counts.items()}


def microbatch_loss(
    model: Any, weights: dict[str, TaskWeight], batch: Any, key: jax.Array, units: Units
) -> tuple[jax.Array, Pairs]:
    """This part's share of the optimised value, and its pairs: of each task "loss/<task>", times
    its loss weight, and the metrics.
    """
    objective = model.loss(batch, key)
    if objective.sums.keys() != weights.keys():
        raise ValueError(
            f"model.loss gave the tasks {sorted(objective.sums)}, model.mask_counts"
            f" {sorted(weights)}"
        )
    counts, pairs, total = model.mask_counts(batch), {}, jnp.zeros(())
    for name, (loss_weight, whole) in weights.items():
        value = loss_weight * objective.sums[name]
        pairs[f"{TASK}{name}"] = (value, counts[name])
        total = total + value / jnp.where(whole > 0, whole, 1.0)
    return total, {**pairs, **reduce(objective.metrics, batch.dataset_id, units)}
