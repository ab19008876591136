"""The loss of a learner beside references in numpy, and what it bends."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.fakes import FakeBackbone, initialise, jittered
from tests.rl.decisions import SIZES, observed
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.oft import OFTConfig, OFTHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.vla import VLAConfig
from vla_jax.params import merge
from vla_jax.rl import density
from vla_jax.rl.learner import CRITIC, Decisions, Learner, LearnerConfig

pytestmark = pytest.mark.slow

B, T, K, D, BINARY = SIZES.b, SIZES.t, 3, SIZES.d, (3,)
LEARNING = LearnerConfig("ppo", 0.2, 0.5, 0.01, 0.0, -1.0, 8, BINARY)
HEAD = HeadConfig(K, D, BINARY, hidden=8, mlp=(8,), window=T)
POLICY = VLAConfig(T, K, D, ("primary",))


def learner(learning: LearnerConfig = LEARNING, head: Any = MLPHead) -> Any:
    """(graphdef, parameters), jittered."""

    def make(rngs: nnx.Rngs) -> Learner:
        return Learner(learning, FakeBackbone(rngs), head(16, HEAD, rngs), POLICY, rngs)

    return jittered(make, 0.1)


@pytest.fixture(scope="module")
def batch() -> Decisions:
    draw = np.random.default_rng(0)
    chunk = draw.normal(size=(B, K, D)).astype(np.float32)
    chunk[..., 3] = draw.integers(0, 2, (B, K))
    numbers = [draw.normal(size=B).astype(np.float32) for _ in range(3)]
    return Decisions(
        obs=observed(),
        chunk=chunk,
        mask=np.tile(np.arange(K)[None, :, None] < np.array([3, 3, 2, 1, 3, 3])[:, None, None], D),
        log_prob=numbers[0],
        advantage=numbers[1],
        returns=numbers[2],
        reference=draw.normal(size=(B, K, D)).astype(np.float32),
        valid=np.array([True] * (B - 1) + [False]),
        kept=np.zeros(B, bool),
        dataset_id=np.zeros(B, np.int32),
    )


def near(graphdef: Any, flat: Any, batch: Decisions, spread: float) -> Decisions:
    """The batch as if a policy near this one had drawn it, so that ratios lie around 1."""
    model = merge(graphdef, flat)
    raw, _ = model.judged(batch)  # type: ignore[attr-defined]
    own = density.log_prob(raw, flat[f"{CRITIC}log_std"], BINARY, batch.chunk, batch.mask)
    return batch._replace(log_prob=np.asarray(own) + spread * batch.log_prob)


def total(graphdef: Any, flat: Any, batch: Decisions) -> Any:
    """The optimised value."""
    model: Any = merge(graphdef, flat)
    objective, counts = model.loss(batch, jax.random.key(0)), model.mask_counts(batch)
    weights = dict(model.config.loss_weights)
    return sum(weights[name] * each / counts[name] for name, each in objective.sums.items())


def clipped_cost(log_prob: float, batch: Decisions, i: int) -> tuple[float, bool]:
    """What the surrogate of PPO costs decision i by its paper, and whether its ratio is clipped."""
    ratio, gain = np.exp(log_prob - batch.log_prob[i]), batch.advantage[i]
    limited = min(max(ratio, 1 - LEARNING.clip), 1 + LEARNING.clip)
    return -min(ratio * gain, limited * gain), ratio != limited


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_loss_is_that_of_the_papers(algorithm: str, batch: Decisions) -> None:
    graphdef, flat = learner(dataclasses.replace(LEARNING, algorithm=algorithm))
    batch = near(graphdef, flat, batch, 0.3)
    raw, value = (np.asarray(x, np.float64) for x in merge(graphdef, flat).judged(batch))  # type: ignore[attr-defined]
    std = np.exp(np.asarray(flat[f"{CRITIC}log_std"], np.float64))
    wanted, clipped = 0.0, 0
    for i in range(B):
        if not batch.valid[i]:
            continue
        log_prob = apart = 0.0
        for d in range(D):
            steps = batch.mask[i, :, d].sum()
            x, mean, before = (
                np.float64(each[i, :steps, d]) for each in (batch.chunk, raw, batch.reference)
            )
            if d in BINARY:
                p, q = 1 / (1 + np.exp(-mean)), 1 / (1 + np.exp(-before))
                log_prob += np.log(np.where(x == 1, p, 1 - p)).sum()
                apart += (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum()
            else:
                c = density.CORRELATION * np.ones((steps, steps))
                np.fill_diagonal(c, 1.0)
                c *= std[d] ** 2
                inverse = np.linalg.inv(c)
                log_prob -= 0.5 * (x - mean) @ inverse @ (x - mean)
                log_prob -= 0.5 * np.log(np.linalg.det(2 * np.pi * c))
                apart += 0.5 * (mean - before) @ inverse @ (mean - before)
        cost, limited = clipped_cost(log_prob, batch, i)
        clipped += limited
        wanted += cost + LEARNING.divergence * apart
        if algorithm == "ppo":
            wanted += LEARNING.value * 0.5 * (value[i] - batch.returns[i]) ** 2
    assert 0 < clipped < batch.valid.sum()  # both sides of the clip are in it
    np.testing.assert_allclose(total(graphdef, flat, batch), wanted / batch.valid.sum(), rtol=1e-4)


def test_the_first_gradient_is_that_of_reinforce_with_a_baseline(batch: Decisions) -> None:
    graphdef, flat = learner(dataclasses.replace(LEARNING, algorithm="grpo", divergence=0.0))
    batch = near(graphdef, flat, batch, 0.0)

    def reinforce(flat: Any) -> Any:
        raw, _ = merge(graphdef, flat).judged(batch)  # type: ignore[attr-defined]
        own = density.log_prob(raw, flat[f"{CRITIC}log_std"], BINARY, batch.chunk, batch.mask)
        gains = jnp.where(batch.valid, batch.advantage * own, 0.0)
        return -jnp.sum(gains) / batch.valid.sum()

    got = jax.jit(jax.grad(lambda flat: total(graphdef, flat, batch)))(flat)
    want = jax.jit(jax.grad(reinforce))(flat)
    assert float(jnp.abs(want["head/outputs/arm/layers/1/kernel"]).max()) > 1e-3
    for name, each in want.items():  # logarithms of 100 have float32's 1e-5, and so have ratios
        apart, size = (float(jnp.abs(x).max()) for x in (got[name] - each, each))
        assert apart <= 1e-4 * size, name


def test_the_critic_does_not_bend_the_backbone(batch: Decisions) -> None:
    graphdef, flat = learner(dataclasses.replace(LEARNING, divergence=0.0))
    still = near(graphdef, flat, batch, 0.0)._replace(advantage=np.zeros(B, np.float32))
    grads = jax.jit(jax.grad(lambda flat: total(graphdef, flat, still)))(flat)
    moved = {name for name, each in grads.items() if float(jnp.abs(each).max()) > 0}
    assert moved
    assert all(name.startswith(f"{CRITIC}value") for name in moved)


def test_a_critic_expects_nothing_at_first(batch: Decisions) -> None:
    def make(rngs: nnx.Rngs) -> Learner:
        return Learner(LEARNING, FakeBackbone(rngs), MLPHead(16, HEAD, rngs), POLICY, rngs)

    _, value = merge(*initialise(make)).judged(batch)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(value, np.zeros(B))


def test_what_earned_more_becomes_likelier(batch: Decisions) -> None:
    """Rounds of drawing and one update each, where a chunk earns its first number's mean."""
    graphdef, flat = learner(dataclasses.replace(LEARNING, algorithm="grpo", divergence=0.0))
    obs = jax.tree.map(lambda x: np.repeat(x, 32, axis=0), batch.obs)
    n, optimizer = 32 * B, optax.adam(1e-2)
    blank = jax.tree.map(lambda x: np.repeat(x, 32, axis=0), batch)
    blank = blank._replace(mask=np.ones((n, K, D), bool), valid=np.ones(n, bool))

    @jax.jit
    def round_(flat: Any, state: Any, key: jax.Array) -> Any:
        model: Any = merge(graphdef, flat)
        chunk = model.act_on_readouts(model.readouts(obs), obs.step_mask, None, key)
        raw, _ = model.judged(blank)
        earned = jnp.mean(chunk[:, :, 0], axis=1)
        drawn = blank._replace(
            chunk=chunk,
            log_prob=model.log_prob(raw, chunk, blank.mask),
            advantage=(earned - earned.mean()) / earned.std(),
        )
        grads = jax.grad(lambda flat: total(graphdef, flat, drawn))(flat)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(flat, updates), state, jnp.mean(raw[:, :, 0])

    state, said = optimizer.init(flat), []
    for number in range(30):
        flat, state, middle = round_(flat, state, jax.random.key(number))
        said.append(float(middle))
    assert said[-1] > said[0] + 0.3  # two deviations of what it drew at first


