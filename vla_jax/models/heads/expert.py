"""The action expert (pi0, arXiv 2410.24164; pi0.5, arXiv 2504.16054): a second, narrower
transformer as deep as the backbone, whose tokens attend in every layer to the backbone's keys and
values.

Both have their own weights and share the attention: the expert's heads have the number and the dim
of the backbone's. Its tokens are the noisy actions of a chunk and before them, if `state` says so,
the robot's state. They stand behind the prompt, see all of it and one another (the state sees no
action), and the backbone does not see them. So the backbone runs once a frame, in training and in
acting, and the Euler steps run through the expert alone.

Flow matching, its times and the convention x = s * noise + (1 - s) * actions are those of flow.py,
which are openpi's. All dims flow, binary ones between -1 and 1, as in openpi; their probability is
where between the two they end. The time enters by an MLP over it and the actions (`time` "concat",
pi0), or by the norms ("adaptive", pi0.5). The metrics of the loss are those of the actions that
`act` gives with the same key, as in flow.py.

The readouts are no part of what the expert sees: pi0 has none.

Axes: f = b * t frames, k chunk step, d action dim, a numbers of an action as the expert has it (d,
or more: `padded`), m tokens of the expert, u slots of the cache, h the expert's width.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from vla_jax.models.attention import Cache
from vla_jax.models.decoding import without_last
from vla_jax.models.heads.euler import integrate
from vla_jax.models.heads.flow import draw, wave
from vla_jax.models.heads.outputs import Linear, in_float32
from vla_jax.models.losses import ActionLoss, action_loss, masked_mean
from vla_jax.models.stack import Stack, StackConfig
from vla_jax.models.transformer import AdaptiveNorm, BlockConfig, Norm, normed
from vla_jax.types import Array, Guide, HeadContext, Loss

TIMES = ("concat", "adaptive")
STATES = ("backbone", "expert")


@dataclass(frozen=True)
class ExpertConfig:
    """Sizes of the expert beside its backbone.

    Attributes:
        tokens: readouts of a frame, which it does not look at.
        block, depth, run: the backbone's blocks, their number, and how they are run.
        state_dims: numbers of the state; 0: the policy sees none.
        hidden: its width.
        inner: numbers inside its MLPs; 0: a quarter of the backbone's, as in pi0.
        time: how it learns the time, see TIMES.
        state: whose token the state is, the backbone's or the expert's.
        padded: numbers of an action and of a state inside, zeros behind those that there are;
            0: no more than there are. openpi's checkpoints have 32.
        bound: actions leave within +- this; 0: as they are (for normalisation "gaussian").
        insulated: gradients of the actions' loss stop at the backbone's keys and values
            (knowledge insulation, arXiv 2505.23705); other tasks train the backbone, such as
            objectives.fast.
    """

    chunk: int
    action_dim: int
    binary: tuple[int, ...]
    tokens: int
    block: BlockConfig
    depth: int
    run: StackConfig = field(default_factory=StackConfig)
    state_dims: int = 0
    loss: ActionLoss = field(default_factory=ActionLoss)
    hidden: int = 1024
    inner: int = 0
    time: str = "concat"
    state: str = "backbone"
    padded: int = 0
    bound: float = 1.0
    insulated: bool = False

    def __post_init__(self) -> None:
        if not self.block.rope_theta or self.block.alibi or self.block.rope_sections:
            raise ValueError(
                "model.head: expert: expected a backbone with rotary positions in one line"
                " (paligemma, smolvlm, llava but for MPT), got another: its tokens would not know"
                " their order; take the head flow"
            )
        if self.time not in TIMES or self.state not in STATES:
            raise ValueError(
                f"model.head_options: expert: expected time in {TIMES} and state in {STATES}, got"
                f" {self.time!r}, {self.state!r}"
            )
        if self.state == "expert" and not self.state_dims:
            raise ValueError(
                "model.head_options: expert: state='expert' expects model.proprio=True, got False"
            )
        least = max(self.action_dim, self.state_dims if self.state == "expert" else 0)
        if self.padded and self.padded < least:
            raise ValueError(
                f"model.head_options: expert: expected padded of {least} or more, by the numbers of"
                f" an action and a state, got {self.padded}"
            )
        if self.hidden % 2 or self.hidden < 4 or self.bound < 0:
            raise ValueError(
                "model.head_options: expert: expected an even model.head_hidden and bound >= 0, got"
                f" {self.hidden}, {self.bound}"
            )

    @property
    def numbers(self) -> int:
        """Numbers of an action inside."""
        return self.padded or self.action_dim

    @property
    def own_block(self) -> BlockConfig:
        """The expert's block."""
        return dataclasses.replace(
            self.block,
            width=self.hidden,
            mlp=self.inner or self.block.mlp // 4,
            window=0,
            adaptive=self.time == "adaptive",
        )


