"""The head fast: its strings, beside a vocabulary that is decoded by hand, and the contract of
every head, through a small policy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.fakes import FakeBackbone, jittered, make_batch
from vla_jax import params
from vla_jax.models import decoding
from vla_jax.models.fast_vocabulary import fit
from vla_jax.models.heads.fast import FastConfig, FastHead, token_end, widened
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.types import ActionTokens

KEY = jax.random.key(0)
T, K, D = 2, 4, 3
VOCAB, MOST = 96, 11


def chunks(n: int, seed: int = 0) -> np.ndarray:
    """Normalised ones, of which the last dim is 0 or 1."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(K)[None, :, None] * 0.5 * rng.uniform(0, 1, (n, 1, D - 1)))
    gripper = np.broadcast_to(rng.integers(0, 2, (n, 1, 1)), (n, K, 1))
    return np.concatenate([rng.choice([-0.7, 0.7], (n, 1, D - 1)) * waves, gripper], 2)


def wide(actions: np.ndarray) -> np.ndarray:
    return widened(actions, np.ones((*actions.shape[:-2], D), bool), (2,))


VOCABULARY = fit(wide(chunks(300)), ("x", "y", "gripper"), "data", scale=5.0, tokens=60)
CONFIG = FastConfig(K, D, (2,), end=90, vocabulary=VOCABULARY, most=MOST)
HEAD = FastHead(16, CONFIG)


def ids_of(pieces: np.ndarray) -> np.ndarray:
    return CONFIG.end - 1 - pieces


def taught(actions: np.ndarray, most: int = MOST) -> ActionTokens:
    b, t = actions.shape[:2]
    pieces, there = VOCABULARY.write(wide(actions.reshape(b * t, K, D)), most)
    return ActionTokens(ids_of(pieces).reshape(b, t, most), there.reshape(b, t, most))


def example(b: int = 2, seed: int = 1, most: int = MOST):
    batch = make_batch(b=b, t=T, k=K, d=D, vocab=VOCAB)
    actions = chunks(b * T, seed).reshape(b, T, K, D).astype(np.float32)
    return batch._replace(actions=actions, action_tokens=taught(actions, most))


def policy_of(config: FastConfig, history: str = "head", width: int = 16):
    def make(rngs):
        sizes = VLAConfig(T, K, D, ("primary", "wrist"), readouts=2, history=history)
        return VLA(FakeBackbone(rngs, width, VOCAB), FastHead(width, config), sizes, rngs)

    return jittered(make, 0.2)


@pytest.fixture(scope="module")
def policy():
    return policy_of(CONFIG)


@jax.jit(static_argnums=0)
def loss(graphdef, flat, batch):
    model = params.merge(graphdef, flat)
    return model.loss(batch, KEY), model.mask_counts(batch)["action"]


@jax.jit(static_argnums=0)
def decoded(graphdef, flat, obs):
    model = params.merge(graphdef, flat)
    t = 1 if model.config.history == "head" else T
    context = model.prefix_context(model.sequence(obs), t, None)
    return model.head.decode_tokens(context, KEY)


def test_ids_are_counted_from_the_end_as_openpi_does():
    """PaliGemma: 257152 tokens, <seg> last; 1024 tokens of FAST take the place of <loc>."""
    end = token_end(257_152)
    assert end - 1 == 257_152 - 1 - 128 == 257_023
    assert end - 1024 == 256_000
    assert CONFIG.token_range == (30, 90)
    assert (CONFIG.end_token, ids_of(np.array(VOCABULARY.end))) == (30, 30)


