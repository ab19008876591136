"""The policy heads in torch that read readouts, in float32: a window of readouts -> the newest
step's chunk of normalised actions. (token_heads.py has the others.)

Each does what its namesake in vla_jax/models/heads does at the newest step of the window: the last
one, or where `newest` [b] says. `body` is "head" of config.json; binary dims leave as the
probability of 1.

Axes: b episodes, t window step, f features of a step (at first the numbers of its readouts), k
chunk step, d action dim, a arm dims, g binary dims.
"""

import functools
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from .euler import FLOW_STEPS, led
from .layers import BlockConfig, Linear, Norm, Stack

OFT_EPS = 1e-5


class MLP(nn.Module):
    """Linear layers with ReLU between them, none at the end."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Linear(*pair) for pair in itertools.pairwise(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else torch.relu(x))
        return x


class Outputs(nn.Module):
    """Features [b f] -> [b k d]: tanh for arm dims, the probability of 1 for binary ones."""

    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__()
        self.chunk, self.binary = body["chunk"], list(body["binary"])
        self.dims = [i for i in range(body["action_dim"]) if i not in self.binary]
        hidden = (width, *body["mlp"])
        self.arm = MLP(*hidden, self.chunk * len(self.dims)) if self.dims else None
        self.gripper = MLP(*hidden, self.chunk * len(self.binary)) if self.binary else None

    def forward(self, features: Tensor) -> Tensor:
        parts = []
        if self.arm is not None:
            parts.append(torch.tanh(self.arm(features)).unflatten(-1, (self.chunk, -1)))
        if self.gripper is not None:
            parts.append(torch.sigmoid(self.gripper(features)).unflatten(-1, (self.chunk, -1)))
        return join_dims(parts, self.dims, self.binary)


class CausalStack(nn.Module):
    """Blocks over the window in which every step sees itself and the earlier ones, then a norm."""

    def __init__(self, config: BlockConfig, depth: int) -> None:
        super().__init__()
        self.stack = Stack(config, depth)
        self.norm = Norm(config.width, "ln", config.eps)

    def forward(self, x: Tensor, newest: Tensor | None) -> Tensor:
        """[b t f] -> the newest step's [b f]."""
        b, t = x.shape[:2]
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril().expand(b, t, t)
        positions = torch.arange(t, device=x.device).expand(b, t)
        num_queries = 1 if newest is None else t
        return self.norm(at_step(self.stack(x, mask, positions, num_queries), newest))


