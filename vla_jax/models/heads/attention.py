"""The attention head: self-attention over the window and a GELU feed-forward, then the output MLPs.

Positions are rotary, so that only the distance between frames counts and a window may have any
length.
"""

import dataclasses

from flax import nnx
from jaxtyping import Float

from vla_jax.models.heads.outputs import (
    ActionOutputs,
    CausalStack,
    ContinuousHead,
    HeadConfig,
    Linear,
    flatten,
)
from vla_jax.types import Array

ROPE_THETA = 100.0  # windows are tens of frames long


class AttentionHead(ContinuousHead):
    """Readouts [b t n c] -> Linear(n*c, hidden) -> `layers` causal blocks -> norm -> arm and
    gripper MLPs.
    """

    def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs) -> None:
        self.input = Linear((width * config.tokens, config.hidden), ("embed", "mlp"), rngs)
        self.blocks = CausalStack(
            dataclasses.replace(config.block, rope_theta=ROPE_THETA), config.layers, rngs
        )
        self.outputs = ActionOutputs(config.hidden, config, rngs)

    def features(self, readouts: Float[Array, "b t n c"]) -> Float[Array, "b t h"]:
        """The last block's output at every window step."""
        return self.blocks(self.input(flatten(readouts)))
