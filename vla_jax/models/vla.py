"""VLA: observation -> token sequence -> backbone -> readouts -> head.

Each frame of the window is a run of tokens: its images, the prompt, the robot's state, and learned
readout tokens, laid out as sequence.py draws it. The hidden states at the readouts go to the head.
Time is fused by

    history "head"         the head alone: every frame is a sequence of its own
    history "interleaved"  the backbone too: the frames stand in one causal sequence, and a readout
                           has seen all frames up to its own
    history "one_step"     nobody: the window is a single frame

Left padding: a window that reaches back before its episode repeats the first frame there, with
`step_mask` False, and the loss leaves these slots out. The backbone does not look at them with
history "interleaved"; whether the head does is `history_start` (starts.py). Either way training and
rollout agree exactly; policy.py is the rollout.

What a head looks at is its own affair (types.HeadContext): most read the readouts; one that writes
tokens of the language model has them behind the readouts, the first predicted by the last readout;
one may look at the keys and values of every layer. Auxiliary tasks are objects of objectives.py.

Axes: b batch, t window step, f = b * t frames, k chunk step, d action dim, n readout tokens, c
width, s sequence, l text, v visual tokens of one image, q tokens that a head writes.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from vla_jax.models import behind, sequence, starts
from vla_jax.models.behind import HEAD
from vla_jax.models.decoding import prefill
from vla_jax.models.keypoints import Keypoints, KeypointsConfig
from vla_jax.models.losses import action_mask, counted_steps
from vla_jax.models.objectives import Encoded, MakeTask, Task
from vla_jax.models.resampler import Resampler, ResamplerConfig
from vla_jax.models.sensors.tokens import MakeEncoder, SensorTokens
from vla_jax.models.sequence import LAYOUTS, FrameTokens, MaskedTokens
from vla_jax.models.state_words import StateWords, prompt_tokens
from vla_jax.models.tokens import (
    ActionToken,
    EmbodimentToken,
    PastConfig,
    StateConfig,
    StateToken,
    hide_past_actions,
)
from vla_jax.robot.sensing import Sensor
from vla_jax.types import (
    Array,
    Backbone,
    Batch,
    Guide,
    HeadContext,
    Objective,
    Observation,
    PolicyHead,
    Prefix,
    newest,
)

HISTORIES = ("head", "interleaved", "one_step")


@dataclass(frozen=True)
class VLAConfig:
    """The sizes and the sequence of a policy. `cameras` is the order of the images, in Observation
    and in tokens.

    `loss_weights` are those of the tasks in the optimised value: "action" and the auxiliary ones.
    """

    window: int
    chunk: int
    action_dim: int
    cameras: tuple[str, ...]
    layout: str = "prefix"
    history: str = "head"
    readouts: int = 1  # action query tokens per frame
    # Fewer visual tokens per image; None keeps the backbone's.
    resampler: ResamplerConfig | KeypointsConfig | None = None
    state: StateConfig | None = None
    state_to_head: bool = False  # the head looks at the state itself; no token of it here
    state_words: StateWords | None = None  # the state stands in the prompt; no token of it either
    past: PastConfig | None = None
    loss_weights: tuple[tuple[str, float], ...] = (("action", 1.0),)
    history_start: str = "repeat"  # see starts.py
    embodiments: int = 0  # robots that a token tells apart; 0: there is none
    sensors: tuple[Sensor, ...] = ()
    mutual: bool = False  # a frame's readouts see each other, not only the earlier ones

    def __post_init__(self) -> None:
        if not all(weight > 0 for _, weight in self.loss_weights):
            raise ValueError(
                f"VLAConfig.loss_weights: expected numbers > 0, got {self.loss_weights}; leave out"
                " a task that should not count"
            )
        if self.layout not in LAYOUTS:
            raise ValueError(f"model.layout: expected one of {LAYOUTS}, got {self.layout!r}")
        if self.history not in HISTORIES:
            raise ValueError(f"model.history: expected one of {HISTORIES}, got {self.history!r}")
        if self.history_start not in starts.STARTS:
            raise ValueError(
                f"model.history_start: expected one of {starts.STARTS}, got {self.history_start!r}"
            )
        if self.layout == "robovlms_pre" and self.history != "interleaved":
            raise ValueError(
                "model.layout: robovlms_pre expects model.history=interleaved, got"
                f" {self.history!r}"
            )
        if self.history == "one_step" and self.window != 1:
            raise ValueError(
                f"model.window: history 'one_step' expects 1, got {self.window}; "
                "set model.window=1 or model.history=head"
            )
        if not self.cameras or self.readouts < 1:
            raise ValueError(
                "VLAConfig: expected a camera and a readout at least, got"
                f" cameras={self.cameras}, readouts={self.readouts}; set model.cameras and"
                " model.readouts"
            )


class VLA(nnx.Module):
    """A vision-language-action policy: a types.Backbone, learned readout tokens, a types.PolicyHead
    and auxiliary tasks.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        head: Any,
        config: VLAConfig,
        rngs: nnx.Rngs,
        tasks: Mapping[str, MakeTask] | None = None,
        encoders: Mapping[str, MakeEncoder] | None = None,
    ) -> None:
        """`tasks` makes those of config.loss_weights beside the action, `encoders` those of
        config.sensors. Raises ValueError when the tasks are not the same.
        """
        makers = tasks or {}
        names = tuple(name for name, _ in config.loss_weights)
        if sorted(names) != sorted({"action", *makers}):
            raise ValueError(
                "VLAConfig.loss_weights: expected those of action and of the tasks"
                f" {', '.join(makers) or '(none)'}, got {', '.join(names)}"
            )
        # Modules, to own parameters; protocols, to be called.
        self.backbone = cast(Backbone, backbone)
        self.head = cast(PolicyHead, head)
        self.config = config
        width = self.backbone.width
        # Zero like RoboVLMs' action token: readouts start alike and are told apart by their
        # positions.
        self.readout_embedding = nnx.Param(
            jnp.zeros((config.readouts, width)), logical=(None, "embed")
        )
        visual = self.backbone.visual_width
        fewer = config.resampler
        self.resampler = (
            Resampler(visual, fewer, rngs) if isinstance(fewer, ResamplerConfig) else None
        )
        self.keypoints = (  # of each camera its own: views differ
            nnx.List([Keypoints(visual, fewer, rngs) for _ in config.cameras])
            if isinstance(fewer, KeypointsConfig)
            else None
        )
        own_state = None if config.state_to_head or config.state_words else config.state
        self.state = StateToken(width, own_state, rngs) if own_state else None
        self.past = (
            ActionToken(width, config.action_dim, config.past, rngs) if config.past else None
        )
        count = config.embodiments
        self.embodiment = EmbodimentToken(width, count, rngs) if count else None
        for sensor in config.sensors:
            make_encoder = (encoders or {})[sensor.name]
            tokens = SensorTokens(width, sensor.tokens, make_encoder, rngs)
            setattr(self, f"sensor_{sensor.name}", tokens)
        paths = []
        for name, make in makers.items():
            task: Task = make(width, rngs)
            setattr(self, task.path, task)
            paths.append((name, task.path))
        self._task_paths = tuple(paths)

    def tasks(self) -> dict[str, Task]:
        """The auxiliary tasks by name."""
        return {name: getattr(self, path) for name, path in self._task_paths}

    # --------------------------------------------------------------------------------- training

    def loss(self, batch: Batch, key: jax.Array) -> Objective:
        """What the window costs in every task, in float32; steps before the episode began are left
        out.
        """
        config = self.config
        expected = (config.window, config.chunk, config.action_dim)
        if batch.actions.shape[1:] != expected:
            raise ValueError(
                f"VLA.loss: batch.actions: expected [b, window={config.window},"
                f" chunk={config.chunk}, action_dim={config.action_dim}], got"
                f" {batch.actions.shape}; give loader and model the same config"
            )
        cameras = self._seen(batch.obs)
        visual = sequence.concat_tokens(cameras).tokens
        context, queries = self._encode_batch(batch, cameras, jax.random.fold_in(key, 1))
        given = (context, batch.actions, action_mask(batch))
        if config.history_start == "grow" and self.head.trains_on == "readouts":
            given = starts.grown(*given, batch.obs.step_mask)
        action = self.head.loss(*given, key)
        out = Objective({"action": action.sum}, dict(action.metrics))
        for name, task in self.tasks().items():
            if task.counted(batch) is None:
                continue
            seen = (visual, context.readouts, queries[name], self.text_logits, self.backbone.logits)
            pair = task.loss(Encoded(*seen), batch)
            out.sums[name] = jnp.sum(pair[0])
            out.metrics[name] = jax.lax.stop_gradient(pair)
        return out

    def mask_counts(self, batch: Batch) -> dict[str, Array]:
        """How much of every task of `loss` is in a batch, from its masks alone: known before the
        first gradient.
        """
        masks: dict[str, Any] = {"action": counted_steps(action_mask(batch))}
        masks |= {name: task.counted(batch) for name, task in self.tasks().items()}
        present = {name: mask for name, mask in masks.items() if mask is not None}
        return {name: jnp.sum(mask, dtype=jnp.float32) for name, mask in present.items()}

    def _encode_batch(
        self, batch: Batch, cameras: list[MaskedTokens], key: jax.Array
    ) -> tuple[HeadContext, dict[str, Array]]:
        """What the head trains on, and each task's hidden states at its queries, from one pass."""
        config, head, tasks = self.config, self.head, self.tasks()
        obs, mask = hide_past_actions(batch.obs, config.past, key), action_mask(batch)
        strings = {name: task.string(batch) for name, task in tasks.items()}
        strings[HEAD] = head.teacher(batch, mask) if head.trains_on == "tokens" else None
        taught = {name: string for name, string in strings.items() if string is not None}
        tables = {name: task.query_tokens() for name, task in tasks.items()}
        queries = {
            name: self._query_tokens(table, obs.step_mask.size)
            for name, table in tables.items()
            if table is not None
        }
        parts = behind.arranged(self.backbone.embed_text, taught, queries)
        read = 1 if HEAD in taught else config.readouts  # the last one predicts its first token
        whole, num_queries = (
            self.sequence(obs, behind.joined(parts), cameras),
            read + behind.count(parts),
        )
        prefix, predictors = None, None
        if head.trains_on == "prefix":
            hidden, prefix = self._prefix_of_all(whole, num_queries)
        else:
            hidden = self.encode(whole, num_queries, config.window)
        own = behind.hidden_of(hidden, read, parts, taught)
        if HEAD in taught:
            predictors = own[HEAD].reshape(-1, head.num_tokens, self.backbone.width)
        state = self.head_state(obs.proprio, obs.proprio_mask)
        given = (hidden[:, :, :read], predictors, prefix, self.backbone, obs.action_dims, state)
        nothing = hidden[:, :, :0]
        return HeadContext(*given, strings[HEAD]), {n: own.get(n, nothing) for n in tasks}

    def _prefix_of_all(
        self, whole: FrameTokens, num_queries: int
    ) -> tuple[Float[Array, "b t n c"], Prefix]:
        """float32 hidden states at the last tokens of every frame, and the prefix of every
        sequence: a frame, or with history "interleaved" a window.
        """
        window = self.config.window
        t = window if self.config.history == "interleaved" else 1
        after = num_queries - self.config.readouts
        hidden, prefix = prefill(self.backbone, whole, t, self.head.num_tokens, after)
        hidden = hidden.reshape(-1, window, whole.valid.shape[1], self.backbone.width)
        return hidden[:, :, -num_queries:].astype(jnp.float32), prefix

    # ----------------------------------------------------------------------------------- acting

    def act(self, obs: Observation, key: jax.Array) -> Float[Array, "b k d"]:
        """The chunk of normalised actions at the newest step; a binary dim holds the probability of
        1.
        """
        if obs.step_mask.shape[1] != self.config.window:
            raise ValueError(
                f"VLA.act: expected a window of {self.config.window} frames, got"
                f" {obs.step_mask.shape[1]}; keep the last frames and repeat the episode's first"
            )
        if self.head.acts_on == "readouts":
            return self.act_on_readouts(self.readouts(obs), obs.step_mask, obs.action_dims, key)
        # With frames that are encoded each alone nobody would look at the others.
        obs = obs if self.config.history == "interleaved" else newest(obs)
        t = obs.step_mask.shape[1]
        frames, state = self.sequence(obs), self.head_state(obs.proprio, obs.proprio_mask)
        return self.head.act(self.prefix_context(frames, t, obs.action_dims, state), key)[:, -1]

    def act_on_readouts(
        self,
        readouts: Float[Array, "b t n c"],
        present: Bool[Array, "b t"],
        dims: Bool[Array, "b d"] | None,
        key: jax.Array,
        guide: Guide | None = None,
    ) -> Float[Array, "b k d"]:
        """The chunk at the newest step, for a head that acts on readouts. `present` is False before
        the episode began, `dims` for those that the robot lacks.
        """
        grows = self.config.history_start != "repeat"
        read = starts.present_first(readouts, present) if grows else readouts
        chunks = self.head.act(HeadContext(readouts=read, dims=dims, guide=guide), key)
        return starts.newest(chunks, present) if grows else chunks[:, -1]

    def prefix_context(
        self,
        frames: FrameTokens,
        t: int,
        dims: Bool[Array, "b d"] | None,
        state: Float[Array, "b t p"] | None = None,
    ) -> HeadContext:
        """What a head that acts on a prefix looks at: all before its tokens, of windows of t."""
        _, prefix = prefill(self.backbone, frames, t, max(0, self.head.num_tokens - 1))
        return HeadContext(prefix=prefix, backbone=self.backbone, dims=dims, state=state)

    def head_state(
        self, state: Float[Array, "b t p"], mask: Bool[Array, "b p"]
    ) -> Float[Array, "b t p"] | None:
        """The state for a head that looks at it itself; None for others."""
        return jnp.where(mask[:, None], state, 0.0) if self.config.state_to_head else None

    def readouts(self, obs: Observation) -> Float[Array, "b t n c"]:
        """The backbone's hidden states at the readout tokens of every frame, in float32.

        With history "head" each frame is encoded alone, so any t is welcome: a rollout encodes the
        new frame and keeps the older readouts.
        """
        return self.encode(self.sequence(obs), self.config.readouts, obs.step_mask.shape[1])

    # -------------------------------------------------------------------------------- sequences

    def sequence(
        self,
        obs: Observation,
        extra: MaskedTokens | None = None,
        cameras: list[MaskedTokens] | None = None,
    ) -> FrameTokens:
        """The tokens of each frame, with `extra` behind its readouts; `cameras` are its visual
        tokens where they are known.
        """
        b, t = obs.step_mask.shape
        if cameras is None:
            cameras = self._seen(obs)
        words = prompt_tokens(self.backbone, obs, self.config.state_words)
        scalars = []
        if self.embodiment is not None:
            if obs.embodiment is None:
                raise ValueError("Observation.embodiment: expected which robot it is, got None")
            robot = jnp.repeat(self.embodiment(obs.embodiment)[:, None], t, axis=1)
            scalars.append(self._scalar_token(robot, jnp.ones((b, t), bool)))
        if self.state is not None:
            known = jnp.repeat(jnp.any(obs.proprio_mask, axis=1)[:, None], t, axis=1)
            scalars.append(self._scalar_token(self.state(obs.proprio, obs.proprio_mask), known))
        if self.past is not None:
            if obs.past_action is None or obs.past_action_mask is None:
                raise ValueError(
                    "Observation.past_action: expected the actions before the frames, got None"
                )
            token = self.past(obs.past_action)
            scalars.append(self._scalar_token(token, obs.past_action_mask))
        scalars += [self._sensor_tokens(sensor, obs) for sensor in self.config.sensors]
        readouts = self._query_tokens(self.readout_embedding[...], b * t)
        whole = sequence.assemble(
            self.config.layout,
            self.backbone.cross_attends,
            cameras,
            words,
            scalars,
            (readouts, extra),
        )
        if self.config.mutual:
            after = 0 if extra is None else extra.tokens.shape[1]
            whole = sequence.mutual(whole, self.config.readouts, after)
        whole = self._squared(whole, sequence.FIRST_IMAGE[self.config.layout], cameras)
        if self.config.history == "interleaved":
            began = obs.step_mask.reshape(-1, 1)
            media = (
                None
                if whole.media is None
                else whole.media._replace(valid=whole.media.valid & began)
            )
            whole = dataclasses.replace(whole, valid=whole.valid & began, media=media)
        return whole

    def encode(self, whole: FrameTokens, num_queries: int, t: int) -> Float[Array, "b t n c"]:
        """float32 hidden states at the last `num_queries` tokens of each frame, of windows of t."""
        if self.config.history == "interleaved":
            whole = sequence.in_row(whole, t)
            x, mask = sequence.concat_frames(whole, t)
            places = sequence.places(whole, t)
            hidden = self.backbone(x, mask, places, num_queries, sequence.media(whole, t))
        else:
            places = sequence.places(whole)
            hidden = self.backbone(
                whole.tokens,
                sequence.per_frame_mask(whole),
                places,
                num_queries,
                sequence.media(whole),
            )
        return hidden.astype(jnp.float32).reshape(-1, t, num_queries, self.backbone.width)

    def text_logits(
        self,
        images: tuple[UInt8[Array, "b _ _ 3"], ...],
        seen: Bool[Array, "b cameras"],
        tokens: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        target: Bool[Array, "b l"],
    ) -> Float[Array, "b l vocab"]:
        """Logits at a text's tokens behind the images of each camera; targets see only what stands
        before them.
        """
        cameras = self.encode_cameras(images, seen)
        image = sequence.concat_tokens(cameras if self.config.layout == "prefix" else cameras[::-1])
        text = MaskedTokens(self.backbone.embed_text(tokens), mask)
        whole = sequence.of_text(
            self.config.layout, self.backbone.cross_attends, image, text, target
        )
        whole = self._squared(whole, 0, cameras)
        hidden = self.backbone(
            whole.tokens,
            sequence.per_frame_mask(whole),
            sequence.places(whole),
            tokens.shape[1],
            sequence.media(whole),
        )
        return self.backbone.logits(hidden)

    def encode_cameras(
        self, images: tuple[UInt8[Array, "*f _ _ 3"], ...], mask: Bool[Array, "f cameras"]
    ) -> list[MaskedTokens]:
        """The visual tokens of each camera, from its images: one pass for those of equal size."""
        out: dict[int, MaskedTokens] = {}
        for size in dict.fromkeys(image.shape[-2] for image in images):
            cameras = [i for i, image in enumerate(images) if image.shape[-2] == size]
            # Cameras are stacked inside the frame, not along the batch, so that a sharded batch
            # stays where it is.
            stacked = jnp.stack([images[i] for i in cameras], axis=-4)  # *f cameras h w 3
            visual = self.backbone.embed_image(stacked.reshape(-1, *stacked.shape[-3:]))
            if self.config.resampler is not None:  # fewer tokens have no place in the picture
                visual = visual[..., : self.backbone.visual_width]
            if self.resampler is not None:
                visual = self.resampler(visual)
            visual = visual.reshape(-1, len(cameras), *visual.shape[1:])  # f cameras v w
            for i, camera in enumerate(cameras):
                tokens = visual[:, i]
                if self.keypoints is not None:
                    tokens = self.keypoints[camera](tokens)
                valid = jnp.broadcast_to(mask[:, camera, None], tokens.shape[:2])
                out[camera] = MaskedTokens(tokens, valid)
        return [out[camera] for camera in range(len(images))]

    def _seen(self, obs: Observation) -> list[MaskedTokens]:
        """The visual tokens of each camera in each frame."""
        if len(obs.images) != len(self.config.cameras):
            raise ValueError(
                f"Observation.images: expected one array per camera {self.config.cameras}, got"
                f" {len(obs.images)}; give loader and model the same cameras"
            )
        return self.encode_cameras(obs.images, obs.image_mask.reshape(obs.step_mask.size, -1))

    def _squared(self, whole: FrameTokens, first: int, cameras: list[MaskedTokens]) -> FrameTokens:
        """With rows and columns in the places of images, which begin at token `first`, if the
        backbone has them.
        """
        if not self.backbone.grid_positions or self.config.resampler is not None:
            return whole
        inside = cameras if self.config.layout == "prefix" else cameras[::-1]
        return sequence.squared(whole, first, inside)

    def _scalar_token(
        self, token: Float[Array, "b t c"], known: Bool[Array, "b t"]
    ) -> MaskedTokens:
        return MaskedTokens(
            self._learned(token).reshape(-1, 1, token.shape[-1]), known.reshape(-1, 1)
        )

    def _sensor_tokens(self, sensor: Sensor, obs: Observation) -> MaskedTokens:
        """A sensor's tokens in every frame: there, whatever the reading."""
        if sensor.name not in obs.sensors:
            raise ValueError(
                f"Observation.sensors: expected {sensor.name} of model.sensors, got"
                f" {', '.join(obs.sensors) or 'none'}; give loader and model the same sensors"
            )
        make: SensorTokens = getattr(self, f"sensor_{sensor.name}")
        tokens = self._learned(make(obs.sensors[sensor.name]))
        return MaskedTokens(tokens, jnp.ones(tokens.shape[:2], bool))

    def _learned(self, tokens: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """Learned tokens on the scale on which the layout has them."""
        scale = 1.0 if self.config.layout == "prefix" else self.backbone.text_scale
        return tokens * jnp.asarray(scale, tokens.dtype)

    def _query_tokens(self, table: Float[Array, "q c"], frames: int) -> MaskedTokens:
        """Learned queries, in every frame."""
        tokens = jnp.broadcast_to(self._learned(table)[None], (frames, *table.shape))
        return MaskedTokens(tokens, jnp.ones(tokens.shape[:2], bool))
