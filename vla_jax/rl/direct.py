"""A policy that learns from which of two clips was preferred, without a reward model.

Axes: b pairs, s decisions of a clip, t window step, k chunk step, d action dim.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from vla_jax.models.heads.outputs import ContinuousHead
from vla_jax.rl import density
from vla_jax.rl.learner import Learner, LearnerConfig
from vla_jax.types import Array, Objective, Observation


class Contests(NamedTuple):
    """Pairs of clips, what was decided in them, and which was better. Rows that fill a batch up are
    not `valid`.
    """

    obs: Observation  # leaves [b 2 s ...]: windows as the policy sees them
    chunk: Float[Array, "b 2 s k d"]  # network units, as it was carried out
    mask: Bool[Array, "b 2 s k d"]  # what of it was carried out and may vary
    reference: Float[Array, "b 2 s k d"]  # what the head says before all learning
    choice: Float[Array, " b"]  # 1: the first is better, 0: the second, 0.5: neither
    valid: Bool[Array, " b"]
    dataset_id: Int[Array, " b"]


class DirectLearner(Learner):
    """A Learner whose `loss` is that of direct preference optimisation (arXiv 2305.18290)."""

    def __init__(
        self, learning: LearnerConfig, beta: float, backbone: Any, head: Any, *rest: Any
    ) -> None:
        """`beta` is what a nat of likelihood is worth; `rest` is Learner's. Raises ValueError for
        a head that is no ContinuousHead.
        """
        if not isinstance(head, ContinuousHead):
            raise ValueError(
                f"model.head: {type(head).__name__} flows or writes tokens, whose likelihood in"
                " clips of others is not reckoned here; begin with a policy of lstm, mlp, gpt or"
                " attention"
            )
        super().__init__(learning, backbone, head, *rest)
        self.beta = beta
        self.config = dataclasses.replace(self.config, loss_weights=(("preference", 1.0),))

    def loss(self, batch: Contests, key: jax.Array) -> Objective:  # type: ignore[override]
        """Sums over the valid pairs: the cross-entropy of which is better, whose log-odds are beta
        times by how much likelier the first became than the second (eq. 7 there; a tie is half of
        either).
        """
        del key
        margin, apart = self.margins(batch)
        cost = jax.nn.softplus(margin) - batch.choice * margin
        decided = batch.valid & (batch.choice != 0.5)
        right = (margin > 0) == (batch.choice > 0.5)
        metrics: dict[str, tuple[Array, Array]] = {
            "right": (jnp.where(decided, right, 0.0), decided.astype(jnp.float32)),
            "divergence": (jnp.where(batch.valid, apart, 0.0), batch.valid.astype(jnp.float32)),
        }
        total = jnp.sum(jnp.where(batch.valid, cost, 0.0))
        return Objective({"preference": total}, jax.lax.stop_gradient(metrics))

    def mask_counts(self, batch: Contests) -> dict[str, Array]:  # type: ignore[override]
        """The valid pairs."""
        return {"preference": jnp.sum(batch.valid, dtype=jnp.float32)}

    def margins(self, batch: Contests) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """The log-odds that the first clip is better, and how far the policy is from the one before
        all learning, nats a chunk.
        """
        raw = self.raw(batch)
        width = jax.lax.stop_gradient(self.critic.log_std[...])
        flat = [x.reshape(-1, *x.shape[3:]) for x in (batch.chunk, batch.mask, batch.reference)]
        chunk, mask, reference = flat
        now, before = (
            density.log_prob(each, width, self.learning.binary, chunk, mask)
            for each in (raw, reference)
        )
        likelier = now - before
        gain = jnp.sum(likelier.reshape(batch.mask.shape[:3]), axis=2)  # b 2
        there = jnp.any(batch.mask, axis=(3, 4))
        apart = self._divergence(raw, reference, mask).reshape(there.shape)
        count = jnp.maximum(jnp.sum(there, axis=(1, 2)), 1)
        mean = jnp.sum(jnp.where(there, apart, 0.0), axis=(1, 2)) / count
        return self.beta * (gain[:, 0] - gain[:, 1]), mean

    def raw(self, batch: Contests) -> Float[Array, "n k d"]:
        """What the head says at each look, of b * 2 * s."""
        n = batch.mask.shape[0] * batch.mask.shape[1] * batch.mask.shape[2]
        obs = jax.tree.map(lambda x: x.reshape(n, *x.shape[3:]), batch.obs)
        out: Array = self._raw(self.readouts(obs), obs.step_mask)
        return out
