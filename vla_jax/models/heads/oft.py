"""The head oft: the chunk in one pass, each step of it at placeholder tokens of its own
(OpenVLA-OFT, arXiv 2502.19645: parallel decoding, and its L1 regression head).

The readouts of a frame are the placeholders: `tokens` / chunk of them for each step, in time order.
They see each other whatever their order (VLAConfig.mutual), start alike, as OFT's empty embeddings
do, and are told apart by their positions. OFT has one for each number of a step: model.readouts,
which is per step here, is its action_dim. The loss is loss.kind, which is "l1" in OFT.

Hidden states of a step's placeholders, side by side -> LayerNorm, Linear, ReLU -> `layers` blocks x
+ ReLU(Linear(LayerNorm(x))) -> LayerNorm, Linear -> the step's actions. Arm dims are clipped to
(-1, 1) when they are acted on; binary ones are logits, as in our other heads (OFT regresses them).

With the option readout='discrete' the last Linear gives every arm dim a score for each of
model.bins bins, those of the head discrete, and acting takes the centre of the likeliest: all of a
chunk's tokens at once, as in OFT's parallel decoding without its regression. OFT scores them by the
language model's output layer at a placeholder of their own; here the layer is the head's, so that a
step may have any number of placeholders, and no ids are taken from the vocabulary. The loss is
their cross-entropy times loss.arm in place of loss.kind; binary dims stay as they are.

Axes: i features of a step at first, h inside, a arm dims, o numbers that the last layer gives.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from vla_jax.models.heads.discrete import DiscreteConfig, decode, encode
from vla_jax.models.heads.outputs import HeadConfig, Linear, in_float32
from vla_jax.models.losses import action_loss, masked_mean
from vla_jax.models.transformer import Norm
from vla_jax.sharding import constrain
from vla_jax.types import Array, HeadContext, Loss

EPS = 1e-5  # of torch's LayerNorm
READOUTS = ("continuous", "discrete")


@dataclass(frozen=True)
class OFTConfig(HeadConfig):
    """Sizes of the head oft.

    Attributes:
        readout: what is read of an arm dim, its number or scores of its bins, see READOUTS.
        bins: of each arm dim, of a discrete readout.
    """

    readout: str = "continuous"
    bins: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.readout not in READOUTS:
            raise ValueError(
                f"model.head_options: oft: expected readout in {READOUTS}, got {self.readout!r}"
            )
        if self.discrete and (self.bins < 2 or not self.arm):
            raise ValueError(
                "model.head_options: oft: readout='discrete' expects model.bins of 2 or more and"
                f" dims that are not binary, got {self.bins} and {len(self.arm)} of"
                f" {self.action_dim}"
            )

    @property
    def discrete(self) -> bool:
        """Whether bins are read."""
        return self.readout == "discrete"

    @property
    def outputs(self) -> int:
        """Numbers of a step that are read: of a discrete readout the bins of each arm dim, then the
        binary dims.
        """
        if not self.discrete:
            return self.action_dim
        return len(self.arm) * self.bins + len(self.binary)

    @property
    def bin_of(self) -> DiscreteConfig:
        """The bins as the head discrete has them, with ids from 0 on."""
        return DiscreteConfig(self.chunk, self.action_dim, self.binary, self.bins, self.bins)


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

    def __init__(self, width: int, config: OFTConfig, rngs: nnx.Rngs) -> None:
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
        self.output = Linear((hidden, config.outputs), ("mlp", "embed"), rngs)

    def loss(
        self,
        context: HeadContext,
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: jax.Array,
    ) -> Loss:
        """See losses.action_loss; of a discrete readout an arm dim costs the cross-entropy of its
        bin. The metrics are those of what `act` gives, and "token_accuracy" [b] of bins.
        """
        del key
        raw, config = self._raw(context.readouts), self.config
        shown = self._shown(raw)
        if not config.discrete:
            total = action_loss(raw, actions, mask, config.binary, config.loss).sum
            shown = jax.lax.stop_gradient(shown)
            return Loss(
                total, action_loss(shown, actions, mask, config.binary, config.loss).metrics
            )
        scores, arm = self._scores(raw), np.array(config.arm)
        right = encode(jnp.where(mask, actions, 0.0)[..., arm], config.bin_of)
        log_p = jax.nn.log_softmax(scores, axis=-1)
        cost = -jnp.take_along_axis(log_p, right[..., None], axis=-1)[..., 0]  # b t k a
        of_bins = config.loss.arm * masked_mean(cost, mask[..., arm]).sum()
        # The centre of the likeliest bin has no gradient: of this loss binary dims alone are left.
        rest = dataclasses.replace(config.loss, arm=0.0)
        told = action_loss(shown, actions, mask, config.binary, rest)
        hits = (jnp.argmax(scores, axis=-1) == right) & mask[..., arm]
        count, of = (jnp.sum(x, (1, 2, 3), dtype=jnp.float32) for x in (hits, mask[..., arm]))
        return Loss(of_bins + told.sum, {**told.metrics, "token_accuracy": (count, of)})

    def act(self, context: HeadContext, key: jax.Array) -> Float[Array, "b t k d"]:
        """Normalised actions at every window step; a binary dim holds the probability of 1."""
        del key
        shown = self._shown(self._raw(context.readouts))
        return jnp.where(self._is_binary(), jax.nn.sigmoid(shown), shown)

    def noise(self, key: jax.Array) -> None:
        """Nothing is drawn."""
        del key

    def _raw(self, readouts: Float[Array, "b t n c"]) -> Float[Array, "b t k o"]:
        b, t = readouts.shape[:2]
        x = readouts.astype(jnp.float32).reshape(b, t, self.config.chunk, -1)
        x = constrain(x, "batch")
        x = jax.nn.relu(self.input(in_float32(self.norm_in)(x)))
        for block in self.blocks:
            x = block(x)
        return self.output(in_float32(self.norm_out)(x))

    def _shown(self, raw: Float[Array, "b t k o"]) -> Float[Array, "b t k d"]:
        """Arm dims as they are acted on, and the logits of binary ones."""
        config = self.config
        if not config.discrete:
            return jnp.where(self._is_binary(), raw, jnp.clip(raw, -1.0, 1.0))
        best = jnp.argmax(self._scores(raw), axis=-1)
        logits = raw[..., len(config.arm) * config.bins :]
        order = np.argsort(config.arm + config.binary)  # where each dim stands behind the other
        return jnp.concatenate([decode(best, config.bin_of), logits], axis=-1)[..., order]

    def _scores(self, raw: Float[Array, "b t k o"]) -> Float[Array, "b t k a bins"]:
        arm, bins = len(self.config.arm), self.config.bins
        return raw[..., : arm * bins].reshape(*raw.shape[:3], arm, bins)

    def _is_binary(self) -> Bool[Array, "1 1 1 d"]:
        dims = np.isin(np.arange(self.config.action_dim), self.config.binary)
        return jnp.asarray(dims)[None, None, None]
