"""The tasks beside the action: future frames, texts, readouts near the embedding of the
instruction, what a sensor says that the policy does not have, and the chunk as a string of tokens.

A task is one class with all that the policy has to know of it (Task); the model loops over them. It
gives a sum and a count of its own; the optimised value is the sum over tasks of loss weight * sum /
count. A task whose loss weight is 0 is not built: it has no parameters, no tokens in the sequence
and no data.

Axes: b batch, t window step, m future frames, n readouts or query tokens, v patches of an image or
visual tokens, l text, c width, e width of CLIP's text embedding, f = b * t frames.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from vla_jax.models.heads import fast
from vla_jax.models.heads.fast import FastConfig
from vla_jax.models.losses import action_mask, counted_steps, smooth_l1
from vla_jax.models.stack import Stack, StackConfig
from vla_jax.models.transformer import Linear, Norm, plain_block
from vla_jax.robot.sensing import Sensor
from vla_jax.types import Array, Batch

Pair = tuple[Array, Array]  # sum and weight of each example, [b]
EPS = 1e-6  # added to a patch's variance, as in MAE
FINE = 0.05  # of a sensor's range: half as far off counts less than half; squares forget the fine

# images [b h w 3] of each camera, image mask [b cameras], tokens [b l], mask [b l], target [b l] ->
# logits [b l vocab] at the tokens, of which the targets see only what stands before them.
TextLogits = Callable[[tuple[Array, ...], Array, Array, Array, Array], Array]
# hidden states [f q c], (first id, one more than the last) -> logits [f q n] of these tokens.
Logits = Callable[[Array, tuple[int, int]], Array]


class Encoded(NamedTuple):
    """What the policy's pass over a batch gives its tasks.

    Attributes:
        visual: tokens of all cameras' images, before the language model.
        readouts: hidden states at the readouts.
        queries: hidden states at the task's own query tokens, or at what predicts its string.
        text_logits: a pass of its own over images with a text.
        logits: the backbone's output layer.
    """

    visual: Float[Array, "f v c"]
    readouts: Float[Array, "b t n c"]
    queries: Float[Array, "b t q c"]
    text_logits: TextLogits
    logits: Logits


@runtime_checkable
class Task(Protocol):
    """An auxiliary task. The policy holds it, and its parameters, as its attribute `path`; they are
    for training alone: an artefact goes without them.
    """

    path: ClassVar[str]

    def query_tokens(self) -> Float[Array, "q c"] | None:
        """Learned tokens that it wants behind the readouts of every frame, if any."""
        ...

    def string(self, batch: Batch) -> tuple[Int[Array, "f q"], Bool[Array, "f q"]] | None:
        """Tokens of the language model that are to be written behind the readouts of every frame,
        if any, and which of them are there. A task has these or queries.
        """
        ...

    def counted(self, batch: Batch) -> Bool[Array, "..."] | None:
        """What counts, from the batch's masks alone. None: the batch has nothing for this task.

        Raises ValueError where the batch must have it and does not.
        """
        ...

    def loss(self, encoded: Encoded, batch: Batch) -> Pair:
        """Sum and count of each example."""
        ...


# (width of the sequence, rngs) -> the task.
MakeTask = Callable[[int, nnx.Rngs], Any]


@dataclass(frozen=True)
class ForwardConfig:
    """Prediction of future frames.

    Attributes:
        frames: how many, for each window step.
        cameras: how many.
        tokens: queries for each of them.
        width, depth: of the decoder.
        patch, image_size: pixels.
    """

    frames: int
    cameras: int
    tokens: int
    width: int
    depth: int
    patch: int
    image_size: int

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ValueError(
                f"objectives.forward.patch: expected a divisor of the image size {self.image_size},"
                f" got {self.patch}"
            )
        if min(self.frames, self.tokens, self.depth, self.width) < 1:
            raise ValueError(
                "objectives.forward: expected an offset, tokens, width and depth of at least 1,"
                f" got {self}"
            )

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch) ** 2

    @property
    def queries(self) -> int:
        """Query tokens of one window step."""
        return self.frames * self.cameras * self.tokens


class ForwardPrediction(nnx.Module):
    """Hidden states at learned queries -> the patches of future frames, as GR-1 does it (arXiv
    2312.13139): a small decoder reads the queries' states and fills in mask tokens; the target is
    each patch with its mean and variance taken out.
    """

    path = "forward"

    def __init__(self, width: int, config: ForwardConfig, rngs: nnx.Rngs) -> None:
        self.config = config

        def table(*shape: int, axis: str | None) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape), logical=(None, axis))

        self.queries = table(config.queries, width, axis="embed")
        self.input = Linear((width, config.width), ("embed", None), True, rngs)
        self.positions = table(
            config.patches, config.width, axis=None
        )  # with the mask token, which is all they share
        heads = math.gcd(config.width, max(1, config.width // 64))  # of 64 where that divides
        block = plain_block(config.width, 4 * config.width, heads, eps=1e-6)
        self.layers = Stack(block, config.depth, StackConfig(layers="unroll"), rngs)
        self.norm = Norm(config.width, "ln", 1e-6, "embed")
        self.output = Linear((config.width, config.patch**2 * 3), (None, None), True, rngs)

    def query_tokens(self) -> Float[Array, "q c"]:
        """Those of all future frames of a window step."""
        return self.queries[...]

    def string(self, batch: Batch) -> None:
        """It writes none."""

    def counted(self, batch: Batch) -> Bool[Array, "b t m cameras"]:
        """Future frames that are there, of steps of the episode."""
        future = _given(batch.future, "future")
        return future.mask & batch.obs.step_mask[:, :, None, None]

    def loss(self, encoded: Encoded, batch: Batch) -> Pair:
        """Mean squared error of every valid frame's patches."""
        hidden, future = encoded.queries, _given(batch.future, "future")
        config, b = self.config, hidden.shape[0]
        x = self.input(hidden).reshape(-1, config.tokens, config.width)  # b*t*m*cameras n c
        blank = jnp.broadcast_to(
            self.positions[...][None], (x.shape[0], config.patches, config.width)
        )
        x = jnp.concatenate([x, blank.astype(x.dtype)], axis=1)
        mask, places = jnp.ones((*x.shape[:2], x.shape[1]), bool), jnp.zeros(x.shape[:2], jnp.int32)
        out = self.output(self.norm(self.layers(x, mask, places, config.patches))).astype(
            jnp.float32
        )
        images = jnp.stack(future.images, axis=3)  # b t m cameras h w 3
        error = jnp.mean(
            (out - patches(images.reshape(-1, *images.shape[4:]), config.patch)) ** 2, axis=(1, 2)
        )
        valid = self.counted(batch).reshape(b, -1)
        return jnp.sum(jnp.where(valid, error.reshape(b, -1), 0.0), axis=1), jnp.sum(
            valid, axis=1, dtype=jnp.float32
        )


