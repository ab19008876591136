"""The perceiver resampler: the formula in torch, RoboVLMs' parameter count, and that it acts in the
policy.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.fakes import FakeBackbone, initialise, make_batch
from vla_jax import params
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.resampler import Resampler, ResamplerConfig
from vla_jax.models.vla import VLA, VLAConfig

CONFIG = ResamplerConfig(depth=2, heads=3, dim_head=4, latents=5)
POLICY = VLAConfig(window=2, chunk=1, action_dim=7, cameras=("primary", "wrist"), resampler=CONFIG)
C = 16


def reference(p, tokens):
    """RoboVLMs' formula, layer by layer, in torch."""

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, (C,), p[f"{name}/scale"], p[f"{name}/bias"], 1e-5)

    x = p["latents"].expand(len(tokens), -1, -1)
    for i in range(CONFIG.depth):
        own = f"layers/{i}"
        latents, media = norm(x, f"{own}/norm_latents"), norm(tokens, f"{own}/norm_media")
        both = torch.cat([media, latents], 1)
        q, k, v = (
            (y @ p[f"{own}/{name}/kernel"]).unflatten(-1, (3, 4)).transpose(1, 2)
            for name, y in (("q", latents), ("k", both), ("v", both))
        )
        weights = torch.softmax(q * 4**-0.5 @ k.transpose(2, 3), -1)
        x = x + (weights @ v).transpose(1, 2).flatten(2) @ p[f"{own}/o/kernel"]
        inside = torch.nn.functional.gelu(norm(x, f"{own}/norm_mlp") @ p[f"{own}/up/kernel"])
        x = x + inside @ p[f"{own}/down/kernel"]
    return norm(x, "norm")


def test_equals_the_formula():
    graphdef, flat = initialise(lambda rngs: Resampler(C, CONFIG, rngs))
    draw = np.random.default_rng(0)
    flat = {
        name: np.float32(np.asarray(x) + 0.1 * draw.normal(size=x.shape))
        for name, x in flat.items()
    }
    tokens = draw.normal(size=(3, 7, C)).astype(np.float32)
    ours = jax.jit(lambda flat: params.merge(graphdef, flat)(jnp.asarray(tokens)))(flat)
    theirs = reference(
        {name: torch.tensor(np.asarray(x)) for name, x in flat.items()}, torch.tensor(tokens)
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    assert theirs.std() > 0.1


def test_released_size_has_robovlms_parameter_count():
    """226.7 M at width 2048 with RoboVLMs' defaults."""
    sizes = ResamplerConfig(depth=6, heads=8, dim_head=64, latents=64)
    _, shapes, _ = params.abstract(lambda rngs: Resampler(2048, sizes, rngs))
    assert round(sum(int(np.prod(x.shape)) for x in shapes.values()) / 1e6, 1) == 226.7


def make(config):
    def build(rngs):
        backbone = FakeBackbone(rngs)
        head = MLPHead(backbone.width, HeadConfig(1, 7, (6,), hidden=8, mlp=(8,)), rngs)
        return VLA(backbone, head, config, rngs)

    return initialise(build)


@pytest.mark.slow
def test_it_acts_in_the_policy():
    """Fewer tokens reach the backbone, the picture still decides, and every parameter is
    trained.
    """
    graphdef, flat = make(POLICY)
    batch = make_batch(t=2, k=1)
    model = params.merge(graphdef, flat)
    frames = model.sequence(batch.obs)
    plain = params.merge(*make(dataclasses.replace(POLICY, resampler=None))).sequence(batch.obs)
    assert plain.tokens.shape[1] - frames.tokens.shape[1] == 2 * (
        model.backbone.tokens_per_image - CONFIG.latents
    )
    assert frames.valid.shape == frames.tokens.shape[:2]
    other = batch.obs._replace(images=tuple(255 - image for image in batch.obs.images))
    readouts = jax.jit(lambda p, obs: params.merge(graphdef, p).readouts(obs))
    assert np.abs(readouts(flat, batch.obs) - readouts(flat, other)).max() > 1e-5
    seen = batch.obs._replace(image_mask=np.ones_like(batch.obs.image_mask))

    def loss(p):
        model = params.merge(graphdef, p)
        return model.loss(batch._replace(obs=seen), jax.random.key(0)).sums["action"]

    grads = jax.device_get(jax.jit(jax.grad(loss))(flat))
    assert [
        name for name, grad in grads.items() if name.startswith("resampler") and not np.any(grad)
    ] == []


@pytest.mark.parametrize("field", ["depth", "heads", "dim_head", "latents"])
def test_nothing_of_zero_size(field):
    with pytest.raises(ValueError, match=r"model\.resampler: expected numbers of at least 1"):
        dataclasses.replace(CONFIG, **{field: 0})
