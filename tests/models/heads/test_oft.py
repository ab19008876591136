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
from vla_jax import build, build_axes, params
from vla_jax.models.heads.oft import OFTConfig, OFTHead
from vla_jax.models.losses import ActionLoss
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.types import HeadContext

K, D, C, PER_STEP, KEY = 2, 3, 8, 3, jax.random.key(0)
CONFIG = OFTConfig(
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


def test_a_discrete_readout_by_hand():
    """Cross-entropy of numpy.digitize's bin of each arm dim, and of binary dims as ever; the centre
    of the likeliest bin is carried out.
    """
    bins, arm, gripper, binary = 5, [0, 2], 0.3, 1
    loss_of = ActionLoss(kind="l1", arm=2.0, gripper=gripper)
    config = dataclasses.replace(
        CONFIG, binary=(binary,), readout="discrete", bins=bins, loss=loss_of
    )
    graphdef, flat = jittered(lambda rngs: OFTHead(C, config, rngs), 0.3)
    assert flat["output/kernel"].shape == (10, 2 * bins + 1)
    rng = np.random.default_rng(2)
    readouts = rng.normal(size=(3, 1, K * PER_STEP, C)).astype(np.float32)
    actions = rng.uniform(-1.2, 1.2, (3, 1, K, D)).astype(np.float32)
    actions[..., binary] = actions[..., binary] > 0
    actions[0, 0, 0, 0], actions[1, 0, 0, 0] = 1.0, -1.0  # the ends have bins of their own
    mask = np.ones(actions.shape, bool)
    mask[0, 0, 1, 2] = mask[1, 0, 1] = False
    actions[~mask] = np.nan
    context = HeadContext(jnp.asarray(readouts))

    @jax.jit
    def both(flat):
        head = params.merge(graphdef, flat)
        raw = head._raw(context.readouts)
        return raw, head.act(context, KEY), head.loss(context, actions, mask, KEY)

    raw, acted, loss = jax.device_get(both(flat))
    edges, total, hits = np.linspace(-1, 1, bins), 0.0, 0
    for b, k in np.ndindex(3, K):
        cost = []
        for i, dim in enumerate(arm):
            scores = raw[b, 0, k, i * bins : (i + 1) * bins]
            best = bins - 1 - int(np.argmax(scores))  # ids fall as values rise
            low = edges[min(best, bins - 2)]
            assert acted[b, 0, k, dim] == pytest.approx(low + (edges[1] - edges[0]) / 2)
            if not mask[b, 0, k, dim]:
                continue
            place = np.digitize(np.clip(actions[b, 0, k, dim], -1, 1), edges) - 1
            cost.append(np.log(np.exp(scores).sum()) - scores[bins - 1 - place])
            hits += place == best
        total += 2.0 * np.mean(cost) if cost else 0.0
        logit = raw[b, 0, k, 2 * bins]
        assert acted[b, 0, k, binary] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)
        if mask[b, 0, k, binary]:
            total += gripper * (np.log1p(np.exp(logit)) - logit * actions[b, 0, k, binary])
    assert loss.sum == pytest.approx(total, rel=1e-5)
    assert np.ptp(acted[..., arm]) > 0.5
    right, count = (x.sum() for x in loss.metrics["token_accuracy"])
    assert (right, count) == (hits, mask[..., arm].sum())
    error = np.where(mask, np.abs(acted - actions), 0).sum((1, 2))
    np.testing.assert_allclose(loss.metrics["l1"][0], error, rtol=1e-5)


def test_a_discrete_readout_is_an_option_of_the_head_alone():
    words = ["--config.model.head_options=readout='discrete'", "--config.model.bins=32"]
    config = spaces.resolve(load_config("oxe_paligemma.py:tiny,oft", words))
    shapes = params.abstract(build.model(config))[1]
    assert shapes["head/output/kernel"].shape == (128, 6 * 32 + 1)
    axis = build_axes.named_axes(config)["head/output/kernel"].names
    assert (len(axis), axis[33], axis[-1]) == (6 * 32 + 1, "y in bin 2 of 32", "gripper")
    for other, match in (
        ({"readout": "words"}, r"oft: expected readout in .*, got 'words'"),
        ({"readout": "discrete", "bins": 1}, r"model\.bins of 2 or more .* got 1 and 3 of 3"),
        ({"readout": "discrete", "binary": (0, 1, 2)}, r"got 256 and 0 of 3"),
    ):
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(CONFIG, **other)
    plain = load_config("oxe_paligemma.py:tiny,flow", words)
    with pytest.raises(ValueError, match=r"options of the head flow \(it has none\), got"):
        build.model(spaces.resolve(plain))


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
