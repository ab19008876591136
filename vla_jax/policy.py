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

import copy
import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from vla_jax.models import sequence
from vla_jax.models.attention import Cache
from vla_jax.models.sequence import FrameTokens, MaskedTokens
from vla_jax.models.vla import VLA
from vla_jax.params import Params, merge
from vla_jax.policy_io import PolicyIO, observation
from vla_jax.policy_rows import of_all, of_rows
from vla_jax.robot import realtime, relative, sensing
from vla_jax.robot.held import at_rest, is_none
from vla_jax.types import (
    Array,
    Guide,
    Media,
    Observation,
    Seen,
    SensorReading,
)


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


class _Given(NamedTuple):
    """A frame as the network takes it, the state that relative actions start from, and what the
    chunk is led to.
    """

    obs: Observation
    measured: np.ndarray | None
    guide: Guide | None


class JaxPolicy:
    """types.Policy for a trained VLA. `held` counts the steps of an episode for which its head had
    no chunk, and the robot was held (robot/held.py).
    """

    def __init__(self, graphdef: nnx.GraphDef, params: Params, io: PolicyIO) -> None:
        self._params, self._io, self._graphdef = params, io, graphdef
        config = self._config = self._model(params).config
        # The policy's action dims that this robot has: 1 d.
        self._dims = np.isin(np.arange(config.action_dim), io.action_places)[None]
        self._interleaved = config.history == "interleaved"
        head = self._model(params).head
        self._on_prefix, self._inpaints = head.acts_on == "prefix", head.inpaints
        self._together = 1  # episodes that programs are compiled for
        self._embed = of_rows(lambda params, obs: self._model(params).sequence(obs))
        self._encode = of_rows(
            lambda params, frames: self._model(params).encode(
                _stacked(frames), config.readouts, len(frames)
            )
        )
        self._extend = of_rows(self._extended)
        self._act_on_readouts = of_rows(
            lambda params, readouts, present, dims, draw, guide: self._model(
                params
            ).act_on_readouts(jnp.concatenate(readouts, axis=1), present, dims, _key(draw), guide)
        )
        self._act_on_prefix = of_rows(self._acted_on_prefix)
        self._prompt: tuple[np.ndarray, np.ndarray] | None = None

    def _model(self, params: Params) -> VLA:
        return cast(VLA, merge(self._graphdef, params))

    def reset(self, instruction: str, seed: int | None = None) -> None:
        """Begins an episode. `seed` is of what it draws there, where not all episodes are to draw
        alike. Raises ValueError when the instruction has too many tokens.
        """
        ids, length = np.asarray(self._io.encode(instruction)), self._io.prompt_length
        if len(ids) > length:
            raise ValueError(
                f"instruction: expected at most {length} tokens, got {len(ids)}: {instruction!r}"
            )
        prompt = np.zeros((1, length), np.int32)
        prompt[0, : len(ids)] = ids
        self._prompt = prompt, (np.arange(length) < len(ids))[None]
        self._step = self.held = 0
        self._seed = self._io.seed if seed is None else seed
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
        underway: realtime.Underway | None = None,
    ) -> Float[np.ndarray, "k d"]:
        """The next k actions in robot units, from uint8 RGB images [h w 3] of all cameras and the
        state [p].

        `executed` [d] is the action carried out since the last call, for models that see it; None:
        the first of the last chunk. `sensors` are readings by name, in the robot's units, as
        sensing.py says of each kind; what is not there the model does without, but speech, which
        stands until the next comes. To the plan `underway` meanwhile keeps the chunk of a head that
        flows. Raises ValueError for missing or unknown cameras, images that are not uint8 RGB, what
        is no reading of a sensor, and missing state, where the model sees it or the actions are
        relative to it; and as realtime.check.
        """
        seen = Seen(images, proprio, executed, sensors, underway)
        return self.act_together([self], [seen])[0]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those of which it wants an image."""
        return self._config.cameras

    def with_params(self, params: Params) -> "JaxPolicy":
        """The same with other parameters of the same shapes: nothing is compiled anew."""
        out = copy.copy(self)
        out._params, out._prompt = params, None
        return out

    def sessions(self, n: int) -> "list[JaxPolicy]":
        """`n` policies on this network, for as many episodes at once; see `act_together`."""
        out = [copy.copy(self) for _ in range(n)]
        for each in out:
            each._together, each._prompt = n, None
        return out

    @staticmethod
    def act_together(
        policies: "Sequence[JaxPolicy]", seen: Sequence[Seen]
    ) -> list[Float[np.ndarray, "k d"]]:
        """`act` of several `sessions` of one policy, in one pass. Its programs are those of all
        sessions, however many of them are asked, so that an episode's actions depend on no other's.
        Raises as `act` does; the episodes then stand where they stood.
        """
        lead = policies[0]
        if any(policy._params is not lead._params for policy in policies):
            raise ValueError("act_together: expected sessions of one policy; `sessions` makes them")
        given = [policy._prepared(each) for policy, each in zip(policies, seen, strict=True)]
        frames = lead._run(lead._embed, [(one.obs,) for one in given])
        guides = of_all([one.guide for one in given])
        draws = [(np.uint32(policy._seed), np.uint32(policy._step)) for policy in policies]
        if lead._on_prefix:
            for policy, frame in zip(policies, frames, strict=True):
                policy._remember(frame)
            rows = [
                (policy._newest(), policy._dims, draw, (obs.proprio, obs.proprio_mask), guide)
                for policy, draw, (obs, _, _), guide in zip(
                    policies, draws, given, guides, strict=True
                )
            ]
            chunks = lead._run(lead._act_on_prefix, rows)
        else:
            _read(policies, frames)
            t = np.arange(lead._config.window)
            chunks = lead._run(
                lead._act_on_readouts,
                [
                    (
                        tuple(each._readouts),
                        (t >= t[-1] - each._step)[None],
                        each._dims,
                        draw,
                        guide,
                    )
                    for each, draw, guide in zip(policies, draws, guides, strict=True)
                ],
            )
        return [
            policy._acted(np.asarray(chunk, np.float32)[0], one.measured)
            for policy, chunk, one in zip(policies, chunks, given, strict=True)
        ]

    def _run(self, program: Any, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
        """A program of of_rows on each row of arguments; the last one fills what is not asked."""
        filled = [*rows, *[rows[-1]] * (self._together - len(rows))]
        return program(self._params, tuple(filled))[: len(rows)]

    def _prepared(self, seen: Seen) -> _Given:
        """A frame as the network takes it."""
        self._check_frame(seen.images)
        measured, past = self._measured(seen), None
        if self._step:
            last = self._last if seen.executed is None else seen.executed
            past = self._io.action_spec.normalise(np.asarray(last, np.float32), measured)
        assert self._prompt is not None
        obs = observation(self._io, self._config, seen, past)
        guide = self._io.guide(self._config, self._inpaints, seen.underway, measured)
        ids, mask = self._prompt
        obs = obs._replace(prompt=ids, prompt_mask=mask, action_dims=self._dims)
        self._obs = obs._replace(sensors=self._readings(seen.sensors))
        return _Given(self._obs, measured, guide)

    def _acted(self, chunk: np.ndarray, measured: np.ndarray | None) -> np.ndarray:
        """Ends a step: the network's chunk [k d] in robot units."""
        self._step += 1
        self._normalised, spec = chunk, self._io.action_spec
        if is_none(chunk):
            self.held += 1
            actions = at_rest(spec, self._io.motion, len(chunk), self._last, measured)
        else:
            actions = spec.unnormalise(chunk[:, self._io.action_places], measured)
        self._last = actions[0]
        return actions

    def looked(self, seen: Seen) -> Observation:
        """A frame of the episode as the network takes it, where somebody else acts: what was
        carried out stands in `seen`.
        """
        obs = self._prepared(seen)[0]
        self._step += 1
        return obs

    def in_network_units(self, actions: np.ndarray, seen: Seen) -> Float[np.ndarray, "k d"]:
        """Actions [k d'] of this robot, carried out from the frame `seen` on, as the network gives
        them.
        """
        spec, values = self._io.action_spec, np.asarray(actions, np.float32)
        out = np.zeros((len(actions), self._config.action_dim), np.float32)
        out[:, self._io.action_places] = spec.normalise(values, self._measured(seen))
        return out

    def _measured(self, seen: Seen) -> np.ndarray | None:
        """The state that relative actions start from; None where none are."""
        parts, names = self._io.action_spec.relative, self._io.state_spec.names
        return relative.starting_state(parts, names, seen.proprio) if parts else None

    def taken(self) -> tuple[Observation, np.ndarray]:
        """The last frame as the network took it, and the chunk [k d] that it gave, in network
        units: what a policy learns from that is told how it went.
        """
        return self._obs, self._normalised

    def stages(self) -> Stages:
        """What the last `act` made on its way to the actions: for comparisons with other programs
        (export/).
        """
        if self._on_prefix:
            readouts = self._encode(self._params, ((self._newest(),),))[0]
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

    def _remember(self, frame: FrameTokens) -> None:
        """Puts a frame at the window's end; before the first stand frames that nobody sees."""
        for _ in range(0 if self._frames else self._config.window - 1):
            self._frames.append(_unseen(frame))
        self._frames.append(frame)

    def _newest(self) -> tuple[FrameTokens, ...]:
        """The frames that a head which acts on the prefix looks at."""
        return tuple(self._frames)[-(self._config.window if self._interleaved else 1) :]

    def _extend_by(self, frame: FrameTokens) -> None:
        """Takes in a frame while the window fills, "interleaved"."""
        window, params = self._config.window, self._params
        if not self._frames:
            blank = self._encode(params, (((_unseen(frame),),),))[0]
            self._readouts.extend([blank] * (window - 1))
        self._remember(frame)
        media = tuple(part.media for part in self._frames)
        new, self._kept = self._extend(params, ((frame, self._kept, media),))[0]
        self._readouts.append(new)

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
        places = kept.place + sequence.places(frame)
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
        place = kept.place + jnp.sum((frame.valid * sequence.steps(frame)[None])[:, :shared])
        # The slots of tokens that are not shared are free again: nobody sees them, and the next
        # frame takes them.
        return hidden[:, None, s - n :].astype(jnp.float32), _Kept(
            cache._replace(length=length + shared), seen, place
        )

    def _acted_on_prefix(
        self,
        params: Params,
        frames: tuple[FrameTokens, ...],
        dims: Array,
        draw: tuple[Array, Array],
        proprio: tuple[Array, Array],
        guide: Guide | None,
    ) -> Array:
        model = self._model(params)
        state = model.head_state(*proprio)
        context = model.prefix_context(_stacked(frames), len(frames), dims, state)
        return model.head.act(context._replace(guide=guide), _key(draw))[:, -1]


def _key(draw: tuple[Array, Array]) -> jax.Array:
    """Of a policy's seed and an episode's step."""
    seed, step = draw
    return jax.random.fold_in(jax.random.key(seed), step)


def _read(policies: Sequence[JaxPolicy], frames: Sequence[FrameTokens]) -> None:
    """Puts the readouts of each policy's new frame, [1 1 n c], at its window's end."""
    lead = policies[0]
    window = lead._config.window
    if not lead._interleaved:
        new = lead._run(lead._encode, [((frame,),) for frame in frames])
        for policy, own in zip(policies, new, strict=True):
            policy._readouts.extend([own] * (window - len(policy._readouts)) or [own])
        return
    slid = [policy for policy in policies if policy._step >= window]
    for policy, frame in zip(policies, frames, strict=True):
        if policy._step < window:
            policy._extend_by(frame)
        else:
            policy._kept = None
            policy._remember(frame)
    # Every frame has lost sight of the oldest.
    whole = lead._run(lead._encode, [(tuple(policy._frames),) for policy in slid]) if slid else []
    for policy, own in zip(slid, whole, strict=True):
        policy._readouts.extend(own[:, i : i + 1] for i in range(window))


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
