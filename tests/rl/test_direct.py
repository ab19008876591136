"""Direct preference optimisation beside its formula, and what it begins at."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fakes import FakeBackbone, jittered
from tests.rl.decisions import observed
from tests.rl.test_learner import BINARY, HEAD, LEARNING, POLICY, D, K
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.params import merge
from vla_jax.rl import density
from vla_jax.rl.direct import Contests, DirectLearner
from vla_jax.rl.learner import DIRECT

pytestmark = pytest.mark.slow

B, S, BETA = 3, 2, 0.3
CHOICE = np.array([1.0, 0.0, 0.5], np.float32)


@pytest.fixture(scope="module")
def made() -> Any:
    """(graphdef, parameters), jittered."""
    learning = dataclasses.replace(LEARNING, algorithm=DIRECT)

    def make(rngs: nnx.Rngs) -> DirectLearner:
        head = MLPHead(16, HEAD, rngs)
        return DirectLearner(learning, BETA, FakeBackbone(rngs), head, POLICY, rngs)

    return jittered(make, 0.1)


@pytest.fixture(scope="module")
def batch(made: Any) -> Contests:
    """Three pairs of clips of one or two decisions; the policy before all learning is another."""
    draw = np.random.default_rng(0)
    window = jax.tree.map(lambda x: x[:1], observed())
    obs = jax.tree.map(lambda x: np.tile(x[None, None], (B, 2, S, *[1] * (x.ndim - 1))), window)
    images = tuple(draw.integers(0, 256, x.shape, np.uint8) for x in obs.images)
    chunk = draw.normal(size=(B, 2, S, K, D)).astype(np.float32)
    chunk[..., 3] = draw.integers(0, 2, chunk.shape[:-1])
    steps = np.array([[[3, 1], [2, 0]], [[3, 0], [3, 3]], [[1, 0], [2, 0]]])
    return Contests(
        obs=obs._replace(images=images),
        chunk=chunk,
        mask=np.tile((np.arange(K) < steps[..., None])[..., None], D),
        reference=draw.normal(size=chunk.shape).astype(np.float32),
        choice=CHOICE,
        valid=np.ones(B, bool),
        dataset_id=np.zeros(B, np.int32),
    )


def test_the_loss_is_the_formula(made: Any, batch: Contests) -> None:
    own: Any = merge(*made)
    raw = np.asarray(own.raw(batch)).reshape(batch.chunk.shape)
    width = own.critic.log_std[...]

    def likelihood(says: np.ndarray, place: tuple[int, ...]) -> float:
        one = (says[place][None], width, BINARY, batch.chunk[place][None], batch.mask[place][None])
        return float(density.log_prob(*map(jnp.asarray, one[:2]), BINARY, *one[3:])[0])

    gain = np.zeros((B, 2))
    for place in np.ndindex(B, 2, S):
        gain[place[:2]] += likelihood(raw, place) - likelihood(batch.reference, place)
    margin = BETA * (gain[:, 0] - gain[:, 1])
    chance = 1 / (1 + np.exp(-margin))
    wanted = -(CHOICE * np.log(chance) + (1 - CHOICE) * np.log(1 - chance))
    np.testing.assert_allclose(own.margins(batch)[0], margin, rtol=1e-4, atol=1e-5)
    got = own.loss(batch, jax.random.key(0)).sums["preference"]
    np.testing.assert_allclose(got, wanted.sum(), rtol=1e-5)


def test_it_begins_undecided_and_moves_towards_what_was_preferred(
    made: Any, batch: Contests
) -> None:
    graphdef, params = made
    says = np.asarray(merge(graphdef, params).raw(batch)).reshape(batch.chunk.shape)
    fresh = batch._replace(reference=says)

    def cost(params: Any) -> Any:
        own: Any = merge(graphdef, params)
        return own.loss(fresh, jax.random.key(0)).sums["preference"]

    value, gradient = jax.value_and_grad(cost)(params)
    np.testing.assert_allclose(value, B * np.log(2), rtol=1e-6)
    assert not np.abs(gradient["critic/log_std"]).any()  # how far it strays is not learnt
    step = {name: x - 1e-4 * gradient[name] for name, x in params.items()}
    own: Any = merge(graphdef, step)
    margin, apart = own.margins(fresh)
    assert margin[0] > 0 > margin[1]
    assert (np.asarray(apart) > 0).all()