@pytest.mark.slow
def test_strings_become_the_chunks_that_the_vocabulary_says():
    actions = chunks(20, seed=2)
    pieces, _ = VOCABULARY.write(wide(actions), MOST)
    got = np.asarray(HEAD.actions(ids_of(pieces)))
    expected = np.stack([VOCABULARY.decode(row) for row in pieces.tolist()])
    np.testing.assert_allclose(got[..., :2], expected[..., :2], atol=1e-6)
    np.testing.assert_allclose(got[..., 2], np.clip((expected[..., 2] + 1) / 2, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(got[..., 2] > 0.5, actions[..., 2] > 0.5)
    assert np.abs(got - actions).max() < 0.2


@pytest.mark.slow
def test_a_string_that_is_not_whole_is_no_chunk():
    pieces, _ = VOCABULARY.write(wide(chunks(3, seed=3)), MOST)
    rng = np.random.default_rng(0)
    end = VOCABULARY.end
    random = rng.integers(0, VOCABULARY.size, (400, MOST))  # of every kind
    short = np.where(np.arange(MOST) < 1, pieces, end)
    long = np.concatenate([pieces[:, :1], pieces[:, :-1]], axis=1)
    without = np.where(pieces == end, 0, pieces)
    strings = np.concatenate([pieces, random, short, long, without])
    got = np.asarray(HEAD.actions(ids_of(strings)))
    for string, chunk in zip(strings.tolist(), got, strict=True):
        try:
            expected = VOCABULARY.decode(string)
        except ValueError:
            assert np.isnan(chunk).all()
        else:
            np.testing.assert_allclose(chunk[:, :2], expected[:, :2], atol=1e-6)
    held = np.isnan(got).all((1, 2))
    np.testing.assert_array_equal(held, np.isnan(got).any((1, 2)))
    assert not held[:3].any()
    assert held[-9:].all()


@pytest.mark.slow
def test_loss_is_finite_and_gradient_reaches_every_leaf(policy):
    graphdef, flat = policy
    batch = example()
    objective, weight = loss(graphdef, flat, batch)
    assert 0 < objective.sums["action"] < np.inf
    assert weight == (batch.action_mask & batch.obs.step_mask[:, :, None, None]).any(-1).sum()
    grad = jax.jit(
        jax.grad(lambda flat: params.merge(graphdef, flat).loss(batch, KEY).sums["action"])
    )(flat)
    grad = jax.device_get(grad)
    assert [n for n, g in grad.items() if not (np.isfinite(g).all() and np.any(g))] == []


def frame(obs, t: int, first: int):
    """The frames first to t of a window."""
    return jax.tree.map(lambda x: x[:, first : t + 1] if x.ndim > 1 and x.shape[1] == T else x, obs)


@pytest.mark.slow
@pytest.mark.parametrize("history", ["head", "interleaved"])
def test_the_loss_is_that_of_each_string_alone(history):
    """Token by token, each string without padding, its scores from what is decoded behind a prefix:
    the mean over its tokens, times the steps that count.
    """
    graphdef, flat = policy_of(CONFIG, history)
    batch = example()
    mask = batch.action_mask.copy()
    first = {"head": 0, "interleaved": T - 1}[history]
    mask[:, :first] = False  # of the newest frame alone: before the others no window stands
    batch = batch._replace(
        obs=batch.obs._replace(step_mask=np.ones((2, T), bool)), action_mask=mask
    )

    @jax.jit
    def scored(flat, obs, ids):
        model = params.merge(graphdef, flat)
        t = obs.step_mask.shape[1]
        now, scores = model.prefix_context(model.sequence(obs), t, None).prefix, []
        for token in ids.T:
            scores.append(model.backbone.logits(now.hidden[:, None], CONFIG.token_range)[:, 0])
            now = decoding.extend(model.backbone, now, token)
        return jax.nn.log_softmax(jnp.stack(scores, 1))

    total, (ids, there) = 0.0, batch.action_tokens
    for t in range(first, T):
        obs = frame(batch.obs, t, 0 if history == "interleaved" else t)
        scores = np.asarray(scored(flat, obs, ids[:, t, :-1]))
        for row in range(2):
            string = ids[row, t][there[row, t]]
            cost = -scores[row, np.arange(len(string)), string - CONFIG.token_range[0]]
            total += cost.mean() * mask[row, t].any(-1).sum()
    np.testing.assert_allclose(loss(graphdef, flat, batch)[0].sums["action"], total, rtol=1e-5)


@pytest.mark.slow
def test_padding_and_masked_actions_change_nothing(policy):
    graphdef, flat = policy
    batch = example()
    wider = policy_of(FastConfig(K, D, (2,), 90, VOCABULARY))[0]  # as many as any can need
    assert params.merge(wider, flat).head.num_tokens == K * D + 1 == MOST + 2
    (short, _), (long, _) = (
        loss(graphdef, flat, batch), loss(wider, flat, example(most=K * D + 1))
    )  # fmt: skip
    np.testing.assert_allclose(short.sums["action"], long.sums["action"], rtol=1e-6)
    for name, pair in short.metrics.items():
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), pair, long.metrics[name]
        )
    mask = batch.action_mask & batch.obs.step_mask[:, :, None, None]
    tokens = batch.action_tokens
    other = batch._replace(
        actions=np.where(mask, batch.actions, np.nan),
        action_tokens=tokens._replace(
            ids=np.where(tokens.mask & batch.obs.step_mask[..., None], tokens.ids, CONFIG.end_token)
        ),
    )
    first, second = loss(graphdef, flat, batch), loss(graphdef, flat, other)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
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


