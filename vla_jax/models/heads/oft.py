"""The head oft: the chunk in one pass, each step of it at placeholder tokens of its own
(OpenVLA-OFT, arXiv 2502.19645: parallel decoding, and its L1 regression head).

The readouts of a frame are the placeholders: `tokens` / chunk of them for each step, in time order.
They see each other whatever their order (VLAConfig.mutual), start alike, as OFT's empty embeddings
do, and are told apart by their positions. OFT has one for each number of a step: model.readouts,
which is per step here, is its action_dim. The loss is loss.kind, which is "l1" in OFT.

Hidden states of a step's placeholders, side by side -> LayerNorm, Linear, ReLU -> `layers` blocks x
+ ReLU(Linear(LayerNorm(x))) -> LayerNorm, Linear -> the step's actions. Arm dims are clipped to
(-1, 1) when they are acted on; binary ones are logits, as in our other heads (OFT regresses them).

Axes: i features of a step at first, h inside.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from vla_jax.models.heads.outputs import HeadConfig, Linear, in_float32
from vla_jax.models.losses import action_loss
from vla_jax.models.transformer import Norm
from vla_jax.sharding import constrain
from vla_jax.types import Array, HeadContext, Loss

EPS = 1e-5  # of torch's LayerNorm


class Residual(nnx.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm = Norm(width, "ln", EPS, "mlp")
        self.linear = Linear((width, width), ("embed", "mlp"), rngs)

    def __call__(self, x: Float[Array, "b t k h"]) -> Float[Array, "b t k h"]:
        return x + jax.nn.relu(self.linear(in_float32(self.norm)(x)))


class OFTHead(nnx.Module):
    """Readouts [b t n c] -> each step's own [b t k i] -> MLP with residual blocks -> [b t k d]."""

    acts_on = trains_on = "readouts"
    inpaints = False
    num_tokens = 0

    def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs) -> None:
        if config.tokens % config.chunk:
            raise ValueError(
                f"HeadConfig.tokens: head oft expects a multiple of the chunk {config.chunk}, got"
                f" {config.tokens}: as many for each step"
            )
        self.config = config
        inputs, hidden = width * config.tokens // config.chunk, config.hidden
        self.norm_in = Norm(inputs, "ln", EPS, "embed")
        self.input = Linear((inputs, hidden), ("embed", "mlp"), rngs)
        self.blocks = nnx.List([Residual(hidden, rngs) for _ in range(config.layers)])
        self.norm_out = Norm(hidden, "ln", EPS, "mlp")
        self.output = Linear((hidden, config.action_dim), ("mlp", "embed"), rngs)

    def loss(
        self,
        context: HeadContext,
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: jax.Array,
    ) -> Loss:
        """See losses.action_loss. The metrics are those of what `act` gives."""
        del key
        raw, config = self._raw(context.readouts), self.config
        total = action_loss(raw, actions, mask, config.binary, config.loss).sum
        shown = jax.lax.stop_gradient(self._clipped(raw))
        return Loss(total, action_loss(shown, actions, mask, config.binary, config.loss).metrics)

    def act(self, context: HeadContext, key: jax.Array) -> Float[Array, "b t k d"]:
        """Normalised actions at every window step; a binary dim holds the probability of 1."""
        del key
        raw = self._raw(context.readouts)
        return jnp.where(self._is_binary(), jax.nn.sigmoid(raw), self._clipped(raw))

    def noise(self, key: jax.Array) -> None:
        """Nothing is drawn."""
        del key

    def _raw(self, readouts: Float[Array, "b t n c"]) -> Float[Array, "b t k d"]:
        b, t = readouts.shape[:2]
        x = readouts.astype(jnp.float32).reshape(b, t, self.config.chunk, -1)
        x = constrain(x, "batch")
        x = jax.nn.relu(self.input(in_float32(self.norm_in)(x)))
        for block in self.blocks:
            x = block(x)
        return self.output(in_float32(self.norm_out)(x))

    def _clipped(self, raw: Float[Array, "b t k d"]) -> Float[Array, "b t k d"]:
        return jnp.where(self._is_binary(), raw, jnp.clip(raw, -1.0, 1.0))

    def _is_binary(self) -> Bool[Array, "1 1 1 d"]:
        dims = np.isin(np.arange(self.config.action_dim), self.config.binary)
        return jnp.asarray(dims)[None, None, None]