def patches(images: UInt8[Array, "f h w 3"], patch: int) -> Float[Array, "f v p"]:
    """Patches in rows, each with mean 0 and variance 1."""
    n, side = images.shape[0], images.shape[1] // patch
    x = images.astype(jnp.float32).reshape(n, side, patch, side, patch, 3) / 255
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, side * side, -1)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPS)


class TextAlign(nnx.Module):
    """Readouts near CLIP's embedding of the instruction (RoboVLMs' clip_norm): the largest of a
    frame's readouts in each channel, a linear layer, smooth L1.
    """

    path = "align"

    def __init__(self, width: int, embedding: int, rngs: nnx.Rngs) -> None:
        self.linear = Linear((width, embedding), ("embed", None), True, rngs)

    def query_tokens(self) -> None:
        """It looks at the readouts."""

    def string(self, batch: Batch) -> None:
        """It writes none."""

    def counted(self, batch: Batch) -> Bool[Array, "b t"]:
        """Steps of the episode."""
        return batch.obs.step_mask

    def loss(self, encoded: Encoded, batch: Batch) -> Pair:
        """Mean over channels, for every step of the episode."""
        target, step_mask = _given(batch.text_target, "text_target"), self.counted(batch)
        embedding = self.linear(jnp.max(encoded.readouts, axis=2)).astype(jnp.float32)
        error = jnp.mean(smooth_l1(embedding - target[:, None], 1.0), axis=-1)  # b t
        total = jnp.sum(jnp.where(step_mask, error, 0.0), axis=1)
        return total, jnp.sum(step_mask, axis=1, dtype=jnp.float32)


class SensedPrediction(nnx.Module):
    """Visual tokens -> what a sensor reads that the policy does not have: of simulated data where
    things are, which a policy learns to see by. Row r of a reading is told by token r of each
    camera alone, before the language model, whatever the policy is told to do: a token then is of
    one thing, and the language model chooses among things.
    """

    path = "sensed"

    def __init__(self, sizes: tuple[int, int], hidden: int, sensor: Sensor, rngs: nnx.Rngs) -> None:
        """`sizes`: cameras, and the width of their tokens."""
        self.name, (self.rows, numbers) = sensor.name, sensor.shape
        self.cameras, width = sizes
        self.input = Linear((self.cameras * width, hidden), ("embed", None), True, rngs)
        self.output = Linear((hidden, numbers), (None, None), True, rngs)

    def query_tokens(self) -> None:
        """It looks at visual tokens."""

    def string(self, batch: Batch) -> None:
        """It writes none."""

    def counted(self, batch: Batch) -> Bool[Array, "b t"]:
        """Steps of the episode with a whole reading."""
        reading = batch.obs.sensors.get(self.name)
        mask = _given(reading, f"obs.sensors[{self.name!r}]").mask
        return batch.obs.step_mask & jnp.all(mask.reshape(*mask.shape[:2], -1), axis=-1)

    def loss(self, encoded: Encoded, batch: Batch) -> Pair:
        """Smooth L1 (FINE), mean over a reading's numbers as they are normalised."""
        counted, width = self.counted(batch), encoded.visual.shape[-1]
        seen = encoded.visual.reshape(*counted.shape, self.cameras, -1, width)  # b t cameras q c
        rows = jnp.moveaxis(seen[..., : self.rows, :], 2, 3)  # b t r cameras c
        hidden = self.input(rows.reshape(*rows.shape[:3], -1))
        out = self.output(jax.nn.gelu(hidden, approximate=True)).astype(jnp.float32)
        error = smooth_l1(out - batch.obs.sensors[self.name].values, FINE)
        error = jnp.mean(error, axis=(2, 3))  # b t
        total = jnp.sum(jnp.where(counted, error, 0.0), axis=1)
        return total, jnp.sum(counted, axis=1, dtype=jnp.float32)


