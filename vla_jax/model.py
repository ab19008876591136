"""VLA: observation -> token sequence -> backbone -> readouts -> head.

Each frame of the window is one sequence (layout "prefix", drawn for two cameras, a three-token prompt padded to four
and two readouts; v = tokens_per_image):

    tokens      [ primary 0..v | wrist 0..v | <bos> prompt \\n <pad> | readout readout ]
    valid         image_mask     image_mask   1     1      1  0        1       1
    positions     0 .. v-1       v .. 2v-1    2v    2v+1 2v+2 -        2v+3    2v+4
    may look at  <--------- every valid prefix token ---------->      prefix and earlier readouts

The prefix is bidirectional, the readouts are causal and stand at the true end whatever the padding: a masked camera or
pad token takes no position and nobody looks at it. The hidden states at the readouts go to the head, which alone fuses
time (history "head"); with history "one_step" the window is a single frame.

Left padding: a window that reaches back before its episode repeats the first frame there, with `step_mask` False. The
head reads those slots like any other and only the loss leaves them out. A rollout must do the same: at step 0 it fills
its window by repeating the first frame (equivalently, that frame's readouts), and then training and rollout agree
exactly.

Axes: b batch, t window step, f = b * t frames, k chunk step, d action dim, n readout tokens, c width, s sequence,
l text, v visual tokens of one image.
"""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from vla_jax.resampler import Resampler, ResamplerConfig
from vla_jax.types import Array, Backbone, Batch, Loss, Observation, PolicyHead

LAYOUTS = ("prefix",)
HISTORIES = ("head", "one_step")


@dataclass(frozen=True)
class VLAConfig:
    """The sizes and the sequence of a policy. `cameras` is the order of the images, in Observation and in tokens."""

    window: int
    chunk: int
    action_dim: int
    cameras: tuple[str, ...]
    layout: str = "prefix"
    history: str = "head"
    readouts: int = 1  # action query tokens per frame
    resampler: ResamplerConfig | None = None  # fewer visual tokens per image; None keeps the backbone's

    def __post_init__(self) -> None:
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
    """A vision-language-action policy: a types.Backbone, learnable readout tokens and a types.PolicyHead."""

    def __init__(self, backbone: nnx.Module, head: nnx.Module, config: VLAConfig, rngs: nnx.Rngs) -> None:
        self.backbone = cast(Backbone, backbone)  # modules, to own parameters; protocols, to be called
        self.head = cast(PolicyHead, head)
        self.config = config
        # Zero like RoboVLMs' action token: readouts start alike and are told apart by their positions.
        init = nnx.initializers.zeros_init()
        shape = (config.readouts, self.backbone.width)
        self.readout_embedding = nnx.Param(init(rngs.params(), shape, jnp.float32), logical=(None, "embed"))
        self.resampler = Resampler(self.backbone.width, config.resampler, rngs) if config.resampler else None

    def loss(self, batch: Batch, key: jax.Array) -> Loss:
        """The head's loss over the window, in float32; steps before the episode began are left out."""
        config, expected = self.config, (self.config.window, self.config.chunk, self.config.action_dim)
        if batch.actions.shape[1:] != expected:
            raise ValueError(
                f"VLA.loss: batch.actions: expected [b, window={config.window}, chunk={config.chunk}, "
                f"action_dim={config.action_dim}], got {batch.actions.shape}; give loader and model the same config"
            )
        mask = batch.action_mask & batch.obs.step_mask[:, :, None, None]  # b t k d
        return self.head.loss(self.readouts(batch.obs), batch.actions, mask, key)

    def act(self, obs: Observation, key: jax.Array) -> Float[Array, "b k d"]:
        """The chunk of normalised actions at the newest step; a binary dim holds the probability of 1."""
        if obs.step_mask.shape[1] != self.config.window:
            raise ValueError(
                f"VLA.act: expected a window of {self.config.window} frames, got {obs.step_mask.shape[1]}; "
                "keep the last frames and repeat the first one before the episode began"
            )
        return self.head.act(self.readouts(obs), key)[:, -1]

    def readouts(self, obs: Observation) -> Float[Array, "b t n c"]:
        """The backbone's hidden states at the readout tokens of every frame, in float32.

        Each frame is encoded alone, so any t is welcome: a rollout encodes the new frame and keeps the older readouts.
        """
        (b, t), n = obs.step_mask.shape, self.config.readouts
        tokens, valid = self._sequence(obs)
        hidden = self.backbone(tokens, attention_mask(valid, n), positions(valid), readout=n)  # f n c
        return hidden.astype(jnp.float32).reshape(b, t, n, self.backbone.width)

    def _sequence(self, obs: Observation) -> tuple[Float[Array, "f s c"], Bool[Array, "f s"]]:
        """Each frame's images in camera order, then the prompt, then the readouts; and which of these are real."""
        if len(obs.images) != len(self.config.cameras):
            raise ValueError(
                f"Observation.images: expected one array per camera {self.config.cameras}, got {len(obs.images)}; "
                "give loader and model the same cameras"
            )
        (b, t), c = obs.step_mask.shape, self.backbone.width
        frames = b * t
        # Cameras are stacked inside the frame, not along the batch, so that a sharded batch stays where it is.
        images = jnp.stack(obs.images, axis=2)  # b t cameras h w 3
        visual = self.backbone.embed_image(images.reshape(-1, *images.shape[3:]))  # b*t*cameras v c
        if self.resampler is not None:
            visual = self.resampler(visual)
        per_image = visual.shape[1]
        visual = visual.reshape(frames, -1, c)  # f cameras*v c
        seen = jnp.repeat(obs.image_mask.reshape(frames, -1), per_image, axis=1)  # f cameras*v
        # Text is embedded once per example and repeated for its frames.
        text = jnp.repeat(self.backbone.embed_text(obs.prompt), t, axis=0)  # f l c
        queries = jnp.broadcast_to(self.readout_embedding[...][None], (frames, self.config.readouts, c))
        tokens = jnp.concatenate([visual, text.astype(visual.dtype), queries.astype(visual.dtype)], axis=1)
        said = jnp.repeat(obs.prompt_mask, t, axis=0)  # f l
        return tokens, jnp.concatenate([seen, said, jnp.ones(queries.shape[:2], bool)], axis=1)


def attention_mask(valid: Bool[Array, "f s"], readouts: int) -> Bool[Array, "f s s"]:
    """Who may look at whom: everyone at every valid prefix token, readouts also at earlier readouts and themselves."""
    s = valid.shape[1]
    query, key = jnp.arange(s)[:, None], jnp.arange(s)[None, :]
    allowed = (key < s - readouts) | (key <= query)  # s s
    # Every token sees itself, so that no softmax row of a pad token is empty: nothing reads that row, but NaN spreads.
    return (valid[:, None, :] & allowed[None]) | (query == key)[None]


def positions(valid: Bool[Array, "f s"]) -> Int[Array, "f s"]:
    """The place of each token among the valid ones: masked tokens take no position."""
    return jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
