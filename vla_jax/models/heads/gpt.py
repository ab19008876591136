"""The GPT head: a GPT-2 over the window's readouts, then the output MLPs.

The arithmetic of RoboVLMs' GPTDecoder (trajectory_gpt2.py) without its dropout: a projection of the
readouts, learned positions, pre-norm blocks with biases and tanh GELU, causal over the window, a
final norm. All actions of a chunk come out at once; nothing is fed back.
"""

import jax
import jax.numpy as jnp
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


class GPTHead(ContinuousHead):
    """Readouts [b t n c] -> Linear(n*c, hidden) + positions -> `layers` blocks -> norm -> arm and
    gripper MLPs.
    """

    def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs) -> None:
        self.input = Linear((width * config.tokens, config.hidden), ("embed", "mlp"), rngs)
        table = 0.02 * jax.random.normal(rngs.params(), (config.window, config.hidden))
        self.positions = nnx.Param(table, logical=(None, "embed"))
        self.blocks = CausalStack(config.block, config.layers, rngs)
        self.outputs = ActionOutputs(config.hidden, config, rngs)

    def features(self, readouts: Float[Array, "b t n c"]) -> Float[Array, "b t h"]:
        """The last block's output at every window step. Raises ValueError for more steps than there
        are positions.
        """
        t, window = readouts.shape[1], self.positions.shape[0]
        if t > window:
            raise ValueError(
                f"GPTHead: expected at most {window} window steps, got {t}; set HeadConfig.window"
            )
        x = self.input(flatten(readouts))
        return self.blocks(x + self.positions[...][None, :t].astype(jnp.float32))
