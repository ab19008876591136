"""What stands between a robot and the network: a frame as it is taken, and the numbers' meaning.

Axes: d action dim, p proprio.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
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


def observations(
    io: PolicyIO, config: VLAConfig, seen: Sequence[Seen], past: Sequence[np.ndarray | None]
) -> Observation:
    """A frame of each of several episodes as the network takes it, a row each, but for the prompt,
    sensors and dims.

    `past` is of each the action [d] before it in network units, of the dataset's dims; None at an
    episode's first frame. Raises ValueError for images that are not uint8 RGB, and for missing
    state where the model sees it.
    """
    state = io.state_spec.names
    sizes = ObservationSizes(
        b=len(seen),
        t=1,
        p=len(io.state_names or state),
        l=io.prompt_length,
        d=config.action_dim,
        image_size=io.image_size,
        past_action=True,
    )
    obs = new_observation(sizes, np.zeros)
    # A world may tell what the policy never knew.
    told = [i for i, each in enumerate(seen) if state and each.proprio is not None]
    if config.state is not None and state and len(told) < len(seen):
        raise ValueError(
            f"proprio: expected {', '.join(state)}, got None; the model sees the state"
        )
    if told:
        rows, at = np.array(told)[:, None], np.array(io.state_places)
        spec = io.state_spec
        numbers = [spec.checked(np.asarray(seen[i].proprio, np.float32)) for i in told]
        obs.proprio[rows, 0, at] = spec.normalise(np.stack(numbers))
        obs.proprio_mask[rows, at] = True
    acted = [i for i, each in enumerate(past) if each is not None]
    if acted and obs.past_action is not None and obs.past_action_mask is not None:
        rows, at = np.array(acted)[:, None], np.array(io.action_places)
        obs.past_action[rows, 0, at] = [past[i] for i in acted]
        obs.past_action_mask[acted] = True
    for images, name, size in zip(obs.images, config.cameras, io.image_size, strict=True):
        for i, each in enumerate(seen):
            images[i, 0] = _fitted(each.images[name], size, io.resize, name)
    obs.image_mask[:] = obs.step_mask[:] = True
    return obs._replace(embodiment=np.full(len(seen), io.embodiment, np.int32))


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