class Head(nn.Module):
    """`noise_shape` is of what an episode draws per step; None: nothing. `reads_prefix`: it looks
    at what the backbone makes of a frame's tokens, not at readouts. `inpaints`: its chunk can be
    led to a plan.
    """

    noise_shape: tuple[int, ...] | None = None
    reads_prefix = False
    inpaints = False

    def widen(self) -> None:
        """Makes float32 of what computes in it, whatever type the weights are stored in."""
        self.float()

    def act(
        self,
        window: Tensor,
        noise: Tensor | None,
        newest: Tensor | None = None,
        dims: Tensor | None = None,
        plan: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Readouts [b t f], noise [b *noise_shape], the dims that the robot has [b d], and the plan
        that the chunk is led to [b k d] with its weights [b k] -> the newest step's chunk [b k d].
        """
        raise NotImplementedError


class ContinuousHead(Head):
    """A head whose features of the newest step go to Outputs."""

    outputs: Outputs

    def features(self, window: Tensor, newest: Tensor | None) -> Tensor:
        """Readouts [b t f] -> features [b f] of the newest step."""
        raise NotImplementedError

    def act(
        self,
        window: Tensor,
        noise: Tensor | None,
        newest: Tensor | None = None,
        dims: Tensor | None = None,
        plan: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        del noise, dims, plan
        return self.outputs(self.features(window, newest))


class MLPHead(ContinuousHead):
    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__()
        inputs, features = width * body["tokens"], body["hidden"] * body["tokens"]
        self.mlp, self.outputs = MLP(inputs, inputs // 2, features), Outputs(features, body)

    def features(self, window: Tensor, newest: Tensor | None) -> Tensor:
        return self.mlp(at_step(window, newest))


class LSTMLayer(nn.Module):
    """Gate order i, f, g, o; written as cells, which torch.compile and torch.export take where they
    refuse nn.LSTM.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w_ih = nn.Parameter(torch.empty(width, 4 * hidden))
        self.w_hh = nn.Parameter(torch.empty(hidden, 4 * hidden))
        self.bias = nn.Parameter(torch.empty(4 * hidden))

    def forward(self, x: Tensor) -> Tensor:
        """[b t width] -> the hidden state [b t hidden] after each step, from a zero state."""
        hidden = cell = x.new_zeros(len(x), self.w_hh.shape[0])
        out = []
        for gates in (x @ self.w_ih + self.bias).unbind(1):
            i, f, g, o = (gates + hidden @ self.w_hh).chunk(4, -1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            out.append(hidden)
        return torch.stack(out, 1)


class LSTMHead(ContinuousHead):
    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__()
        hidden = body["hidden"] * body["tokens"]
        inputs = [width * body["tokens"]] + [hidden] * (body["layers"] - 1)
        self.layers = nn.ModuleList([LSTMLayer(size, hidden) for size in inputs])
        self.outputs = Outputs(hidden, body)

    def features(self, window: Tensor, newest: Tensor | None) -> Tensor:
        for layer in self.layers:
            window = layer(window)
        return at_step(window, newest)


class GPTHead(ContinuousHead):
    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__()
        self.input = Linear(width * body["tokens"], body["hidden"])
        self.positions = nn.Parameter(torch.empty(body["window"], body["hidden"]))
        self.blocks = CausalStack(BlockConfig(**body["block"]), body["layers"])
        self.outputs = Outputs(body["hidden"], body)

    def features(self, window: Tensor, newest: Tensor | None) -> Tensor:
        return self.blocks(self.input(window) + self.positions[: window.shape[1]], newest)


class AttentionHead(ContinuousHead):
    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__()
        self.input = Linear(width * body["tokens"], body["hidden"])
        self.blocks = CausalStack(
            BlockConfig(**{**body["block"], "rope_theta": body["rope_theta"]}), body["layers"]
        )
        self.outputs = Outputs(body["hidden"], body)

    def features(self, window: Tensor, newest: Tensor | None) -> Tensor:
        return self.blocks(self.input(window), newest)


class FlowHead(Head):
    """Noise [b k a] becomes the arm's chunk in FLOW_STEPS Euler steps; binary dims are logits as
    in the other heads.
    """

    inpaints = True

    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__()
        hidden, chunk, self.binary = body["hidden"], body["chunk"], list(body["binary"])
        self.dims = [i for i in range(body["action_dim"]) if i not in self.binary]
        block = BlockConfig(**body["block"])
        self.noise_shape = (chunk, len(self.dims))
        self.input = Linear(width * body["tokens"], hidden)
        self.history = CausalStack(
            BlockConfig(**{**body["block"], "rope_theta": body["rope_theta"]}), 1
        )
        self.noisy = Linear(len(self.dims), hidden)
        self.positions = nn.Parameter(torch.empty(chunk, hidden))
        self.time = MLP(hidden, hidden, hidden)
        self.blocks, self.norm = Stack(block, body["layers"]), Norm(hidden, "ln", block.eps)
        self.velocity = Linear(hidden, len(self.dims))
        self.gripper = MLP(hidden, *body["mlp"], chunk * len(self.binary)) if self.binary else None

    def act(
        self,
        window: Tensor,
        noise: Tensor | None,
        newest: Tensor | None = None,
        dims: Tensor | None = None,
        plan: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if noise is None:
            raise ValueError(f"head flow: expected noise of shape {self.noise_shape}, got None")
        features, x = self.history(self.input(window), newest), noise
        there = torch.ones_like(x[:, :1]) if dims is None else dims[:, None, self.dims].to(x)
        x = x * there  # what the robot lacks stays 0
        own = None if plan is None else (plan[0][..., self.dims], plan[1][..., None])
        for step in range(FLOW_STEPS):
            time = 1 - step / FLOW_STEPS
            if own is None:
                velocity = self._velocity(features, x, time)
            else:
                run = functools.partial(self._velocity, features, time=time)
                velocity = led(run, x, time, own, there)
            x = (x - velocity / FLOW_STEPS) * there
        parts = [x.clamp(-1, 1)]
        if self.gripper is not None:
            parts.append(torch.sigmoid(self.gripper(features)).unflatten(-1, (x.shape[1], -1)))
        return join_dims(parts, self.dims, self.binary)

    def _velocity(self, features: Tensor, x: Tensor, time: float) -> Tensor:
        """Of the chunk x[b k a] at a time in 1..0, for features [b f] -> [b k a]."""
        b, k = x.shape[:2]
        condition = features + self.time(time_embedding(time, features.shape[-1], x.device))
        tokens = self.noisy(x) + self.positions + condition[:, None]  # b k f
        mask = torch.ones(b, k, k, dtype=torch.bool, device=x.device)
        positions = torch.zeros(b, k, dtype=torch.int64, device=x.device)
        return self.velocity(self.norm(self.blocks(tokens, mask, positions, k)))


class Residual(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = Norm(width, "ln", OFT_EPS), Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(self.norm(x)))


class OFTHead(Head):
    """Each step of the chunk at readouts of its own, through an MLP with residual blocks. With
    `bins` in its body an arm dim is the centre of the likeliest of its bins.
    """

    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__()
        self.chunk, self.binary = body["chunk"], list(body["binary"])
        self.bins = body.get("bins", 0)
        self.dims = [i for i in range(body["action_dim"]) if i not in self.binary]
        outputs = len(self.dims) * self.bins + len(self.binary)
        inputs, hidden = width * body["tokens"] // self.chunk, body["hidden"]
        self.norm_in, self.input = Norm(inputs, "ln", OFT_EPS), Linear(inputs, hidden)
        self.blocks = nn.ModuleList([Residual(hidden) for _ in range(body["layers"])])
        self.norm_out = Norm(hidden, "ln", OFT_EPS)
        self.output = Linear(hidden, outputs if self.bins else body["action_dim"])

    def act(
        self,
        window: Tensor,
        noise: Tensor | None,
        newest: Tensor | None = None,
        dims: Tensor | None = None,
        plan: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        del noise, dims, plan
        x = at_step(window, newest).unflatten(1, (self.chunk, -1))  # b k i
        x = torch.relu(self.input(self.norm_in(x)))
        for block in self.blocks:
            x = block(x)
        raw = self.output(self.norm_out(x))
        if self.bins:
            scores = raw[..., : len(self.dims) * self.bins].unflatten(-1, (-1, self.bins))
            place = (self.bins - 1 - scores.argmax(-1)).clamp(max=self.bins - 2)
            arm = bin_centres(-1.0, 1.0, self.bins, raw.device)[place]
            gripper = torch.sigmoid(raw[..., len(self.dims) * self.bins :])
            return join_dims([arm, gripper], self.dims, self.binary)
        binary = torch.zeros(raw.shape[-1], dtype=torch.bool, device=raw.device)
        binary[self.binary] = True
        return torch.where(binary, torch.sigmoid(raw), raw.clamp(-1, 1))


HEADS: dict[str, type[Head]] = {
    "mlp": MLPHead,
    "lstm": LSTMHead,
    "gpt": GPTHead,
    "attention": AttentionHead,
    "flow": FlowHead,
    "oft": OFTHead,
}


def at_step(x: Tensor, step: Tensor | None) -> Tensor:
    """The features [b f] of x[b t f] at a step [b]; None: at the last."""
    if step is None:
        return x[:, -1]
    return x.gather(1, step[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]


def join_dims(parts: list[Tensor], arm: list[int], binary: list[int]) -> Tensor:
    """[b k a] and [b k g] -> [b k d], each dim in its place."""
    order = sorted(range(len(arm) + len(binary)), key=lambda i: (arm + binary)[i])
    return torch.cat(parts, -1)[..., order]


def bin_centres(low: float, high: float, bins: int, device: torch.device) -> Tensor:
    """Of the bins [bins - 1] between `bins` edges from low to high."""
    # float64, then float32: as they are made for training.
    edges = torch.linspace(low, high, bins, dtype=torch.float64, device=device)
    return ((edges[:-1] + edges[1:]) / 2).float()


def time_embedding(time: float | Tensor, width: int, device: torch.device) -> Tensor:
    """Sines and cosines [width] of the time, a number or [1], with periods from 0.004 to 4 in equal
    ratios.
    """
    period = 4e-3 * (4.0 / 4e-3) ** torch.linspace(
        0.0, 1.0, width // 2, dtype=torch.float32, device=device
    )
    angle = 2 * math.pi * time / period
    return torch.cat([torch.sin(angle), torch.cos(angle)])
