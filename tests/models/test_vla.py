"""The model: what reaches a readout and what does not."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fakes import FakeBackbone, initialise, make_batch
from vla_jax import params
from vla_jax.models.backbones import flamingo, kosmos2, llava, paligemma, qwen3vl, smolvlm
from vla_jax.models.heads.lstm import LSTMHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.sequence import MaskedTokens, assemble, media, per_frame_mask, positions
from vla_jax.models.sequence import mutual as together
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.types import HeadContext, newest

T, K, D, N = 3, 2, 7, 2
KEY = jax.random.key(0)
CONFIG = VLAConfig(window=T, chunk=K, action_dim=D, cameras=("primary", "wrist"), readouts=N)
BACKBONES = {
    "fake": (FakeBackbone, 8),
    "paligemma": (
        partial(paligemma.PaliGemma, paligemma.CONFIGS["tiny"]),
        paligemma.CONFIGS["tiny"].image_size,
    ),
    "kosmos2": (partial(kosmos2.Kosmos2, kosmos2.CONFIGS["tiny"]), 32),
    "flamingo": (partial(flamingo.Flamingo, flamingo.CONFIGS["tiny"]), 32),
    "llava": (partial(llava.Llava, llava.CONFIGS["tiny"]), 32),
    "llava-mpt": (partial(llava.Llava, llava.CONFIGS["tiny-mpt"]), 32),
    "qwen3vl": (partial(qwen3vl.Qwen3VL, qwen3vl.CONFIGS["tiny"]), 32),
    "smolvlm": (partial(smolvlm.SmolVLM, smolvlm.CONFIGS["tiny"]), 32),
}
apply = jax.jit(
    lambda graphdef, flat, method, *args: getattr(params.merge(graphdef, flat), method)(*args),
    static_argnums=(0, 2),
)

gradient = jax.jit(
    jax.grad(
        lambda flat, graphdef, batch: params.merge(graphdef, flat).loss(batch, KEY).sums["action"]
    ),
    static_argnums=1,
)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["prefix", "robovlms"])
@pytest.mark.parametrize("behind", [0, 2])
def test_mutual_readouts_see_each_other_and_nothing_else_more(layout, behind):
    def tokens(n):
        return MaskedTokens(jnp.zeros((1, n, 4)), jnp.ones((1, n), bool))

    extra = tokens(behind) if behind else None
    frames = assemble(layout, False, [tokens(3)], tokens(4), [], (tokens(3), extra))
    plain, mutual = (
        np.asarray(per_frame_mask(x)[0]) for x in (frames, together(frames, 3, behind))
    )
    s = plain.shape[0]
    readouts = np.arange(s - behind - 3, s - behind)
    expected = plain.copy()
    expected[np.ix_(readouts, readouts)] = True
    assert not plain[readouts[0], readouts[2]]
    np.testing.assert_array_equal(mutual, expected)


def make_policy(name):
    """(graphdef, params, batch) with random readout embeddings, which start at zero."""
    backbone, image_size = BACKBONES[name]

    def build(rngs):
        vlm = backbone(rngs=rngs)
        head = LSTMHead(
            vlm.width, HeadConfig(K, D, (6,), tokens=N, hidden=8, layers=2, mlp=(8,)), rngs
        )
        return VLA(vlm, head, CONFIG, rngs)

    graphdef, flat = initialise(build)
    assert not np.any(flat["readout_embedding"])
    flat["readout_embedding"] = jax.random.normal(KEY, flat["readout_embedding"].shape)
    flat |= {
        name: jnp.ones_like(x) for name, x in flat.items() if name.endswith("_gate")
    }  # Flamingo's start closed
    return graphdef, flat, make_batch(t=T, k=K, d=D, image_size=image_size)


@pytest.fixture(scope="module")
def fake():
    """For what the model alone decides."""
    return make_policy("fake")


# One real backbone in the fast lane; the others are the same block.
FAST = ("fake", "paligemma")


@pytest.fixture(
    params=[
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES
    ],
    scope="module",
)
def policy(request):
    """For what the model and the backbone must agree on."""
    return (
        request.getfixturevalue("fake") if request.param == "fake" else make_policy(request.param)
    )


def readouts(policy, obs):
    graphdef, flat, _ = policy
    return np.asarray(apply(graphdef, flat, "readouts", obs))


def test_shapes(fake):
    graphdef, flat, batch = fake
    width = flat["readout_embedding"].shape[1]
    hidden = readouts(fake, batch.obs)
    assert hidden.shape == (2, T, N, width)
    assert hidden.dtype == np.float32
    assert np.isfinite(hidden).all()
    assert apply(graphdef, flat, "act", batch.obs, KEY).shape == (2, K, D)
    result = apply(graphdef, flat, "loss", batch, KEY)
    assert np.isfinite(result.sums["action"])
    counts = apply(graphdef, flat, "mask_counts", batch)
    assert counts == {"action": (batch.action_mask.any(-1) & batch.obs.step_mask[..., None]).sum()}


@pytest.mark.slow
def test_prompt_padding_changes_nothing(policy):
    obs = policy[2].obs
    longer = obs._replace(
        prompt=np.pad(obs.prompt, ((0, 0), (0, 4)), constant_values=7),
        prompt_mask=np.pad(obs.prompt_mask, ((0, 0), (0, 4))),
    )
    # Sums of other lengths: a few units in the last place of numbers up to 3.
    np.testing.assert_allclose(readouts(policy, obs), readouts(policy, longer), atol=3e-6)
    shorter = obs._replace(
        prompt=obs.prompt[:, :4], prompt_mask=obs.prompt_mask[:, :4]
    )  # row 1 loses a word
    change = np.abs(readouts(policy, obs) - readouts(policy, shorter)).max(axis=(1, 2, 3))
    assert change[0] <= 3e-6
    assert change[1] > 1e-4


def test_a_masked_camera_is_not_there(policy):
    """Its pixels change nothing, and the result is that of a policy without the camera."""
    obs = policy[2].obs
    obs = obs._replace(image_mask=np.ones_like(obs.image_mask))
    masked = obs._replace(image_mask=np.array([True, False])[None, None] & obs.image_mask)
    other = masked._replace(images=(obs.images[0], 255 - obs.images[1]))
    np.testing.assert_array_equal(readouts(policy, masked), readouts(policy, other))
    assert np.abs(readouts(policy, masked) - readouts(policy, obs)).max() > 1e-4
    model = params.merge(*policy[:2])
    model.config = VLAConfig(window=T, chunk=K, action_dim=D, cameras=("primary",), readouts=N)
    alone = obs._replace(images=obs.images[:1], image_mask=obs.image_mask[..., :1])
    graphdef, flat = params.split(model)
    # Sums of other lengths: a few units in the last place of numbers up to 3.
    np.testing.assert_allclose(
        apply(graphdef, flat, "readouts", alone), readouts(policy, masked), atol=3e-6
    )


def test_nothing_to_see_is_finite(policy):
    obs = policy[2].obs
    blind = obs._replace(
        image_mask=np.zeros_like(obs.image_mask), prompt_mask=np.zeros_like(obs.prompt_mask)
    )
    assert np.isfinite(readouts(policy, blind)).all()


def test_every_input_reaches_the_readouts(policy):
    obs = policy[2].obs._replace(image_mask=np.ones((2, T, 2), bool))
    before = readouts(policy, obs)
    first, second = obs.images
    others = [
        obs._replace(images=(255 - first, second)),
        obs._replace(images=(first, 255 - second)),
        obs._replace(prompt=np.where(obs.prompt_mask, (obs.prompt + 1) % 30, 0)),
    ]
    if not params.merge(
        *policy[:2]
    ).backbone.cross_attends:  # media are a set: Flamingo does not know cameras apart
        others.append(obs._replace(images=(second, first)))
    for other in others:
        assert np.abs(readouts(policy, other) - before).max(axis=(1, 2, 3)).min() > 1e-4


def test_frames_are_encoded_alone(fake):
    obs = fake[2].obs
    np.testing.assert_allclose(readouts(fake, newest(obs)), readouts(fake, obs)[:, -1:], atol=1e-6)


def test_readouts_are_causal(policy):
    graphdef, flat, batch = policy
    last = flat["readout_embedding"].at[-1].multiply(-1.0)
    before, after = (
        readouts(policy, batch.obs),
        readouts((graphdef, {**flat, "readout_embedding": last}, batch), batch.obs),
    )
    np.testing.assert_allclose(before[:, :, :-1], after[:, :, :-1], atol=1e-6)
    first = flat["readout_embedding"].at[0].multiply(-1.0)
    after = readouts((graphdef, {**flat, "readout_embedding": first}, batch), batch.obs)
    assert np.abs(before[:, :, -1] - after[:, :, -1]).max() > 1e-4


def test_readouts_equal_the_full_computation(policy):
    """Asking the backbone for its last positions gives the end of what it gives for all."""
    graphdef, flat, batch = policy

    @partial(jax.jit, static_argnums=0)
    def hidden(readout):
        model = params.merge(graphdef, flat)
        frames = model.sequence(batch.obs)
        return model.backbone(
            frames.tokens, per_frame_mask(frames), positions(frames.valid), readout, media(frames)
        )

    np.testing.assert_allclose(hidden(N), hidden(None)[:, -N:], atol=1e-6)


def test_batch_of_two_is_two_batches_of_one(fake):
    graphdef, flat, batch = fake
    both = apply(graphdef, flat, "loss", batch, KEY)
    one, two = (
        apply(graphdef, flat, "loss", jax.tree.map(lambda x, i=i: x[i : i + 1], batch), KEY)
        for i in range(2)
    )
    np.testing.assert_allclose(
        both.sums["action"], one.sums["action"] + two.sums["action"], rtol=1e-5
    )


def test_gradient_reaches_every_leaf(policy):
    graphdef, flat, batch = policy
    batch = batch._replace(obs=batch.obs._replace(step_mask=np.ones((2, T), bool)))
    grads = jax.device_get(gradient(flat, graphdef, batch))
    unread = {
        "backbone/lm_head/kernel"
    } & flat.keys()  # an output layer of its own: only tokens are scored by it
    assert {
        name for name, grad in grads.items() if not (np.isfinite(grad).all() and np.any(grad))
    } == unread


def test_gradient_reaches_the_backbone_from_zero_readouts(policy):
    graphdef, flat, batch = policy
    flat = {**flat, "readout_embedding": 0 * flat["readout_embedding"]}
    grads = jax.device_get(gradient(flat, graphdef, batch))
    assert all(np.isfinite(grad).all() for grad in grads.values())
    assert np.any(grads["readout_embedding"])
    assert any(np.any(g) for n, g in grads.items() if n.startswith("backbone/"))


def test_steps_before_the_episode_are_left_out_of_the_loss(fake):
    graphdef, flat, batch = fake
    padded = ~batch.obs.step_mask[:, :, None, None]
    other = batch._replace(actions=np.where(padded, np.nan, batch.actions))
    before, after = (apply(graphdef, flat, "loss", x, KEY) for x in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
@pytest.mark.parametrize("history_start", ["repeat", "grow"])
def test_what_stands_before_the_episode_is_read_only_where_it_repeats(fake, history_start):
    """Row 0 has one frame of its episode. Grown, its loss is that of a window of one, whatever
    pictures stand before it.
    """
    model = params.merge(*fake[:2])
    model.config = dataclasses.replace(CONFIG, history_start=history_start)
    batch = jax.tree.map(lambda x: x[:1], fake[2])
    before = [
        np.where(batch.obs.step_mask[..., None, None, None], x, 255 - x) for x in batch.obs.images
    ]
    other = batch._replace(obs=batch.obs._replace(images=tuple(before)))
    alone = batch._replace(
        obs=newest(batch.obs), actions=batch.actions[:, -1:], action_mask=batch.action_mask[:, -1:]
    )
    whole, changed = (model.loss(each, KEY).sums["action"] for each in (batch, other))
    model.config = dataclasses.replace(model.config, window=1)
    apart = np.abs(np.array([changed, model.loss(alone, KEY).sums["action"]]) - whole) / whole
    assert (apart < 1e-5).all() if history_start == "grow" else (apart > 1e-3).all()


def test_rollout_equals_training_window(fake):
    """A rollout that encodes one frame at a time and repeats its first readouts acts like the
    left-padded window.
    """
    graphdef, flat, batch = fake
    head = jax.jit(lambda x: params.merge(graphdef, flat).head.act(HeadContext(x), KEY)[:, -1])
    obs = jax.tree.map(lambda x: x[:1], batch.obs)
    frames = [
        np.asarray(image)[:, ::-1]
        for image in make_batch(t=T, image_size=obs.images[0].shape[2]).obs.images
    ]
    history: list[np.ndarray] = []
    for now in range(T):
        frame = obs._replace(
            images=tuple(image[:, now : now + 1] for image in (f[:1] for f in frames)),
            **{name: getattr(obs, name)[:, -1:] for name in ("image_mask", "proprio", "step_mask")},
        )
        new = readouts(fake, frame)
        history = [*(history or [new] * T)[-(T - 1) :], new]
        rollout = head(np.concatenate(history, axis=1))
        index = np.maximum(np.arange(now - T + 1, now + 1), 0)
        window = obs._replace(images=tuple(image[:1][:, index] for image in frames))
        np.testing.assert_allclose(rollout, apply(graphdef, flat, "act", window, KEY), atol=1e-5)


def test_mask_and_positions_by_hand():
    valid = np.array(
        [[True, False, True, True, True]]
    )  # three prefix tokens, the second masked; two readouts
    expected = np.array(
        [[1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 1, 1, 1]], bool
    )  # the masked token sees itself, so that its softmax row is not empty
    part = MaskedTokens(np.zeros((1, 1, 4), np.float32), valid[:, :1])
    words, tail = (
        MaskedTokens(np.zeros((1, 2, 4), np.float32), valid[:, 1:3]),
        MaskedTokens(np.zeros((1, 2, 4), np.float32), valid[:, 3:]),
    )
    frames = assemble("prefix", False, [part], words, [], (tail, None))
    np.testing.assert_array_equal(per_frame_mask(frames)[0], expected)
    np.testing.assert_array_equal(positions(valid)[0][valid[0]], [0, 1, 2, 3])
    assert positions(np.zeros((1, 3), bool)).min() == 0


@pytest.mark.parametrize("weights", [(("actoin", 1.0),), (("action", 1.0), ("caption", 0.1))])
def test_a_loss_weight_without_its_task_is_refused(weights):
    config = VLAConfig(1, 2, 7, ("primary",), loss_weights=weights)
    with pytest.raises(ValueError, match=r"VLAConfig.loss_weights"):
        initialise(lambda rngs: VLA(FakeBackbone(rngs), None, config, rngs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "interleaved"}, "model.layout"),
        ({"loss_weights": (("caption", 0.0),)}, "VLAConfig.loss_weights"),
        ({"history": "video"}, "model.history"),
        ({"history_start": "zeros"}, "model.history_start"),
        ({"history": "one_step", "window": 2}, "model.window"),
        ({"cameras": ()}, "a camera"),
        ({"readouts": 0}, "a readout"),
    ],
)
def test_bad_config_is_refused(change, message):
    fields = {"window": 1, "chunk": 2, "action_dim": 7, "cameras": ("primary",), **change}
    with pytest.raises(ValueError, match=message):
        VLAConfig(**fields)


def test_a_batch_of_other_sizes_is_refused(fake):
    model, batch = params.merge(*fake[:2]), fake[2]
    with pytest.raises(ValueError, match=r"batch.actions: expected .* window=3"):
        model.loss(batch._replace(actions=batch.actions[:, :, :1]), KEY)
    with pytest.raises(ValueError, match="window of 3 frames, got 2"):
        model.act(batch.obs._replace(step_mask=batch.obs.step_mask[:, :2]), KEY)
    with pytest.raises(ValueError, match="one array per camera"):
        model.readouts(batch.obs._replace(images=batch.obs.images[:1]))


def test_one_step_history():
    def build(rngs):
        backbone = FakeBackbone(rngs)
        head = LSTMHead(backbone.width, HeadConfig(K, D, (6,), hidden=4, layers=1, mlp=(4,)), rngs)
        config = VLAConfig(
            window=1, chunk=K, action_dim=D, cameras=("primary", "wrist"), history="one_step"
        )
        return VLA(backbone, head, config, rngs)

    batch = make_batch(t=1, k=K, d=D)
    result, actions = jax.eval_shape(
        lambda: (
            build(params.nnx.Rngs(0)).loss(batch, KEY),
            build(params.nnx.Rngs(0)).act(batch.obs, KEY),
        )
    )
    assert result.sums["action"].shape == ()
    assert actions.shape == (2, K, D)