@dataclass(frozen=True)
class Caption:
    """The instruction from the newest frame's images, token by token; a pass of its own without the
    prompt.
    """

    path: ClassVar[str] = "caption"

    def query_tokens(self) -> None:
        """It has a pass of its own."""

    def string(self, batch: Batch) -> None:
        """It writes none."""

    def counted(self, batch: Batch) -> Bool[Array, "b l"]:
        """All words but the first token, which nothing stands before."""
        return batch.obs.prompt_mask[:, 1:]

    def loss(self, encoded: Encoded, batch: Batch) -> Pair:
        """Cross-entropy of the instruction's tokens."""
        obs = batch.obs
        images = tuple(image[:, -1] for image in obs.images)
        target = obs.prompt_mask & (jnp.arange(obs.prompt.shape[1]) > 0)[None]
        logits = encoded.text_logits(
            images, obs.image_mask[:, -1], obs.prompt, obs.prompt_mask, target
        )
        return next_token(logits, obs.prompt, target)


@dataclass(frozen=True)
class ImageTextTask:
    """The answer about an image, token by token: co-training on images with texts."""

    path: ClassVar[str] = "image_text"

    def query_tokens(self) -> None:
        """It has a pass of its own."""

    def string(self, batch: Batch) -> None:
        """It writes none."""

    def counted(self, batch: Batch) -> Bool[Array, "b l"] | None:
        """The answer's tokens; evaluation goes without the task."""
        return None if batch.image_text is None else batch.image_text.target[:, 1:]

    def loss(self, encoded: Encoded, batch: Batch) -> Pair:
        """Cross-entropy of the answer's tokens."""
        example = _given(batch.image_text, "image_text")
        images, seen = (example.images,), jnp.ones((example.images.shape[0], 1), bool)
        logits = encoded.text_logits(images, seen, example.tokens, example.mask, example.target)
        return next_token(logits, example.tokens, example.target)


@dataclass(frozen=True)
class FastStrings:
    """The chunk as the string of tokens that the head fast writes, behind the readouts: what
    teaches a backbone to act whose head does not, or not alone (knowledge insulation, arXiv
    2505.23705: the expert's gradients stop, and the backbone learns from strings and texts).

    The head sees nothing of a string.
    """

    config: FastConfig
    path: ClassVar[str] = "fast"

    def query_tokens(self) -> None:
        """It is taught a string."""

    def string(self, batch: Batch) -> tuple[Int[Array, "f q"], Bool[Array, "f q"]]:
        """See fast.strings."""
        return fast.strings(batch, self.config)

    def counted(self, batch: Batch) -> Bool[Array, "b t k"]:
        """A string counts by the steps of its chunk that do, as of the head fast."""
        return counted_steps(action_mask(batch))

    def loss(self, encoded: Encoded, batch: Batch) -> Pair:
        """Cross-entropy of the string's tokens, its mean for every step that counts."""
        hidden = encoded.queries.reshape(-1, *encoded.queries.shape[2:])  # f q c
        logits = encoded.logits(hidden, self.config.token_range)
        steps = jnp.sum(self.counted(batch), axis=2, dtype=jnp.float32)  # b t
        cost = fast.string_cost(logits, self.string(batch), self.config).reshape(steps.shape)
        return jnp.sum(cost * steps, axis=1), jnp.sum(steps, axis=1)


def _given(value: Any, name: str) -> Any:
    """A field of the batch that a task needs."""
    if value is None:
        raise ValueError(
            f"Batch.{name}: expected what this model's task needs, got None; give the loader its"
            " config"
        )
    return value


def next_token(
    logits: Float[Array, "b l vocab"], tokens: Int[Array, "b l"], target: Bool[Array, "b l"]
) -> Pair:
    """Cross-entropy of each target token given what stands before it; position i scores token i +
    1.
    """
    scores = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    cost = -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
    wanted = target[:, 1:]
    return jnp.sum(jnp.where(wanted, cost, 0.0), axis=1), jnp.sum(wanted, axis=1, dtype=jnp.float32)
