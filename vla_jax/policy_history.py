"""What a policy keeps of the frames of an episode, and the programs that go on from there.

    "head"         one program for a step: the new frame runs through the backbone, and the head
                   reads its readouts behind those of the last frames, which are kept as numpy, so
                   that those of several episodes go over as one array
    "interleaved"  while the window fills, the keys and values of its frames are kept and only the
                   new frame runs through the decoder; once it slides, every frame has lost sight of
                   the oldest, so the decoder runs over the whole window again, on embedded tokens
                   that are kept: images are embedded once

Axes: r rows, one an episode; t window step, k chunk step, d action dim, s tokens of a frame, n
readouts, c width.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt32

from vla_jax.models import sequence
from vla_jax.models.attention import Cache
from vla_jax.models.sequence import FrameTokens, MaskedTokens
from vla_jax.models.vla import VLA
from vla_jax.params import Params
from vla_jax.policy_rows import filled, of_rows, over_rows, row
from vla_jax.types import Array, Guide, Media, Observation

Model = Callable[[Params], VLA]


class Asked(NamedTuple):
    """What several episodes give at a step, rows first, numpy.

    Attributes:
        obs: their new frames, [r 1 ...].
        steps: how many steps each has had.
        seeds: of what is drawn in each.
        guide: what each chunk is led to; None where none is.
    """

    obs: Observation
    steps: UInt32[np.ndarray, " r"]
    seeds: UInt32[np.ndarray, " r"]
    guide: Guide | None


class EachAlone:
    """History "head": frames are encoded each alone."""

    def __init__(self, model: Model, some: Params) -> None:
        """`some` are parameters of the network that `model` makes of them."""
        self._model, made = model, model(some)
        self._config, self._on_prefix = made.config, made.head.acts_on == "prefix"
        frames = 0 if self._on_prefix else made.config.window
        self._empty = np.zeros((frames, made.config.readouts, made.backbone.width), np.float32)
        self._plan = over_rows(self._planned)
        self._read = jax.jit(lambda params, obs: model(params).readouts(obs))

    def fresh(self) -> Float[np.ndarray, "t n c"]:
        """What is kept where an episode begins."""
        return self._empty

    def plan(
        self, params: Params, kept: Sequence[np.ndarray], asked: Asked, count: int
    ) -> tuple[Float[np.ndarray, "r k d"], list[np.ndarray]]:
        """The chunks, and what is kept now; by the program for `count` rows."""
        given = filled((np.stack(kept), asked), count)
        chunks, readouts = jax.device_get(self._plan(params, *given))
        return chunks[: len(kept), 0], list(readouts[: len(kept), 0])

    def readouts(self, kept: np.ndarray) -> Float[np.ndarray, "t n c"]:
        """Those of the window, of a head that acts on them."""
        return kept

    def readout(
        self, params: Params, kept: np.ndarray, obs: Observation
    ) -> Float[np.ndarray, "n c"]:
        """The newest frame's readouts."""
        return np.asarray(self._read(params, obs))[0, 0] if self._on_prefix else kept[-1]

    def _planned(self, params: Params, kept: Array, asked: Asked) -> tuple[Array, Array]:
        """Of one row: chunk [1 k d] and readouts [1 t n c]."""
        model, obs = self._model(params), jax.tree.map(lambda x: x[None], asked.obs)
        guide = jax.tree.map(lambda x: x[None], asked.guide)
        if self._on_prefix:
            frames = (model.sequence(obs),)
            return _on_prefix(model, frames, obs, _key(asked.seeds, asked.steps), guide), kept[None]
        window = self._config.window
        new = model.readouts(obs)
        # Before an episode's first frame stands that one again.
        before = jnp.where(asked.steps == 0, jnp.repeat(new, window, axis=1), kept[None])
        readouts = jnp.concatenate([before[:, 1:], new], axis=1)
        key = _key(asked.seeds, asked.steps)
        present = _present(window, asked.steps)
        return model.act_on_readouts(readouts, present, obs.action_dims, key, guide), readouts


class _Filling(NamedTuple):
    """Keys and values of the frames of a window that still fills, and which slots hold a valid
    token.
    """

    cache: Cache
    seen: jax.Array  # 1 slots
    place: jax.Array  # the next frame's first position


class Window:
    """The frames of an episode in one row: their tokens, their readouts [1 1 n c], and while they
    do not fill the window their keys and values.
    """

    def __init__(self, frames: int) -> None:
        self.frames: deque[FrameTokens] = deque(maxlen=frames)
        self.readouts: deque[jax.Array] = deque(maxlen=frames)
        self.filling: _Filling | None = None

    def remember(self, frame: FrameTokens) -> None:
        """Puts a frame at the end; before the first stand frames that nobody sees."""
        for _ in range(0 if self.frames else (self.frames.maxlen or 0) - 1):
            self.frames.append(_unseen(frame))
        self.frames.append(frame)


