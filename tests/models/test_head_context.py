"""What a head can ask for: keys and values of every layer, and tokens whose number varies.

Two toy heads, as later ones will be: an expert that reads the keys of the last layer, and one that
writes as many tokens as there are valid actions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fakes import FakeBackbone, jittered, make_batch
from vla_jax import params
from vla_jax.models.transformer import Linear
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.types import Loss

T, K, D, WIDTH, KEY = 2, 2, 3, 16, jax.random.key(0)


class ExpertHead(nnx.Module):
    """The mean of the keys that a next token would see -> a chunk."""

    acts_on = trains_on = "prefix"
    num_tokens = 0

    def __init__(self, rngs):
        self.output = Linear((WIDTH, K * D), ("embed", None), True, rngs)

    def predict(self, prefix):
        keys = prefix.cache.k[-1].reshape(*prefix.seen.shape, -1)  # f u c
        seen = prefix.seen[..., None].astype(keys.dtype)
        mean = jnp.sum(keys * seen, axis=1) / jnp.sum(seen, axis=1)
        return self.output(mean).reshape(-1, 1, K, D)

    def loss(self, context, actions, mask, key):
        predicted = self.predict(context.prefix).reshape(actions.shape)
        error = jnp.where(mask, predicted - actions, 0.0)
        return Loss(jnp.sum(error**2), {"predicted": (predicted[:, -1], predicted[:, -1])})

    def act(self, context, key):
        return self.predict(context.prefix)

    def noise(self, key):
        return None


class WordsHead(nnx.Module):
    """As many tokens as there are valid numbers, padded on the right."""

    acts_on, trains_on = "prefix", "tokens"
    num_tokens = K * D

    def teacher(self, batch, mask):
        ids = jnp.where(batch.actions > 0, 3, 4).astype(jnp.int32)
        count = jnp.sum(mask, axis=(2, 3)).reshape(-1, 1)
        return ids.reshape(-1, K * D), jnp.arange(K * D)[None] < count

    def loss(self, context, actions, mask, key):
        ids, valid = context.taught
        scores = jax.nn.log_softmax(context.backbone.logits(context.predictors), axis=-1)
        cost = -jnp.take_along_axis(scores, ids[..., None], axis=-1)[..., 0]
        return Loss(jnp.sum(jnp.where(valid, cost, 0.0)), {})


def make(head, history="head"):
    def build(rngs):
        config = VLAConfig(T, K, D, ("primary", "wrist"), history=history)
        return VLA(FakeBackbone(rngs), head(rngs), config, rngs)

    return jittered(build, 0.1)


def example():
    batch = make_batch(b=2, t=T, k=K, d=D)
    return batch._replace(obs=batch.obs._replace(step_mask=np.ones((2, T), bool)))


def test_a_head_reads_keys_and_values_in_training_and_acts_alike():
    graphdef, flat = make(ExpertHead)
    batch = example()

    @jax.jit
    def run(flat):
        def loss(flat):
            objective = params.merge(graphdef, flat).loss(batch, KEY)
            return objective.sums["action"], objective.metrics["predicted"][0]

        (_, predicted), grads = jax.value_and_grad(loss, has_aux=True)(flat)
        return predicted, params.merge(graphdef, flat).act(batch.obs, KEY), grads

    predicted, acted, grads = jax.device_get(run(flat))
    np.testing.assert_allclose(acted, predicted, atol=1e-6)
    # Of the one layer the keys are read, and what they are made of.
    read = [name for name, grad in grads.items() if np.any(grad)]
    assert {"head/output/kernel", "backbone/qkv", "backbone/words", "backbone/patches"} <= set(read)


def test_with_interleaved_frames_the_prefix_is_the_whole_window():
    graphdef, flat = make(ExpertHead, "interleaved")
    act = jax.jit(lambda obs: params.merge(graphdef, flat).act(obs, KEY))
    obs = example().obs
    first = tuple(
        np.concatenate([255 - image[:, :1], image[:, 1:]], axis=1) for image in obs.images
    )
    assert np.abs(act(obs) - act(obs._replace(images=first))).max() > 1e-4


@pytest.mark.parametrize("history", ["head", "interleaved"])
def test_tokens_that_are_not_there_change_nothing(history):
    graphdef, flat = make(lambda rngs: WordsHead(), history)
    batch = example()
    mask = np.random.default_rng(1).random((2, T, K, D)) < 0.6
    loss = jax.jit(
        lambda actions: (
            params.merge(graphdef, flat)
            .loss(batch._replace(actions=actions, action_mask=mask), KEY)
            .sums["action"]
        )
    )
    written = np.arange(K * D) < mask.sum((2, 3), keepdims=True).reshape(2, T, 1)
    written = written.reshape(mask.shape)
    assert 1 < written.sum() < mask.size
    other = np.where(written, batch.actions, -batch.actions)
    assert np.isfinite(loss(batch.actions))
    np.testing.assert_array_equal(loss(batch.actions), loss(other))
    assert loss(batch.actions) != loss(np.where(written, -batch.actions, batch.actions))
