"""One contract for every head, and parity of RoboVLMs' two continuous heads with torch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from tests.fakes import initialise
from vla_jax import params
from vla_jax.models.heads import flow
from vla_jax.models.heads.attention import AttentionHead
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.gpt import GPTHead
from vla_jax.models.heads.lstm import LSTMHead
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.types import HeadContext

HEADS = {  # a new head is one line here
    "lstm": LSTMHead,
    "mlp": MLPHead,
    "gpt": GPTHead,
    "attention": AttentionHead,
    "flow": FlowHead,
}
B, T, N, C, K, D = 3, 4, 2, 12, 3, 7
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


@pytest.fixture(params=HEADS, scope="module")
def head(request):
    """(graphdef, params) of a small head with jittered weights, so that no bias is zero."""
    cls = HEADS[request.param]
    graphdef, flat = initialise(lambda rngs: cls(C, CONFIG, rngs))
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
    by_name, by_readout = grads(*head, *data)
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
    later[:, 2:] += 1.0
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
    _, shapes, logical = params.abstract(lambda rngs: HEADS[name](2048, config, rngs))
    assert sum(int(np.prod(x.shape)) for x in shapes.values()) == count
    assert all(len(logical[path]) == len(x.shape) for path, x in shapes.items())


class TorchHead(torch.nn.Module):
    """RoboVLMs' FC and LSTM decoders from torch's own layers, the gripper last."""

    def __init__(self, name, config, width):
        super().__init__()
        inputs, hidden = width * config.tokens, config.hidden * config.tokens
        if name == "lstm":
            self.trunk = torch.nn.LSTM(inputs, hidden, config.layers, batch_first=True)
        else:
            self.trunk = self.mlp(inputs, inputs // 2, hidden)
        self.arm = self.mlp(hidden, *config.mlp, config.chunk * 6)
        self.gripper = self.mlp(hidden, *config.mlp, config.chunk)

    def mlp(self, *sizes):
        layers = [torch.nn.Linear(i, o) for i, o in itertools.pairwise(sizes)]
        return torch.nn.Sequential(*[x for layer in layers for x in (layer, torch.nn.ReLU())][:-1])

    def forward(self, readouts):
        x = self.trunk(readouts.flatten(2))
        x = x[0] if isinstance(x, tuple) else x
        arm = torch.tanh(self.arm(x)).unflatten(-1, (-1, 6))
        return torch.cat([arm, torch.sigmoid(self.gripper(x)).unflatten(-1, (-1, 1))], -1)


def from_torch(module, name):
    """TorchHead's weights under our names."""
    state = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    flat = {}
    stacks = {"arm": "outputs/arm", "gripper": "outputs/gripper"} | (
        {"trunk": "mlp"} if name == "mlp" else {}
    )
    for theirs, ours in stacks.items():
        for i, _ in enumerate(x for x in getattr(module, theirs) if isinstance(x, torch.nn.Linear)):
            flat[f"{ours}/layers/{i}/kernel"] = state[f"{theirs}.{2 * i}.weight"].T
            flat[f"{ours}/layers/{i}/bias"] = state[f"{theirs}.{2 * i}.bias"]
    for i in range(module.trunk.num_layers if name == "lstm" else 0):
        flat[f"layers/{i}/w_ih"] = state[f"trunk.weight_ih_l{i}"].T
        flat[f"layers/{i}/w_hh"] = state[f"trunk.weight_hh_l{i}"].T
        flat[f"layers/{i}/bias"] = state[f"trunk.bias_ih_l{i}"] + state[f"trunk.bias_hh_l{i}"]
    return {path: jnp.asarray(value) for path, value in flat.items()}


