"""One contract for every head."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.fakes import initialise
from vla_jax import params
from vla_jax.build_heads import HEADS as ALL_HEADS
from vla_jax.models.heads import flow
from vla_jax.models.heads.attention import AttentionHead
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.gpt import GPTHead
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.types import HeadContext

# Every head that learns from readouts; test_discrete.py has the one that writes tokens.
HEADS = {name: kind for name, kind in ALL_HEADS.items() if kind.make.trains_on == "readouts"}
B, T, N, C, K, D = 3, 4, 3, 12, 3, 7
CONFIG = HeadConfig(
    chunk=K,
    action_dim=D,
    binary=(2, 6),
    tokens=N,
    hidden=8,
    layers=2,
    mlp=(16, 8),
    attention_heads=2,
    window=T,
)
KEY = jax.random.key(0)


# Heads with options of their own -> the head, its options. The others have their defaults.
BINS = 16
OPTIONS = {"oft, discrete": ("oft", {"readout": "discrete", "bins": BINS})}
SLOW = ("flow", "oft, discrete")  # test_flow.py and test_oft.py are in the fast lane


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in (*HEADS, *OPTIONS)
    ],
    scope="module",
)
def head(request):
    """(graphdef, params) of a small head with jittered weights, so that no bias is zero."""
    name, options = OPTIONS.get(request.param, (request.param, {}))
    kind = HEADS[name]
    config = kind.config(**vars(CONFIG), **options)
    graphdef, flat = initialise(lambda rngs: kind.make(C, config, rngs))
    return graphdef, jitter(flat)


def jitter(flat):
    return {
        name: np.asarray(value)
        + 0.1 * np.random.default_rng(0).normal(size=value.shape).astype(np.float32)
        for name, value in flat.items()
    }


def example(b=B):
    rng = np.random.default_rng(1)
    readouts = rng.normal(size=(b, T, N, C)).astype(np.float32)
    actions = rng.uniform(-1, 1, (b, T, K, D)).astype(np.float32)
    actions[..., CONFIG.binary] = actions[..., CONFIG.binary] > 0
    return readouts, actions, rng.random((b, T, K, D)) < 0.8


@jax.jit(static_argnums=0)
def loss(graphdef, flat, readouts, actions, mask):
    return params.merge(graphdef, flat).loss(HeadContext(readouts), actions, mask, KEY)


@jax.jit(static_argnums=0)
def act(graphdef, flat, readouts):
    return params.merge(graphdef, flat).act(HeadContext(readouts), KEY)


@jax.jit(static_argnums=0)
def grads(graphdef, flat, readouts, actions, mask):
    return jax.grad(lambda p, r: loss(graphdef, p, r, actions, mask).sum, argnums=(0, 1))(
        flat, readouts
    )


def test_loss_is_finite_and_gradient_reaches_every_leaf(head):
    data = example()
    result = loss(*head, *data)
    assert np.isfinite(result.sum)
    assert result.sum > 0
    by_name, by_readout = jax.device_get(grads(*head, *data))
    dead = [
        name for name, grad in by_name.items() if not (np.isfinite(grad).all() and np.any(grad))
    ]
    assert dead == []
    assert np.all(np.any(by_readout, axis=-1))  # every token of every frame


def test_actions_are_normalised_and_binary_dims_are_probabilities(head):
    actions = np.asarray(act(*head, 10 * example()[0]))
    assert actions.shape == (B, T, K, D)
    assert actions.dtype == np.float32
    assert np.all(np.abs(actions) <= 1)
    assert np.all(actions[..., CONFIG.binary] >= 0)
    assert np.any(actions[..., CONFIG.arm] < 0)


def test_loss_and_act_agree(head):
    """The l1 metric of the loss is the distance of act's actions."""
    readouts, actions, mask = example()
    expected = np.sum(np.abs(act(*head, readouts) - actions) * mask, axis=(1, 2))
    np.testing.assert_allclose(
        loss(*head, readouts, actions, mask).metrics["l1"][0], expected, atol=1e-5
    )


def test_causal_in_time(head):
    readouts = example()[0]
    later = readouts.copy()
    later[:, 2:] = later[:, 2:, :, ::-1]
    before, after = act(*head, readouts), act(*head, later)
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert np.all(np.any(np.abs(before[:, 2:] - after[:, 2:]) > 1e-4, axis=(2, 3)))


def test_rollout_equals_window(head):
    """Acting step by step on the frames so far gives what the whole window gave: no memory beyond
    the window.
    """
    readouts = example()[0]
    whole = act(*head, readouts)
    for step in range(T):
        np.testing.assert_allclose(
            act(*head, readouts[:, : step + 1])[:, -1], whole[:, step], atol=1e-6
        )


