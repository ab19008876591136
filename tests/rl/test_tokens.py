"""A chunk as tokens: what is drawn is what is learnt from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fakes import FakeBackbone, initialise
from tests.rl.decisions import SIZES, observed
from vla_jax.models.heads import discrete
from vla_jax.models.heads.discrete import DiscreteConfig, DiscreteHead
from vla_jax.models.vla import VLAConfig
from vla_jax.params import merge
from vla_jax.rl import tokens
from vla_jax.rl.learner import Decisions, Learner, LearnerConfig
from vla_jax.rl.tokens import DrawingHead

B, T, K, D, BINARY = SIZES.b, SIZES.t, 3, SIZES.d, (3,)
HEAD = DiscreteConfig(K, D, BINARY, end=30, bins=9)
LEARNING = LearnerConfig("ppo", 0.2, 0.5, 0.01, 0.0, -1.0, 8, BINARY)


def test_what_may_be_drawn_are_the_tokens_of_values() -> None:
    head = DrawingHead(16, HEAD)
    for dim in (0, 3):
        ids = np.flatnonzero(tokens.allowed(HEAD)[dim]) + HEAD.token_range[0]
        assert len(ids) == (2 if dim in BINARY else HEAD.bins - 1)
        values = np.zeros((len(ids), 1, K, D), np.float32)
        drawn = np.asarray(discrete.decode(ids, HEAD))
        values[:, 0, 0, dim] = drawn > 0 if dim in BINARY else drawn
        again = head.targets(values, np.ones(values.shape, bool))
        np.testing.assert_array_equal(again.reshape(-1, K, D)[:, 0, dim], ids)


@pytest.mark.slow
@pytest.mark.parametrize("history", ["one_step", "interleaved"])
def test_the_chunk_is_as_likely_to_the_learner_as_it_was_when_drawn(history: str) -> None:
    t = 1 if history == "one_step" else T
    config = VLAConfig(t, K, D, ("primary",), history=history)
    graphdef, flat = initialise(
        lambda rngs: Learner(LEARNING, FakeBackbone(rngs), DiscreteHead(16, HEAD), config, rngs)
    )
    model: Any = merge(graphdef, flat)
    obs = observed(t)

    @jax.jit
    def drawn(key: jax.Array) -> Any:
        context = model.prefix_context(model.sequence(obs), t, None)
        return model.head.act(context, key)[:, 0], *model.head.decode_tokens(context, key)

    chunk, ids, scores = drawn(jax.random.key(3))
    may = np.tile(tokens.allowed(HEAD), (K, 1))[None]
    likely = np.asarray(jax.nn.log_softmax(jnp.where(may, scores, -jnp.inf), axis=-1))
    want = np.take_along_axis(likely, np.asarray(ids)[..., None] - HEAD.token_range[0], -1)
    mask = np.arange(K)[None, :, None] < np.array([K, 1, 2, K, K, K])[:, None, None]
    mask = np.tile(mask, D)
    zeros = np.zeros(B, np.float32)
    batch = Decisions(
        obs, np.asarray(chunk), mask, zeros, zeros, zeros, np.zeros((B, K, D), np.float32),
        np.ones(B, bool), np.zeros(B, bool), np.zeros(B, np.int32),
    )  # fmt: skip
    raw, _ = jax.jit(lambda batch: model.judged(batch))(batch)
    want = np.where(mask, want.reshape(B, K, D), 0).sum((1, 2))
    np.testing.assert_allclose(model.log_prob(raw, batch.chunk, mask), want, rtol=1e-4)
    np.testing.assert_allclose(np.exp(raw).sum(-1), 1, rtol=1e-5)
    assert set(np.unique(batch.chunk[..., 3])) <= {0.0, 1.0}
    np.testing.assert_allclose(tokens.divergence(raw, raw, mask), 0, atol=1e-6)
    batch = batch._replace(log_prob=want.astype(np.float32), reference=np.asarray(raw))
    grads = jax.jit(jax.grad(lambda flat: sums(graphdef, flat, batch)))(flat)
    assert all(np.isfinite(each).all() for each in grads.values())
    assert float(jnp.abs(grads["backbone/qkv"]).max()) == 0  # nothing was gained or lost
    batch = batch._replace(advantage=np.linspace(-1, 1, B, dtype=np.float32))
    grads = jax.jit(jax.grad(lambda flat: sums(graphdef, flat, batch)))(flat)
    assert float(jnp.abs(grads["backbone/qkv"]).max()) > 1e-3


def sums(graphdef: Any, flat: Any, batch: Decisions) -> Any:
    model: Any = merge(graphdef, flat)
    return model.loss(batch, jax.random.key(0)).sums["policy"]


def test_the_divergence_is_the_sum_of_p_log_p_over_q() -> None:
    draw = np.random.default_rng(0)
    raw, other = (
        np.log(draw.dirichlet(np.ones(4), (2, 1, 3)).astype(np.float32)) for _ in range(2)
    )
    raw[..., 0] = other[..., 0] = -np.inf
    mask = np.array([[[True, False, True]], [[True, True, True]]])
    p, q = np.exp(raw[..., 1:]), np.exp(other[..., 1:])
    want = np.where(mask, (p * np.log(p / q)).sum(-1), 0).sum((1, 2))
    np.testing.assert_allclose(tokens.divergence(raw, other, mask), want, rtol=1e-5)