def test_readouts_that_are_there_are_not_made_again(batch: Decisions) -> None:
    graphdef, flat = learner()
    batch = near(graphdef, flat, batch, 0.3)
    readouts = merge(graphdef, flat).readouts(batch.obs)  # type: ignore[attr-defined]
    read = batch._replace(readouts=readouts)
    np.testing.assert_allclose(total(graphdef, flat, read), total(graphdef, flat, batch), rtol=1e-6)
    unread = {name: x for name, x in flat.items() if not name.startswith(("head/", CRITIC))}
    other = {**flat, **{name: x + 1.0 for name, x in unread.items()}}
    assert float(total(graphdef, other, read)) == float(total(graphdef, flat, read))


def test_an_invalid_row_changes_nothing(batch: Decisions) -> None:
    graphdef, flat = learner()
    batch = near(graphdef, flat, batch, 0.3)
    holes = batch._replace(
        advantage=np.where(batch.valid, batch.advantage, np.nan).astype(np.float32),
        log_prob=np.where(batch.valid, batch.log_prob, 100.0).astype(np.float32),
    )
    one, other = (total(graphdef, flat, each) for each in (batch, holes))
    assert float(one) == float(other)


def test_of_a_kept_decision_its_divergence_alone_counts(batch: Decisions) -> None:
    weight, kept = 3.0, np.arange(B) < 2
    graphdef, flat = learner(dataclasses.replace(LEARNING, kept=weight))
    batch = near(graphdef, flat, batch, 0.3)
    raw, _ = merge(graphdef, flat).judged(batch)  # type: ignore[attr-defined]
    log_std = flat[f"{CRITIC}log_std"]
    apart = density.divergence(raw, batch.reference, log_std, BINARY, batch.mask)
    rest = total(learner()[0], flat, batch._replace(valid=batch.valid & ~kept))
    wanted = float(rest) + weight * float(np.mean(apart[:2]))
    mixed = batch._replace(
        kept=kept,
        advantage=np.where(kept, np.nan, batch.advantage).astype(np.float32),
        log_prob=np.where(kept, 1e3, batch.log_prob).astype(np.float32),
    )
    np.testing.assert_allclose(total(graphdef, flat, mixed), wanted, rtol=1e-5)
    grads = jax.grad(lambda flat: total(graphdef, flat, mixed))(flat)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))


def test_acting_explores_around_what_the_head_says(batch: Decisions) -> None:
    graphdef, flat = learner()
    flat = {**flat, f"{CRITIC}log_std": jnp.full(D, -20.0)}
    model: Any = merge(graphdef, flat)
    raw, _ = model.judged(batch)
    readouts = model.readouts(batch.obs)
    drawn = model.act_on_readouts(readouts, batch.obs.step_mask, None, jax.random.key(0))
    np.testing.assert_allclose(drawn[..., :3], raw[..., :3], atol=1e-6)
    assert set(np.unique(drawn[..., 3])) <= {0.0, 1.0}


def test_a_head_without_a_density_is_refused() -> None:
    def make(width: int, config: HeadConfig, rngs: nnx.Rngs) -> OFTHead:
        return OFTHead(width, OFTConfig(K, D, BINARY, hidden=8, mlp=(8,), tokens=K), rngs)

    with pytest.raises(ValueError, match="OFTHead gives actions without a density here"):
        learner(head=make)