def test_batch_of_two_is_two_batches_of_one(head, monkeypatch):
    # Noise is drawn for the batch as a whole; here every example gets the same.
    normal, draw = jax.random.normal, flow.draw
    monkeypatch.setattr(
        flow.jax.random,
        "normal",
        lambda key, shape: jnp.broadcast_to(normal(key, shape[1:]), shape),
    )
    monkeypatch.setattr(
        flow,
        "draw",
        lambda key, shape: tuple(
            jnp.broadcast_to(x, (shape[0], *x.shape[1:])) for x in draw(key, (1, *shape[1:]))
        ),
    )
    loss = jax.jit(
        lambda graphdef, *args: params.merge(graphdef, args[0]).loss(
            HeadContext(args[1]), *args[2:], KEY
        ),
        static_argnums=0,
    )
    data = example(2)
    both, first, second = (
        loss(*head, *data),
        *(loss(*head, *(x[i : i + 1] for x in data)) for i in range(2)),
    )
    np.testing.assert_allclose(both.sum, first.sum + second.sum, rtol=1e-6)
    for name, pair in both.metrics.items():
        for whole, one, two in zip(pair, first.metrics[name], second.metrics[name], strict=True):
            np.testing.assert_allclose(whole, np.concatenate([one, two]), atol=1e-5, err_msg=name)


def test_masked_actions_change_nothing(head):
    readouts, actions, mask = example()
    other = np.where(mask, actions, np.nan)
    jax.tree.map(
        np.testing.assert_array_equal,
        loss(*head, readouts, actions, mask),
        loss(*head, readouts, other, mask),
    )


def lacking_heads(head):
    """The head's parameters, and others: different wherever they belong to the dims in LACKED."""
    _, flat = head
    arm, grippers = list(CONFIG.arm), list(CONFIG.binary)
    of_chunk = {"outputs/arm": arm, "outputs/gripper": grippers, "gripper/": grippers}
    other = dict(flat)
    for name, value in flat.items():
        path = name.rpartition("/")[0]
        dims = next((each for start, each in of_chunk.items() if name.startswith(start)), None)
        changed = value.copy()
        if path == "velocity":
            changed[..., LACKED_ARM] += 1
        elif path == "output" and value.shape[-1] == D:
            changed[..., list(LACKED)] += 1
        elif path == "output":  # the bins of each arm dim, then the grippers
            changed[..., LACKED_ARM * BINS : (LACKED_ARM + 1) * BINS] += 1
            changed[..., len(arm) * BINS + grippers.index(LACKED[1])] += 1
        elif name == "noisy/kernel":
            changed[LACKED_ARM] += 1
        elif dims is not None and value.shape[-1] == K * len(dims):
            lacked = [i for i, dim in enumerate(dims) if dim in LACKED]
            changed.reshape(*value.shape[:-1], K, len(dims))[..., lacked] += 1
        other[name] = changed
    assert any((other[name] != flat[name]).any() for name in flat)
    return flat, other


LACKED = (1, 6)  # of an arm dim and a gripper
LACKED_ARM = CONFIG.arm.index(1)


@pytest.mark.slow
def test_dims_that_a_robot_lacks_change_nothing(head):
    """Not what stands in their place in the batch, nor the parameters that belong to them: in the
    loss, its gradient at all others, and in what is carried out.
    """
    graphdef, (readouts, actions, mask) = head[0], example()
    dims = np.ones((B, D), bool)
    dims[:, LACKED] = False
    mask = mask & dims[:, None, None]
    context = HeadContext(readouts, dims=dims)
    has = np.flatnonzero(dims[0])

    @jax.jit
    def whole(flat, actions):
        made = params.merge(graphdef, flat)
        value = made.loss(context, actions, mask, KEY)
        return value, made.act(context, KEY)[..., has]

    flat, other = lacking_heads(head)
    first = whole(flat, actions)
    junk = np.where(mask, actions, np.nan).astype(np.float32)
    jax.tree.map(np.testing.assert_array_equal, first, whole(flat, junk))
    same, changed = first, whole(other, actions)
    np.testing.assert_allclose(changed[0].sum, same[0].sum, rtol=1e-6)
    np.testing.assert_allclose(changed[1], same[1], atol=1e-6)
    grad = jax.jit(
        jax.grad(lambda p: params.merge(graphdef, p).loss(context, actions, mask, KEY).sum)
    )(flat)
    for name, value in flat.items():
        lacked = other[name] != value
        assert not np.asarray(grad[name])[lacked].any(), name


