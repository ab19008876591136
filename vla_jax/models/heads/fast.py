"""The head fast: a chunk as a string of few tokens of the language model (FAST, arXiv 2501.09747),
whose ids are the vocabulary's last but 128, from its end down, as openpi maps them.

It has no parameters: the backbone's own output layer scores the tokens, those of the vocabulary of
chunks (models/fast_vocabulary.py) alone. The loader writes the strings (Batch.action_tokens), as
only a host can; they are decoded on the device, from the table of pieces.

Training is teacher forced, on the tokens that are there and the end token. A chunk counts by its
steps that do, and costs the mean over its tokens. Beyond an episode's end a chunk holds what the
loader has there, no motion; a dim that a robot lacks is 0 in it, in training as in decoding.

Acting takes the likeliest token, until the end token. A string that is not whole (of other than
k * d numbers, or without end) is no chunk: `act` gives NaN, and whoever carries actions out holds
the robot and says so (robot/held.py).

Axes: f frames, q tokens of a chunk, n tokens to choose from, m numbers of a chunk, k * d.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from vla_jax.models.decoding import write
from vla_jax.models.fast_vocabulary import FastVocabulary, basis
from vla_jax.models.losses import ActionLoss, action_loss, counted_steps, masked_mean
from vla_jax.types import Array, Batch, HeadContext, Loss

SKIPPED = 128  # ids at the end of the vocabulary that stay what they are: PaliGemma's <seg>
SURE = 0.99  # the probability that a decoded 0 or 1 is credited with at most, in metrics


@dataclass(frozen=True)
class FastConfig:
    """What the tokens mean.

    Attributes:
        end: one more than the largest id, see `token_end`: that of the vocabulary's token 0.
        most: tokens of a chunk at most, the end among them; 0: as many as any can need.
        loss: for the metrics, which are those of the other heads.
    """

    chunk: int
    action_dim: int
    binary: tuple[int, ...]
    end: int
    vocabulary: FastVocabulary
    most: int = 0
    loss: ActionLoss = field(default_factory=ActionLoss)

    def __post_init__(self) -> None:
        size, sizes = (self.chunk, self.action_dim), self.vocabulary
        if (sizes.chunk, len(sizes.names)) != size:
            raise ValueError(
                f"FastConfig: expected a vocabulary of chunks of {size[0]} steps of {size[1]} dims,"
                f" got {sizes.chunk} of {', '.join(sizes.names)}; fit one on this data"
            )
        if self.end < sizes.size or self.most < 0 or self.most == 1:
            raise ValueError(
                f"FastConfig: expected room for {sizes.size} tokens below id {self.end}, and"
                f" model.fast.most 0 or above 1, got {self.most}; set a smaller model.fast.tokens"
            )

    @property
    def token_range(self) -> tuple[int, int]:
        """The ids of the tokens: from the first to one more than the last."""
        return self.end - self.vocabulary.size, self.end

    @property
    def end_token(self) -> int:
        """The id that ends a string: the first of them."""
        return self.token_range[0]

    @property
    def tokens(self) -> int:
        """Tokens of a chunk at most."""
        return self.most or self.vocabulary.numbers + 1


def token_end(vocab_size: int) -> int:
    """One more than the largest id of a token, given a tokenizer's `vocab_size` without what was
    added to it.
    """
    return vocab_size - SKIPPED


class FastHead(nnx.Module):
    """Scores of tokens -> loss, actions. It has no parameters."""

    acts_on, trains_on = "prefix", "tokens"
    inpaints = False

    def __init__(self, width: int, config: FastConfig, rngs: nnx.Rngs | None = None) -> None:
        self.config = config

    @property
    def num_tokens(self) -> int:
        """Tokens of a chunk at most."""
        return self.config.tokens

    def teacher(
        self, batch: Batch, mask: Bool[Array, "b t k d"]
    ) -> tuple[Int[Array, "f q"], Bool[Array, "f q"]]:
        """See `strings`."""
        del mask
        return strings(batch, self.config)

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
        return self.token_loss(logits, context.taught, actions, mask)

    def act(self, context: HeadContext, key: jax.Array) -> Float[Array, "b 1 k d"]:
        """The newest frame's normalised actions; a binary dim holds how near it is to 1. NaN for a
        string that is not whole.
        """
        return self.actions(self.decode_tokens(context, key)[0])[:, None]

    def decode_tokens(
        self, context: HeadContext, key: jax.Array
    ) -> tuple[Int[Array, "b q"], Float[Array, "b q n"]]:
        """The newest frame's tokens, from the end token on that alone, and the scores that each was
        chosen by: 0 where all had ended.
        """
        del key
        config = self.config

        def choose(scores: Array, _: Any) -> Array:
            return (jnp.argmax(scores, axis=-1) + config.token_range[0]).astype(jnp.int32)

        return write(
            context.backbone,
            context.prefix,
            config.token_range,
            config.tokens,
            choose,
            config.end_token,
        )

    def noise(self, key: jax.Array) -> None:
        """Nothing is drawn."""
        del key

    def token_loss(
        self,
        logits: Float[Array, "f q n"],
        taught: tuple[Int[Array, "f q"], Bool[Array, "f q"]],
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
    ) -> Loss:
        """Cross-entropy of the tokens that are there.

        Metrics are those of losses.action_loss, where each number is that of the likeliest token in
        the place of the one that truly holds it, given the true ones before, and 0 where that token
        has no such; "token_accuracy"; and "broken": how many strings of likeliest tokens are not
        whole. The last two [b].
        """
        config, (b, t) = self.config, actions.shape[:2]
        ids, there = taught
        cost = string_cost(logits, taught, config)
        steps = jnp.sum(counted_steps(mask), axis=-1, dtype=jnp.float32)  # b t
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32) + config.token_range[0]
        # Past the true end nothing was shown before the token: what it says is not looked at.
        best = jnp.where(there, best, config.end_token)
        values = self._values(self._numbers(best, self._lengths(ids)))
        metrics = self._action_metrics(values.reshape(*mask.shape), actions, mask)
        counted = steps > 0
        seen = there.reshape(b, t, -1) & counted[..., None]
        hits = (best == ids).reshape(seen.shape) & seen
        broken = ~self.whole(best).reshape(b, t) & counted
        metrics |= {"token_accuracy": _counts(hits, seen), "broken": _counts(broken, counted)}
        return Loss(jnp.sum(cost.reshape(b, t) * steps), metrics)

    def whole(self, ids: Int[Array, "f q"]) -> Bool[Array, " f"]:
        """Which strings end, and hold the numbers of a chunk until then."""
        ended = jnp.any(ids == self.config.end_token, axis=-1)
        return ended & (jnp.sum(self._lengths(ids), axis=-1) == self.config.vocabulary.numbers)

    def actions(self, ids: Int[Array, "f q"]) -> Float[Array, "f k d"]:
        """Normalised actions of strings; a binary dim holds how near it is to 1, in 0 to 1. NaN for
        one that is not whole.
        """
        values = self._values(self._numbers(ids, self._lengths(ids)))
        actions = jnp.where(self._is_binary(), jnp.clip((values + 1) / 2, 0.0, 1.0), values)
        return jnp.where(self.whole(ids)[:, None, None], actions, jnp.nan)

    def _lengths(self, ids: Int[Array, "f q"]) -> Int[Array, "f q"]:
        """Numbers of each token; 0 from the end token on."""
        before_end = jnp.cumsum(ids == self.config.end_token, axis=-1) == 0
        return jnp.where(before_end, jnp.asarray(self._table()[1])[self._pieces(ids)], 0)

    def _numbers(self, ids: Int[Array, "f q"], lengths: Int[Array, "f q"]) -> Int[Array, "f m"]:
        """What tokens say that stand where strings of these lengths have theirs; 0 where a token is
        shorter than that.
        """
        stop = jnp.cumsum(lengths, axis=-1)[:, :, None]  # f q 1
        place = jnp.arange(self.config.vocabulary.numbers)[None]  # 1 m
        token = jnp.sum(stop <= place[:, None], axis=1)  # f m: how many are over before it
        token = jnp.minimum(token, ids.shape[1] - 1)
        offset = place - jnp.take_along_axis(stop[..., 0] - lengths, token, axis=1)
        piece = jnp.take_along_axis(self._pieces(ids), token, axis=1)
        numbers, sizes = (jnp.asarray(x) for x in self._table())
        inside = (offset >= 0) & (offset < sizes[piece])
        return jnp.where(inside, numbers[piece, jnp.clip(offset, 0, numbers.shape[1] - 1)], 0)

    def _pieces(self, ids: Int[Array, "f q"]) -> Int[Array, "f q"]:
        """The vocabulary's tokens of ids: from the end down."""
        return self.config.end - 1 - ids

    def _values(self, numbers: Int[Array, "f m"]) -> Float[Array, "f k d"]:
        """The inverse transform, in network units."""
        config = self.config
        coefficients = numbers.reshape(-1, config.chunk, config.action_dim).astype(jnp.float32)
        waves = jnp.asarray(basis(config.chunk) / config.vocabulary.scale, jnp.float32)
        return jnp.einsum("kf,nfd->nkd", waves, coefficients, precision=jax.lax.Precision.HIGHEST)

    def _action_metrics(
        self,
        values: Float[Array, "b t k d"],
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
    ) -> dict[str, tuple[Array, Array]]:
        near = jnp.clip((values + 1) / 2, 1 - SURE, SURE)
        predicted = jnp.where(self._is_binary()[None], jnp.log(near) - jnp.log1p(-near), values)
        config = self.config
        return action_loss(predicted, actions, mask, config.binary, config.loss).metrics

    def _is_binary(self) -> Bool[Array, "1 1 d"]:
        return jnp.asarray(np.isin(np.arange(self.config.action_dim), self.config.binary))[
            None, None
        ]

    def _table(self) -> tuple[Int[np.ndarray, "n l"], Int[np.ndarray, " n"]]:
        """The numbers of each token, padded, and how many; the end has none."""
        pieces = (*self.config.vocabulary.pieces, ())
        sizes = np.array([len(piece) for piece in pieces], np.int32)
        numbers = np.zeros((len(pieces), sizes.max()), np.int32)
        for row, piece in zip(numbers, pieces, strict=True):
            row[: len(piece)] = piece
        return numbers, sizes


