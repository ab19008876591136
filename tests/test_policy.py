"""The rollout equals the window that was trained: every history, layout and way to see images."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fakes import FakeBackbone, jittered, make_batch
from vla_jax import params
from vla_jax.actions import ActionSpec
from vla_jax.models.heads.discrete import DiscreteConfig, DiscreteHead
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.gpt import GPTHead
from vla_jax.models.heads.lstm import LSTMHead
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.sequence import MaskedTokens, in_row
from vla_jax.models.tokens import PastConfig, StateConfig, hide_past_actions
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.policy import JaxPolicy
from vla_jax.policy_io import PolicyIO
from vla_jax.robot.relative import Relative
from vla_jax.robot.resize import resize
from vla_jax.types import RESIZES, Seen, newest

T, K, D, N, P, STEPS = 3, 2, 3, 2, 2, 6
KEY = jax.random.key(0)
SPEC = ActionSpec(("x", "y", "gripper"), binary=(2,))
IO = PolicyIO(
    (8, 8), 5, lambda text: np.array([3, 4, 5][: len(text)]), SPEC, ActionSpec(("a", "gripper"))
)
HEADS = {"lstm": LSTMHead, "mlp": MLPHead, "flow": FlowHead, "gpt": GPTHead}


@functools.cache
def build(history="head", layout="prefix", head="lstm", cross=False, **fields):
    """(graphdef, jittered params) of a small policy."""
    config = VLAConfig(T, K, D, ("primary", "wrist"), layout, history, N, **fields)

    def make(rngs):
        backbone = FakeBackbone(rngs, cross=cross)
        if head == "discrete":
            return VLA(
                backbone, DiscreteHead(16, DiscreteConfig(K, D, (2,), 30, bins=8)), config, rngs
            )
        sizes = HeadConfig(
            K, D, (2,), tokens=N, hidden=8, layers=1, mlp=(8,), attention_heads=2, window=T
        )
        return VLA(backbone, HEADS[head](backbone.width, sizes, rngs), config, rngs)

    return jittered(make, 0.3)


def episode():
    """Frames and states of an episode."""
    rng = np.random.default_rng(1)
    images = {
        name: rng.integers(0, 256, (STEPS, 8, 8, 3), dtype=np.uint8)
        for name in ("primary", "wrist")
    }
    return images, rng.uniform(-1, 1, (STEPS, P)).astype(np.float32)


def window(now, taken, images, states):
    """The observation the loader makes for step `now`: the first frame repeats before the
    beginning.
    """
    at = np.arange(now - T + 1, now + 1)
    index = np.maximum(at, 0)
    obs = make_batch(b=1, t=T).obs
    past = np.zeros((1, T, D), np.float32)
    past[0, at > 0] = np.reshape([taken[i - 1] for i in at if i > 0], (-1, D))
    prompt, mask = (
        np.array([[3, 4, 0, 0, 0]], np.int32),
        np.array([[True, True, False, False, False]]),
    )
    return obs._replace(
        images=tuple(images[name][None, index] for name in ("primary", "wrist")),
        image_mask=np.ones((1, T, 2), bool), proprio=states[None, index],
        proprio_mask=np.ones((1, P), bool),
        prompt=prompt, prompt_mask=mask, step_mask=(at >= 0)[None],
        past_action=past, past_action_mask=(at > 0)[None],
    )  # fmt: skip


FAST = [
    ("head", "prefix", "lstm", False),
    ("head", "robovlms", "discrete", True),
    ("interleaved", "robovlms", "lstm", False),
]
ALL = [
    *itertools.product(
        ("head", "interleaved"), ("prefix", "robovlms"), ("lstm", "discrete"), (False, True)
    ),
    *((("interleaved", "robovlms_pre", head, False)) for head in ("lstm", "discrete")),
    ("interleaved", "prefix", "flow", False),
    ("head", "prefix", "mlp", False),
]
CASES = [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in ALL]


@pytest.mark.parametrize(("history", "layout", "head", "cross"), CASES)
def test_rollout_equals_window(history, layout, head, cross):
    state, past = StateConfig(P, 1), PastConfig((2,), dropout_rate=0.5)
    graphdef, flat = build(history, layout, head, cross, state=state, past=past)
    act = jax.jit(lambda obs, key: params.merge(graphdef, flat).act(obs, key))
    policy, (images, states), taken = JaxPolicy(graphdef, flat, IO), episode(), []
    policy.reset("ab")
    for now in range(STEPS):
        acted = policy.act({name: frames[now] for name, frames in images.items()}, states[now])
        expected = act(window(now, taken, images, states), jax.random.fold_in(KEY, now))
        np.testing.assert_allclose(acted, SPEC.unnormalise(np.asarray(expected)[0]), atol=2e-5)
        taken.append(acted[0])
    assert np.std(taken, axis=0)[:2].max() > 1e-2  # the agreement is about something
    policy.reset("ab")
    again = policy.act({name: frames[0] for name, frames in images.items()}, states[0])
    np.testing.assert_allclose(again[0], taken[0], atol=1e-6)


TOGETHER = [
    ("head", "prefix", "flow", False),  # draws
    ("interleaved", "robovlms", "lstm", False),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("head", "robovlms", "discrete", True),
            ("interleaved", "prefix", "flow", False),
            ("interleaved", "prefix", "lstm", True),
        )
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("history", "layout", "head", "cross"), TOGETHER)
def test_episodes_together_act_as_each_alone(history, layout, head, cross):
    """Three sessions that begin at other steps, of which some are asked at a time."""
    graphdef, flat = build(history, layout, head, cross)
    policy, (images, _) = JaxPolicy(graphdef, flat, IO), episode()
    shown = [Seen({name: frames[now] for name, frames in images.items()}) for now in range(STEPS)]
    alone = []
    for words in ("a", "ab", "abc"):
        policy.reset(words)
        alone.append([policy.act(each.images) for each in shown])
    sessions, now = policy.sessions(3), [0, 0, 0]
    for session, words in zip(sessions, ("a", "ab", "abc"), strict=True):
        session.reset(words)
    for asked in [(0,), (0, 2), (0, 1, 2), (1, 0), (0, 1, 2), (0, 2, 1), (2, 1), (1, 2)]:
        together = policy.act_together([sessions[i] for i in asked], [shown[now[i]] for i in asked])
        for i, acted in zip(asked, together, strict=True):
            np.testing.assert_allclose(acted, alone[i][now[i]], atol=1e-5)
            now[i] += 1
    assert now == [STEPS, STEPS, STEPS]
    with pytest.raises(ValueError, match="sessions of one policy"):
        JaxPolicy.act_together([sessions[0], JaxPolicy(graphdef, {**flat}, IO)], shown[:2])
    with pytest.raises(ValueError, match="at most 2 sessions, got 3"):
        policy.act_together(policy.sessions(3, 2), shown[:3])


@pytest.mark.slow
@pytest.mark.parametrize("history", ["head", "interleaved"])
def test_readouts_are_those_that_the_head_read(history):
    """As of the window that the loader would make; of those that are asked, whoever that is."""
    graphdef, flat = build(history)
    readouts = jax.jit(lambda obs: params.merge(graphdef, flat).readouts(obs))
    policy, (images, states) = JaxPolicy(graphdef, flat, IO), episode()
    sessions = policy.sessions(3, 2)
    for session in sessions:
        session.reset("ab")
    for now in range(STEPS):
        seen = Seen({name: frames[now] for name, frames in images.items()})
        for asked in (sessions[:2], sessions[2:]):
            policy.act_together(asked, [seen] * len(asked))
        expected = readouts(window(now, np.zeros((STEPS, D)), images, states))[0]
        there = slice(None) if history == "head" else slice(max(T - 1 - now, 0), T)
        for session in sessions:
            np.testing.assert_allclose(session.readouts()[there], expected[there], atol=2e-5)
        np.testing.assert_array_equal(sessions[0].readouts(), sessions[2].readouts())


@pytest.mark.parametrize("head", ["mlp", "flow", "discrete"])
def test_relative_actions_start_from_the_state_of_the_newest_frame(head):
    """The chunk and the action before, as the loader has them; the robot gets positions."""
    parts = (Relative("number", (0,), (1,)), Relative("angle", (1,), (0,)))
    spec = dataclasses.replace(SPEC, relative=parts)
    past = PastConfig((2,), dropout_rate=0.5)
    graphdef, flat = build(head=head, past=past)  # the network itself sees no state
    act = jax.jit(lambda obs, key: params.merge(graphdef, flat).act(obs, key))
    policy = JaxPolicy(graphdef, flat, dataclasses.replace(IO, action_spec=spec))
    (images, states), before = episode(), []
    states = 3 * states
    policy.reset("ab")
    for now in range(STEPS):
        frame = {name: frames[now] for name, frames in images.items()}
        acted = policy.act(frame, states[now])
        expected = act(window(now, before, images, states), jax.random.fold_in(KEY, now))
        said = SPEC.unnormalise(np.asarray(expected)[0])
        np.testing.assert_allclose(acted[:, 0], said[:, 0] + states[now, 1], atol=2e-5)
        turned = (said[:, 1] + states[now, 0] + np.pi) % (2 * np.pi) - np.pi
        np.testing.assert_allclose(acted[:, 1], turned, atol=2e-5)
        np.testing.assert_array_equal(acted[:, 2], said[:, 2])
        if now + 1 < STEPS:
            before.append(spec.normalise(acted[0], states[now + 1]))
    for bad in (None, states[0, :1], np.float32([np.nan, 0])):
        with pytest.raises(ValueError, match=r"proprio: expected 2 .* are relative to gripper, a$"):
            policy.act(frame, bad)


@pytest.mark.parametrize(
    ("history", "head"),
    [("head", "flow"), ("interleaved", "discrete")]
    + [
        pytest.param("head", head, marks=pytest.mark.slow)
        for head in ("lstm", "discrete", "gpt", "mlp")
    ],
)
def test_rollout_equals_window_of_a_robot_that_lacks_dims(history, head):
    """Its dims, state and last action are placed by name; in the place of the others stands what
    stood there in training.
    """
    state, past = StateConfig(P, 1), PastConfig((2,), dropout_rate=0.5)
    graphdef, flat = build(history, head=head, state=state, past=past, embodiments=3)
    act = jax.jit(lambda obs, key: params.merge(graphdef, flat).act(obs, key))
    has, spec = [2, 0], ActionSpec(("gripper", "x"), binary=(0,))
    io = dataclasses.replace(
        IO,
        action_spec=spec,
        state_spec=ActionSpec(("a",)),
        action_names=SPEC.names,
        state_names=("a", "gripper"),
        embodiment=2,
    )
    policy, (images, states), taken = JaxPolicy(graphdef, flat, io), episode(), []
    policy.reset("ab")
    for now in range(STEPS):
        frames = {name: each[now] for name, each in images.items()}
        acted = policy.act(frames, states[now, :1])
        assert acted.shape == (K, 2)
        obs = window(now, taken, images, states)
        obs = obs._replace(
            proprio=np.where([True, False], obs.proprio, 99.0).astype(np.float32),
            proprio_mask=np.array([[True, False]]),
            action_dims=np.array([[True, False, True]]),
            embodiment=np.array([2], np.int32),
        )
        expected = np.asarray(act(obs, jax.random.fold_in(KEY, now)))[0][:, has]
        np.testing.assert_allclose(acted, spec.unnormalise(expected), atol=2e-5)
        taken.append(np.array([acted[0, 1], 0.0, acted[0, 0]]))
    assert np.std(taken, axis=0)[0] > 1e-2  # the agreement is about something


GROWING = (("head", "lstm"), ("interleaved", "lstm"), ("head", "gpt"), ("head", "flow"))


@pytest.mark.slow
@pytest.mark.parametrize(("history", "head"), GROWING)
def test_a_window_that_grows_is_a_shorter_one_until_it_is_full(history, head):
    """Step by step as a policy of the window that there is; with repeated first frames not."""
    graphdef, flat = build(history, head=head, history_start="grow")
    policy, (images, states) = JaxPolicy(graphdef, flat, IO), episode()
    padded = JaxPolicy(*build(history, head=head), IO)
    policy.reset("ab")
    padded.reset("ab")
    for now in range(STEPS):
        frames = {name: each[now] for name, each in images.items()}
        acted, repeated = policy.act(frames), padded.act(frames)
        there = min(now + 1, T)
        obs = window(now, np.zeros((STEPS, D)), images, states)
        whole = params.merge(graphdef, flat)
        in_batch = whole.act(obs, key := jax.random.fold_in(KEY, now))
        obs = obs._replace(
            images=tuple(x[:, -there:] for x in obs.images),
            **{
                name: getattr(obs, name)[:, -there:]
                for name in ("image_mask", "proprio", "step_mask", "past_action")
            },
        )
        whole.config = dataclasses.replace(whole.config, window=there)
        expected = SPEC.unnormalise(np.asarray(whole.act(obs, key))[0])
        np.testing.assert_allclose(acted, expected, atol=2e-5)
        np.testing.assert_allclose(SPEC.unnormalise(np.asarray(in_batch)[0]), expected, atol=2e-5)
        if there > 1:  # flow attends: to copies of one frame as to one
            assert (np.abs(acted - repeated).max() > 1e-4) == (there < T)


@pytest.mark.slow
@pytest.mark.parametrize("history", ["head", "interleaved"])
@pytest.mark.parametrize("layout", ["prefix", "robovlms"])
@pytest.mark.parametrize("cross", [False, True])
def test_cached_decoding_equals_teacher_forcing(history, layout, cross):
    """Whatever stands in the action tokens of the earlier frames: nobody but their own frame sees
    them.
    """
    graphdef, flat = build(history, layout, "discrete", cross)
    model = params.merge(graphdef, flat)
    obs = window(STEPS - 1, [np.zeros(D)] * STEPS, *episode())
    obs = newest(obs) if history == "head" else obs
    t, q = obs.step_mask.shape[1], K * D

    @jax.jit
    def both(obs):
        context = model.prefix_context(model.sequence(obs), t, None)
        ids, scores = model.head.decode_tokens(context, KEY)
        other = jax.random.randint(KEY, (t - 1, q), *model.head.config.token_range)
        written = jnp.concatenate([other, ids])[:, :-1]
        embedded = model.backbone.embed_text(written)
        teacher = MaskedTokens(embedded, jnp.ones(written.shape, bool))
        hidden = model.encode(model.sequence(obs, teacher), q, t)[:, -1]
        return ids, scores, model.backbone.logits(hidden, model.head.config.token_range)

    ids, scores, expected = both(obs)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_array_equal(
        ids, np.argmax(scores, axis=-1) + model.head.config.token_range[0]
    )
    assert np.std(scores, axis=1).max() > 1e-2  # the agreement is about something


def test_interleaved_frames_see_the_past_and_not_the_future():
    graphdef, flat = build("interleaved")
    images, states = episode()
    obs = window(STEPS - 1, [np.zeros(D)] * STEPS, images, states)
    readouts = jax.jit(lambda obs: params.merge(graphdef, flat).readouts(obs))
    before = readouts(obs)
    changed = np.array(obs.images[0])
    changed[:, 1] = 255 - changed[:, 1]
    after = readouts(obs._replace(images=(changed, obs.images[1])))
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    assert np.abs(before[:, 1:] - after[:, 1:]).max(axis=(0, 2, 3)).min() > 1e-3
    hidden = obs._replace(step_mask=np.array([[False, True, True]]))
    changed = np.array(obs.images[0])
    changed[:, 0] = 255 - changed[:, 0]
    np.testing.assert_array_equal(
        readouts(hidden)[:, 1:], readouts(hidden._replace(images=(changed, obs.images[1])))[:, 1:]
    )
    assert np.abs(readouts(hidden)[:, 1:] - before[:, 1:]).max() > 1e-3


def test_frames_of_another_size_are_fitted_by_the_filter_of_the_policy():
    graphdef, flat = build()
    wide = np.random.default_rng(0).integers(0, 256, (14, 20, 3), dtype=np.uint8)

    def acted(io, image):
        policy = JaxPolicy(graphdef, flat, io)
        policy.reset("ab")
        return policy.act({"primary": image, "wrist": image})

    for name in RESIZES:
        got = acted(dataclasses.replace(IO, resize=name), wide)
        np.testing.assert_array_equal(got, acted(IO, resize(wide, 8, name)))
    assert np.abs(got - acted(IO, wide)).max() > 1e-4


def test_the_robovlms_layout_by_hand():
    """[first word, wrist, primary, inner words, readouts], causal, learned tokens scaled like
    words.
    """
    graphdef, flat = build(layout="robovlms")
    model, obs = params.merge(graphdef, flat), make_batch(b=2, t=1).obs
    frames = model.sequence(obs)
    words = model.backbone.embed_text(obs.prompt)
    visual = [model.backbone.embed_image(image[:, 0]) for image in obs.images]
    learned = jnp.broadcast_to(
        flat["readout_embedding"][None] * model.backbone.text_scale, (2, N, model.backbone.width)
    )
    expected = jnp.concatenate([words[:, :1], visual[1], visual[0], words[:, 1:], learned], axis=1)
    np.testing.assert_allclose(frames.tokens, expected, atol=2e-6)
    # Row 0 has three words, row 1 five; the last one of each is left out. Row 1 lacks its wrist
    # camera.
    v = model.backbone.tokens_per_image
    valid = np.ones((2, 1 + 2 * v + 4 + N), bool)
    valid[0, 1 + 2 * v + 1 : 1 + 2 * v + 4] = False
    valid[1, 1 + 2 * v + 3] = False
    valid[1, 1 : 1 + v] = False
    np.testing.assert_array_equal(frames.valid, valid)
    np.testing.assert_array_equal(
        frames.order, np.broadcast_to(np.arange(valid.shape[1]), valid.shape)
    )


@pytest.mark.slow
def test_the_last_word_opens_the_next_frame():
    """Layout robovlms_pre: that of robovlms but for the prompt's last token, which the next frame
    begins with where there is one before it.
    """
    plain, flat = build("interleaved", "robovlms")
    graphdef, _ = build("interleaved", "robovlms_pre")
    obs = window(1, [np.zeros(D)], *episode())  # its first frame is not of the episode
    frames, expected = (params.merge(each, flat).sequence(obs) for each in (graphdef, plain))
    last = params.merge(plain, flat).backbone.embed_text(obs.prompt)[:, 1]  # of two words
    np.testing.assert_array_equal(frames.tokens[:, 0], np.repeat(last, T, axis=0))
    np.testing.assert_array_equal(frames.tokens[:, 1:], expected.tokens)
    valid = np.array(in_row(frames, T).valid)
    np.testing.assert_array_equal(valid[:, 0], [False, False, True])
    np.testing.assert_array_equal(valid[:, 1:], expected.valid)
    readouts = [params.merge(each, flat).readouts(obs) for each in (graphdef, plain)]
    apart = np.abs(readouts[0] - readouts[1]).max(axis=(0, 2, 3))
    assert apart[1] < 1e-5 < 1e-3 < apart[2]
    with pytest.raises(ValueError, match=r"robovlms_pre expects model\.history=interleaved"):
        build("head", "robovlms_pre")
    crossing = params.merge(*build("interleaved", "robovlms_pre", cross=True))
    with pytest.raises(ValueError, match="robovlms_pre is of backbones that have images in their"):
        crossing.sequence(obs)


def test_state_and_past_action_reach_the_readouts_and_can_be_masked():
    graphdef, flat = build(state=StateConfig(P, 1), past=PastConfig((2,), dropout_rate=0.5))
    obs = window(4, list(np.random.default_rng(2).uniform(-1, 1, (STEPS, D))), *episode())
    readouts = jax.jit(lambda obs: params.merge(graphdef, flat).readouts(obs))
    before = readouts(obs)
    for change in (
        {"proprio": obs.proprio + np.array([0.5, 0.0], np.float32)},
        {"proprio": obs.proprio * np.array([1.0, -1.0], np.float32)},  # open and closed
        {"past_action": obs.past_action + 0.5},
    ):
        assert np.abs(readouts(obs._replace(**change)) - before).max(axis=(0, 2, 3)).min() > 1e-4
    blind = obs._replace(
        proprio_mask=np.zeros((1, P), bool), past_action_mask=np.zeros((1, T), bool)
    )
    other = blind._replace(proprio=obs.proprio + 1, past_action=obs.past_action + 1)
    np.testing.assert_array_equal(readouts(blind), readouts(other))


def test_which_robot_it_is_reaches_the_readouts_and_what_it_lacks_does_not():
    graphdef, flat = build(state=StateConfig(P, 1), embodiments=2)
    obs = window(4, [np.zeros(D)] * STEPS, *episode())
    first = obs._replace(embodiment=np.zeros(1, np.int32))
    readouts = jax.jit(lambda obs: params.merge(graphdef, flat).readouts(obs))
    other = first._replace(embodiment=np.ones(1, np.int32))
    assert np.abs(readouts(first) - readouts(other)).max() > 1e-3
    for mask in ([True, False], [False, True], [False, False]):
        part = first._replace(proprio_mask=np.array([mask]))
        junk = part._replace(proprio=np.where(mask, part.proprio, 5.0).astype(np.float32))
        np.testing.assert_array_equal(readouts(part), readouts(junk))
        assert np.abs(readouts(part) - readouts(first)).max() > 1e-4
    with pytest.raises(ValueError, match="embodiment: expected which robot it is, got None"):
        params.merge(graphdef, flat).sequence(obs)


def test_past_actions_are_hidden_at_random_in_training_alone():
    graphdef, flat = build(past=PastConfig((2,), dropout_rate=0.5))
    model = params.merge(graphdef, flat)
    obs = make_batch(b=64, t=T).obs._replace(
        past_action=None, past_action_mask=np.ones((64, T), bool)
    )
    kept = np.asarray(hide_past_actions(obs, model.config.past, KEY).past_action_mask)
    assert 0.35 < kept.mean() < 0.65
    assert np.any(
        kept
        != np.asarray(hide_past_actions(obs, model.config.past, jax.random.key(1)).past_action_mask)
    )


def test_a_policy_that_knows_no_state_acts_in_a_world_that_tells_one():
    graphdef, flat = build()
    images, _ = episode()
    told, untold = (
        JaxPolicy(graphdef, flat, dataclasses.replace(IO, state_spec=ActionSpec(())))
        for _ in range(2)
    )
    frame = {name: stream[0] for name, stream in images.items()}
    for policy in (told, untold):
        policy.reset("ab")
    np.testing.assert_array_equal(told.act(frame, np.ones(8)), untold.act(frame))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"primary": np.zeros((8, 8, 3), np.uint8)}, "expected the cameras"),
        (
            {"primary": np.zeros((8, 8, 3)), "wrist": np.zeros((8, 8, 3), np.uint8)},
            r"images\['primary'\]: expected uint8",
        ),
    ],
)
def test_bad_observations_are_refused(images, message):
    policy = JaxPolicy(*build(state=StateConfig(P, 1)), IO)
    with pytest.raises(ValueError, match="reset"):
        policy.act(images)
    policy.reset("ab")
    with pytest.raises(ValueError, match=message):
        policy.act(images, np.zeros(P))
    both = {name: np.zeros((8, 8, 3), np.uint8) for name in ("primary", "wrist")}
    with pytest.raises(ValueError, match="the model sees the state"):
        policy.act(both)
    with pytest.raises(ValueError, match="at most 5 tokens"):
        JaxPolicy(*build(), dataclasses.replace(IO, encode=lambda text: np.zeros(6))).reset("x")
