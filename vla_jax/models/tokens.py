"""Tokens made of numbers: the robot's state, the action before a frame, and which robot it is.

Axes: b batch, t window step, p proprio, d action dim, c width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from vla_jax.models.transformer import Linear
from vla_jax.sharding import gathered
from vla_jax.types import Array, Observation


@dataclass(frozen=True)
class StateConfig:
    """The robot's state as a token: how many numbers, and which one says how far the gripper is
    open, if any does.
    """

    dims: int
    gripper: int | None


@dataclass(frozen=True)
class PastConfig:
    """The action before a frame as a token; `dropout_rate` is the share of frames that go
    without in training.
    """

    binary: tuple[int, ...]
    dropout_rate: float


class StateToken(nnx.Module):
    """The robot's state as one token (RoboVLMs' intent): a linear layer over all numbers but the
    gripper's, an embedding of whether that is open, and a linear layer over both.
    """

    def __init__(self, width: int, config: StateConfig, rngs: nnx.Rngs) -> None:
        dims, gripper = config.dims, config.gripper
        self.gripper = gripper
        self.arm = Linear((dims - (gripper is not None), width), (None, "embed"), True, rngs)
        table = width**-0.5 * jax.random.normal(rngs.params(), (2, width))
        self.embedding = None if gripper is None else nnx.Param(table, logical=(None, "embed"))
        self.output = Linear(
            (width if gripper is None else 2 * width, width), (None, "embed"), True, rngs
        )

    def __call__(
        self, state: Float[Array, "b t p"], mask: Bool[Array, "b p"]
    ) -> Float[Array, "b t c"]:
        """`state` is normalised: a gripper above 0 is open. What is not there adds nothing."""
        there = mask[:, None]
        state = jnp.where(there, state, 0.0)
        if self.gripper is None or self.embedding is None:
            return self.output(self.arm(state))
        arm = self.arm(state[..., [i for i in range(state.shape[-1]) if i != self.gripper]])
        # A product, not a look-up in a table that devices share: those would exchange masks.
        is_open = state[..., self.gripper, None] > 0
        chosen = jnp.concatenate([~is_open, is_open], axis=-1) & there[..., self.gripper, None]
        table = gathered(self.embedding[...], None, "embed")
        open_ = chosen.astype(table.dtype) @ table
        return self.output(jnp.concatenate([arm, open_.astype(arm.dtype)], axis=-1))


class ActionToken(nnx.Module):
    """An action as one token (RoboVLMs' LinearActionEncoder): arm and gripper each through a linear
    layer of half the width, summed, and two more linear layers.
    """

    def __init__(self, width: int, dims: int, config: PastConfig, rngs: nnx.Rngs) -> None:
        half, binary = width // 2, config.binary
        self.binary = binary
        self.arm = Linear((dims - len(binary), half), (None, "embed"), True, rngs)
        self.gripper = Linear((len(binary), half), (None, "embed"), True, rngs) if binary else None
        self.middle = Linear((half, half), (None, "embed"), True, rngs)
        self.output = Linear((half, width), (None, "embed"), True, rngs)

    def __call__(self, action: Float[Array, "b t d"]) -> Float[Array, "b t c"]:
        x = self.arm(action[..., [i for i in range(action.shape[-1]) if i not in self.binary]])
        if self.gripper is not None:
            x = x + self.gripper(action[..., list(self.binary)])
        return self.output(self.middle(x))


class EmbodimentToken(nnx.Module):
    """Which of `count` robots it is as one token, learned."""

    def __init__(self, width: int, count: int, rngs: nnx.Rngs) -> None:
        table = width**-0.5 * jax.random.normal(rngs.params(), (count, width))
        self.table = nnx.Param(table, logical=(None, "embed"))

    def __call__(self, number: Int[Array, " b"]) -> Float[Array, "b c"]:
        # Put together first: rows looked up in parts would be laid out anew among the devices.
        return gathered(self.table[...], None, "embed")[number]


def hide_past_actions(obs: Observation, config: PastConfig | None, key: jax.Array) -> Observation:
    """Takes the action before a frame away from some frames, so that the policy does not merely
    repeat it.
    """
    if config is None or obs.past_action_mask is None:
        return obs
    kept = jax.random.bernoulli(key, 1 - config.dropout_rate, obs.past_action_mask.shape)
    return obs._replace(past_action_mask=obs.past_action_mask & kept)
