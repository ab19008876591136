"""A policy that learns by trial: what it is while it acts and while it is updated.

It is the policy with two things beside it, `critic` and its width of exploration, which nothing
but the learning needs: whoever opens its checkpoint to act leaves them (CRITIC).

Axes: b decisions, t window step, n readouts, c width, k chunk step, d action dim; what a head says
of a chunk ("raw") has another one behind them where it writes tokens.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from vla_jax.models import starts
from vla_jax.models.heads.discrete import DiscreteHead
from vla_jax.models.heads.outputs import MLP, ContinuousHead, flatten
from vla_jax.models.sequence import MaskedTokens
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.rl import density, tokens
from vla_jax.rl.tokens import DrawingHead
from vla_jax.types import Array, Guide, Objective, Observation

CRITIC = "critic/"  # what the names of its own parameters begin with
CRITIC_VALUE = f"{CRITIC}value/*"  # those that say what is still to be earned
ALGORITHMS = ("ppo", "grpo")  # by trial
DIRECT = "dpo"  # from preferences, see direct.py


class Decisions(NamedTuple):
    """What was decided in trials, and what came of it: a batch to learn from. Rows that fill it up
    are not `valid`.
    """

    obs: Observation
    chunk: Float[Array, "b k d"]  # network units, as it was drawn; of flowing.py its path too
    mask: Bool[Array, "b k d"]  # what of it was carried out and may vary
    log_prob: Float[Array, " b"]  # of the policy that drew it
    advantage: Float[Array, " b"]
    returns: Float[Array, " b"]  # what the critic should say
    reference: Float[Array, "b k d *raw"]  # what the policy before all learning says
    valid: Bool[Array, " b"]
    # Those of tasks that are only kept as they were: nothing but their divergence counts.
    kept: Bool[Array, " b"]
    dataset_id: Int[Array, " b"]
    # Of the backbone, where nothing of it learns: it need not run again, and what it sees may be
    # missing in obs.
    readouts: Float[Array, "b t n c"] | None = None


def unseen(obs: Observation) -> Observation:
    """Without what a backbone alone looks at, which takes the most room."""
    return obs._replace(images=(), sensors={})


@dataclass(frozen=True)
class LearnerConfig:
    """How it learns.

    Attributes:
        algorithm: "ppo" (with a critic) or "grpo" (advantages are those within groups of trials).
        clip: a ratio of probabilities further from 1 than this earns no more.
        value, divergence: what the critic's squared error and the divergence from the reference
            weigh beside the policy's gain; 0 leaves one out.
        kept: what the divergence weighs in tasks that are only kept.
        log_std: of exploration at the beginning, network units; of a head that flows see paths.py.
        hidden: of the critic.
        binary: dims of actions that are 0 or 1.
    """

    algorithm: str
    clip: float
    value: float
    divergence: float
    kept: float
    log_std: float
    hidden: int
    binary: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.algorithm not in (*ALGORITHMS, DIRECT):
            raise ValueError(
                f"rl.algorithm: expected one of {', '.join((*ALGORITHMS, DIRECT))}, got"
                f" {self.algorithm!r}"
            )

    @property
    def weights(self) -> tuple[tuple[str, float], ...]:
        """Of the terms of the loss that are in it."""
        parts = [("policy", 1.0), ("divergence", self.divergence), ("kept", self.kept)]
        if self.algorithm == "ppo":
            parts.append(("value", self.value))
        return tuple((name, weight) for name, weight in parts if weight)


class Critic(nnx.Module):
    """Readouts of the newest frame [b n c] -> what is still to be earned [b]; and the logarithm of
    the width of exploration, [d].
    """

    def __init__(self, inputs: int, hidden: int, log_std: Array, rngs: nnx.Rngs) -> None:
        self.value = MLP((inputs, hidden, 1), rngs)
        # It expects nothing at first: a random opinion is further from the truth than none.
        last = self.value.layers[-1]
        last.kernel[...] = jnp.zeros_like(last.kernel[...])
        self.log_std = nnx.Param(log_std, logical=(None,))

    def __call__(self, readouts: Float[Array, "b n c"]) -> Float[Array, " b"]:
        # The backbone is not bent towards telling success: no gradient.
        return self.value(flatten(jax.lax.stop_gradient(readouts)[:, None]))[:, 0, 0]


class Learner(VLA):
    """A VLA whose `loss` is that of a learner by trial, and which explores where it acts. Its head
    is a ContinuousHead (density.py) or the discrete one (tokens.py); flowing.py has another one.
    """

    heads: tuple[type, ...] = (ContinuousHead, DiscreteHead)  # that it can learn with

    def __init__(
        self,
        learning: LearnerConfig,
        backbone: Any,
        head: Any,
        config: VLAConfig,
        rngs: nnx.Rngs,
        *makers: Any,
    ) -> None:
        """`makers` are VLA's. Raises ValueError for a head of whose actions no density is known."""
        if not any(isinstance(head, kind) for kind in self.heads):
            raise ValueError(
                f"model.head: {type(head).__name__} gives actions without a density here; learning"
                " by trial wants one of lstm, mlp, gpt, attention, flow, discrete"
            )
        writes = isinstance(head, DiscreteHead)
        head = DrawingHead(backbone.width, head.config) if writes else head
        super().__init__(backbone, head, config, rngs, *makers)
        self.learning = learning
        self.config = dataclasses.replace(config, loss_weights=learning.weights)
        inputs = (1 if writes else config.readouts) * self.backbone.width
        log_std = jnp.full(config.action_dim, learning.log_std, jnp.float32)
        self.critic = Critic(inputs, learning.hidden, log_std, rngs)

    @property
    def drawn(self) -> int:
        """Numbers of a step of a chunk as it is drawn."""
        return self.config.action_dim

    def loss(self, batch: Decisions, key: jax.Array) -> Objective:  # type: ignore[override]
        """What a batch of decisions costs: sums over the valid ones, each over its own (_counted).

        The policy's is the clipped surrogate of PPO (arXiv 1707.06347, eq. 7), with the sign turned
        round.
        """
        del key
        raw, value = self.judged(batch)
        own, mask, rows = self.learning, batch.mask, self._counted(batch)
        log_prob = self.log_prob(raw, batch.chunk, mask)
        change = jnp.where(rows["policy"], log_prob - batch.log_prob, 0.0)
        ratio, gain = jnp.exp(change), batch.advantage
        limited = jnp.clip(ratio, 1 - own.clip, 1 + own.clip)
        apart = self._divergence(raw, batch.reference, mask)
        costs = {
            "policy": -jnp.minimum(ratio * gain, limited * gain),
            "value": 0.5 * (value - batch.returns) ** 2,
            "divergence": apart,
            "kept": apart,
        }
        sums: dict[str, Array] = {
            name: jnp.sum(jnp.where(rows[name], costs[name], 0.0)) for name, _ in own.weights
        }
        told: dict[str, Array] = {
            "divergence": apart,
            # From the policy that drew them; Schulman's estimate, which is never negative.
            "update": ratio - 1 - change,
            "clipped": (ratio != limited).astype(jnp.float32),
        }
        if own.algorithm == "ppo":
            told["value_error"] = (value - batch.returns) ** 2
        if own.kept:
            told["kept"] = apart
        metrics: dict[str, tuple[Array, Array]] = {
            name: (jnp.where(rows[name], each, 0.0), rows[name].astype(jnp.float32))
            for name, each in told.items()
        }
        return Objective(sums, jax.lax.stop_gradient(metrics))

    def mask_counts(self, batch: Decisions) -> dict[str, Array]:  # type: ignore[override]
        """Of each term the decisions that it counts."""
        rows = self._counted(batch)
        return {name: jnp.sum(rows[name], dtype=jnp.float32) for name, _ in self.learning.weights}

    def _counted(self, batch: Decisions) -> dict[str, Bool[Array, " b"]]:
        """Of each term and each number that is told the decisions that count in it."""
        learnt, kept = batch.valid & ~batch.kept, batch.valid & batch.kept
        names = ("policy", "value", "divergence", "update", "clipped", "value_error")
        return {**dict.fromkeys(names, learnt), "kept": kept}

    def judged(self, batch: Decisions) -> tuple[Float[Array, "b k d *raw"], Float[Array, " b"]]:
        """What the head says at the newest frame, of tokens where those before them are the
        chunk's; and the critic.
        """
        obs = batch.obs
        if not isinstance(self.head, DrawingHead):
            readouts = self.readouts(obs) if batch.readouts is None else batch.readouts
            return self._raw(readouts, obs.step_mask), self.critic(readouts[:, -1])
        t = obs.step_mask.shape[1]
        ids = self.head.targets(batch.chunk[:, None], jnp.ones_like(batch.mask)[:, None])
        # The same behind every frame of the window, of which only the newest's are looked at: no
        # frame sees those of another.
        written = jnp.repeat(ids, t, axis=0)[:, :-1]
        extra = MaskedTokens(self.backbone.embed_text(written), jnp.ones(written.shape, bool))
        hidden = self.encode(self.sequence(obs, extra), self.head.num_tokens, t)[:, -1]
        logits = self.backbone.logits(hidden, self.head.config.token_range)
        return self.head.raw(logits), self.critic(hidden[:, :1])

    def log_prob(
        self,
        raw: Float[Array, "b k d *raw"],
        chunk: Float[Array, "b k d"],
        mask: Bool[Array, "b k d"],
    ) -> Float[Array, " b"]:
        """The logarithm of how likely what was carried out of each chunk is."""
        if isinstance(self.head, DrawingHead):
            return self.head.log_prob(raw, chunk, mask)
        return density.log_prob(raw, self.critic.log_std[...], self.learning.binary, chunk, mask)

    def _divergence(
        self, raw: Float[Array, "b k d *raw"], other: Float[Array, "b k d *raw"], mask: Any
    ) -> Float[Array, " b"]:
        if isinstance(self.head, DrawingHead):
            return tokens.divergence(raw, other, mask)
        return density.divergence(raw, other, self.critic.log_std[...], self.learning.binary, mask)

    def act_on_readouts(
        self,
        readouts: Float[Array, "b t n c"],
        present: Bool[Array, "b t"],
        dims: Bool[Array, "b d"] | None,
        key: jax.Array,
        guide: Guide | None = None,
    ) -> Float[Array, "b k d"]:
        """A chunk as it explores, not the likeliest."""
        del dims, guide  # no head that learns by trial can be led
        raw = self._raw(readouts, present)
        return density.draw(raw, self.critic.log_std[...], self.learning.binary, key)

    def _raw(self, readouts: Float[Array, "b t n c"], present: Bool[Array, "b t"]) -> density.Raw:
        head: Any = self.head
        return head.outputs(self._features(readouts, present)[:, None])[:, 0]

    def _features(
        self, readouts: Float[Array, "b t n c"], present: Bool[Array, "b t"]
    ) -> Float[Array, "b f"]:
        """What the head makes of the window, at the newest frame."""
        head: Any = self.head
        if self.config.history_start == "repeat":
            return head.features(readouts)[:, -1]
        return starts.newest(head.features(starts.present_first(readouts, present)), present)