class Before(NamedTuple):
    """What stands before the noisy actions: the prefix with room for the expert's tokens, which of
    its slots they see, the last position, and the token of the state.
    """

    cache: Cache
    seen: Bool[Array, "f u"]
    position: Int[Array, "f 1"]
    state: Float[Array, "f 1 h"] | None


class ExpertHead(nnx.Module):
    """Keys and values of the backbone, noise -> the chunk."""

    acts_on = trains_on = "prefix"
    inpaints = True
    num_tokens = 0

    def __init__(self, width: int, config: ExpertConfig, rngs: nnx.Rngs) -> None:
        del width  # of the backbone, of which the expert sees keys and values
        hidden, block = config.hidden, config.own_block
        self.config = config
        self.action_in = Linear((config.numbers, hidden), ("embed", "mlp"), rngs)
        pair = hidden if block.adaptive else 2 * hidden
        self.time_in = Linear((pair, hidden), ("embed", "mlp"), rngs)
        self.time_out = Linear((hidden, hidden), ("mlp", "embed"), rngs)
        self.state = (
            Linear((config.padded or config.state_dims, hidden), ("embed", "mlp"), rngs)
            if config.state == "expert"
            else None
        )
        self.layers = Stack(block, config.depth, config.run, rngs)
        self.norm = (
            AdaptiveNorm(block, rngs)
            if block.adaptive
            else Norm(hidden, block.norm, block.eps, block.width_logical_axis, block.norm_bias)
        )
        self.action_out = Linear((hidden, config.numbers), ("mlp", "embed"), rngs)

    def loss(
        self,
        context: HeadContext,
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: jax.Array,
    ) -> Loss:
        """Squared error of the velocity, over all dims that a step has and the padding, of which
        zeros are the actions; times loss.arm.
        """
        config, (b, t, k, _) = self.config, actions.shape
        before = self._before(context)
        if config.insulated:
            before = before._replace(cache=jax.lax.stop_gradient(before.cache))
        target = self._inside(jnp.where(mask, actions.astype(jnp.float32), 0.0), mask)
        there = self._there(context, b)
        noise, time = draw(key, target.shape)
        x = (time * noise + (1 - time) * target) * there
        valid = jnp.any(mask, axis=-1)  # a step past the end is not looked at
        velocity = self._velocity(before, *(_frames(y) for y in (x, time[..., 0], valid)))
        error = velocity.reshape(target.shape) - (noise - target)
        padding = jnp.broadcast_to(valid[..., None], (b, t, k, config.numbers - config.action_dim))
        counted = jnp.concatenate([mask, padding], axis=-1)
        total = config.loss.arm * masked_mean(error**2, counted).sum()
        sampled = jax.lax.stop_gradient(self._sample(before, there, t, key))
        metrics = action_loss(
            self._as_logits(sampled), actions, mask, config.binary, config.loss
        ).metrics
        return Loss(total, metrics)

    def act(self, context: HeadContext, key: jax.Array) -> Float[Array, "b 1 k d"]:
        """The newest frame's normalised actions, from noise drawn with `key`; a binary dim holds
        the probability of 1.
        """
        before = self._before(context)
        there = self._there(context, len(before.seen))
        return self._sample(before, there, 1, key, self._guide(context))

    def noise(self, key: jax.Array) -> Float[Array, "k a"]:
        """What the chunk of one example starts from."""
        return self._start(key, 1)[0, 0]

    def _before(self, context: HeadContext) -> Before:
        config = self.config
        prefix = without_last(context.prefix, config.tokens)
        room = config.chunk + (self.state is not None)
        kernel: jax.Array = self.layers.blocks.attn.k.kernel[...]

        def with_room(x: Array) -> Array:
            return jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))).astype(kernel.dtype)

        cache, pad = prefix.cache, ((0, 0), (0, room))
        cache = cache._replace(
            k=with_room(cache.k), v=with_room(cache.v), positions=jnp.pad(cache.positions, pad)
        )
        state = None
        if self.state is not None:
            behind = (config.padded or config.state_dims) - config.state_dims
            numbers = jnp.pad(_frames(context.state), ((0, 0), (0, behind)))
            state = self.state(numbers.astype(jnp.float32)[:, None])
        return Before(cache, jnp.pad(prefix.seen, pad), prefix.position, state)

    def _inside(
        self, actions: Float[Array, "b t k d"], mask: Bool[Array, "b t k d"]
    ) -> Float[Array, "b t k a"]:
        """Actions as they flow: binary dims -1 or 1, what is masked 0, padding 0."""
        wide = jnp.where(self._is_binary() & mask, 2 * actions - 1, actions)
        behind = self.config.numbers - self.config.action_dim
        return jnp.pad(wide, ((0, 0), (0, 0), (0, 0), (0, behind)))

    def _there(self, context: HeadContext, b: int) -> Float[Array, "b 1 1 a"]:
        """1 for a dim that the robot has, and for padding, which flows; else 0."""
        config = self.config
        dims = jnp.ones((b, config.action_dim)) if context.dims is None else context.dims
        behind = ((0, 0), (0, config.numbers - config.action_dim))
        return jnp.pad(dims.astype(jnp.float32), behind, constant_values=1.0)[:, None, None]

    def _guide(self, context: HeadContext) -> Guide | None:
        """As actions flow: binary dims from -1 to 1. The padding is led nowhere."""
        if context.guide is None:
            return None
        actions, weight = context.guide
        b, k, d = actions.shape
        wide = self._inside(actions[:, None], jnp.ones((b, 1, k, d), bool))[:, 0]
        padding = ((0, 0), (0, 0), (0, self.config.numbers - d))
        return Guide(wide, jnp.pad(jnp.broadcast_to(weight, actions.shape), padding))

    def _sample(
        self,
        before: Before,
        there: Float[Array, "b 1 1 a"],
        t: int,
        key: jax.Array,
        guide: Guide | None = None,
    ) -> Float[Array, "b t k d"]:
        """The actions, integrated from noise that is the same for all steps of a window."""
        config, b = self.config, len(there)
        everywhere = jnp.ones((b * t, config.chunk), bool)

        def velocity(x: Array, at: Any) -> Array:
            time = jnp.full((b * t, 1), at)
            return self._velocity(before, _frames(x), time, everywhere).reshape(x.shape)

        shape = (b, t, config.chunk, config.numbers)
        noise = jnp.broadcast_to(self._start(key, b), shape)
        x = integrate(velocity, noise, there, guide)[..., : config.action_dim]
        bounded = jnp.clip(x, -config.bound, config.bound) if config.bound else x
        return jnp.where(self._is_binary(), jnp.clip((x + 1) / 2, 0.0, 1.0), bounded)

    def _start(self, key: jax.Array, b: int) -> Float[Array, "b 1 k a"]:
        shape = (b, 1, self.config.chunk, self.config.numbers)
        return jax.random.normal(jax.random.fold_in(key, 1), shape)

    def _velocity(
        self,
        before: Before,
        x: Float[Array, "f k a"],
        time: Float[Array, "f 1"],
        valid: Bool[Array, "f k"],
    ) -> Float[Array, "f k a"]:
        """The velocity at every chunk step."""
        tokens, condition = self._tokens(x, time)
        f, k, _ = x.shape
        seen = jnp.broadcast_to(valid[:, None], (f, k, k)) | jnp.eye(k, dtype=bool)[None]
        if before.state is not None:  # it sees no action, all of which see it
            tokens = jnp.concatenate([before.state, tokens], axis=1)
            seen = jnp.pad(seen, ((0, 0), (1, 0), (1, 0))) | (jnp.arange(k + 1) == 0)[None, None]
        m, u = tokens.shape[1], before.seen.shape[1]
        prefix = jnp.broadcast_to(before.seen[:, None, : u - m], (f, m, u - m))
        mask = jnp.concatenate([prefix, seen], axis=-1)
        positions = before.position + 1 + jnp.arange(m)[None]
        # The blocks compute in their parameters' type, as the backbone's do.
        kernel: jax.Array = self.layers.blocks.attn.k.kernel[...]
        out, _ = self.layers.decode(
            tokens.astype(kernel.dtype), mask, positions, before.cache, condition=condition
        )
        out, _ = normed(in_float32(self.norm), out[:, m - k :].astype(jnp.float32), condition)
        return self.action_out(out)

    def _tokens(
        self, x: Float[Array, "f k a"], time: Float[Array, "f 1"]
    ) -> tuple[Float[Array, "f k h"], Float[Array, "f h"] | None]:
        """The tokens of noisy actions, and the condition of adaptive norms."""
        tokens = self.action_in(x)
        told = wave(time, self.config.hidden)  # f 1 h
        if self.config.own_block.adaptive:
            condition = jax.nn.silu(self.time_out(jax.nn.silu(self.time_in(told))))
            return tokens, condition[:, 0]
        both = jnp.concatenate([tokens, jnp.broadcast_to(told, tokens.shape)], axis=-1)
        return self.time_out(jax.nn.silu(self.time_in(both))), None

    def _is_binary(self) -> Bool[Array, "1 1 1 d"]:
        dims = np.isin(np.arange(self.config.action_dim), self.config.binary)
        return jnp.asarray(dims)[None, None, None]

    def _as_logits(self, actions: Float[Array, "b t k d"]) -> Float[Array, "b t k d"]:
        """What losses.action_loss takes: of a binary dim the logit of its probability, which is
        kept off 0 and 1.
        """
        p = jnp.clip(actions, 1e-6, 1 - 1e-6)
        return jnp.where(self._is_binary(), jnp.log(p) - jnp.log1p(-p), actions)


def _frames(x: Array) -> Array:
    """[b t ...] -> [f ...]."""
    return x.reshape(-1, *x.shape[2:])
