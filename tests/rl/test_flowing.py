"""A policy with the head flow as a learner by trial: its loss beside numpy, and how it acts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fakes import FakeBackbone, jittered
from tests.rl.decisions import observed
from tests.rl.steps import STEPS, one_by_one
from tests.rl.test_learner import BINARY, LEARNING, POLICY, B, D, K, clipped_cost, total
from vla_jax.actions import ActionSpec
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.vla import VLA
from vla_jax.params import merge
from vla_jax.policy import JaxPolicy
from vla_jax.policy_io import PolicyIO
from vla_jax.rl.flowing import FlowLearner
from vla_jax.rl.learner import CRITIC, Decisions
from vla_jax.types import Seen

pytestmark = pytest.mark.slow

ARM = (0, 1, 2)
HEAD = HeadConfig(
    K, D, BINARY, hidden=8, layers=1, mlp=(8,), attention_heads=2, window=POLICY.window
)
DIMS = np.tile([True, True, False, True], (B, 1))  # the robot lacks one


def learner(**changes: Any) -> Any:
    """(graphdef, parameters), jittered."""
    learning = dataclasses.replace(LEARNING, **changes)

    def make(rngs: nnx.Rngs) -> FlowLearner:
        return FlowLearner(learning, FakeBackbone(rngs), FlowHead(16, HEAD, rngs), POLICY, rngs)

    return jittered(make, 0.1)


def acted(graphdef: Any, flat: Any, dims: Any = DIMS) -> jax.Array:
    """Chunks with their paths."""
    model: Any = merge(graphdef, flat)
    obs = observed()
    return jax.jit(model.act_on_readouts)(
        model.readouts(obs), obs.step_mask, dims, jax.random.key(0)
    )


@pytest.fixture(scope="module")
def made() -> Any:
    return learner(divergence=0.0, algorithm="grpo")


@pytest.fixture(scope="module")
def batch(made: Any) -> Decisions:
    """What the policy drew, as if one near it had: ratios lie around 1."""
    draw = np.random.default_rng(0)
    steps = np.array([3, 3, 2, 1, 3, 3])
    chunk = np.asarray(acted(*made))
    blank = Decisions(
        obs=observed()._replace(action_dims=DIMS),
        chunk=chunk,
        mask=(np.arange(K)[None] < steps[:, None])[..., None] & DIMS[:, None],
        log_prob=np.zeros(B, np.float32),
        advantage=draw.normal(size=B).astype(np.float32),
        returns=draw.normal(size=B).astype(np.float32),
        reference=draw.normal(size=(B, K, STEPS * len(ARM) + 1)).astype(np.float32),
        valid=np.array([True] * (B - 1) + [False]),
        kept=np.zeros(B, bool),
        dataset_id=np.zeros(B, np.int32),
    )
    model: Any = merge(*made)
    raw, _ = model.judged(blank)
    return blank._replace(log_prob=np.asarray(model.log_prob(raw, chunk, blank.mask)))


def places(numbers: np.ndarray, count: int) -> np.ndarray:
    """[b k e] -> [b p k a]: each step's numbers, one place of the path after another."""
    return np.moveaxis(numbers.reshape(B, K, count, len(ARM)), 2, 1)


def test_what_is_drawn_is_the_end_of_its_path(batch: Decisions) -> None:
    path = places(batch.chunk[..., D:], STEPS + 1)
    np.testing.assert_array_equal(batch.chunk[..., ARM], np.clip(path[:, -1], -1, 1))
    assert set(np.unique(batch.chunk[..., 3])) <= {0.0, 1.0}
    assert not path[..., 2].any()  # the dim that the robot lacks
    assert (np.abs(np.diff(path[..., :2], axis=1)) > 0).all()


