"""The discrete head: RoboVLMs' ActionTokenizer to the bit, and the contract of every head, through
a small policy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.fakes import FakeBackbone, initialise, make_batch
from vla_jax import params
from vla_jax.models.heads.discrete import DiscreteConfig, DiscreteHead, action_end, decode, encode
from vla_jax.models.sequence import MaskedTokens
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.types import newest

KEY = jax.random.key(0)
T, K, D = 2, 2, 3
CONFIG = DiscreteConfig(chunk=K, action_dim=D, binary=(2,), end=30, bins=16)


def robovlms_encode(values, end, bins, low, high):
    """ActionTokenizer as robovlms.md 2.5 describes it, with numpy's own digitize in float64."""
    return end - np.digitize(np.clip(values, low, high), np.linspace(low, high, bins))


def robovlms_decode(ids, end, bins, low, high):
    edges = np.linspace(low, high, bins)
    return ((edges[:-1] + edges[1:]) / 2)[np.clip(end - ids - 1, 0, bins - 2)]


def test_the_reserved_offset():
    assert action_end(32_000, 5) == 31_985


def test_the_examples_of_the_reference():
    config = DiscreteConfig(1, 1, (), end=31_985, bins=256)
    values = np.array([-1, 0, 0.999999, 1.0, -7, 7], np.float32)
    ids = encode(values, config)
    np.testing.assert_array_equal(ids, [31_984, 31_857, 31_730, 31_729, 31_984, 31_729])
    np.testing.assert_allclose(
        decode(ids, config), [-0.996078, 0, 0.996078, 0.996078, -0.996078, 0.996078], atol=1e-6
    )
    np.testing.assert_allclose(
        decode(np.array([0, 40_000]), config), [0.996078, -0.996078], atol=1e-6
    )  # clipped
    assert config.token_range == (31_729, 31_985)


@pytest.mark.parametrize(
    ("bins", "low", "high"), [(256, -1.0, 1.0), (17, -0.65, 0.65), (2, -1.0, 1.0)]
)
def test_arithmetic_equals_numpy(bins, low, high):
    config = DiscreteConfig(1, 1, (), end=900, bins=bins, low=low, high=high)
    edges = np.linspace(low, high, bins).astype(np.float32)
    around = [np.nextafter(edges, np.float32(side)) for side in (-9, 9)]  # both sides of every edge
    values = np.concatenate(
        [edges, *around, np.random.default_rng(0).uniform(-1.2, 1.2, 5_000).astype(np.float32)]
    )
    values = values[
        (np.abs(values) > 1e-30) | (values == 0)
    ]  # XLA takes subnormal numbers for zero
    ids = np.asarray(encode(values, config))
    np.testing.assert_array_equal(ids, robovlms_encode(values, 900, bins, low, high))
    np.testing.assert_array_equal(
        decode(ids, config), robovlms_decode(ids, 900, bins, low, high).astype(np.float32)
    )
    error = np.abs(np.asarray(decode(ids, config)) - np.clip(values, low, high)).max()
    assert error <= (high - low) / (bins - 1) / 2 + 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bins": 1}, "bins >= 2"),
        ({"end": 9}, "at least bins"),
        ({"low": 1.0}, "low < high"),
        ({"temperature": -1.0}, "temp"),
    ],
)
def test_bad_numbers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DiscreteConfig(**{"chunk": 1, "action_dim": 1, "binary": (), "end": 300, **fields})


@pytest.fixture(scope="module")
def policy():
    def make(rngs):
        config = VLAConfig(T, K, D, ("primary", "wrist"), readouts=2)
        return VLA(FakeBackbone(rngs), DiscreteHead(16, CONFIG), config, rngs)

    graphdef, flat = initialise(make)
    flat["readout_embedding"] = jax.random.normal(KEY, flat["readout_embedding"].shape)
    return graphdef, flat


def example(b=2):
    batch = make_batch(b=b, t=T, k=K, d=D)
    return batch._replace(
        action_mask=batch.action_mask & (np.random.default_rng(3).random((b, T, K, D)) < 0.8)
    )


@jax.jit(static_argnums=0)
def loss(graphdef, flat, batch):
    model = params.merge(graphdef, flat)
    return model.loss(batch, KEY), model.mask_counts(batch)["action"]


@jax.jit(static_argnums=0)
def gradient(graphdef, flat, batch):
    return jax.grad(lambda p: params.merge(graphdef, p).loss(batch, KEY).sums["action"])(flat)


def test_loss_is_finite_and_gradient_reaches_every_leaf(policy):
    batch = example()
    objective, weight = loss(*policy, batch)
    assert 0 < objective.sums["action"] < np.inf
    assert weight == (batch.action_mask & batch.obs.step_mask[:, :, None, None]).any(-1).sum()
    grads = jax.device_get(gradient(*policy, batch))
    assert [n for n, g in grads.items() if not (np.isfinite(g).all() and np.any(g))] == []


def test_masked_actions_change_nothing(policy):
    """In their own terms: the token of a masked number is the middle, so that no teacher
    tells it.
    """
    batch = example()
    mask = batch.action_mask & batch.obs.step_mask[:, :, None, None]
    other = batch._replace(actions=np.where(mask, batch.actions, np.nan))
    jax.tree.map(np.testing.assert_array_equal, loss(*policy, batch), loss(*policy, other))


