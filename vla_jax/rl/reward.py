"""A model of what people prefer: what a frame is worth, learnt from which of two clips was better.

It is a policy's backbone with another output, `critic`; its head is carried along and not asked.

Axes: b pairs, s looks at a clip, t window step, n readouts, c width.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from vla_jax.models.heads.outputs import MLP, ContinuousHead, flatten
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.types import Array, Objective, Observation

ALGORITHM = "reward"  # the word of rl.algorithm


def shares(steps: ArrayLike, every: int, longest: int) -> Float[np.ndarray, " s"]:
    """How much each look at a clip counts; together 1. After each `steps` were done, [s], at most
    `every`, after the last none: it counts to the length of the longest clip, of `longest` steps,
    and `every` more, as what ended stays as it is (an absorbing state: arXiv 1809.02925).

    So all clips count alike. Of looks alone a clip would be worth more or less for their number: a
    policy learns to fail early where frames are worth less than nothing. And of two that succeed
    the quicker is worth more, to the step. A sum in place of the mean made steps of learning that
    are as much larger as clips are long, and models that are too sure.
    """
    out = np.array(steps, np.float32)
    out[-1] += every + max(0.0, longest - out.sum())
    return out / out.sum()


class Comparisons(NamedTuple):
    """Pairs of clips and which was better. Rows that fill a batch up are not `valid`."""

    obs: Observation  # leaves [b 2 s ...]: windows as a policy sees them
    counts: Float[Array, "b 2 s"]  # how much each does (`shares`); 0: it is not there
    choice: Float[Array, " b"]  # 1: the first is better, 0: the second, 0.5: neither
    valid: Bool[Array, " b"]
    dataset_id: Int[Array, " b"]


class RewardModel(VLA):
    """A VLA whose `loss` is that of comparisons."""

    def __init__(
        self, hidden: int, backbone: Any, head: Any, config: VLAConfig, rngs: nnx.Rngs, *makers: Any
    ) -> None:
        """`makers` are VLA's. Raises ValueError for a head that reads no readouts."""
        if not isinstance(head, ContinuousHead):
            raise ValueError(
                f"model.head: {type(head).__name__} has no readouts that a reward could be read"
                " from; begin with a policy of lstm, mlp, gpt or attention"
            )
        super().__init__(backbone, head, config, rngs, *makers)
        self.config = dataclasses.replace(config, loss_weights=(("preference", 1.0),))
        self.critic = MLP((config.readouts * backbone.width, hidden, 1), rngs)

    def worth(self, obs: Observation) -> Float[Array, " b"]:
        """Of the newest frame of each window."""
        return self.critic(flatten(self.readouts(obs)[:, -1:]))[:, 0, 0]

    def scores(self, obs: Observation, counts: Float[Array, "b 2 s"]) -> Float[Array, "b 2"]:
        """What each clip is worth: the mean of its frames by how much each counts."""
        flat = jax.tree.map(lambda x: x.reshape(counts.size, *x.shape[3:]), obs)
        return jnp.sum(self.worth(flat).reshape(counts.shape) * counts, axis=2)

    def loss(self, batch: Comparisons, key: jax.Array) -> Objective:  # type: ignore[override]
        """Sums over the valid pairs: the cross-entropy of which is better, whose odds are
        exp(first - second) (Bradley and Terry 1952; arXiv 1706.03741, eq. 1). A tie is half of
        either.
        """
        del key
        scores = self.scores(batch.obs, batch.counts)
        logit = scores[:, 0] - scores[:, 1]
        cost = jax.nn.softplus(logit) - batch.choice * logit
        told = {"right": ((logit > 0) == (batch.choice > 0.5)), "apart": jnp.abs(logit)}
        decided = batch.valid & (batch.choice != 0.5)
        metrics: dict[str, tuple[Array, Array]] = {
            name: (jnp.where(decided, each, 0.0), decided.astype(jnp.float32))
            for name, each in told.items()
        }
        total = jnp.sum(jnp.where(batch.valid, cost, 0.0))
        return Objective({"preference": total}, jax.lax.stop_gradient(metrics))

    def mask_counts(self, batch: Comparisons) -> dict[str, Array]:  # type: ignore[override]
        """The valid pairs."""
        return {"preference": jnp.sum(batch.valid, dtype=jnp.float32)}
