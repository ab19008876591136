"""What the continuous heads share: their config and the output stage, one MLP for the arm and one
for the gripper.

Axes: b batch, t window step, k chunk step, d action dim, n readout tokens, c width. Heads compute
in float32 whatever the dtype of their parameters, and at full precision on every device: actions
leave here for a robot.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from vla_jax.models.losses import ActionLoss, action_loss
from vla_jax.models.stack import Stack, StackConfig
from vla_jax.models.transformer import BlockConfig, Norm, plain_block
from vla_jax.sharding import constrain, gathered
from vla_jax.types import Array, HeadContext, Loss


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a continuous head. `binary` names the dims predicted as logits, anywhere in
    `action_dim`.
    """

    chunk: int
    action_dim: int
    binary: tuple[int, ...]
    tokens: int = 1  # readouts per frame, flattened into one vector
    loss: ActionLoss = field(default_factory=ActionLoss)
    hidden: int = 1024  # of LSTM and MLP per readout token, of transformers in all
    layers: int = 4  # of the LSTM or the transformer
    mlp: tuple[int, ...] = (1024, 512, 256)  # hidden sizes of the two output MLPs
    attention_heads: int = 8  # of transformers; divides `hidden`
    window: int = 1  # frames the head is given at most: the length of GPT's table of positions

    def __post_init__(self) -> None:
        if len(set(self.binary)) != len(self.binary) or not all(
            0 <= i < self.action_dim for i in self.binary
        ):
            raise ValueError(
                f"HeadConfig.binary: expected distinct dims in [0, {self.action_dim}), which is"
                f" model.action_dim, got {self.binary}; take them from the dataset's ActionSpec"
            )
        if self.layers < 1:
            raise ValueError(f"model.head_layers: expected 1 or more, got {self.layers}")

    @property
    def block(self) -> BlockConfig:
        """The block of heads that are transformers: GPT-2's (pre-norm, biases, tanh GELU, 4 times
        as wide inside).
        """
        if self.hidden % self.attention_heads:
            raise ValueError(
                f"HeadConfig.attention_heads: expected a divisor of hidden {self.hidden}, got"
                f" {self.attention_heads}; set model.head_attention or model.head_hidden"
            )
        return plain_block(self.hidden, 4 * self.hidden, self.attention_heads, eps=1e-5)

    @property
    def arm(self) -> tuple[int, ...]:
        """The dims that are not binary, in order."""
        return tuple(i for i in range(self.action_dim) if i not in self.binary)


class Linear(nnx.Module):
    """`x @ kernel + bias`, kernel [in, out]; Xavier-uniform, zero bias. Computes in the
    dtype of x.
    """

    def __init__(self, sizes: tuple[int, int], logical: tuple[str, str], rngs: nnx.Rngs) -> None:
        init = nnx.initializers.xavier_uniform()
        self.kernel = nnx.Param(init(rngs.params(), sizes, jnp.float32), logical=logical)
        self.bias = nnx.Param(jnp.zeros(sizes[1]), logical=logical[1:])
        self.logical = logical

    def __call__(self, x: Float[Array, "b *s i"]) -> Float[Array, "b *s o"]:
        out = matmul(x, gathered(self.kernel[...], *self.logical)) + expand(self.bias[...], x)
        return constrain(out, "batch", *[None] * (out.ndim - 2), self.logical[1])


class MLP(nnx.Module):
    """Linear layers with ReLU between them, none at the end. `sizes` = (in, hidden..., out)."""

    def __init__(self, sizes: tuple[int, ...], rngs: nnx.Rngs) -> None:
        axes = (
            "embed",
            "mlp",
        )  # alternating, so that one layer's sharded output is the next one's sharded input
        pairs = list(itertools.pairwise(sizes))
        self.layers = nnx.List(
            [Linear(pair, axes if i % 2 == 0 else axes[::-1], rngs) for i, pair in enumerate(pairs)]
        )

    def __call__(self, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else jax.nn.relu(x))
        return x