def test_loss_and_act_agree_for_a_robot_that_lacks_dims(head):
    """Training equals rollout there too."""
    graphdef, flat = head
    readouts, actions, mask = example()
    dims = np.arange(D)[None] % 3 != np.arange(B)[:, None]  # of each robot others
    mask = mask & dims[:, None, None]
    context = HeadContext(readouts, dims=dims)

    @jax.jit
    def both(flat):
        made = params.merge(graphdef, flat)
        return made.loss(context, actions, mask, KEY).metrics["l1"], made.act(context, KEY)

    (total, count), acted = both(flat)
    expected = np.sum(np.where(mask, np.abs(acted - actions), 0), axis=(1, 2))
    np.testing.assert_allclose(total, expected, atol=1e-5)
    np.testing.assert_array_equal(count, mask.sum((1, 2)))


def test_all_false_mask_gives_zero_loss_and_gradient(head):
    readouts, actions, mask = example()
    result = loss(*head, readouts, actions, np.zeros_like(mask))
    assert result.sum == 0
    for leaf in jax.tree.leaves(grads(*head, readouts, actions, np.zeros_like(mask))):
        assert not np.any(leaf)


def test_computes_in_float32_from_cast_parameters(head):
    graphdef, flat = head
    readouts, actions, mask = example()
    low = {name: value.astype(jnp.bfloat16) for name, value in flat.items()}
    high = {name: value.astype(jnp.float32) for name, value in low.items()}
    readouts = jnp.asarray(readouts, jnp.bfloat16)
    before = loss(graphdef, low, readouts, actions, mask)
    after = loss(graphdef, high, readouts.astype(jnp.float32), actions, mask)
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_overfits_eight_windows(head):
    """Every head can learn what it is shown."""
    graphdef, flat = head
    readouts, actions, _ = example(8)
    mask = np.ones_like(actions, bool)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(flat, state, key):
        def step(carry, key):
            flat, state = carry
            grad = jax.grad(
                lambda p: (
                    params.merge(graphdef, p).loss(HeadContext(readouts), actions, mask, key).sum
                    / 1e2
                )
            )(flat)
            updates, state = optimizer.update(grad, state)
            return (optax.apply_updates(flat, updates), state), None

        return jax.lax.scan(step, (flat, state), jax.random.split(key, 1000))[0]

    flat = {name: jnp.asarray(value) for name, value in flat.items()}
    before = np.abs(act(graphdef, flat, readouts) - actions)[..., CONFIG.arm].mean()
    flat, _ = train(flat, optimizer.init(flat), KEY)
    after = np.abs(act(graphdef, flat, readouts) - actions)[..., CONFIG.arm].mean()
    assert after < 0.5 * before


@pytest.mark.parametrize("binary", [(), (0, 1)])
def test_action_spaces_without_arm_or_gripper(binary):
    config = HeadConfig(chunk=2, action_dim=2, binary=binary, hidden=4, mlp=(4,))
    data = (
        np.random.default_rng(0).normal(size=(1, 2, 1, 6)).astype(np.float32),
        np.ones((1, 2, 2, 2), np.float32),
        np.ones((1, 2, 2, 2), bool),
    )
    head = initialise(lambda rngs: MLPHead(6, config, rngs))
    result = loss(*head, *data)
    assert np.isfinite(result.sum)
    assert result.metrics["arm" if binary else "gripper"][1] == 0
    assert all(np.isfinite(grad).all() and np.any(grad) for grad in grads(*head, *data)[0].values())


@pytest.mark.parametrize("binary", [(7,), (-1,), (6, 6)])
def test_bad_binary_dims_are_refused(binary):
    with pytest.raises(ValueError, match=r"HeadConfig\.binary"):
        HeadConfig(chunk=1, action_dim=7, binary=binary)


def test_attention_heads_divide_the_width_where_there_are_any():
    config = HeadConfig(chunk=1, action_dim=7, binary=(6,), hidden=12, mlp=(4,))
    initialise(lambda rngs: MLPHead(C, config, rngs))
    for cls in (GPTHead, AttentionHead, FlowHead):
        with pytest.raises(
            ValueError, match=r"attention_heads: expected a divisor of hidden 12, got 8"
        ):
            initialise(lambda rngs, cls=cls: cls(C, config, rngs))


# RoboVLMs' counts at width 2048, chunk 10: the LSTM's 41,210,950 include torch's second bias of
# each layer, which we fold into the first: 4 layers * 4 gates * 1024 = 16,384 fewer. GPT:
# 106,315,846 at window 16.
@pytest.mark.parametrize(
    ("name", "count"), [("mlp", 6_577_222), ("lstm", 41_210_950 - 16_384), ("gpt", 106_315_846)]
)
def test_full_size_parameter_count(name, count):
    config = HeadConfig(
        chunk=10, action_dim=7, binary=(6,), layers=8 if name == "gpt" else 4, window=16
    )
    _, shapes, logical = params.abstract(lambda rngs: HEADS[name].make(2048, config, rngs))
    assert sum(int(np.prod(x.shape)) for x in shapes.values()) == count
    assert all(len(logical[path]) == len(x.shape) for path, x in shapes.items())
