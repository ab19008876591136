"""The MLP head (RoboVLMs' FCDecoder): each frame's readouts give that frame's chunk, without
temporal mixing.
"""

from flax import nnx
from jaxtyping import Float

from vla_jax.models.heads.outputs import MLP, ActionOutputs, ContinuousHead, HeadConfig, flatten
from vla_jax.types import Array


class MLPHead(ContinuousHead):
    """Readouts [b t n c] -> Linear(n*c, n*c/2) ReLU Linear(n*c/2, hidden*n) -> arm and gripper
    MLPs.
    """

    def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs) -> None:
        inputs, features = width * config.tokens, config.hidden * config.tokens
        self.mlp = MLP((inputs, inputs // 2, features), rngs)
        self.outputs = ActionOutputs(features, config, rngs)

    def features(self, readouts: Float[Array, "b t n c"]) -> Float[Array, "b t f"]:
        """Each frame's own features."""
        return self.mlp(flatten(readouts))
