"""The loss of comparisons beside its formula in numpy, and what it bends."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tests.fakes import FakeBackbone, jittered
from tests.rl.decisions import observed
from tests.rl.test_learner import HEAD, POLICY
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.params import merge
from vla_jax.rl.reward import Comparisons, RewardModel, shares

pytestmark = pytest.mark.slow

S = 3  # looks at a clip
CHOICE = np.array([1.0, 0.0, 0.5], np.float32)
# Clips of 8, 3, 0, 6, 4, 4 steps, looked at every 4: of the 12 that each counts as.
COUNTS = np.array(
    [
        [[4, 4, 4], [3, 9, 0]],
        [[12, 0, 0], [4, 2, 6]],
        [[4, 8, 0], [4, 8, 0]],
    ],
    np.float32,
) / np.float32(12)


def model(head: Any = MLPHead) -> Any:
    """(graphdef, parameters), jittered."""

    def make(rngs: nnx.Rngs) -> RewardModel:
        return RewardModel(8, FakeBackbone(rngs), head(16, HEAD, rngs), POLICY, rngs)

    return jittered(make, 0.1)


@pytest.fixture(scope="module")
def batch() -> Comparisons:
    """Three pairs of clips of one to three looks, all pictures other ones; the last is no pair."""
    draw = np.random.default_rng(0)
    window = jax.tree.map(lambda x: x[:1], observed())
    obs = jax.tree.map(lambda x: np.tile(x[None, None], (3, 2, S, *[1] * (x.ndim - 1))), window)
    images = tuple(draw.integers(0, 256, x.shape, np.uint8) for x in obs.images)
    return Comparisons(
        obs=obs._replace(images=images),
        counts=COUNTS,
        choice=CHOICE,
        valid=np.array([True, True, True]),
        dataset_id=np.zeros(3, np.int32),
    )


def test_the_loss_is_bradley_and_terrys(batch: Comparisons) -> None:
    graphdef, params = model()
    own: Any = merge(graphdef, params)
    worth = np.zeros(batch.counts.shape)
    for place in np.ndindex(worth.shape):  # a frame at a time
        worth[place] = own.worth(jax.tree.map(lambda x, at=place: x[at][None], batch.obs))[0]
    scores = (worth * COUNTS).sum(2)
    chance = 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    wanted = -(CHOICE * np.log(chance) + (1 - CHOICE) * np.log(1 - chance))
    got = own.loss(batch, jax.random.key(0)).sums["preference"]
    np.testing.assert_allclose(got, wanted.sum(), rtol=1e-5)
    assert own.mask_counts(batch)["preference"] == 3
    fewer = batch._replace(valid=np.array([True, False, True]))
    got = own.loss(fewer, jax.random.key(0)).sums["preference"]
    np.testing.assert_allclose(got, wanted[0] + wanted[2], rtol=1e-5)


def test_frames_that_fill_a_clip_up_count_nothing(batch: Comparisons) -> None:
    graphdef, params = model()
    own: Any = merge(graphdef, params)
    before, there = own.scores(batch.obs, batch.counts), batch.counts > 0
    images = np.array(batch.obs.images[0])
    images[~there] = 255 - images[~there]
    np.testing.assert_array_equal(
        own.scores(batch.obs._replace(images=(images,)), batch.counts), before
    )
    images[there] = 255 - images[there]
    assert np.abs(own.scores(batch.obs._replace(images=(images,)), batch.counts) - before).min() > 0


def test_all_clips_count_alike_and_by_their_steps() -> None:
    clips = ([4, 4, 0], [3, 0], [0], [4, 2, 0], [4, 0])
    for steps, wanted in zip(clips, COUNTS.reshape(6, S), strict=False):
        np.testing.assert_array_equal(shares(steps, 4, 8), wanted[: len(steps)])
    np.testing.assert_array_equal(shares([4, 4, 2, 0], 4, 8), np.float32([4, 4, 2, 4]) / 14)


def test_it_bends_the_backbone_and_wants_readouts(batch: Comparisons) -> None:
    graphdef, params = model()

    def cost(params: Any) -> Any:
        own: Any = merge(graphdef, params)
        return own.loss(batch, jax.random.key(0)).sums["preference"]

    bent = {name for name, each in jax.grad(cost)(params).items() if np.abs(each).max() > 0}
    assert any(name.startswith("backbone/") for name in bent)
    assert not any(name.startswith("head/") for name in bent)
    with pytest.raises(ValueError, match="FlowHead has no readouts"):
        model(FlowHead)