def test_batch_of_two_is_two_batches_of_one(policy):
    batch = example()
    both, _ = loss(*policy, batch)
    one, two = (
        loss(*policy, jax.tree.map(lambda x, i=i: x[i : i + 1], batch))[0] for i in range(2)
    )
    np.testing.assert_allclose(
        both.sums["action"], one.sums["action"] + two.sums["action"], rtol=1e-5
    )
    for name, pair in both.metrics.items():
        for whole, a, b in zip(pair, one.metrics[name], two.metrics[name], strict=True):
            np.testing.assert_allclose(whole, np.concatenate([a, b]), atol=1e-5, err_msg=name)


def test_teacher_forcing_is_causal_in_the_chunk():
    """The score of a number does not depend on that number or those after it."""
    head, rng = DiscreteHead(16, CONFIG), np.random.default_rng(0)
    logits = rng.normal(size=(2 * T, K * D, 16)).astype(np.float32)
    actions = rng.uniform(-1, 1, (2, T, K, D)).astype(np.float32)
    ids = head.targets(actions, np.ones(actions.shape, bool))
    objective = head.token_loss(logits, actions, np.ones(actions.shape, bool))
    scores = jax.nn.log_softmax(logits, axis=-1)
    expected = -np.take_along_axis(
        np.asarray(scores), np.asarray(ids)[..., None] - CONFIG.token_range[0], -1
    ).sum()
    np.testing.assert_allclose(objective.sum, expected / D, rtol=1e-5)


def test_what_a_robot_lacks_is_written_as_in_training():
    """The token of the middle stands there, while decoding as in the teacher's: so what is scored
    next is the same.
    """
    config = DiscreteConfig(chunk=K, action_dim=D, binary=(), end=30, bins=16)
    assert config.middle == int(encode(jnp.zeros(()), config))
    policy = VLAConfig(T, K, D, ("primary", "wrist"), readouts=2)
    graphdef, flat = initialise(
        lambda rngs: VLA(FakeBackbone(rngs), DiscreteHead(16, config), policy, rngs)
    )
    has = np.array([[True, False, True]])
    obs = newest(example(1).obs)._replace(action_dims=has)

    @jax.jit
    def decoded(flat):
        model = params.merge(graphdef, flat)
        context = model.prefix_context(model.sequence(obs), 1, obs.action_dims)
        return model.head.decode_tokens(context, KEY)

    @jax.jit
    def taught(flat, actions):
        model = params.merge(graphdef, flat)
        mask = jnp.broadcast_to(has[:, None, None], actions.shape)
        teacher = model.head.targets(actions, mask)
        valid = jnp.ones(teacher.shape, bool)
        words = MaskedTokens(model.backbone.embed_text(teacher[:, :-1]), valid[:, :-1])
        hidden = model.encode(model.sequence(obs, words), K * D, 1)[:, 0]
        return teacher, model.backbone.logits(hidden, config.token_range)

    ids, scores = (np.asarray(x) for x in decoded(flat))
    lacked = np.tile(~has[0], K)
    assert (ids[0, lacked] == config.middle).all()
    assert (np.argmax(scores[0, lacked], -1) + config.token_range[0] != config.middle).any()
    teacher, logits = taught(flat, decode(ids, config).reshape(1, 1, K, D))
    np.testing.assert_array_equal(teacher, ids)
    np.testing.assert_allclose(scores, logits, atol=1e-5)


def test_gripper_probability_is_that_of_its_open_half():
    head = DiscreteHead(16, CONFIG)
    logits = np.full((1, K * D, 16), -50.0, np.float32)
    ones = np.asarray(decode(np.arange(*CONFIG.token_range), CONFIG)) > 0
    logits[0, :, np.flatnonzero(ones)[0]] = 0.0
    logits[0, :, np.flatnonzero(~ones)[0]] = np.log(3.0)
    ids = np.full((1, K * D), CONFIG.token_range[0])
    np.testing.assert_allclose(head.actions(ids, logits)[0, :, 2], 0.25, atol=1e-6)
    np.testing.assert_allclose(head.actions(ids, logits)[0, :, 0], decode(ids[0, :K], CONFIG))


def test_temperature_draws(policy):
    head = DiscreteHead(16, DiscreteConfig(K, D, (2,), end=30, bins=16, temperature=1.0))
    drawn = head.choose(jnp.zeros((4_000, 16)), KEY)
    counts = np.bincount(np.asarray(drawn) - head.config.token_range[0], minlength=16)
    assert counts.min() > 150
    assert set(
        np.asarray(DiscreteHead(16, CONFIG).choose(jnp.eye(16)[:3], KEY)) - CONFIG.token_range[0]
    ) == {
        0,
        1,
        2,
    }


@pytest.mark.slow
def test_overfits_eight_windows(policy):
    graphdef, flat = policy
    batch = example(8)
    batch = batch._replace(action_mask=np.ones_like(batch.action_mask))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(flat):
        def step(carry, _):
            flat, state = carry
            grad = jax.grad(
                lambda p: params.merge(graphdef, p).loss(batch, KEY).sums["action"] / 16
            )(flat)
            updates, state = optimizer.update(grad, state)
            return (optax.apply_updates(flat, updates), state), None

        return jax.lax.scan(step, (flat, optimizer.init(flat)), None, 600)[0][0]

    before, _ = loss(graphdef, flat, batch)
    after, _ = loss(graphdef, train(flat), batch)
    assert after.sums["action"] < 0.3 * before.sums["action"]
