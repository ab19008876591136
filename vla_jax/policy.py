"""The policy in JAX for rollouts: it keeps the window, runs the backbone on new frames alone,
speaks robot units.

A rollout gives what training saw: with the same frames, `act` equals VLA.act on the window that the
loader would make, its frames before the episode included (model.history_start).

    history "head"         the readouts of the last `window` frames are kept; the head reads them
                           again at each step
    history "interleaved"  while the window fills, the keys and values of its frames are kept and
                           only the new frame runs through the decoder; once it slides, every frame
                           has lost sight of the oldest, so the decoder runs over the whole window
                           again, on embedded tokens that are kept: images are embedded once

Axes: t window step, k chunk step, d action dim, p proprio, s tokens of a frame, n readouts, c
width.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from PIL import Image

from vla_jax.actions import ActionSpec, places
from vla_jax.models import sequence
from vla_jax.models.attention import Cache
from vla_jax.models.sequence import FrameTokens, MaskedTokens
from vla_jax.models.vla import VLA
from vla_jax.params import Params, merge
from vla_jax.robot import relative, sensing
from vla_jax.types import (
    Array,
    Media,
    Observation,
    ObservationSizes,
    SensorReading,
    new_observation,
)


@dataclass(frozen=True)
class PolicyIO:
    """What stands between a robot and the network; all of it travels with a checkpoint.

    Attributes:
        image_size: pixels of a side that the network takes, one per camera; other images are
            resized.
        prompt_length: tokens.
        encode: an instruction to its token ids.
        action_spec, state_spec: normalisation of the dataset whose robot this is.
        action_names, state_names: the policy's dims, among which that dataset's are found by name;
            (): they are the dataset's.
        embodiment: which of the policy's robots it is.
        seed: of heads that draw (flow, discrete with a temperature).
        resize: how, one of types.RESIZES, as in the loader.
        sensor_specs: normalisation of the dataset's sensors, of those that statistics normalise.
    """

    image_size: tuple[int, ...]
    prompt_length: int
    encode: Callable[[str], np.ndarray]
    action_spec: ActionSpec
    state_spec: ActionSpec
    seed: int = 0
    resize: str = "lanczos"
    action_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    embodiment: int = 0
    sensor_specs: Mapping[str, ActionSpec] = dataclasses.field(default_factory=dict)


class Stages(NamedTuple):
    """The newest frame's readouts, and the chunk as the network gives it: a binary dim holds the
    probability of 1.
    """

    readout: Float[np.ndarray, "n c"]
    action: Float[np.ndarray, "k d"]


class _Kept(NamedTuple):
    """Keys and values of the frames of a window that still fills, and which slots hold a valid
    token.
    """

    cache: Cache
    seen: jax.Array  # 1 slots
    place: jax.Array  # the next frame's first position


class JaxPolicy:
    """types.Policy for a trained VLA."""

    def __init__(self, graphdef: nnx.GraphDef, params: Params, io: PolicyIO) -> None:
        self._params, self._io, self._graphdef = params, io, graphdef
        action, state = io.action_spec.names, io.state_spec.names
        self._action_places = places(action, io.action_names or action)
        self._state_places = places(state, io.state_names or state)
        config = self._config = self._model(params).config
        # The policy's action dims that this robot has: 1 d.
        self._dims = np.isin(np.arange(config.action_dim), self._action_places)[None]
        self._interleaved = config.history == "interleaved"
        self._on_prefix = self._model(params).head.acts_on == "prefix"
        self._embed = jax.jit(lambda params, obs: self._model(params).sequence(obs))
        self._encode = jax.jit(
            lambda params, frames, t: self._model(params).encode(frames, config.readouts, t),
            static_argnums=2,
        )
        self._extend = jax.jit(self._extended)
        self._act_on_readouts = jax.jit(
            lambda params, readouts, present, dims, key: self._model(params).act_on_readouts(
                readouts, present, dims, key
            )
        )
        self._act_on_prefix = jax.jit(self._acted_on_prefix, static_argnums=2)
        self._prompt: tuple[np.ndarray, np.ndarray] | None = None

    def _model(self, params: Params) -> VLA:
        return cast(VLA, merge(self._graphdef, params))

    def reset(self, instruction: str) -> None:
        """Begins an episode. Raises ValueError when the instruction has too many tokens."""
        ids, length = np.asarray(self._io.encode(instruction)), self._io.prompt_length
        if len(ids) > length:
            raise ValueError(
                f"instruction: expected at most {length} tokens, got {len(ids)}: {instruction!r}"
            )
        prompt = np.zeros((1, length), np.int32)
        prompt[0, : len(ids)] = ids
        self._prompt = prompt, (np.arange(length) < len(ids))[None]
        self._step = 0
        self._frames: deque[FrameTokens] = deque(maxlen=self._config.window)
        self._readouts: deque[jax.Array] = deque(maxlen=self._config.window)
        self._kept: _Kept | None = None
        self._last: np.ndarray | None = None
        self._lasting: dict[str, sensing.Reading] = {}

    def act(
        self,
        images: dict[str, np.ndarray],
        proprio: np.ndarray | None = None,
        executed: np.ndarray | None = None,
        sensors: Mapping[str, Any] | None = None,
    ) -> Float[np.ndarray, "k d"]:
        """The next k actions in robot units, from uint8 RGB images [h w 3] of all cameras and the
        state [p].

        `executed` [d] is the action carried out since the last call, for models that see it; None:
        the first of the last chunk. `sensors` are readings by name, in the robot's units, as
        sensing.py says of each kind; what is not there the model does without, but speech, which
        stands until the next comes. Raises ValueError for missing or unknown cameras, images that
        are not uint8 RGB, what is no reading of a sensor, and missing state, where the model sees
        it or the actions are relative to it.
        """
        self._check_frame(images)
        parts, names = self._io.action_spec.relative, self._io.state_spec.names
        measured = relative.starting_state(parts, names, proprio) if parts else None
        obs = self._observation(images, proprio, executed, measured)
        frame = self._embed(self._params, obs._replace(sensors=self._readings(sensors)))
        key = jax.random.fold_in(jax.random.key(self._io.seed), self._step)
        if self._on_prefix:
            self._remember(frame)
            t = self._config.window if self._interleaved else 1
            frames = tuple(self._frames)[-t:]
            chunk = self._act_on_prefix(self._params, frames, t, self._dims, key)
        else:
            for new in self._new_readouts(frame):
                self._readouts.append(new)
            readouts = jnp.concatenate(tuple(self._readouts), axis=1)
            t = self._config.window
            present = (np.arange(t) >= t - 1 - self._step)[None]
            chunk = self._act_on_readouts(self._params, readouts, present, self._dims, key)
        self._step += 1
        self._normalised = np.asarray(chunk, np.float32)[0]
        own = self._normalised[:, self._action_places]
        actions = self._io.action_spec.unnormalise(own, measured)
        self._last = actions[0]
        return actions

    def stages(self) -> Stages:
        """What the last `act` made on its way to the actions: for comparisons with other programs
        (export/).
        """
        if self._on_prefix:
            t = self._config.window if self._interleaved else 1
            readouts = self._encode(self._params, _stacked(tuple(self._frames)[-t:]), t)
        else:
            readouts = self._readouts[-1]
        return Stages(np.asarray(readouts, np.float32)[0, -1], self._normalised)

    def _readings(self, given: Mapping[str, Any] | None) -> dict[str, SensorReading]:
        """What the network sees of the sensors of a frame."""
        normalise = {name: spec.normalise for name, spec in self._io.sensor_specs.items()}
        seen = sensing.readings(self._config.sensors, given, normalise, self._lasting)
        return {
            name: SensorReading(values[None, None], mask[None, None])
            for name, (values, mask) in seen.items()
        }

    def _check_frame(self, images: Any) -> None:
        """Raises ValueError before an episode begins, and for other cameras."""
        if self._prompt is None:
            raise ValueError("JaxPolicy.act: expected reset(instruction) before the first frame")
        cameras = self._config.cameras
        if set(images) != set(cameras):
            raise ValueError(f"images: expected the cameras {cameras}, got {tuple(images)}")

    def _observation(
        self, images: Any, proprio: Any, executed: Any, measured: np.ndarray | None
    ) -> Observation:
        """A frame as the network takes it; `measured` is what relative actions start from."""
        assert self._prompt is not None
        config, io, first = self._config, self._io, self._step == 0
        sizes = ObservationSizes(
            b=1,
            t=1,
            p=len(io.state_names or io.state_spec.names),
            l=io.prompt_length,
            d=config.action_dim,
            image_size=io.image_size,
            past_action=True,
        )
        obs = new_observation(sizes, np.zeros)
        if proprio is not None:
            state = io.state_spec.normalise(np.asarray(proprio, np.float32))
            obs.proprio[0, 0, self._state_places] = state
            obs.proprio_mask[0, self._state_places] = True
        elif config.state is not None and io.state_spec.names:
            raise ValueError(
                f"proprio: expected {', '.join(io.state_spec.names)}, got None; the model sees the"
                " state"
            )
        if not first and obs.past_action is not None:
            last = self._last if executed is None else executed
            past = io.action_spec.normalise(np.asarray(last, np.float32), measured)
            obs.past_action[0, 0, self._action_places] = past
        return obs._replace(
            images=tuple(
                _fitted(images[name], size, io.resize, name)[None, None]
                for name, size in zip(config.cameras, io.image_size, strict=True)
            ),
            image_mask=np.ones_like(obs.image_mask),
            prompt=self._prompt[0],
            prompt_mask=self._prompt[1],
            step_mask=np.ones((1, 1), bool),
            past_action_mask=np.full((1, 1), not first),
            action_dims=self._dims,
            embodiment=np.full(1, io.embodiment, np.int32),
        )

    def _remember(self, frame: FrameTokens) -> None:
        """Puts a frame at the window's end; before the first stand frames that nobody sees."""
        for _ in range(0 if self._frames else self._config.window - 1):
            self._frames.append(_unseen(frame))
        self._frames.append(frame)

    def _new_readouts(self, frame: FrameTokens) -> list[jax.Array]:
        """The readouts to put at the window's end, [1 1 n c] each: that of the new frame, or all of
        them.
        """
        window, params = self._config.window, self._params
        if not self._interleaved:
            new = self._encode(params, frame, 1)
            return [new] * (window - len(self._readouts)) or [new]
        first = not self._frames
        self._remember(frame)
        if self._step >= window:
            self._kept = None
            whole = self._encode(params, _stacked(tuple(self._frames)), window)
            return [whole[:, i : i + 1] for i in range(window)]
        blank = [self._encode(params, _unseen(frame), 1)] * (window - 1) if first else []
        new, self._kept = self._extend(
            params, frame, self._kept, tuple(part.media for part in self._frames)
        )
        return [*blank, new]

    def _extended(
        self,
        params: Params,
        frame: FrameTokens,
        kept: _Kept | None,
        images: tuple[MaskedTokens | None, ...],
    ) -> tuple[Array, _Kept]:
        """The new frame's readouts behind the kept keys and values, and those with the frame's
        shared tokens.

        `images` is the media of the window's frames, all of which the newest one sees.
        """
        model = self._model(params)
        frame = frame if kept is not None else sequence.in_row(frame, 1)
        s, n = frame.valid.shape[1], self._config.readouts
        shared = s - frame.num_unshared
        if kept is None:
            slots = self._config.window * shared + frame.num_unshared
            kept = _Kept(
                model.backbone.cache(1, slots),
                jnp.zeros((1, slots), bool),
                jnp.zeros((), jnp.int32),
            )
        cache, length = kept.cache, kept.cache.length
        own = jax.lax.dynamic_update_slice(
            jnp.zeros((1, s, kept.seen.shape[1]), bool),
            sequence.per_frame_mask(frame),
            (0, 0, length),
        )
        places = kept.place + jnp.maximum(jnp.cumsum(frame.valid, axis=1) - 1, 0)
        media = None
        if frame.media is not None:
            seen_images = sequence.concat_tokens([part for part in images if part is not None])
            media = Media(
                seen_images.tokens,
                jnp.broadcast_to(seen_images.valid[:, None], (1, s, seen_images.valid.shape[1])),
            )
        hidden, cache = model.backbone.decode(
            frame.tokens, own | kept.seen[:, None], places, cache, media
        )
        seen = jax.lax.dynamic_update_slice(kept.seen, frame.valid[:, :shared], (0, length))
        place = kept.place + jnp.sum(frame.valid[:, :shared])
        # The slots of tokens that are not shared are free again: nobody sees them, and the next
        # frame takes them.
        return hidden[:, None, s - n :].astype(jnp.float32), _Kept(
            cache._replace(length=length + shared), seen, place
        )

    def _acted_on_prefix(
        self,
        params: Params,
        frames: tuple[FrameTokens, ...],
        t: int,
        dims: Array,
        key: jax.Array,
    ) -> Array:
        model = self._model(params)
        return model.head.act(model.prefix_context(_stacked(frames), t, dims), key)[:, -1]


def _unseen(frame: FrameTokens) -> FrameTokens:
    """The frame with nothing in it that anybody sees: a slot before the episode began."""
    media = (
        None
        if frame.media is None
        else frame.media._replace(valid=jnp.zeros_like(frame.media.valid))
    )
    return dataclasses.replace(frame, valid=jnp.zeros_like(frame.valid), media=media)


def _stacked(frames: tuple[FrameTokens, ...]) -> FrameTokens:
    """Frames of one robot, one behind the other."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *frames)


def _fitted(image: np.ndarray, size: int, how: str, name: str) -> np.ndarray:
    """The image of the camera `name` at the network's size. Raises ValueError when it is not uint8
    RGB.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"images[{name!r}]: expected uint8 [h, w, 3], got {image.dtype} {image.shape}"
        )
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling[how.upper()]))
