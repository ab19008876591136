"""The loss of frames with outcomes beside its formula in numpy, and what it bends."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tests.fakes import FakeBackbone, jittered
from tests.rl.decisions import SIZES, observed
from tests.rl.test_learner import HEAD, POLICY
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.params import merge
from vla_jax.rl.success import Looks, SuccessModel

pytestmark = pytest.mark.slow

SUCCESS = np.array([True, False, True, False, True, False])
WEIGHT = np.array([1, 1, 0.5, 0.25, 1, 1], np.float32)


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
    """(graphdef, parameters), jittered."""

    def make(rngs: nnx.Rngs) -> SuccessModel:
        return SuccessModel(8, FakeBackbone(rngs), MLPHead(16, HEAD, rngs), POLICY, rngs)

    graphdef, params = jittered(make, 0.1)
    return graphdef, params


def looks(valid: np.ndarray) -> Looks:
    return Looks(observed(), SUCCESS, WEIGHT, valid, np.zeros(SIZES.b, np.int32))


def test_the_loss_is_the_weighted_cross_entropy(made: tuple[Any, Any]) -> None:
    own: Any = merge(*made)
    valid = np.array([True, True, True, True, True, False])
    batch = looks(valid)
    logit = np.asarray(own.worth(batch.obs), np.float64)
    chance = 1 / (1 + np.exp(-logit))
    each = -np.where(SUCCESS, np.log(chance), np.log(1 - chance)) * WEIGHT
    told = own.loss(batch, jax.random.key(0))
    np.testing.assert_allclose(told.sums["success"], each[valid].sum(), rtol=1e-5)
    assert own.mask_counts(batch)["success"] == WEIGHT[valid].sum()
    right, weight = told.metrics["right"]
    np.testing.assert_allclose(right, np.where(valid & ((logit > 0) == SUCCESS), WEIGHT, 0))
    np.testing.assert_allclose(weight, np.where(valid, WEIGHT, 0))
    assert own.config.loss_weights == (("success", 1.0),)


def test_it_bends_the_backbone_and_not_the_head(made: tuple[Any, Any]) -> None:
    graphdef, params = made

    def cost(params: Any) -> Any:
        own: Any = merge(graphdef, params)
        return own.loss(looks(np.ones(SIZES.b, bool)), jax.random.key(0)).sums["success"]

    bent = {name for name, each in jax.grad(cost)(params).items() if np.abs(each).max() > 0}
    assert any(name.startswith("backbone/") for name in bent)
    assert not any(name.startswith("head/") for name in bent)