@pytest.mark.slow
def test_metrics_of_the_truth():
    """The likeliest tokens being the true ones, the actions are those of the string."""
    batch = example(b=3)
    ids, there = (x.reshape(-1, MOST) for x in batch.action_tokens)
    logits = 20 * jax.nn.one_hot(ids - CONFIG.token_range[0], VOCABULARY.size)
    mask = np.ones(batch.actions.shape, bool)
    out = HEAD.token_loss(logits, (ids, there), batch.actions, mask)
    assert out.sum < 1e-3
    for name, share in (("token_accuracy", 1), ("broken", 0), ("gripper_accuracy", 1)):
        hits, of = out.metrics[name]
        np.testing.assert_array_equal(hits, share * of)
        assert (of > 0).all()
    said = np.asarray(HEAD.actions(ids)).reshape(batch.actions.shape)
    expected = np.abs(said - batch.actions).sum((1, 2))[:, :2]
    np.testing.assert_allclose(out.metrics["l1"][0][:, :2], expected, atol=1e-5)
    # The same tokens, but for a first one that holds other numbers: those alone are wrong.
    first = VOCABULARY.pieces[CONFIG.end - 1 - ids[0, 0]]
    other = next(
        i for i, piece in enumerate(VOCABULARY.pieces)
        if len(piece) < len(first) or (len(piece) == len(first) and piece != first)
    )  # fmt: skip
    changed = ids.copy()
    changed[0, 0] = CONFIG.end - 1 - other
    logits = 20 * jax.nn.one_hot(changed - CONFIG.token_range[0], VOCABULARY.size)
    metrics = HEAD.token_loss(logits, (ids, there), batch.actions, mask).metrics
    assert metrics["token_accuracy"][0][0] == out.metrics["token_accuracy"][0][0] - 1
    numbers = np.array([x for i in ids[0] if i != CONFIG.end_token
                        for x in VOCABULARY.pieces[CONFIG.end - 1 - i]])  # fmt: skip
    spelled = np.zeros(len(first), int)
    spelled[: len(VOCABULARY.pieces[other])] = VOCABULARY.pieces[other]
    numbers[: len(first)] = spelled
    values = VOCABULARY.values(numbers[None])[0]
    rest = np.abs(said - batch.actions)[0, 1:, :, :2].sum((0, 1))
    expected = np.abs(values - batch.actions[0, 0])[:, :2].sum(0) + rest
    np.testing.assert_allclose(metrics["l1"][0][0, :2], expected, atol=1e-5)


@pytest.fixture(scope="module")
def trained():
    """(graphdef, parameters, batch): a policy that has learnt its batch."""
    graphdef, flat = policy_of(CONFIG, width=32)
    batch = jax.tree.map(lambda x: x[1:], example(5))  # the first has the same frame twice
    batch = batch._replace(action_mask=np.ones_like(batch.action_mask))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1_000))

    @jax.jit
    def train(flat):
        def step(carry, _):
            flat, state = carry
            grad = jax.grad(
                lambda p: params.merge(graphdef, p).loss(batch, KEY).sums["action"] / 32
            )(flat)
            updates, state = optimizer.update(grad, state)
            return (optax.apply_updates(flat, updates), state), None

        return jax.lax.scan(step, (flat, optimizer.init(flat)), None, 1_000)[0][0]

    return graphdef, train(flat), batch