def strings(batch: Batch, config: FastConfig) -> tuple[Int[Array, "f q"], Bool[Array, "f q"]]:
    """The string of every frame as the loader wrote it, and which of its tokens are there. Raises
    ValueError where it did not.
    """
    given, q = batch.action_tokens, config.tokens
    if given is None or given.ids.shape[-1] != q:
        raise ValueError(
            f"Batch.action_tokens: expected {q} for each frame, got"
            f" {'none' if given is None else given.ids.shape[-1]}; give loader and model the"
            " same config"
        )
    return jnp.asarray(given.ids).reshape(-1, q), jnp.asarray(given.mask).reshape(-1, q)


def string_cost(
    logits: Float[Array, "f q n"],
    taught: tuple[Int[Array, "f q"], Bool[Array, "f q"]],
    config: FastConfig,
) -> Float[Array, " f"]:
    """Mean cross-entropy over the tokens of each string that are there."""
    ids, there = taught
    index = (ids - config.token_range[0])[..., None]
    scores = jax.nn.log_softmax(logits, axis=-1)
    return masked_mean(-jnp.take_along_axis(scores, index, axis=-1)[..., 0], there)


def _counts(hits: Array, of: Array) -> tuple[Array, Array]:
    """How many there are in each example, [b] and [b]."""
    axes = tuple(range(1, of.ndim))
    return jnp.sum(hits, axes, dtype=jnp.float32), jnp.sum(of, axes, dtype=jnp.float32)


def widened(
    actions: Float[np.ndarray, "*b k d"], has: Bool[np.ndarray, "*b d"], binary: tuple[int, ...]
) -> Float[np.ndarray, "*b k d"]:
    """Normalised actions as strings have them: binary dims at -1 or 1, what a robot lacks 0."""
    wide = np.array(actions, np.float32)
    wide[..., list(binary)] = 2 * wide[..., list(binary)] - 1
    return np.where(has[..., None, :], wide, np.float32(0))
