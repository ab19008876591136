"""The MLP head (RoboVLMs' FCDecoder): each frame's readouts give that frame's chunk, without temporal mixing."""

import jax
from flax import nnx
from jaxtyping import Bool, Float

from vla_jax.heads.outputs import MLP, ActionOutputs, HeadConfig, flatten
from vla_jax.types import Array, Loss


class MLPHead(nnx.Module):
    """Readouts [b t n c] -> Linear(n*c, n*c/2) ReLU Linear(n*c/2, hidden*n) -> arm and gripper MLPs."""

    def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs) -> None:
        inputs, features = width * config.tokens, config.hidden * config.tokens
        self.mlp = MLP((inputs, inputs // 2, features), rngs)
        self.outputs = ActionOutputs(features, config, rngs)

    def loss(
        self,
        readouts: Float[Array, "b t n c"],
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: jax.Array,
    ) -> Loss:
        """The masked action loss; deterministic, so `key` is unused."""
        del key
        return self.outputs.loss(self.mlp(flatten(readouts)), actions, mask)

    def act(self, readouts: Float[Array, "b t n c"], key: jax.Array) -> Float[Array, "b t k d"]:
        """Normalised actions at every window step; deterministic, so `key` is unused."""
        del key
        return self.outputs.act(self.mlp(flatten(readouts)))