def test_without_a_width_it_acts_as_the_policy_does(made: Any) -> None:
    graphdef, flat = made
    still = {**flat, f"{CRITIC}log_std": jnp.full(D, -jnp.inf)}
    model: Any = merge(graphdef, still)
    obs = observed()._replace(action_dims=DIMS)
    acts = VLA.act_on_readouts(
        model, model.readouts(obs), obs.step_mask, jnp.asarray(DIMS), jax.random.key(0)
    )
    np.testing.assert_allclose(acted(graphdef, still)[..., ARM], acts[..., ARM], atol=1e-5)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_loss_is_that_of_the_papers(algorithm: str, batch: Decisions) -> None:
    graphdef, flat = learner(algorithm=algorithm)
    std = np.array([0.3, 0.5, 0.4, 9.0], np.float32)  # of the gripper it is not asked
    flat = {**flat, f"{CRITIC}log_std": jnp.log(std)}
    model: Any = merge(graphdef, flat)
    raw, value = (np.asarray(x) for x in model.judged(batch))
    draw = np.random.default_rng(1)
    own = np.asarray(model.log_prob(raw, batch.chunk, batch.mask))
    batch = batch._replace(log_prob=own + 0.3 * draw.normal(size=B).astype(np.float32))
    path, split = places(batch.chunk[..., D:], STEPS + 1), STEPS * len(ARM)
    velocity, before = (places(x[..., :split], STEPS) for x in (raw, batch.reference))
    wanted, clipped = 0.0, 0
    for i in range(B):
        if not batch.valid[i]:
            continue
        each, far = one_by_one(path[i], velocity[i], before[i], std[list(ARM)])
        log_prob, apart = each[:2].sum(), far[:2].sum()  # the whole path, of what the robot has
        steps = batch.mask[i, :, 3].sum()
        p, q = (1 / (1 + np.exp(-x[i, :steps, -1])) for x in (raw, batch.reference))
        log_prob += np.log(np.where(batch.chunk[i, :steps, 3] == 1, p, 1 - p)).sum()
        apart += (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum()
        cost, limited = clipped_cost(log_prob, batch, i)
        clipped += limited
        wanted += cost + LEARNING.divergence * apart
        if algorithm == "ppo":
            wanted += LEARNING.value * 0.5 * (value[i] - batch.returns[i]) ** 2
    assert 0 < clipped < batch.valid.sum()  # both sides of the clip are in it
    np.testing.assert_allclose(total(graphdef, flat, batch), wanted / batch.valid.sum(), rtol=1e-3)


def test_what_it_says_are_the_velocities_where_the_path_was(made: Any, batch: Decisions) -> None:
    model: Any = merge(*made)
    raw, _ = model.judged(batch)
    features = model.head.features(model.readouts(batch.obs))
    path = places(batch.chunk[..., D:], STEPS + 1)
    velocity = places(np.asarray(raw)[..., : STEPS * len(ARM)], STEPS)
    for q in (0, 4, STEPS - 1):
        said = model.head.field(features[:, -1:])(path[:, q][:, None], 1 - q / STEPS)
        np.testing.assert_allclose(velocity[:, q], said[:, 0], atol=1e-5)
    np.testing.assert_allclose(raw[..., -1:], model.head.logits(features)[:, -1], atol=1e-6)


def test_the_first_gradient_is_that_of_reinforce_with_a_baseline(
    made: Any, batch: Decisions
) -> None:
    graphdef, flat = made

    def reinforce(flat: Any) -> Any:
        model: Any = merge(graphdef, flat)
        own = model.log_prob(model.judged(batch)[0], batch.chunk, batch.mask)
        gains = jnp.where(batch.valid, batch.advantage * own, 0.0)
        return -jnp.sum(gains) / batch.valid.sum()

    got = jax.jit(jax.grad(lambda flat: total(graphdef, flat, batch)))(flat)
    want = jax.jit(jax.grad(reinforce))(flat)
    assert float(jnp.abs(want["head/velocity/kernel"]).max()) > 1e-3
    assert not np.abs(want[f"{CRITIC}log_std"]).any()  # how far it strays is not learnt
    for name, each in want.items():  # logarithms of hundreds have float32's 1e-5, so have ratios
        apart, size = (float(jnp.abs(x).max()) for x in (got[name] - each, each))
        assert apart <= 1e-3 * size + 1e-7, name  # biases of keys have none


def test_a_rollout_carries_out_the_actions_and_keeps_the_path(made: Any) -> None:
    spec = ActionSpec(("x", "y", "z", "gripper"), binary=(3,))
    io = PolicyIO((8,), 3, lambda text: np.array([3, 4]), spec, ActionSpec(()))
    one, other = JaxPolicy(*made, io).sessions(2)
    seen = Seen({"primary": observed().images[0][0, 0]}, None)
    for policy, draw in ((one, 5), (other, 6)):
        policy.reset("push", draw)
    first, second = JaxPolicy.act_together([one, other], [seen, seen])
    assert first.shape == (K, D)
    assert not np.allclose(first, second)  # each draws its own
    _, drawn = one.taken()
    assert drawn.shape == (K, D + (STEPS + 1) * len(ARM))
    np.testing.assert_allclose(first, drawn[:, :D], atol=1e-6)
