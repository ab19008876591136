"""The attention head: self-attention over the window and a GELU feed-forward, then the output MLPs.

Positions are rotary, so that only the distance between frames counts and a window may have any length.
"""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Bool, Float

from vla_jax.heads.outputs import ActionOutputs, CausalStack, HeadConfig, Linear, flatten
from vla_jax.types import Array, Loss

ROPE_THETA = 100.0  # windows are tens of frames long


class AttentionHead(nnx.Module):
    """Readouts [b t n c] -> Linear(n*c, hidden) -> `layers` causal blocks -> norm -> arm and gripper MLPs."""

    def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs) -> None:
        self.input = Linear((width * config.tokens, config.hidden), ("embed", "mlp"), rngs)
        self.blocks = CausalStack(dataclasses.replace(config.block, rope_theta=ROPE_THETA), config.layers, rngs)
        self.outputs = ActionOutputs(config.hidden, config, rngs)

    def features(self, readouts: Float[Array, "b t n c"]) -> Float[Array, "b t h"]:
        """The last block's output at every window step."""
        return self.blocks(self.input(flatten(readouts)))

    def loss(
        self,
        readouts: Float[Array, "b t n c"],
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: jax.Array,
    ) -> Loss:
        """The masked action loss; deterministic, so `key` is unused."""
        del key
        return self.outputs.loss(self.features(readouts), actions, mask)

    def act(self, readouts: Float[Array, "b t n c"], key: jax.Array) -> Float[Array, "b t k d"]:
        """Normalised actions at every window step; deterministic, so `key` is unused."""
        del key
        return self.outputs.act(self.features(readouts))
