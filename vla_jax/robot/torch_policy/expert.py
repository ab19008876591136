"""The action expert in torch: what vla_jax/models/heads/expert.py does, for the newest frame.

Axes: b episodes, s tokens of all frames, u slots of the cache, k chunk step, d action dim, a
numbers of an action inside, p proprio, m tokens of the expert, h its width.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Cache
from .euler import FLOW_STEPS, led
from .heads import Head, Linear, time_embedding
from .layers import AdaptiveNorm, BlockConfig, Norm, Stack, normed

if TYPE_CHECKING:
    from .network import Frame, Inputs, Network


class Flowing(NamedTuple):
    """The chunk [b k a] on its way, one more than the steps that it has gone ([1]), and the cache
    that every step writes the expert's tokens into, at the same slots.
    """

    num_tokens: Tensor
    chunk: Tensor
    cache: Cache


class ExpertHead(Head):
    """Noise [b k a] becomes the chunk in FLOW_STEPS Euler steps behind the backbone's keys and
    values.
    """

    reads_prefix = inpaints = True

    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__()
        del width
        block, hidden = BlockConfig(**body["block"]), body["hidden"]
        self.chunk, self.action_dim = body["chunk"], body["action_dim"]
        self.binary, self.bound = list(body["binary"]), body["bound"]
        self.padded = body["padded"]
        numbers = self.padded or self.action_dim
        self.noise_shape = (self.chunk, numbers)
        self.action_in = Linear(numbers, hidden)
        self.time_in = Linear(hidden if block.adaptive else 2 * hidden, hidden)
        self.time_out = Linear(hidden, hidden)
        takes_state = body["state"] == "expert"
        self.state = Linear(self.padded or body["state_dims"], hidden) if takes_state else None
        self.layers = Stack(block, body["depth"])
        self.norm: nn.Module = (
            AdaptiveNorm(hidden, block.eps)
            if block.adaptive
            else Norm(hidden, block.norm, block.eps, block.norm_bias)
        )
        self.action_out = Linear(hidden, numbers)
        self.adaptive = block.adaptive

    def widen(self) -> None:
        """All but the blocks, which compute in the backbone's type."""
        for part in self.children():
            if part is not self.layers:
                part.float()

    @property
    def room(self) -> int:
        """Tokens of the expert."""
        return self.chunk + (self.state is not None)

    def actions(
        self, cache: Cache, mask: Tensor, position: Tensor, inputs: "Inputs", repeat: Any
    ) -> Tensor:
        """The chunk [b k d] behind a cache with `room` free slots: mask [b u] says which of the
        others are seen, position [b 1] is the last of theirs. `repeat`: see Network.
        """
        if inputs.noise is None:
            raise ValueError(f"head expert: expected noise of shape {self.noise_shape}, got None")
        x, device = inputs.noise, inputs.noise.device
        there = torch.ones_like(x[:, :1])
        if inputs.dims is not None:
            padding = there[:, :, self.action_dim :]
            there = torch.cat([inputs.dims[:, None].to(x), padding], 2)
        x = x * there  # what the robot lacks stays 0
        m, k = self.room, self.chunk
        state, own = None, torch.ones(m, m, dtype=torch.bool, device=device)
        if self.state is not None:
            state = self.state(self._numbers(inputs))[:, None]
            own[0, 1:] = False  # the state sees no action
        seen = torch.cat([mask[:, None].expand(-1, m, -1), own.expand(len(x), m, m)], 2)
        positions = position + 1 + torch.arange(m, device=device)
        dtype = next(self.layers.parameters()).dtype

        def velocity(chunk: Tensor, time: Tensor, cache: Cache) -> Tensor:
            tokens, condition = self._tokens(chunk, time)
            tokens = tokens if state is None else torch.cat([state, tokens], 1)
            behind = cache._replace(length=cache.length.clone())
            out = self.layers(
                tokens.to(dtype), seen, positions, k, cache=behind, condition=condition
            )
            out, _ = normed(self.norm, out.float(), condition)
            return self.action_out(out)

        plan = self._plan(inputs)

        def flow(now: Flowing) -> Flowing:
            time = 1 - (now.num_tokens - 1) / FLOW_STEPS
            if plan is None:
                v = velocity(now.chunk, time, now.cache)
            else:
                run = functools.partial(velocity, time=time, cache=now.cache.detached())
                v = led(run, now.chunk, time, plan, there)
            return Flowing(now.num_tokens + 1, (now.chunk - v / FLOW_STEPS) * there, now.cache)

        begin = Flowing(torch.ones(1, dtype=torch.int64, device=device), x, cache)
        x = repeat(flow, begin, FLOW_STEPS).chunk[:, :, : self.action_dim]
        bounded = x.clamp(-self.bound, self.bound) if self.bound else x
        binary = torch.zeros(self.action_dim, dtype=torch.bool, device=device)
        binary[self.binary] = True
        return torch.where(binary, ((x + 1) / 2).clamp(0, 1), bounded)

    def _plan(self, inputs: "Inputs") -> tuple[Tensor, Tensor] | None:
        """The plan that the chunk is led to, as actions flow: binary dims from -1 to 1, and padding
        that leads nowhere.
        """
        if inputs.plan is None or inputs.plan_weight is None:
            return None
        binary = torch.zeros(self.action_dim, dtype=torch.bool, device=inputs.plan.device)
        binary[self.binary] = True
        wide = torch.where(binary, 2 * inputs.plan - 1, inputs.plan)
        behind = (0, max(0, self.padded - self.action_dim))
        weight = inputs.plan_weight[..., None].expand_as(wide)
        return F.pad(wide, behind), F.pad(weight, behind)

    def _numbers(self, inputs: "Inputs") -> Tensor:
        """The state [b p] as the expert has it, 0 for what is not there."""
        assert inputs.proprio is not None
        state, mask = inputs.proprio, inputs.proprio_mask
        state = state if mask is None else torch.where(mask, state, 0)
        return F.pad(state, (0, self.padded - state.shape[1])) if self.padded else state

    def _tokens(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens of noisy actions [b k a] at a time [1] in 1..0, and the condition [b h]."""
        tokens = self.action_in(x)
        told = time_embedding(time, tokens.shape[-1], x.device)
        if self.adaptive:
            condition = F.silu(self.time_out(F.silu(self.time_in(told.expand(len(x), -1)))))
            return tokens, condition
        both = torch.cat([tokens, told.to(tokens.dtype).expand_as(tokens)], -1)
        return self.time_out(F.silu(self.time_in(both))), None


def step(network: "Network", frames: "Frame", inputs: "Inputs") -> tuple[Tensor, Tensor]:
    """The newest frame's readouts [b n c], and the expert's chunk [b k d] behind what is before."""
    head, n = network.head, network.readouts
    assert isinstance(head, ExpertHead)
    mask, positions, media = network.attention_mask(frames)
    x = frames.tokens.flatten(1, 2)
    s = x.shape[1]
    cache = network.backbone.decoder.layers.empty_cache(x, s + head.room)
    free = mask.new_zeros(len(mask), s, head.room)
    hidden = network.backbone.encode(x, torch.cat([mask, free], 2), positions, n, media, cache)
    seen = mask[:, -1] & (torch.arange(s, device=mask.device) < s - n)
    chunk = head.actions(cache, seen, positions[:, -1:] - n, inputs, network.repeat)
    return hidden.float(), chunk