class Interleaved:
    """History "interleaved": the frames of a window stand in one row."""

    def __init__(self, model: Model, some: Params) -> None:
        """`some` are parameters of the network that `model` makes of them."""
        self._model, made = model, model(some)
        config = self._config = made.config
        self._on_prefix = made.head.acts_on == "prefix"
        self._embed = of_rows(lambda params, obs: model(params).sequence(obs))
        self._encode = of_rows(
            lambda params, frames: model(params).encode(
                _stacked(frames), config.readouts, len(frames)
            )
        )
        self._extend = of_rows(self._extended)
        self._act_on_readouts = of_rows(
            lambda params, readouts, asked: model(params).act_on_readouts(
                jnp.concatenate(readouts, axis=1),
                _present(config.window, asked.steps[0]),
                asked.obs.action_dims,
                _key(asked.seeds[0], asked.steps[0]),
                asked.guide,
            )
        )
        self._act_on_prefix = of_rows(
            lambda params, frames, asked: _on_prefix(
                model(params), frames, asked.obs, _key(asked.seeds[0], asked.steps[0]), asked.guide
            )
        )

    def fresh(self) -> Window:
        """What is kept where an episode begins."""
        return Window(self._config.window)

    def plan(
        self, params: Params, windows: Sequence[Window], asked: Asked, count: int
    ) -> tuple[Float[np.ndarray, "r k d"], list[Window]]:
        """See EachAlone."""
        obs = asked.obs
        frames = self._embed(params, [(row(obs, i),) for i in range(len(windows))], count)
        # What follows sees no pixels.
        rows = [row(asked._replace(obs=obs._replace(images=())), i) for i in range(len(windows))]
        if self._on_prefix:
            for window, frame in zip(windows, frames, strict=True):
                window.remember(frame)
            given = [(tuple(each.frames), one) for each, one in zip(windows, rows, strict=True)]
            chunks = self._act_on_prefix(params, given, count)
        else:
            self._read(params, windows, frames, asked, count)
            seen = [(tuple(each.readouts), one) for each, one in zip(windows, rows, strict=True)]
            chunks = self._act_on_readouts(params, seen, count)
        return np.concatenate(jax.device_get(chunks)), list(windows)

    def readouts(self, window: Window) -> Float[np.ndarray, "t n c"]:
        """See EachAlone."""
        return np.concatenate(jax.device_get(list(window.readouts)), axis=1)[0]

    def readout(self, params: Params, window: Window, obs: Observation) -> Float[np.ndarray, "n c"]:
        """The newest frame's readouts."""
        del obs  # its tokens are kept
        if self._on_prefix:
            return np.asarray(self._encode(params, [(tuple(window.frames),)], 1)[0])[0, -1]
        return np.asarray(window.readouts[-1])[0, 0]

    def _read(
        self,
        params: Params,
        windows: Sequence[Window],
        frames: Sequence[FrameTokens],
        asked: Asked,
        count: int,
    ) -> None:
        """Puts the new frames and their readouts at the windows' ends."""
        slid = []
        for window, frame, steps in zip(windows, frames, asked.steps, strict=True):
            if steps < self._config.window:
                self._extend_by(params, window, frame)
            else:
                window.filling = None
                window.remember(frame)
                slid.append(window)
        # Every frame has lost sight of the oldest.
        rows = [(tuple(window.frames),) for window in slid]
        whole = self._encode(params, rows, count) if slid else []
        for window, own in zip(slid, whole, strict=True):
            window.readouts.extend(own[:, i : i + 1] for i in range(self._config.window))

    def _extend_by(self, params: Params, window: Window, frame: FrameTokens) -> None:
        """Takes in a frame while the window fills."""
        if not window.frames:
            [blank] = self._encode(params, [((_unseen(frame),),)], 1)
            window.readouts.extend([blank] * (self._config.window - 1))
        window.remember(frame)
        media = tuple(part.media for part in window.frames)
        [(new, window.filling)] = self._extend(params, [(frame, window.filling, media)], 1)
        window.readouts.append(new)

    def _extended(
        self,
        params: Params,
        frame: FrameTokens,
        kept: _Filling | None,
        images: tuple[MaskedTokens | None, ...],
    ) -> tuple[Array, _Filling]:
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
            kept = _Filling(
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
        return hidden[:, None, s - n :].astype(jnp.float32), _Filling(
            cache._replace(length=length + shared), seen, place
        )


def _on_prefix(
    model: VLA, frames: Sequence[FrameTokens], obs: Observation, key: jax.Array, guide: Guide | None
) -> Float[Array, "1 k d"]:
    """The chunk of a head that acts on the prefix, from the frames that it looks at."""
    state = model.head_state(obs.proprio, obs.proprio_mask)
    context = model.prefix_context(_stacked(frames), len(frames), obs.action_dims, state)
    return model.head.act(context._replace(guide=guide), key)[:, -1]


def _present(window: int, steps: Array) -> Array:
    """Which frames of the window [1 t] are of the episode."""
    return (jnp.arange(window - 1, -1, -1) <= steps)[None]


def _key(seed: Array, step: Array) -> jax.Array:
    """Of a policy's seed and an episode's step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def _unseen(frame: FrameTokens) -> FrameTokens:
    """The frame with nothing in it that anybody sees: a slot before the episode began."""
    media = (
        None
        if frame.media is None
        else frame.media._replace(valid=jnp.zeros_like(frame.media.valid))
    )
    return dataclasses.replace(frame, valid=jnp.zeros_like(frame.valid), media=media)


def _stacked(frames: Sequence[FrameTokens]) -> FrameTokens:
    """Frames of one robot, one behind the other."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *frames)
