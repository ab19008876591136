"""The policy in JAX for rollouts: it keeps the window, runs the backbone on new frames alone,
speaks robot units.

A rollout gives what training saw: with the same frames, `act` equals VLA.act on the window that the
loader would make, its frames before the episode included (model.history_start). What it keeps of
frames stands in policy_history.py.

Axes: k chunk step, d action dim, p proprio, n readouts, c width.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from vla_jax.models.vla import VLA
from vla_jax.params import Params, merge
from vla_jax.policy_history import Asked, EachAlone, Interleaved
from vla_jax.policy_io import PolicyIO, observations
from vla_jax.policy_rows import of_all, row
from vla_jax.robot import realtime, relative, sensing
from vla_jax.robot.held import at_rest, is_none
from vla_jax.types import Guide, Observation, Seen, SensorReading


class Stages(NamedTuple):
    """The newest frame's readouts, and the chunk as the network gives it: a binary dim holds the
    probability of 1.
    """

    readout: Float[np.ndarray, "n c"]
    action: Float[np.ndarray, "k d"]


class _Given(NamedTuple):
    """Frames of several episodes as the network takes them, a row each, and of each the state that
    relative actions start from, and what its chunk is led to.
    """

    obs: Observation
    measured: list[np.ndarray | None]
    guides: list[Guide | None]


class JaxPolicy:
    """types.Policy for a trained VLA. `held` counts the steps of an episode for which its head had
    no chunk, and the robot was held (robot/held.py).
    """

    _shown: tuple[Observation, int]  # the frames of the last call, and which of them was its own
    _normalised: Float[np.ndarray, "k d"]

    def __init__(self, graphdef: nnx.GraphDef, params: Params, io: PolicyIO) -> None:
        self._params, self._io, self._graphdef = params, io, graphdef
        model = self._model(params)
        config = self._config = model.config
        # The policy's action dims that this robot has: 1 d.
        self._dims = np.isin(np.arange(config.action_dim), io.action_places)[None]
        self._inpaints = model.head.inpaints
        self._together = 1  # episodes that programs are compiled for
        history = Interleaved if config.history == "interleaved" else EachAlone
        self._history: Any = history(self._model, params)
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
        self._kept: Any = self._history.fresh()
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

    def sessions(self, n: int, at_once: int = 0) -> "list[JaxPolicy]":
        """`n` policies on this network, for as many episodes at once, of which at most `at_once`
        are asked together (0: all); see `act_together`.
        """
        out = [copy.copy(self) for _ in range(n)]
        for each in out:
            each._together, each._prompt = at_once or n, None
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
        if len(policies) > lead._together:
            raise ValueError(
                f"act_together: expected at most {lead._together} sessions, got {len(policies)};"
                " `sessions` is told how many are asked at once"
            )
        if any(policy._params is not lead._params for policy in policies):
            raise ValueError("act_together: expected sessions of one policy; `sessions` makes them")
        given = lead._prepared(policies, seen)
        asked = Asked(
            given.obs,
            np.array([policy._step for policy in policies], np.uint32),
            np.array([policy._seed for policy in policies], np.uint32),
            of_all(given.guides),
        )
        kept = [policy._kept for policy in policies]
        chunks, kept = lead._history.plan(lead._params, kept, asked, lead._together)
        for policy, own in zip(policies, kept, strict=True):
            policy._kept = own
        return lead._acted(policies, np.asarray(chunks, np.float32), given.measured)

    def _prepared(self, policies: "Sequence[JaxPolicy]", seen: Sequence[Seen]) -> _Given:
        """Frames of sessions as the network takes them."""
        io, config = self._io, self._config
        for policy, each in zip(policies, seen, strict=True):
            policy._check_frame(each.images)
        measured = [self._measured(each) for each in seen]
        obs = observations(io, config, seen, self._before(policies, seen, measured))
        guides = [
            io.guide(config, self._inpaints, each.underway, own)
            for each, own in zip(seen, measured, strict=True)
        ]
        readings = [
            policy._readings(each.sensors) for policy, each in zip(policies, seen, strict=True)
        ]
        prompts = [policy._prompt for policy in policies if policy._prompt is not None]
        obs = obs._replace(
            prompt=np.concatenate([ids for ids, _ in prompts]),
            prompt_mask=np.concatenate([mask for _, mask in prompts]),
            action_dims=np.repeat(self._dims, len(seen), axis=0),
            sensors=jax.tree.map(lambda *rows: np.concatenate(rows), *readings),
        )
        for i, policy in enumerate(policies):
            policy._shown = obs, i
        return _Given(obs, measured, guides)

    def _before(
        self,
        policies: "Sequence[JaxPolicy]",
        seen: Sequence[Seen],
        measured: Sequence[np.ndarray | None],
    ) -> list[np.ndarray | None]:
        """The action [d] before each frame, in network units; None at an episode's first."""
        out: list[np.ndarray | None] = [None] * len(seen)
        told = [i for i, policy in enumerate(policies) if policy._step]
        if told:
            spec = self._io.action_spec
            last = [
                policies[i]._last if seen[i].executed is None else seen[i].executed for i in told
            ]
            numbers = [spec.checked(np.asarray(action, np.float32)) for action in last]
            states = (
                np.stack([own for i in told if (own := measured[i]) is not None])
                if spec.relative
                else None
            )
            for i, action in zip(told, spec.normalise(np.stack(numbers), states), strict=True):
                out[i] = action
        return out

    def _acted(
        self,
        policies: "Sequence[JaxPolicy]",
        chunks: Float[np.ndarray, "r k d"],
        measured: Sequence[np.ndarray | None],
    ) -> list[np.ndarray]:
        """Ends a step: the network's chunks in robot units, [k d'] of this robot each."""
        io, spec = self._io, self._io.action_spec
        there = [i for i, chunk in enumerate(chunks) if not is_none(chunk)]
        states = (
            np.stack([own for i in there if (own := measured[i]) is not None])[:, None]
            if there and spec.relative
            else None
        )
        actions = spec.unnormalise(chunks[there][..., io.action_places], states) if there else ()
        found = dict(zip(there, actions, strict=True))
        for i, policy in enumerate(policies):
            policy._step += 1
            policy._normalised = chunks[i]
            if i not in found:
                policy.held += 1
                last = policy._last
                found[i] = at_rest(spec, io.motion, len(chunks[i]), last, measured[i])
            policy._last = found[i][0]
        return [found[i] for i in range(len(policies))]

    def looked(self, seen: Seen) -> Observation:
        """A frame of the episode as the network takes it, where somebody else acts: what was
        carried out stands in `seen`.
        """
        obs = self._prepared([self], [seen]).obs
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
        return row(*self._shown), self._normalised

    def readouts(self) -> Float[np.ndarray, "t n c"]:
        """What the head read at the last step, of a head that acts on readouts: those of the
        window, before an episode's first frame those of that one again.
        """
        return self._history.readouts(self._kept)

    def stages(self) -> Stages:
        """What the last `act` made on its way to the actions: for comparisons with other programs
        (export/).
        """
        readout = self._history.readout(self._params, self._kept, row(*self._shown))
        return Stages(np.asarray(readout, np.float32), self._normalised)

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
