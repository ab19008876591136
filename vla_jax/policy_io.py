"""What stands between a robot and the network: a frame as it is taken, and the numbers' meaning.

Axes: d action dim, p proprio.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vla_jax.actions import ActionSpec, places
from vla_jax.models.vla import VLAConfig
from vla_jax.robot import realtime
from vla_jax.types import Guide, Observation, ObservationSizes, Seen, new_observation


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
        motion: its action dims that are 0 at rest.
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
    motion: tuple[int, ...] = ()

    @functools.cached_property
    def action_places(self) -> list[int]:
        """Where the dataset's dims stand among the policy's."""
        names = self.action_spec.names
        return places(names, self.action_names or names)

    @functools.cached_property
    def state_places(self) -> list[int]:
        """Where the dataset's numbers of the state stand among the policy's."""
        names = self.state_spec.names
        return places(names, self.state_names or names)

    def guide(
        self,
        config: VLAConfig,
        inpaints: bool,
        underway: realtime.Underway | None,
        measured: np.ndarray | None,
    ) -> Guide | None:
        """What the chunk of one episode is led to; None without a plan. `measured` is the state [p]
        that relative actions start from, `inpaints` whether the policy's head can be led. Raises
        ValueError as realtime.check.
        """
        if underway is None:
            return None
        spec, shape = self.action_spec, (config.chunk, config.action_dim)
        realtime.check(underway, spec.names, config.chunk, inpaints)
        target, weight = realtime.towards(
            underway, lambda x: spec.normalise(x, measured), self.action_places, shape
        )
        return Guide(target[None], weight[None, :, None])


def observation(
    io: PolicyIO, config: VLAConfig, seen: Seen, past: np.ndarray | None
) -> Observation:
    """One frame of one episode as the network takes it, but for the prompt, sensors and dims.

    `past` is the action [d] before it in network units, of the dataset's dims; None at an episode's
    first frame. Raises ValueError for images that are not uint8 RGB, and for missing state where
    the model sees it.
    """
    state = io.state_spec.names
    sizes = ObservationSizes(
        b=1,
        t=1,
        p=len(io.state_names or state),
        l=io.prompt_length,
        d=config.action_dim,
        image_size=io.image_size,
        past_action=True,
    )
    obs = new_observation(sizes, np.zeros)
    if seen.proprio is not None and state:  # a world may tell what the policy never knew
        numbers = io.state_spec.normalise(np.asarray(seen.proprio, np.float32))
        obs.proprio[0, 0, io.state_places] = numbers
        obs.proprio_mask[0, io.state_places] = True
    elif config.state is not None and state:
        raise ValueError(
            f"proprio: expected {', '.join(state)}, got None; the model sees the state"
        )
    if past is not None and obs.past_action is not None:
        obs.past_action[0, 0, io.action_places] = past
    return obs._replace(
        images=tuple(
            _fitted(seen.images[name], size, io.resize, name)[None, None]
            for name, size in zip(config.cameras, io.image_size, strict=True)
        ),
        image_mask=np.ones_like(obs.image_mask),
        step_mask=np.ones((1, 1), bool),
        past_action_mask=np.full((1, 1), past is not None),
        embodiment=np.full(1, io.embodiment, np.int32),
    )


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
