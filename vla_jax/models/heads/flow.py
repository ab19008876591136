"""The flow-matching head: a small transformer that turns noise into the chunk in a few steps (pi0,
arXiv 2410.24164).

The convention is that of openpi's pi0: at time s the chunk is x = s * noise + (1 - s) * actions,
the network is trained to say its velocity noise - actions, s is drawn from Beta(1.5, 1) so that
noisy times come more often, and acting integrates from s = 1 to 0 in a few Euler steps (euler.py).
Arm dims flow. Binary dims are what they are in the other heads, a logit with cross-entropy: a
gripper is open or closed, and its probability is wanted.

Arm dims that a robot lacks are 0 at every time, in training and acting, so that nothing in their
place is looked at; what comes out there is not carried out. A plan that the chunk is led to
(euler.py) leads the arm alone: a logit comes in one step.

Acting starts from noise that is the same for all steps of a window, so that a rollout equals the
window. The metrics of the loss are those of the actions that `act` would give with the same key;
they cost `euler.STEPS` runs of this small network, and can be compared with every other head's.

Axes: f = b * t window steps, each with a chunk of its own.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from vla_jax.models.heads.attention import ROPE_THETA
from vla_jax.models.heads.euler import Velocity, integrate
from vla_jax.models.heads.outputs import MLP, CausalStack, HeadConfig, Linear, flatten, in_float32
from vla_jax.models.losses import action_loss, masked_mean, sigmoid_cross_entropy
from vla_jax.models.stack import Stack, StackConfig
from vla_jax.models.transformer import Norm
from vla_jax.types import Array, Guide, HeadContext, Loss


class FlowHead(nnx.Module):
    """Readouts [b t n c] -> one causal block over the window -> a condition per step -> the chunk's
    velocity.
    """

    acts_on = trains_on = "readouts"
    inpaints = True
    num_tokens = 0

    def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs) -> None:
        if not config.arm:
            raise ValueError(
                "FlowHead: expected an arm dim, got binary ones alone; use the head mlp or lstm"
            )
        hidden, arm = config.hidden, len(config.arm)
        self.config = config
        self.input = Linear((width * config.tokens, hidden), ("embed", "mlp"), rngs)
        self.history = CausalStack(
            dataclasses.replace(config.block, rope_theta=ROPE_THETA), 1, rngs
        )
        self.noisy = Linear((arm, hidden), ("embed", "mlp"), rngs)
        table = 0.02 * jax.random.normal(rngs.params(), (config.chunk, hidden))
        self.positions = nnx.Param(table, logical=(None, "embed"))
        self.time = MLP((hidden, hidden, hidden), rngs)
        self.blocks = Stack(config.block, config.layers, StackConfig(layers="unroll"), rngs)
        self.norm = Norm(hidden, "ln", config.block.eps, config.block.width_logical_axis)
        self.velocity = Linear((hidden, arm), ("mlp", "embed"), rngs)
        sizes = (hidden, *config.mlp, config.chunk * len(config.binary))
        self.gripper = MLP(sizes, rngs) if config.binary else None

    def loss(
        self,
        context: HeadContext,
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: jax.Array,
    ) -> Loss:
        """Squared error of the velocity on arm dims, cross-entropy on binary ones; weighted as
        losses.action_loss.
        """
        config = self.config
        features = self.features(context.readouts)
        target = jnp.where(mask, actions.astype(jnp.float32), 0.0)
        arms, grippers = np.array(config.arm, int), np.array(config.binary, int)
        arm, arm_mask = target[..., arms], mask[..., arms]
        noise, time = draw(key, arm.shape)
        there = self.there(context.dims, len(actions))
        x = (time * noise + (1 - time) * arm) * there
        error = self._velocity(features, x, time, jnp.any(mask, axis=-1)) - (noise - arm)
        total = config.loss.arm * masked_mean(error**2, arm_mask).sum()
        logits = self.logits(features)
        if config.binary:
            cost = sigmoid_cross_entropy(logits, target[..., grippers])
            total = total + config.loss.gripper * masked_mean(cost, mask[..., grippers]).sum()
        sampled = jax.lax.stop_gradient(self.put(self._sample(features, there, key), logits))
        metrics = action_loss(sampled, actions, mask, config.binary, config.loss).metrics
        return Loss(total, metrics)

    def act(self, context: HeadContext, key: jax.Array) -> Float[Array, "b t k d"]:
        """Normalised actions at every window step, from noise drawn with `key`."""
        features = self.features(context.readouts)
        there = self.there(context.dims, len(features))
        arm = self._sample(features, there, key, self._guide(context))
        return self.put(arm, jax.nn.sigmoid(self.logits(features)))

    def noise(self, key: jax.Array) -> Float[Array, "k a"]:
        """What the arm's chunk of one example starts from."""
        return self.start(key, 1)[0, 0]

    def features(self, readouts: Float[Array, "b t n c"]) -> Float[Array, "b t h"]:
        """What the head makes of the window, at every step."""
        return self.history(self.input(flatten(readouts)))

    def there(self, dims: Bool[Array, "b d"] | None, b: int) -> Float[Array, "b 1 1 a"]:
        """1 for an arm dim that the robot has, else 0."""
        arm = np.array(self.config.arm, int)
        dims = jnp.ones((b, self.config.action_dim), bool) if dims is None else dims
        return dims[:, None, None, arm].astype(jnp.float32)

    def _guide(self, context: HeadContext) -> Guide | None:
        """That of the arm dims."""
        guide: Guide | None = context.guide
        if guide is None:
            return None
        return guide._replace(actions=guide.actions[..., np.array(self.config.arm, int)])

    def _sample(
        self,
        features: Float[Array, "b t h"],
        there: Float[Array, "b 1 1 a"],
        key: jax.Array,
        guide: Guide | None = None,
    ) -> Float[Array, "b t k a"]:
        """The arm dims, integrated from noise to actions; what is not `there` stays 0."""
        b, t = features.shape[:2]
        chunk, arm = self.config.chunk, len(self.config.arm)
        noise = jnp.broadcast_to(self.start(key, b), (b, t, chunk, arm))
        return jnp.clip(integrate(self.field(features), noise, there, guide), -1.0, 1.0)

    def field(self, features: Float[Array, "b t h"]) -> Velocity:
        """The velocity by which whole chunks flow, [b t k a] at one time."""
        b, t = features.shape[:2]
        everywhere = jnp.ones((b, t, self.config.chunk), bool)

        def velocity(x: Array, at: Any) -> Array:
            return self._velocity(features, x, jnp.full((b, t, 1, 1), at), everywhere)

        return velocity

    def start(self, key: jax.Array, b: int) -> Float[Array, "b 1 k a"]:
        """The noise that the arm's chunks start from."""
        shape = (b, 1, self.config.chunk, len(self.config.arm))
        return jax.random.normal(jax.random.fold_in(key, 1), shape)

    def _velocity(
        self,
        features: Float[Array, "b t h"],
        x: Float[Array, "b t k a"],
        time: Float[Array, "b t 1 1"],
        valid: Bool[Array, "b t k"],
    ) -> Float[Array, "b t k a"]:
        """The velocity at every chunk step. Steps without an action (past the end) are not looked
        at.
        """
        (b, t, k, _), hidden = x.shape, features.shape[-1]
        condition = features + self.time(wave(time[..., 0, 0], hidden))  # b t h
        tokens = (
            self.noisy(x)
            + self.positions[...][None, None].astype(jnp.float32)
            + condition[:, :, None]
        )
        f = b * t
        mask = jnp.broadcast_to(valid.reshape(f, 1, k), (f, k, k)) | jnp.eye(k, dtype=bool)[None]
        blocks, norm = in_float32(self.blocks), in_float32(self.norm)
        with jax.default_matmul_precision("highest"):
            out = norm(blocks(tokens.reshape(f, k, hidden), mask, jnp.zeros((f, k), jnp.int32)))
        return self.velocity(out).reshape(b, t, k, -1)

    def logits(self, features: Float[Array, "b t h"]) -> Float[Array, "b t k g"]:
        """Of the binary dims."""
        b, t = features.shape[:2]
        if self.gripper is None:
            return jnp.zeros((b, t, self.config.chunk, 0))
        return self.gripper(features).reshape(b, t, self.config.chunk, -1)

    def put(
        self, arm: Float[Array, "b t k a"], binary: Float[Array, "b t k g"]
    ) -> Float[Array, "b t k d"]:
        """Each dim in its place."""
        order = np.argsort(self.config.arm + self.config.binary)
        return jnp.concatenate([arm, binary], axis=-1)[..., order]


def draw(
    key: jax.Array, shape: tuple[int, ...]
) -> tuple[Float[Array, "b t k a"], Float[Array, "b t 1 1"]]:
    """Noise for every action, and a time for every window step from Beta(1.5, 1), scaled into
    (0.001, 1).
    """
    noise, time = jax.random.split(jax.random.fold_in(key, 0))
    # The quantile function of Beta(a, 1) is u ** (1 / a).
    uniform = jax.random.uniform(time, (*shape[:2], 1, 1))
    return jax.random.normal(noise, shape), uniform ** (1 / 1.5) * 0.999 + 0.001


def wave(time: Float[Array, "b t"], width: int) -> Float[Array, "b t w"]:
    """Sines and cosines of the time, with periods from 0.004 to 4 in equal ratios (as pi0)."""
    period = 4e-3 * (4.0 / 4e-3) ** jnp.linspace(0.0, 1.0, width // 2)
    angle = 2 * jnp.pi * time[..., None] / period[None, None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
