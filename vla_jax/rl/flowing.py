"""A policy with the head flow that learns by trial: its arm along paths (paths.py), its gripper as
in density.py.

What is drawn is a chunk and how it came about: behind the d actions of each step stand its places
on the path, one after another. What the head says of that ("raw") is the velocity at each of them,
and behind those the logits of binary dims. The width of its noise is not learned: it changes what
the steps are likely to be, and hardly what they end at.

Axes: b decisions, t window step, n readouts, c width, k chunk step, d action dim, e numbers of a
step of a chunk with its path, r of what the head says there, a arm dims, g binary ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vla_jax.models.heads.euler import STEPS
from vla_jax.models.heads.flow import FlowHead
from vla_jax.rl import density, paths
from vla_jax.rl.learner import Decisions, Learner
from vla_jax.types import Array, Guide


class FlowLearner(Learner):
    """A Learner whose head flows."""

    heads = (FlowHead,)

    @property
    def drawn(self) -> int:
        """See Learner."""
        return self.config.action_dim + (STEPS + 1) * len(self._arm)

    def judged(self, batch: Decisions) -> tuple[Float[Array, "b k r"], Float[Array, " b"]]:
        """See Learner: what the head says along the chunk's path; and the critic."""
        head: Any = self.head
        obs = batch.obs
        readouts = self.readouts(obs) if batch.readouts is None else batch.readouts
        features = self._features(readouts, obs.step_mask)[:, None]
        velocity = paths.along(head.field(features), self._path(batch.chunk))
        raw = jnp.concatenate([_folded(velocity), head.logits(features)[:, 0]], axis=-1)
        return raw, self.critic(readouts[:, -1])

    def log_prob(
        self, raw: Float[Array, "b k r"], chunk: Float[Array, "b k e"], mask: Bool[Array, "b k d"]
    ) -> Float[Array, " b"]:
        """The logarithm of the density of each chunk's path, of all of it, and of the binary
        numbers that were carried out.
        """
        velocity, logits = self._parts(raw)
        arm = paths.log_prob(velocity, self._std, self._path(chunk), self._flowing(mask))
        coins = chunk[..., self._binary], mask[..., self._binary]
        return arm + density.log_prob(logits, *self._all_coins, *coins)

    def act_on_readouts(
        self,
        readouts: Float[Array, "b t n c"],
        present: Bool[Array, "b t"],
        dims: Bool[Array, "b d"] | None,
        key: jax.Array,
        guide: Guide | None = None,
    ) -> Float[Array, "b k e"]:
        """A chunk as it explores, with its path; it begins where the head's own would with the same
        key.
        """
        del guide  # none is given where a policy learns by trial
        head: Any = self.head
        features = self._features(readouts, present)[:, None]
        there = head.there(dims, len(features))[:, 0, 0] > 0
        steps, coins = (jax.random.fold_in(key, i) for i in (2, 3))  # 0 and 1 are the head's
        start = head.start(key, len(features))[:, 0]
        path = paths.draw(head.field(features), start, self._std, there, steps)
        chance = jax.nn.sigmoid(head.logits(features))
        gripper = (jax.random.uniform(coins, chance.shape) < chance).astype(chance.dtype)
        chunk = head.put(jnp.clip(path[:, -1:], -1.0, 1.0), gripper)[:, 0]
        return jnp.concatenate([chunk, _folded(path)], axis=-1)

    def _divergence(
        self, raw: Float[Array, "b k r"], other: Float[Array, "b k r"], mask: Bool[Array, "b k d"]
    ) -> Float[Array, " b"]:
        (velocity, x), (before, y) = self._parts(raw), self._parts(other)
        arm = paths.divergence(velocity, before, self._std, self._flowing(mask))
        return arm + density.divergence(x, y, *self._all_coins, mask[..., self._binary])

    @property
    def _arm(self) -> np.ndarray:
        head: Any = self.head
        return np.array(head.config.arm, int)

    @property
    def _binary(self) -> np.ndarray:
        return np.array(self.learning.binary, int)

    @property
    def _all_coins(self) -> tuple[Float[Array, " g"], tuple[int, ...]]:
        """What density.py is told of numbers that are all binary: no width, and which those are."""
        count = len(self.learning.binary)
        return jnp.zeros(count), tuple(range(count))

    @property
    def _std(self) -> Float[Array, " a"]:
        return jnp.exp(jax.lax.stop_gradient(self.critic.log_std[...]))[self._arm]

    def _flowing(self, mask: Bool[Array, "b k d"]) -> Bool[Array, "b a"]:
        """The arm dims that the robot has: of those something was carried out."""
        return jnp.any(mask, axis=1)[:, self._arm]

    def _path(self, chunk: Float[Array, "b k e"]) -> Float[Array, "b p k a"]:
        return _unfolded(chunk[..., self.config.action_dim :], STEPS + 1)

    def _parts(
        self, raw: Float[Array, "b k r"]
    ) -> tuple[Float[Array, "b q k a"], Float[Array, "b k g"]]:
        """Velocities, and logits of binary dims."""
        flowing = STEPS * len(self._arm)
        return _unfolded(raw[..., :flowing], STEPS), raw[..., flowing:]


def _folded(places: Float[Array, "b p k a"]) -> Float[Array, "b k e"]:
    b, p, k, a = places.shape
    return jnp.moveaxis(places, 1, 2).reshape(b, k, p * a)


def _unfolded(numbers: Float[Array, "b k e"], places: int) -> Float[Array, "b p k a"]:
    b, k, e = numbers.shape
    return jnp.moveaxis(numbers.reshape(b, k, places, e // places), 2, 1)
