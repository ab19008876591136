"""VLA: observation -> token sequence -> backbone -> readouts -> head.

Each frame of the window is a run of tokens: its images, the prompt, the robot's state, and learned
readout tokens, laid out as sequence.py draws it. The hidden states at the readouts go to the head.
Time is fused by

    history "head"         the head alone: every frame is a sequence of its own
    history "interleaved"  the backbone too: the frames stand in one causal sequence, and a readout
                           has seen all frames up to its own
    history "one_step"     nobody: the window is a single frame

Left padding: a window that reaches back before its episode repeats the first frame there, with
`step_mask` False. With history "head" these slots are read like any other and only the loss leaves
them out: a rollout fills its window by repeating the first frame (equivalently, that frame's
readouts). With "interleaved" nobody looks at them. Either way training and rollout agree exactly;
policy.py is the rollout.

The head "discrete" has no readouts to read: its action tokens follow the readouts, and the first is
read off the last.

Axes: b batch, t window step, f = b * t frames, k chunk step, d action dim, n readout tokens, c
width, s sequence, l text, v visual tokens of one image, q action tokens of a chunk.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from vla_jax.models import sequence
from vla_jax.models.decoding import decode_actions
from vla_jax.models.heads.discrete import DiscreteHead
from vla_jax.models.objectives import ForwardConfig, ForwardPrediction, TextAlign, next_token
from vla_jax.models.resampler import Resampler, ResamplerConfig
from vla_jax.models.sequence import LAYOUTS, Part, Sequence
from vla_jax.models.tokens import ActionToken, PastConfig, StateConfig, StateToken
from vla_jax.types import Array, Backbone, Batch, ImageText, Objective, Observation, PolicyHead

HISTORIES = ("head", "interleaved", "one_step")
TASKS = ("action", "forward", "caption", "image_text", "text_align")


@dataclass(frozen=True)
class VLAConfig:
    """The sizes and the sequence of a policy. `cameras` is the order of the images, in Observation
    and in tokens.

    `scales` are those of the tasks in the optimised value; a task that is not named is not built.
    """

    window: int
    chunk: int
    action_dim: int
    cameras: tuple[str, ...]
    layout: str = "prefix"
    history: str = "head"
    readouts: int = 1  # action query tokens per frame
    resampler: ResamplerConfig | None = (
        None  # fewer visual tokens per image; None keeps the backbone's
    )
    state: StateConfig | None = None
    past: PastConfig | None = None
    forward: ForwardConfig | None = None
    text_embedding: int = 0  # width of CLIP's, for "text_align"
    scales: tuple[tuple[str, float], ...] = (("action", 1.0),)

    def __post_init__(self) -> None:
        if [name for name, _ in self.scales if name not in TASKS] or not all(
            scale > 0 for _, scale in self.scales
        ):
            raise ValueError(
                f"VLAConfig.scales: expected numbers > 0 for tasks among {TASKS}, got {self.scales}"
            )
        if self.layout not in LAYOUTS:
            raise ValueError(f"model.layout: expected one of {LAYOUTS}, got {self.layout!r}")
        if self.history not in HISTORIES:
            raise ValueError(f"model.history: expected one of {HISTORIES}, got {self.history!r}")
        if self.history == "one_step" and self.window != 1:
            raise ValueError(
                f"model.window: history 'one_step' expects 1, got {self.window}; "
                "set model.window=1 or model.history=head"
            )
        if not self.cameras or self.readouts < 1:
            raise ValueError(
                f"VLAConfig: expected a camera and a readout at least, got cameras={self.cameras}, "
                f"readouts={self.readouts}; set model.cameras and model.readouts"
            )


class VLA(nnx.Module):
    """A vision-language-action policy: a types.Backbone, learned readout tokens and a
    types.PolicyHead.
    """

    def __init__(self, backbone: nnx.Module, head: Any, config: VLAConfig, rngs: nnx.Rngs) -> None:
        self.backbone = cast(
            Backbone, backbone
        )  # modules, to own parameters; protocols, to be called
        self.head = cast(PolicyHead, None if isinstance(head, DiscreteHead) else head)
        self.discrete = head if isinstance(head, DiscreteHead) else None
        self.config = config
        width = self.backbone.width
        # Zero like RoboVLMs' action token: readouts start alike and are told apart by their
        # positions.
        self.readout_embedding = nnx.Param(
            jnp.zeros((config.readouts, width)), logical=(None, "embed")
        )
        visual = self.backbone.visual_width
        self.resampler = Resampler(visual, config.resampler, rngs) if config.resampler else None
        self.state = StateToken(width, config.state, rngs) if config.state else None
        self.past = (
            ActionToken(width, config.action_dim, config.past, rngs) if config.past else None
        )
        self.forward = ForwardPrediction(width, config.forward, rngs) if config.forward else None
        self.align = (
            TextAlign(width, config.text_embedding, rngs) if config.text_embedding else None
        )

    # ------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch, key: jax.Array) -> Objective:
        """What the window costs in every task, in float32; steps before the episode began are left
        out.
        """
        config, expected = (
            self.config,
            (self.config.window, self.config.chunk, self.config.action_dim),
        )
        if batch.actions.shape[1:] != expected:
            raise ValueError(
                f"VLA.loss: batch.actions: expected [b, window={config.window},"
                f" chunk={config.chunk}, action_dim={config.action_dim}], got"
                f" {batch.actions.shape}; give loader and model the same config"
            )
        mask = action_mask(batch)
        obs = self._hide(batch.obs, jax.random.fold_in(key, 1))
        queries = self._queries(batch)
        if self.discrete is None:
            frames = self.sequence(obs, sequence.joined(queries) if queries else None)
            hidden = self.encode(frames, config.readouts + _length(queries), config.window)
            readouts, ahead = hidden[:, :, : config.readouts], hidden[:, :, config.readouts :]
            found = self.head.loss(readouts, batch.actions, mask, key)
        else:
            head, q = self.discrete, self.discrete.config.tokens
            words = self._words(head.targets(batch.actions, mask)[:, :-1])  # the teacher's
            hidden = self.encode(
                self.sequence(obs, sequence.joined([words, *queries])),
                q + _length(queries),
                config.window,
            )
            readouts, ahead = hidden[:, :, :1], hidden[:, :, q:]
            scored = hidden[:, :, :q].reshape(-1, q, self.backbone.width)
            found = head.loss(self.backbone.logits(scored, head.config.rows), batch.actions, mask)
        out = Objective({"action": found.sum}, dict(found.metrics))
        tasks = dict(config.scales)
        if self.forward is not None:
            _add(
                out,
                "forward",
                self.forward.loss(ahead, _given(batch.future, "future"), batch.obs.step_mask),
            )
        if self.align is not None:
            target = _given(batch.text_target, "text_target")
            _add(out, "text_align", self.align.loss(readouts, target, batch.obs.step_mask))
        if "caption" in tasks:
            _add(out, "caption", self.caption(batch.obs))
        if "image_text" in tasks and batch.image_text is not None:  # evaluation goes without
            _add(out, "image_text", self.text(batch.image_text))
        return out

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of every task of `loss` in a batch, from its masks alone: known before the
        first gradient.
        """
        tasks, seen = dict(self.config.scales), batch.obs.step_mask
        found: dict[str, Array] = {"action": jnp.any(action_mask(batch), axis=-1)}
        if "forward" in tasks:
            found["forward"] = _given(batch.future, "future").mask & seen[:, :, None, None]
        if "text_align" in tasks:
            found["text_align"] = seen
        if "caption" in tasks:
            found["caption"] = batch.obs.prompt_mask[:, 1:]
        if "image_text" in tasks and batch.image_text is not None:
            found["image_text"] = batch.image_text.target[:, 1:]
        return {name: jnp.sum(mask, dtype=jnp.float32) for name, mask in found.items()}

    def caption(self, obs: Observation) -> tuple[Array, Array]:
        """The instruction from the newest frame's images, token by token; a pass of its own without
        the prompt.
        """
        images, seen = (
            jnp.stack([image[:, -1] for image in obs.images], axis=1),
            obs.image_mask[:, -1],
        )  # b cameras
        target = obs.prompt_mask & (jnp.arange(obs.prompt.shape[1]) > 0)[None]
        return next_token(
            self._said(images, seen, obs.prompt, obs.prompt_mask, target), obs.prompt, target
        )

    def text(self, example: ImageText) -> tuple[Array, Array]:
        """The answer about an image, token by token."""
        images, seen = example.images[:, None], jnp.ones((example.images.shape[0], 1), bool)
        logits = self._said(images, seen, example.tokens, example.mask, example.target)
        return next_token(logits, example.tokens, example.target)

    # --------------------------------------------------------------------------------------- acting

    def act(self, obs: Observation, key: jax.Array) -> Float[Array, "b k d"]:
        """The chunk of normalised actions at the newest step; a binary dim holds the probability of
        1.
        """
        if obs.step_mask.shape[1] != self.config.window:
            raise ValueError(
                f"VLA.act: expected a window of {self.config.window} frames, got"
                f" {obs.step_mask.shape[1]}; keep the last frames and repeat the first one before"
                " the episode began"
            )
        if self.discrete is not None:
            obs = (
                obs if self.config.history == "interleaved" else newest(obs)
            )  # nobody would look at the others
            return decode_actions(
                self.backbone, self.discrete, self.sequence(obs), obs.step_mask.shape[1], key
            )
        return self.head.act(self.readouts(obs), key)[:, -1]

    def readouts(self, obs: Observation) -> Float[Array, "b t n c"]:
        """The backbone's hidden states at the readout tokens of every frame, in float32.

        With history "head" each frame is encoded alone, so any t is welcome: a rollout encodes the
        new frame and keeps the older readouts.
        """
        return self.encode(self.sequence(obs), self.config.readouts, obs.step_mask.shape[1])

    # ------------------------------------------------------------------------------------ sequences

    def sequence(self, obs: Observation, extra: Part | None = None) -> Sequence:
        """The tokens of each frame, with `extra` behind its readouts."""
        if len(obs.images) != len(self.config.cameras):
            raise ValueError(
                f"Observation.images: expected one array per camera {self.config.cameras}, got"
                f" {len(obs.images)}; give loader and model the same cameras"
            )
        (b, t), n = obs.step_mask.shape, self.config.readouts
        # Cameras are stacked inside the frame, not along the batch, so that a sharded batch stays
        # where it is.
        images = jnp.stack(obs.images, axis=2)  # b t cameras h w 3
        cameras = self._seen(
            images.reshape(b * t, *images.shape[2:]), obs.image_mask.reshape(b * t, -1)
        )
        # Text is embedded once per example and repeated for its frames.
        words = Part(
            *(
                jnp.repeat(x, t, axis=0)
                for x in (self.backbone.embed_text(obs.prompt), obs.prompt_mask)
            )
        )
        before = []
        if self.state is not None:
            known = jnp.repeat(obs.proprio_mask[:, None], t, axis=1)
            before.append(self._number(self.state(obs.proprio), known))
        if self.past is not None:
            if obs.past_action is None or obs.past_action_mask is None:
                raise ValueError(
                    "Observation.past_action: expected the actions before the frames, got None"
                )
            before.append(self._number(self.past(obs.past_action), obs.past_action_mask))
        queries = jnp.broadcast_to(
            self._learned(self.readout_embedding[...])[None], (b * t, n, self.backbone.width)
        )
        readouts = Part(queries, jnp.ones((b * t, n), bool))
        whole = sequence.assemble(
            self.config.layout,
            self.backbone.cross_attends,
            cameras,
            words,
            before,
            (readouts, extra),
        )
        if self.config.history == "interleaved":
            began = obs.step_mask.reshape(-1, 1)
            media = (
                None
                if whole.media is None
                else whole.media._replace(valid=whole.media.valid & began)
            )
            whole = dataclasses.replace(whole, valid=whole.valid & began, media=media)
        return whole

    def encode(self, whole: Sequence, rows: int, t: int) -> Float[Array, "b t n c"]:
        """float32 hidden states at the last `rows` tokens of each frame, of windows of t frames."""
        if self.config.history == "interleaved":
            x, mask = sequence.in_a_row(whole, t)
            places = sequence.positions(whole.valid, t, whole.private)
            hidden = self.backbone(x, mask, places, rows, sequence.media(whole, t))
        else:
            places = sequence.positions(whole.valid)
            hidden = self.backbone(
                whole.tokens, sequence.alone(whole), places, rows, sequence.media(whole)
            )
        return hidden.astype(jnp.float32).reshape(-1, t, rows, self.backbone.width)

    def _said(
        self,
        images: UInt8[Array, "b cameras h w 3"],
        seen: Bool[Array, "b cameras"],
        tokens: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        target: Bool[Array, "b l"],
    ) -> Float[Array, "b l vocab"]:
        """Logits at a text's tokens behind images; targets see only what stands before them."""
        cameras = self._seen(images, seen)
        image = sequence.joined(cameras if self.config.layout == "prefix" else cameras[::-1])
        text = Part(self.backbone.embed_text(tokens), mask)
        whole = sequence.of_text(
            self.config.layout, self.backbone.cross_attends, image, text, target
        )
        hidden = self.backbone(
            whole.tokens,
            sequence.alone(whole),
            sequence.positions(whole.valid),
            tokens.shape[1],
            sequence.media(whole),
        )
        return self.backbone.logits(hidden)

    def _seen(
        self, images: UInt8[Array, "f cameras h w 3"], mask: Bool[Array, "f cameras"]
    ) -> list[Part]:
        """The visual tokens of each camera."""
        f, cameras = mask.shape
        visual = self.backbone.embed_image(images.reshape(-1, *images.shape[2:]))  # f*cameras v w
        visual = visual if self.resampler is None else self.resampler(visual)
        visual = visual.reshape(f, cameras, *visual.shape[1:])
        valid = jnp.broadcast_to(mask[:, :, None], visual.shape[:3])
        return [Part(visual[:, i], valid[:, i]) for i in range(cameras)]

    def _words(self, ids: Int[Array, "f q"]) -> Part:
        return Part(self.backbone.embed_text(ids), jnp.ones(ids.shape, bool))

    def _number(self, token: Float[Array, "b t c"], known: Bool[Array, "b t"]) -> Part:
        return Part(self._learned(token).reshape(-1, 1, token.shape[-1]), known.reshape(-1, 1))

    def _learned(self, tokens: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """Learned tokens on the scale on which the layout has them."""
        scale = self.backbone.text_scale if self.config.layout == "robovlms" else 1.0
        return tokens * jnp.asarray(scale, tokens.dtype)

    def _queries(self, batch: Batch) -> list[Part]:
        """The queries for future frames, of every frame."""
        if self.forward is None:
            return []
        table, (b, t) = self._learned(self.forward.queries[...]), batch.obs.step_mask.shape
        return [
            Part(
                jnp.broadcast_to(table[None], (b * t, *table.shape)),
                jnp.ones((b * t, table.shape[0]), bool),
            )
        ]

    def _hide(self, obs: Observation, key: jax.Array) -> Observation:
        """Takes the action before a frame away from some frames, so that the policy does not merely
        repeat it.
        """
        if self.config.past is None or obs.past_action_mask is None:
            return obs
        kept = jax.random.bernoulli(key, 1 - self.config.past.hidden, obs.past_action_mask.shape)
        return obs._replace(past_action_mask=obs.past_action_mask & kept)


def action_mask(batch: Batch) -> Bool[Array, "b t k d"]:
    """The actions that count: there, and of a step of the episode."""
    return batch.action_mask & batch.obs.step_mask[:, :, None, None]


def newest(obs: Observation) -> Observation:
    """The observation with its last frame alone."""
    by_frame = ("image_mask", "proprio", "step_mask", "past_action", "past_action_mask")
    frame: Any = {
        name: value[:, -1:] for name in by_frame if (value := getattr(obs, name)) is not None
    }
    return obs._replace(images=tuple(image[:, -1:] for image in obs.images), **frame)


def _given(value: Any, name: str) -> Any:
    """A field of the batch that a task needs."""
    if value is None:
        raise ValueError(
            f"Batch.{name}: expected what this model's task needs, got None; give the loader its"
            " config"
        )
    return value


def _length(parts: list[Part]) -> int:
    return sum(part.tokens.shape[1] for part in parts)


def _add(out: Objective, name: str, pair: tuple[Array, Array]) -> None:
    """Adds a task to the sums and, with its weights, to the metrics."""
    out.sums[name] = jnp.sum(pair[0])
    out.metrics[name] = jax.lax.stop_gradient(pair)
