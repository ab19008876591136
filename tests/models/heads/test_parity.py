"""RoboVLMs' continuous heads equal torch, with jittered weights."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.models.heads.test_heads import HEADS, C, act
from vla_jax import params
from vla_jax.models.heads.gpt import GPTHead
from vla_jax.models.heads.lstm import LSTMHead
from vla_jax.models.heads.outputs import HeadConfig


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
    graphdef, shapes, _ = params.abstract(lambda rngs: HEADS[name].make(C, config, rngs))
    flat = from_torch(module, name)
    assert {path: x.shape for path, x in flat.items()} == {
        path: x.shape for path, x in shapes.items()
    }
    ours, theirs = act(graphdef, flat, readouts), module(torch.tensor(readouts)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.std(theirs[..., :6]) > 0.05  # the agreement is about something


def gpt_from_torch(module, gpt, project):
    """GPTHead's parameters from torch's output MLPs, GPT-2 and projection of the readouts."""
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
    return {
        path: jnp.asarray(x.detach().numpy() if isinstance(x, torch.Tensor) else x)
        for path, x in flat.items()
    }


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
    flat = gpt_from_torch(module, gpt, project)
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
