"""Cameras of different size: one policy in training, acting and rolling out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.composition import estimate, spaces
from experiments.composition.config import load_config
from tests.fakes import jittered, make_batch
from vla_jax import build, params
from vla_jax.actions import ActionSpec
from vla_jax.policy import JaxPolicy
from vla_jax.policy_io import PolicyIO

CAMERAS = ("primary", "wrist")
SIZES = (32, 16)
TWO = ("model.cameras=('primary','wrist')", "model.image_sizes=(32,16)")
TINY = ("model.window=2", "model.chunk=2", "model.head_hidden=16", "model.head_mlp=(8,)")
STEPS = 3


def config(*overrides, start="oxe_paligemma.py:tiny"):
    return spaces.resolve(load_config(start, [f"--config.{text}" for text in overrides]))


def policy_of(made):
    return jittered(build.model(made), 0.1)


def frames(b, t):
    """Images of each camera, at its size."""
    rng = np.random.default_rng(1)
    return tuple(rng.integers(0, 256, (b, t, size, size, 3), dtype=np.uint8) for size in SIZES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "layout"),
    [
        ("paligemma", "prefix"),
        ("kosmos2", "robovlms"),
        ("llava", "prefix"),
        ("flamingo", "robovlms"),
        ("smolvlm", "prefix"),
        ("qwen3vl", "robovlms"),
    ],
)
def test_training_and_rollout_agree(backbone, layout):
    graphdef, flat = policy_of(
        config(*TWO, *TINY, f"model.backbone={backbone}", f"model.layout={layout}")
    )
    batch = make_batch(t=2)
    batch = batch._replace(obs=batch.obs._replace(images=frames(2, 2)))

    def loss(flat):
        return params.merge(graphdef, flat).loss(batch, jax.random.key(0)).sums["action"]

    value, gradient = jax.jit(jax.value_and_grad(loss))(flat)
    assert np.isfinite(value)
    assert np.abs(gradient["backbone/vision/positions"]).min() > 0  # each is of some image

    images = {name: x[0] for name, x in zip(CAMERAS, frames(1, STEPS), strict=True)}
    spec = ActionSpec(("x", "y", "z", "roll", "pitch", "yaw", "gripper"), (6,))
    io = PolicyIO(SIZES, 5, lambda text: np.array([3, 4]), spec, ActionSpec(()))
    policy = JaxPolicy(graphdef, flat, io)
    policy.reset("")
    act = jax.jit(lambda flat, obs: params.merge(graphdef, flat).act(obs, jax.random.key(0)))
    for now in range(STEPS):
        acted = policy.act({name: x[now] for name, x in images.items()})
        at = np.arange(now - 1, now + 1)
        obs = make_batch(b=1, t=2).obs._replace(
            images=tuple(x[None, np.maximum(at, 0)] for x in images.values()),
            image_mask=np.ones((1, 2, 2), bool),
            prompt=np.array([[3, 4, 0, 0, 0]], np.int32),
            prompt_mask=np.array([[True, True, False, False, False]]),
            step_mask=(at >= 0)[None],
        )
        expected = np.asarray(act(flat, obs))
        np.testing.assert_allclose(acted[:, :6], expected[0, :, :6], atol=2e-5)


@pytest.mark.slow
def test_each_camera_is_seen_at_its_size():
    """The frame of the second is resized by the rollout; a bigger one gives more tokens."""
    graphdef, flat = policy_of(config(*TWO, *TINY))
    obs = make_batch(t=1).obs._replace(images=frames(2, 1))
    whole = params.merge(graphdef, flat).sequence(obs)
    assert whole.valid.shape[1] == (32 // 8) ** 2 + (16 // 8) ** 2 + 5 + 1
    io = PolicyIO(SIZES, 5, lambda text: np.array([3, 4]), ActionSpec(("a",) * 7), ActionSpec(()))
    policy = JaxPolicy(graphdef, flat, io)
    big = {name: np.full((64, 64, 3), 128, np.uint8) for name in CAMERAS}
    policy.reset("")
    first = policy.act(big)
    policy.reset("")
    small = {
        name: np.full((size, size, 3), 128, np.uint8)
        for name, size in zip(CAMERAS, SIZES, strict=True)
    }
    np.testing.assert_array_equal(first, policy.act(small))


@pytest.mark.slow
def test_a_resampler_makes_the_tokens_of_every_camera_equally_many():
    fields = (*TWO, *TINY, "model.resampler.depth=1", "model.resampler.latents=3")
    graphdef, flat = policy_of(config(*fields, "model.resampler.dim_head=8"))
    obs = make_batch(t=1).obs._replace(images=frames(2, 1))
    assert params.merge(graphdef, flat).sequence(obs).valid.shape[1] == 3 + 3 + 5 + 1


def test_cameras_of_equal_size_are_one_pass():
    """Whatever order they stand in; and what each shows stays its own."""
    made = config(*TINY, "model.cameras=('a','b','c')", "model.image_sizes=(16,32,16)")
    graphdef, flat = policy_of(made)
    passes = []
    a, b = frames(2, 1)[1], frames(2, 1)[0]
    obs = make_batch(t=1, cameras=3).obs._replace(images=(a, b, 255 - a))

    @jax.jit
    def both(flat, obs):
        """The sequence's tokens, and those of each camera's pictures alone."""
        model = params.merge(graphdef, flat)
        embed = model.backbone.embed_image
        own = [embed(jnp.asarray(x[:, 0])) for x in obs.images]
        model.backbone.embed_image = lambda images: passes.append(images.shape) or embed(images)
        return model.sequence(obs).tokens, jnp.concatenate(own, axis=1)

    tokens, own = both(flat, obs)
    assert passes == [(4, 16, 16, 3), (2, 32, 32, 3)]
    np.testing.assert_allclose(tokens[:, : 4 + 16 + 4], own, atol=1e-5)


@pytest.mark.slow
def test_the_caption_is_scored_behind_images_of_each_size():
    graphdef, flat = policy_of(config(*TWO, *TINY, "objectives.caption.weight=1.0"))
    batch = make_batch(t=2)
    batch = batch._replace(obs=batch.obs._replace(images=frames(2, 2)))
    loss = params.merge(graphdef, flat).loss(batch, jax.random.key(0))
    assert np.isfinite(loss.sums["caption"])


def test_the_estimate_knows_each_size():
    images = estimate.batch(config(*TWO, *TINY), 3).obs.images
    assert [image.shape for image in images] == [(3, 2, 32, 32, 3), (3, 2, 16, 16, 3)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.image_sizes=(32,16)",), r"model.image_sizes: expected one per camera \(primary\)"),
        ((TWO[0], "model.image_sizes=(32,20)"), "model.image_sizes: expected a multiple of 8"),
        ((TWO[0], "model.image_sizes=(32,4)"), "model.image_sizes: expected a multiple of 8"),
        ((*TWO, "objectives.forward.weight=0.1"), "objectives.forward: expected cameras of one"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(overrides, message):
    with pytest.raises(ValueError, match=message):
        build.model(config(*overrides))
