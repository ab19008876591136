"""How a loss and its metrics are told: sums and weights, then means in robot units.

Axes: b batch, d action dim.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

TASK = "loss/"  # before a task's name among the pairs

Metrics = dict[str, Any]  # name -> number [], on the device
Pairs = dict[str, tuple[Any, Any]]  # name -> (sum, weight), each [] or [d]


class Units(NamedTuple):
    """What turns the metric "l1" into robot units: `scale[dataset_id]` robot units per network unit
    of every dim.
    """

    names: tuple[str, ...]
    scale: np.ndarray  # datasets d


def means(pairs: Pairs, units: Units) -> Metrics:
    """One number per name; those per dim are named after it: "l1/x". A weight of zero gives NaN,
    written as null.

    "loss" is the sum of the tasks, each times its loss weight; they are told one by one too where
    there are several.
    """
    out = {}
    for name, (total, weight) in pairs.items():
        mean = jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), jnp.nan)
        if mean.ndim == 0:
            out[name] = mean
        else:
            out.update({f"{name}/{dim}": mean[i] for i, dim in enumerate(units.names)})
    parts = [name for name in pairs if name.startswith(TASK)]
    out["loss"] = sum(
        (jnp.where(pairs[name][1] > 0, out[name], 0.0) for name in parts), start=jnp.zeros(())
    )
    return (
        out if len(parts) > 1 else {name: value for name, value in out.items() if name not in parts}
    )


def reduce(metrics: Pairs, dataset_id: Any, units: Units) -> Pairs:
    """Per-example pairs ([b] or [b d]) summed over the batch; "l1" in robot units."""
    out = {}
    for name, (total, weight) in metrics.items():
        if name == "l1":
            total = total * jnp.asarray(units.scale, jnp.float32)[dataset_id]
        out[name] = (total.astype(jnp.float32).sum(0), weight.astype(jnp.float32).sum(0))
    return out
