"""The discrete head: actions as tokens of the language model (RoboVLMs' DiscreteDecoder and
ActionTokenizer).

Every number of a chunk is one of `bins` tokens near the end of the vocabulary, so this head has no
parameters: the backbone's own output layer scores the tokens, in time order, d tokens a step.
Training is teacher forced. Scores are taken over the action tokens alone, in the loss as in
decoding: a token that is no action cannot come out, and the other quarter of a million rows of a
PaliGemma are never multiplied.

In the place of a number that a robot lacks stands the token of the middle, in training as in
decoding.

Axes: f frames, q = k * d action tokens of a chunk.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from vla_jax.models.decoding import write
from vla_jax.models.losses import ActionLoss, action_loss, masked_mean
from vla_jax.types import Array, Batch, HeadContext, Loss

RESERVED = 10  # ids below the special tokens that RoboVLMs leaves free


@dataclass(frozen=True)
class DiscreteConfig:
    """What the tokens mean.

    Attributes:
        end: one more than the largest action id, see `action_end`.
        bins: edges of the bins, from low to high; there is one value less than edges.
        temperature: of the decoding; 0 takes the likeliest token.
        loss: for the metrics, which are those of the other heads.
    """

    chunk: int
    action_dim: int
    binary: tuple[int, ...]
    end: int
    bins: int = 256
    low: float = -1.0
    high: float = 1.0
    temperature: float = 0.0
    loss: ActionLoss = field(default_factory=ActionLoss)

    def __post_init__(self) -> None:
        if self.bins < 2 or not self.low < self.high or self.temperature < 0:
            raise ValueError(
                "DiscreteConfig: expected bins >= 2, low < high and temperature >= 0, got"
                f" {self.bins}, {self.low}, {self.high}, {self.temperature}"
            )
        if self.end - self.bins < 0:
            raise ValueError(
                f"DiscreteConfig.end: expected at least bins = {self.bins} tokens, got {self.end}"
            )

    @property
    def token_range(self) -> tuple[int, int]:
        """The ids of the action tokens: from the first to one more than the last."""
        return self.end - self.bins, self.end

    @property
    def tokens(self) -> int:
        """Action tokens of a chunk."""
        return self.chunk * self.action_dim

    @property
    def middle(self) -> int:
        """The id of the middle of the range, as `encode` gives it."""
        edges = np.linspace(self.low, self.high, self.bins)
        return self.end - int(np.sum(edges <= np.float32((self.high + self.low) / 2)))


def action_end(vocab_size: int, special_tokens: int) -> int:
    """One more than the largest action id, given a tokenizer's `vocab_size` and its number of
    special tokens.
    """
    return vocab_size - special_tokens - RESERVED


def encode(values: Float[Array, "*s"], config: DiscreteConfig) -> Int[Array, "*s"]:
    """Ids of values: `end` minus the number of edges that are not above the value, which is clipped
    to [low, high].

    The highest edge has a token of its own, as numpy.digitize gives it.
    """
    edges = np.linspace(config.low, config.high, config.bins)
    # Edges are float64 in the original. A float32 value is not below one exactly if it is not below
    # the next float32.
    rounded = edges.astype(np.float32)
    rounded = np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)
    values = jnp.clip(values.astype(jnp.float32), np.float32(config.low), np.float32(config.high))
    return config.end - jnp.searchsorted(jnp.asarray(rounded), values, side="right").astype(
        jnp.int32
    )


def decode(ids: Int[Array, "*s"], config: DiscreteConfig) -> Float[Array, "*s"]:
    """Centres of the bins of ids; ids outside the range give the nearest one."""
    index = jnp.clip(config.end - ids - 1, 0, config.bins - 2)
    return jnp.asarray(_centres(config))[index]


class DiscreteHead(nnx.Module):
    """Scores of action tokens -> loss, actions. It has no parameters."""

    acts_on, trains_on = "prefix", "tokens"
    inpaints = False

    def __init__(self, width: int, config: DiscreteConfig, rngs: nnx.Rngs | None = None) -> None:
        self.config = config

    @property
    def num_tokens(self) -> int:
        """Action tokens of a chunk."""
        return self.config.tokens

    def teacher(
        self, batch: Batch, mask: Bool[Array, "b t k d"]
    ) -> tuple[Int[Array, "f q"], Bool[Array, "f q"]]:
        """The action tokens of every frame, all of which are there."""
        ids = self.targets(batch.actions, mask)
        return ids, jnp.ones(ids.shape, bool)

    def targets(
        self, actions: Float[Array, "b t k d"], mask: Bool[Array, "b t k d"]
    ) -> Int[Array, "f q"]:
        """Action tokens of every frame. Binary dims 0, 1 stand at the two ends; what is masked is
        the middle.
        """
        config = self.config
        wide = jnp.where(
            _is_binary(config), actions * (config.high - config.low) + config.low, actions
        )
        ids = encode(jnp.where(mask, wide, (config.high + config.low) / 2), config)
        return ids.reshape(-1, config.tokens)

    def loss(
        self,
        context: HeadContext,
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: jax.Array,
    ) -> Loss:
        """`token_loss` of the backbone's logits at the predictors."""
        del key
        logits = context.backbone.logits(context.predictors, self.config.token_range)
        return self.token_loss(logits, actions, mask)

    def act(self, context: HeadContext, key: jax.Array) -> Float[Array, "b 1 k d"]:
        """The newest frame's normalised actions; a binary dim holds the probability of 1."""
        return self.actions(*self.decode_tokens(context, key))[:, None]

    def decode_tokens(
        self, context: HeadContext, key: jax.Array
    ) -> tuple[Int[Array, "b q"], Float[Array, "b q bins"]]:
        """The newest frame's action tokens, and the scores that each was chosen by."""
        config, dims = self.config, context.dims

        def choose(scores: Array, i: Any) -> Array:
            chosen = self.choose(scores, jax.random.fold_in(key, i))
            if dims is None:
                return chosen
            there = jax.lax.dynamic_index_in_dim(dims, i % config.action_dim, 1, keepdims=False)
            return jnp.where(there, chosen, config.middle)

        return write(context.backbone, context.prefix, config.token_range, self.num_tokens, choose)

    def noise(self, key: jax.Array) -> Float[Array, "q bins"] | None:
        """What is added to the scores of each token of one example; None without a temperature."""
        if not self.config.temperature:
            return None
        keys = [jax.random.fold_in(key, i) for i in range(self.num_tokens)]
        return jnp.stack([jax.random.gumbel(key, (1, self.config.bins))[0] for key in keys])

    def token_loss(
        self,
        logits: Float[Array, "f q bins"],
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
    ) -> Loss:
        """Cross-entropy of the tokens; a step counts once and costs the mean over its valid dims.

        Metrics are those of losses.action_loss for the likeliest token of each number given the
        true ones before it; and "token_accuracy" [b].
        """
        config, (b, t) = self.config, actions.shape[:2]
        ids = self.targets(actions, mask)
        scores = jax.nn.log_softmax(logits, axis=-1)
        index = (ids - config.token_range[0]).reshape(-1, config.tokens, 1)
        cost = -jnp.take_along_axis(scores, index, axis=-1).reshape(mask.shape)  # b t k d
        best = jnp.argmax(logits, axis=-1)
        right = (best == index[..., 0]).reshape(mask.shape)
        predicted = self._values(best + config.token_range[0], logits, logit=True).reshape(
            b, t, config.chunk, -1
        )
        predicted = jax.lax.stop_gradient(predicted)
        metrics = action_loss(predicted, actions, mask, config.binary, config.loss).metrics
        axes = (1, 2, 3)
        hits, count = (jnp.sum(x, axis=axes, dtype=jnp.float32) for x in (mask & right, mask))
        return Loss(masked_mean(cost, mask).sum(), {**metrics, "token_accuracy": (hits, count)})

    def choose(self, logits: Float[Array, "f bins"], key: jax.Array) -> Int[Array, " f"]:
        """The next token."""
        if self.config.temperature:
            chosen = jax.random.categorical(key, logits / self.config.temperature, axis=-1)
        else:
            chosen = jnp.argmax(logits, axis=-1)
        return (chosen + self.config.token_range[0]).astype(jnp.int32)

    def actions(
        self, ids: Int[Array, "f q"], logits: Float[Array, "f q bins"]
    ) -> Float[Array, "f k d"]:
        """Normalised actions of decoded tokens; a binary dim holds the probability of 1."""
        return self._values(ids, logits, logit=False).reshape(
            ids.shape[0], self.config.chunk, self.config.action_dim
        )

    def _values(self, ids: Array, logits: Array, logit: bool) -> Array:
        """Values of tokens; of a binary dim the probability that its value is above the middle, or
        that's logit.
        """
        config = self.config
        ones = decode(jnp.arange(*config.token_range), config) > (config.high + config.low) / 2  # n
        scores = jax.nn.log_softmax(logits, axis=-1)
        yes, no = (
            jax.nn.logsumexp(jnp.where(part[None, None], scores, -math.inf), axis=-1)
            for part in (ones, ~ones)
        )
        binary = jnp.tile(_is_binary(config).reshape(1, -1), (1, config.chunk))  # 1 q
        return jnp.where(
            binary, yes - no if logit else jax.nn.sigmoid(yes - no), decode(ids, config)
        )


def _is_binary(config: DiscreteConfig) -> Array:
    return jnp.asarray(np.isin(np.arange(config.action_dim), config.binary))[None, None, None]


def _centres(config: DiscreteConfig) -> np.ndarray:
    edges = np.linspace(config.low, config.high, config.bins)
    return ((edges[:-1] + edges[1:]) / 2).astype(np.float32)