class ActionOutputs(nnx.Module):
    """Features of each window step -> `chunk` actions: tanh for arm dims, a logit for binary ones.

    The rows of each MLP are time-major: output `step * dims + dim`, as in RoboVLMs' checkpoints.
    """

    def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.arm = _mlp(width, config.mlp, config.chunk * len(config.arm), rngs)
        self.gripper = _mlp(width, config.mlp, config.chunk * len(config.binary), rngs)

    def __call__(self, features: Float[Array, "b t f"]) -> Float[Array, "b t k d"]:
        """Arm values in (-1, 1) and raw logits, each at its own dim."""
        config, (b, t) = self.config, features.shape[:2]
        parts: list[Array] = []
        if self.arm is not None:
            parts.append(jnp.tanh(self.arm(features)).reshape(b, t, config.chunk, len(config.arm)))
        if self.gripper is not None:
            parts.append(self.gripper(features).reshape(b, t, config.chunk, len(config.binary)))
        order = np.argsort(config.arm + config.binary)  # where each dim stands in the concatenation
        return jnp.concatenate(parts, axis=-1)[..., order]  # b t k d

    def loss(
        self,
        features: Float[Array, "b t f"],
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
    ) -> Loss:
        """See losses.action_loss."""
        return action_loss(self(features), actions, mask, self.config.binary, self.config.loss)

    def act(self, features: Float[Array, "b t f"]) -> Float[Array, "b t k d"]:
        """Normalised actions; a binary dim holds the probability of 1."""
        raw = self(features)
        is_binary = jnp.asarray(np.isin(np.arange(self.config.action_dim), self.config.binary))[
            None, None, None
        ]
        return jnp.where(is_binary, jax.nn.sigmoid(raw), raw)


class ContinuousHead(nnx.Module):
    """A head whose features of each window step go to ActionOutputs: deterministic, so keys are
    unused.
    """

    acts_on = trains_on = "readouts"
    inpaints = False
    num_tokens = 0
    outputs: ActionOutputs

    @property
    def config(self) -> HeadConfig:
        """Its sizes, which the outputs hold."""
        return self.outputs.config

    def features(self, readouts: Float[Array, "b t n c"]) -> Float[Array, "b t f"]:
        """What the head makes of the window, at every step."""
        raise NotImplementedError

    def loss(
        self,
        context: HeadContext,
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: jax.Array,
    ) -> Loss:
        """The masked action loss."""
        del key
        return self.outputs.loss(self.features(context.readouts), actions, mask)

    def act(self, context: HeadContext, key: jax.Array) -> Float[Array, "b t k d"]:
        """Normalised actions at every window step."""
        del key
        return self.outputs.act(self.features(context.readouts))

    def noise(self, key: jax.Array) -> None:
        """Nothing is drawn."""
        del key


class CausalStack(nnx.Module):
    """Blocks over the window in which every frame sees itself and the earlier ones, then a norm. In
    float32.
    """

    def __init__(self, block: BlockConfig, depth: int, rngs: nnx.Rngs) -> None:
        # Heads are short and narrow: a loop in the program would save nothing.
        self.stack = Stack(block, depth, StackConfig(layers="unroll"), rngs)
        self.norm = Norm(block.width, "ln", block.eps, block.width_logical_axis)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """The window's features."""
        b, t = x.shape[:2]
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), (b, t, t))
        positions = jnp.broadcast_to(jnp.arange(t), (b, t))
        stack, norm = in_float32(self.stack), in_float32(self.norm)
        with jax.default_matmul_precision("highest"):
            return norm(stack(x, mask, positions))


def in_float32(module: Any) -> Any:
    """The module with its parameters in float32, whatever type the train step cast them to."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), module)


def flatten(readouts: Float[Array, "b t n c"]) -> Float[Array, "b t i"]:
    """The readouts of each frame as one float32 vector, i = n * c."""
    b, t, n, c = readouts.shape
    return constrain(readouts.astype(jnp.float32).reshape(b, t, n * c), "batch")


def matmul(x: Array, kernel: Array) -> Array:
    """`x @ kernel` in x's dtype without the TF32 or bf16 passes that GPUs and TPUs use for float32
    by default.
    """
    return jnp.matmul(x, kernel.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)


def expand(bias: Array, x: Array) -> Array:
    """The bias [o] with x's rank and dtype, for adding to x's images."""
    return bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + bias.shape)


def _mlp(width: int, hidden: tuple[int, ...], out: int, rngs: nnx.Rngs) -> MLP | None:
    """None without outputs: a robot without a gripper has no gripper parameters that nothing would
    train.
    """
    return MLP((width, *hidden, out), rngs) if out else None