@pytest.mark.parametrize("name", ["lstm", "mlp"])
def test_parity_with_torch(name):
    config = HeadConfig(
        chunk=3, action_dim=7, binary=(6,), tokens=2, hidden=24, layers=4, mlp=(32, 16, 8)
    )
    torch.manual_seed(0)
    module = TorchHead(name, config, C)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    readouts = np.random.default_rng(0).normal(size=(2, 6, 2, C)).astype(np.float32)
    graphdef, shapes, _ = params.abstract(lambda rngs: HEADS[name](C, config, rngs))
    flat = from_torch(module, name)
    assert {path: x.shape for path, x in flat.items()} == {
        path: x.shape for path, x in shapes.items()
    }
    ours, theirs = act(graphdef, flat, readouts), module(torch.tensor(readouts)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.std(theirs[..., :6]) > 0.05  # the agreement is about something


def test_gpt_equals_transformers_gpt2():
    """RoboVLMs' decoder is a GPT-2 fed with projected readouts; window 5 of a table of 6."""
    config = HeadConfig(
        3, 7, (6,), tokens=2, hidden=24, layers=3, mlp=(32, 8), attention_heads=4, window=6
    )
    torch.manual_seed(0)
    module = TorchHead("mlp", config, C)  # for its output MLPs
    sizes = transformers.GPT2Config(
        n_embd=24,
        n_layer=3,
        n_head=4,
        n_positions=6,
        n_inner=96,
        vocab_size=2,
        activation_function="gelu_new",
    )
    gpt = transformers.GPT2Model(sizes).eval()  # without dropout
    project = torch.nn.Linear(C * 2, 24)
    module.arm, module.gripper = module.mlp(24, 32, 8, 18), module.mlp(24, 32, 8, 3)
    with torch.no_grad():
        for parameter in (*module.parameters(), *gpt.parameters(), *project.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    flat = {path: x for path, x in from_torch(module, "mlp").items() if path.startswith("outputs/")}
    flat |= {
        "input/kernel": project.weight.T,
        "input/bias": project.bias,
        "positions": gpt.wpe.weight,
    }
    flat |= {"blocks/norm/scale": gpt.ln_f.weight, "blocks/norm/bias": gpt.ln_f.bias}
    names = {
        "norm_attn": "ln_1",
        "norm_mlp": "ln_2",
        "attn/o": "attn.c_proj",
        "mlp/up": "mlp.c_fc",
        "mlp/down": "mlp.c_proj",
    }
    for part, ours in (("weight", "kernel"), ("bias", "bias")):
        stacks = {
            f"{name}/{'scale' if 'norm' in name and part == 'weight' else ours}": [
                block.get_parameter(f"{theirs}.{part}") for block in gpt.h
            ]
            for name, theirs in names.items()
        }
        for i, name in enumerate("qkv"):
            split = [
                block.get_parameter(f"attn.c_attn.{part}").split(24, dim=-1)[i] for block in gpt.h
            ]
            stacks[f"attn/{name}/{ours}"] = split
        flat |= {
            f"blocks/stack/blocks/{name}": torch.stack(list(each)) for name, each in stacks.items()
        }
    flat = {
        path: jnp.asarray(x.detach().numpy() if isinstance(x, torch.Tensor) else x)
        for path, x in flat.items()
    }
    graphdef, shapes, _ = params.abstract(lambda rngs: GPTHead(C, config, rngs))
    assert {path: x.shape for path, x in flat.items()} == {
        path: x.shape for path, x in shapes.items()
    }
    readouts = np.random.default_rng(0).normal(size=(2, 5, 2, C)).astype(np.float32)
    hidden = gpt(inputs_embeds=project(torch.tensor(readouts).flatten(2))).last_hidden_state
    arm = torch.tanh(module.arm(hidden)).unflatten(-1, (-1, 6))
    theirs = (
        torch.cat([arm, torch.sigmoid(module.gripper(hidden)).unflatten(-1, (-1, 1))], -1)
        .detach()
        .numpy()
    )
    np.testing.assert_allclose(act(graphdef, flat, readouts), theirs, atol=1e-5)
    assert np.std(theirs[..., :6]) > 0.05
    with pytest.raises(ValueError, match="at most 6 window steps, got 7"):
        params.merge(graphdef, flat).features(jnp.zeros((1, 7, 2, C)))


@pytest.mark.slow
def test_flow_follows_the_field_it_was_given(monkeypatch):
    """With the velocity noise - a, which is what it is trained to say, ten Euler steps land on a
    exactly.
    """
    config = HeadConfig(2, 3, (1,), hidden=8, mlp=(8,), attention_heads=2)
    graphdef, flat = initialise(lambda rngs: FlowHead(C, config, rngs))
    wanted = np.linspace(-0.9, 0.9, 4, dtype=np.float32).reshape(1, 1, 2, 2)
    # At time s the chunk is s * noise + (1 - s) * a, so noise - a = (x - a) / s.
    monkeypatch.setattr(
        FlowHead, "_velocity", lambda self, features, x, time, valid: (x - wanted) / time
    )
    found = jax.jit(
        lambda p: params.merge(graphdef, p).act(HeadContext(jnp.zeros((2, 3, 1, C))), KEY)
    )(flat)
    np.testing.assert_allclose(found[..., [0, 2]], np.broadcast_to(wanted, (2, 3, 2, 2)), atol=1e-5)


def test_flow_times_are_those_of_beta():
    noise, time = flow.draw(KEY, (400, 50, 1, 2))
    assert 0.001 <= time.min() < time.max() <= 1
    np.testing.assert_allclose(time.mean(), 1.5 / 2.5, atol=0.005)  # of Beta(1.5, 1)
    np.testing.assert_allclose((time < 0.5).mean(), 0.5**1.5, atol=0.01)
    assert abs(float(noise.mean())) < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_flow_acts_otherwise_with_another_key():
    graphdef, flat = initialise(lambda rngs: FlowHead(C, CONFIG, rngs))
    flat, readouts = jitter(flat), example()[0]
    other = jax.jit(lambda p, key: params.merge(graphdef, p).act(HeadContext(readouts), key))
    assert np.abs(other(flat, KEY) - other(flat, jax.random.key(1)))[..., CONFIG.arm].max() > 0.01


def test_flow_of_binary_dims_alone_is_refused():
    with pytest.raises(ValueError, match="expected an arm dim"):
        initialise(lambda rngs: FlowHead(C, HeadConfig(1, 1, (0,)), rngs))


@pytest.mark.parametrize("window", [3])
def test_lstm_equals_torch_step_mode(window):
    """RoboVLMs' rollout carries the state while its history fits the window: the same numbers as
    our re-run.
    """
    config = HeadConfig(chunk=1, action_dim=7, binary=(6,), hidden=8, layers=2, mlp=(8,))
    torch.manual_seed(0)
    module = TorchHead("lstm", config, C)
    graphdef = params.abstract(lambda rngs: LSTMHead(C, config, rngs))[0]
    readouts, state = (
        np.random.default_rng(0).normal(size=(1, window, 1, C)).astype(np.float32),
        None,
    )
    ours = act(graphdef, from_torch(module, "lstm"), readouts)
    for step in range(window):
        out, state = module.trunk(torch.tensor(readouts[:, step]), state)
        theirs = torch.tanh(module.arm(out)).detach().numpy()
        np.testing.assert_allclose(ours[:, step, 0, :6], theirs[:, 0], atol=1e-5)