@pytest.mark.slow
def test_decoding_is_greedy_and_equals_teacher_forcing(trained):
    graphdef, flat, batch = trained
    # Strings of the windows that were learnt, and one of none.
    batch = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), batch)
    for image in batch.obs.images:
        image[-1] = 255 - image[-1]
    obs = frame(batch.obs, T - 1, T - 1)
    ids, scores = (np.asarray(x) for x in decoded(graphdef, flat, obs))
    lengths = np.argmax(np.concatenate([ids, np.full((5, 1), 30)], 1) == 30, axis=1)
    assert len(set(lengths.tolist())) > 1, lengths  # of several lengths
    computed = min(lengths.max() + 1, MOST)
    assert not scores[:, computed:].any()
    assert (ids[np.arange(MOST)[None] > lengths[:, None]] == CONFIG.end_token).all()
    there = np.arange(MOST)[None] <= lengths[:, None]
    argmax = np.argmax(scores, -1) + CONFIG.token_range[0]
    np.testing.assert_array_equal(argmax[there], ids[there])

    @jax.jit
    def forced(flat):
        model = params.merge(graphdef, flat)
        given = ActionTokens(*(np.stack([x, x], axis=1) for x in (ids, there)))
        taught = batch._replace(action_tokens=given)
        context, _ = model._encode_batch(taught, model._seen(batch.obs), KEY)
        return model.backbone.logits(context.predictors[1::T], CONFIG.token_range)

    np.testing.assert_allclose(np.asarray(forced(flat))[there], scores[there], atol=1e-4)
    # Rollouts of several episodes run side by side.
    rows = jax.tree.map(lambda x: x[:, None], obs)
    run = jax.jit(jax.vmap(lambda obs: decoded(graphdef, flat, obs)[0][0]))
    np.testing.assert_array_equal(run(rows), ids)
    # One that ends early does not hang on how long others go on.
    for row in range(5):
        alone = decoded(graphdef, flat, jax.tree.map(lambda x, i=row: x[i : i + 1], obs))[0]
        np.testing.assert_array_equal(alone[0], ids[row])


@pytest.mark.slow
def test_decoding_ends_with_the_last_string(trained, monkeypatch):
    """Of n tokens all but the last run through the backbone."""
    graphdef, flat, batch = trained
    obs = frame(jax.tree.map(lambda x: x[:1], batch.obs), T - 1, T - 1)
    lengths = []
    ran, extend = [], decoding.extend

    def counted(backbone, prefix, ids):
        jax.debug.callback(lambda: ran.append(1))
        return extend(backbone, prefix, ids)

    monkeypatch.setattr(decoding, "extend", counted)

    @jax.jit
    def decoded(flat):
        model = params.merge(graphdef, flat)
        return model.head.decode_tokens(model.prefix_context(model.sequence(obs), 1, None), KEY)[0]

    words = flat["backbone/words"]
    endless = words.at[CONFIG.end_token].set(0.0)
    for table in (words, endless):
        ran.clear()
        ids = np.asarray(decoded({**flat, "backbone/words": table}))[0].tolist()
        jax.effects_barrier()
        length = ids.index(CONFIG.end_token) + 1 if CONFIG.end_token in ids else MOST
        assert len(ran) == length - 1
        lengths.append(length)
    assert lengths[0] < lengths[1] == MOST


def test_what_does_not_fit_is_refused(policy):
    with pytest.raises(ValueError, match="expected a vocabulary of chunks of 5 steps of 3 dims"):
        FastConfig(5, D, (2,), 90, VOCABULARY)
    with pytest.raises(ValueError, match="expected room for 60 tokens below id 59"):
        FastConfig(K, D, (2,), 59, VOCABULARY)
    with pytest.raises(ValueError, match=r"model\.fast\.most 0 or above 1, got 1"):
        FastConfig(K, D, (2,), 90, VOCABULARY, most=1)
    graphdef, flat = policy
    for tokens, got in ((None, "none"), (taught(example().actions, 20), "20")):
        with pytest.raises(ValueError, match=f"expected {MOST} for each frame, got {got}"):
            params.merge(graphdef, flat).loss(example()._replace(action_tokens=tokens), KEY)


def test_what_a_robot_lacks_is_nothing_in_its_strings():
    actions = chunks(2).astype(np.float32)
    has = np.array([[True, True, True], [True, False, False]])
    values = widened(actions, has, (2,))
    np.testing.assert_array_equal(values[1, :, 1:], 0)
    np.testing.assert_array_equal(values[0, :, 2], 2 * actions[0, :, 2] - 1)
    np.testing.assert_array_equal(values[..., 0], actions[..., 0])
    framed = widened(np.stack([actions, actions]), np.stack([has, has]), (2,))
    np.testing.assert_array_equal(framed[1], values)


@pytest.mark.slow
def test_it_learns_what_it_is_shown_and_acts_so(trained):
    graphdef, flat, batch = trained
    objective, _ = loss(graphdef, flat, batch)
    for name, share in (("token_accuracy", 1), ("broken", 0)):
        hits, of = objective.metrics[name]
        np.testing.assert_array_equal(hits, share * of)
    acted = np.asarray(jax.jit(lambda flat: params.merge(graphdef, flat).act(batch.obs, KEY))(flat))
    expected = np.asarray(HEAD.actions(batch.action_tokens.ids[:, -1]))
    np.testing.assert_allclose(acted, expected, atol=1e-6)
