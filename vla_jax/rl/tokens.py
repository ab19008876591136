"""How likely a policy with the head discrete makes a chunk: exactly, token by token.

While it learns, a chunk and its tokens say the same: of a number those tokens may be drawn that
decode to a value of their own (the highest edge's means what its neighbour does), of a binary one
the two at the ends. What was not carried out was written last: it changes no token before it.

Axes: b decisions, k chunk step, d action dim, n tokens to choose from.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.models.decoding import write
from vla_jax.models.heads import discrete
from vla_jax.models.heads.discrete import DiscreteConfig, DiscreteHead
from vla_jax.types import Array, HeadContext

# What the head says of a chunk: the logarithm of each token's probability, -inf of those that may
# not stand there.
Raw = Float[Array, "b k d n"]


def allowed(config: DiscreteConfig) -> np.ndarray:
    """[d n]: which tokens, from the first id on, may stand for a dim."""
    out = np.ones((config.action_dim, config.bins), bool)
    out[:, 0] = False  # the highest edge: ids go down as values go up
    ends = np.zeros(config.bins, bool)
    ends[[0, -1]] = True
    out[list(config.binary)] = ends
    return out


class DrawingHead(DiscreteHead):
    """The head as it explores: each token is drawn as likely as it is. It has no parameters, as the
    head has none.
    """

    def act(self, context: HeadContext, key: jax.Array) -> Float[Array, "b 1 k d"]:
        """The newest frame's actions; a binary dim is 0 or 1."""
        ids, _ = self.decode_tokens(context, key)
        values = discrete.decode(ids, self.config)
        values = values.reshape(-1, self.config.chunk, self.config.action_dim)
        middle = (self.config.high + self.config.low) / 2
        ones = (values > middle).astype(values.dtype)
        return jnp.where(_is_binary(self.config), ones, values)[:, None]

    def decode_tokens(
        self, context: HeadContext, key: jax.Array
    ) -> tuple[Int[Array, "b q"], Float[Array, "b q n"]]:
        """The newest frame's action tokens, and the scores that each was drawn by."""
        config, dims = self.config, context.dims
        may, first = jnp.asarray(allowed(config)), config.token_range[0]

        def choose(scores: Array, i: Any) -> Array:
            dim = i % config.action_dim
            scores = jnp.where(may[dim][None], scores, -math.inf)
            drawn = first + jax.random.categorical(jax.random.fold_in(key, i), scores, axis=-1)
            if dims is not None:
                there = jax.lax.dynamic_index_in_dim(dims, dim, 1, keepdims=False)
                drawn = jnp.where(there, drawn, config.middle)
            return drawn.astype(jnp.int32)

        return write(context.backbone, context.prefix, config.token_range, self.num_tokens, choose)

    def raw(self, logits: Float[Array, "b q n"]) -> Raw:
        """Of the backbone's logits at the predictors of a chunk."""
        config = self.config
        scores = logits.reshape(-1, config.chunk, config.action_dim, config.bins)
        may = jnp.asarray(allowed(config))[None, None]
        return jax.nn.log_softmax(jnp.where(may, scores, -math.inf), axis=-1)

    def log_prob(
        self, raw: Raw, chunk: Float[Array, "b k d"], mask: Bool[Array, "b k d"]
    ) -> Float[Array, " b"]:
        """The logarithm of the probability of what was carried out of each chunk."""
        ids = self.targets(chunk[:, None], jnp.ones_like(mask)[:, None])
        index = (ids - self.config.token_range[0]).reshape(*chunk.shape, 1)
        each = jnp.take_along_axis(raw, index, axis=-1)[..., 0]
        return jnp.sum(jnp.where(mask, each, 0.0), axis=(1, 2))


def divergence(raw: Raw, other: Raw, mask: Bool[Array, "b k d"]) -> Float[Array, " b"]:
    """Kullback and Leibler's divergence of the policy from another one along the tokens that were
    drawn, in nats a chunk: of each the sum p log(p / q).
    """
    may = raw > -math.inf
    apart = jnp.where(may, raw, 0.0) - jnp.where(may, other, 0.0)
    each = jnp.sum(jnp.exp(raw) * apart, axis=-1)
    return jnp.sum(jnp.where(mask, each, 0.0), axis=(1, 2))


def _is_binary(config: DiscreteConfig) -> Array:
    return jnp.asarray(np.isin(np.arange(config.action_dim), config.binary))[None, None]
