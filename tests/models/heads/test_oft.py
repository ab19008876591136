"""The head oft beside torch's layers as OpenVLA-OFT puts them together, and its readouts in a
policy; test_heads.py has what every head must do.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from experiments.composition import spaces
from experiments.composition.config import load_config
from tests.fakes import FakeBackbone, initialise, jittered, make_batch
from vla_jax import build, params
from vla_jax.models.heads.oft import OFTHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.losses import ActionLoss
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.types import HeadContext

K, D, C, PER_STEP, KEY = 2, 3, 8, 3, jax.random.key(0)
CONFIG = HeadConfig(
    K, D, (), tokens=K * PER_STEP, hidden=10, layers=2, loss=ActionLoss(kind="l1")
)  # fmt: skip


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x):
        return x + self.ffn(x)


@pytest.mark.slow
def test_it_is_openvla_ofts():
    """L1RegressionActionHead: the tokens of a step side by side, MLPResNet, L1."""
    graphdef, flat = jittered(lambda rngs: OFTHead(C, CONFIG, rngs), 0.3)
    theirs = nn.Sequential(
        nn.LayerNorm(C * PER_STEP), nn.Linear(C * PER_STEP, 10), nn.ReLU(), Block(10), Block(10),
        nn.LayerNorm(10), nn.Linear(10, D),
    )  # fmt: skip
    layers = [theirs[0], theirs[1], *theirs[3].ffn[:2], *theirs[4].ffn[:2], theirs[5], theirs[6]]
    names = [
        "norm_in", "input", "blocks/0/norm", "blocks/0/linear", "blocks/1/norm", "blocks/1/linear",
        "norm_out", "output",
    ]  # fmt: skip
    with torch.no_grad():
        for layer, name in zip(layers, names, strict=True):
            linear = isinstance(layer, nn.Linear)
            weight = np.array(flat[f"{name}/{'kernel' if linear else 'scale'}"])
            layer.weight.copy_(torch.from_numpy(weight.T if linear else weight))
            layer.bias.copy_(torch.from_numpy(np.array(flat[f"{name}/bias"])))
    rng = np.random.default_rng(1)
    readouts = rng.normal(size=(4, 1, K * PER_STEP, C)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(readouts[:, 0].reshape(4, K, PER_STEP * C))).numpy()
    actions = rng.uniform(-1, 1, (4, 1, K, D)).astype(np.float32)
    context, mask = HeadContext(jnp.asarray(readouts)), np.ones(actions.shape, bool)

    @jax.jit
    def both(flat):
        head = params.merge(graphdef, flat)
        return head.act(context, KEY), head.loss(context, actions, mask, KEY)

    acted, loss = both(flat)
    np.testing.assert_allclose(acted[:, 0], np.clip(expected, -1, 1), atol=1e-5)
    error = np.abs(expected - actions[:, 0])
    assert error.max() > 1
    np.testing.assert_allclose(loss.sum, error.mean(-1).sum(), rtol=1e-5)
    shown = np.abs(np.clip(expected, -1, 1) - actions[:, 0]).sum(1)
    np.testing.assert_allclose(loss.metrics["l1"][0], shown, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("history", ["head", "interleaved"])
def test_each_step_hangs_on_the_placeholders_of_all(history):
    """In a policy the first step's placeholders see the last one's: with causal readouts not."""
    heads = dataclasses.replace(CONFIG, binary=(2,))

    def gradient(mutual):
        config = VLAConfig(
            2, K, D, ("primary", "wrist"), history=history, readouts=K * PER_STEP, mutual=mutual
        )
        graphdef, flat = jittered(
            lambda rngs: VLA(FakeBackbone(rngs), OFTHead(16, heads, rngs), config, rngs), 0.3
        )
        obs = make_batch(t=2, k=K, d=D).obs

        @jax.jit
        def first(flat):
            def value(flat):
                model = params.merge(graphdef, flat)
                return model.head._raw(model.readouts(obs))[:, -1, 0, 0].sum()

            return jax.grad(value)(flat)

        return np.abs(np.asarray(first(flat)["readout_embedding"])).sum(-1)

    together, causal = gradient(True), gradient(False)
    assert (together > 1e-7).all()
    assert (causal[:PER_STEP] > 1e-7).all()
    assert (causal[PER_STEP:] == 0).all()


def test_placeholders_are_per_step():
    with pytest.raises(ValueError, match="head oft expects a multiple of the chunk 2, got 5"):
        initialise(lambda rngs: OFTHead(C, dataclasses.replace(CONFIG, tokens=5), rngs))
    config = load_config(
        "oxe_paligemma.py:tiny,oft", ["--config.model.chunk=3", "--config.model.readouts=7"]
    )
    shapes = params.abstract(build.model(spaces.resolve(config)))[1]
    assert shapes["readout_embedding"].shape == (21, 64)
    assert shapes["head/input/kernel"].shape == (7 * 64, 128)
    assert (config.loss.kind, config.model.history, config.model.window) == ("l1", "one_step", 1)
