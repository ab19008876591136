"""A classifier of success: the chance that an episode which stands as a frame shows has succeeded.

It is a reward model with another loss: the number of a frame is the logit of that chance, as in the
success classifiers that reinforcement learning on robots takes its rewards from (VICE, arXiv
1805.11686; the reward classifier of HIL-SERL, arXiv 2410.21845).

Axes: b frames, t window step.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from vla_jax.models.vla import VLAConfig
from vla_jax.rl.reward import RewardModel
from vla_jax.types import Array, Objective, Observation

ALGORITHM = "success"  # the word of rl.algorithm


def chance(logit: np.ndarray) -> np.ndarray:
    """Of success, of what a SuccessModel says of frames."""
    return 1 / (1 + np.exp(-np.asarray(logit, np.float64)))


class Looks(NamedTuple):
    """Frames and whether the episode has succeeded there. Rows that fill a batch up are not
    `valid`.
    """

    obs: Observation  # leaves [b ...]: windows as a policy sees them
    success: Bool[Array, " b"]
    weight: Float[Array, " b"]  # how much a frame counts
    valid: Bool[Array, " b"]
    dataset_id: Int[Array, " b"]


class SuccessModel(RewardModel):
    """A reward model whose `loss` is that of frames with outcomes; `worth` is the logit."""

    def __init__(
        self, hidden: int, backbone: Any, head: Any, config: VLAConfig, rngs: nnx.Rngs, *makers: Any
    ) -> None:
        """As RewardModel."""
        super().__init__(hidden, backbone, head, config, rngs, *makers)
        self.config = dataclasses.replace(self.config, loss_weights=(("success", 1.0),))

    def loss(self, batch: Looks, key: jax.Array) -> Objective:  # type: ignore[override]
        """Sums over the valid frames: the cross-entropy of success, weighted."""
        del key
        logit = self.worth(batch.obs)
        weight = jnp.where(batch.valid, batch.weight, 0.0)
        cost = jax.nn.softplus(logit) - batch.success * logit
        right = (logit > 0) == batch.success
        metrics: dict[str, tuple[Array, Array]] = {"right": (weight * right, weight)}
        total = jnp.sum(weight * cost)
        return Objective({"success": total}, jax.lax.stop_gradient(metrics))

    def mask_counts(self, batch: Looks) -> dict[str, Array]:  # type: ignore[override]
        """The weight of the valid frames."""
        return {"success": jnp.sum(jnp.where(batch.valid, batch.weight, 0.0))}
