"""What a loader is asked for."""

import dataclasses

from vla_jax.robot.sensing import Sensor
from vla_jax.types import RESIZES

PREFETCH = 2  # batches made ahead of the one in use
# Batches in memory at a time: those ahead, one that is made, the one in use and the one before it.
ALIVE = PREFETCH + 3


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a window holds and how windows are drawn.

    Attributes:
        window: frames per window, t.
        chunk: actions per frame, k.
        cameras: slots in the order the model takes them; one that a dataset lacks is black and
            masked.
        image_size: pixels, height and width, one per camera.
        resize: how images get that size, one of types.RESIZES.
        prompt_length: tokens, l; None = as many as the longest instruction of the datasets has.
        batch_size: windows per global batch.
        seed: of the order.
        ram_budget: bytes of decoded frames, over all hosts; it decides how many visits are mixed at
            a time. Where all fit into each host's share, they are kept, shuffled, for all epochs.
        windows_per_visit: consecutive windows of an episode that are decoded together. Fewer mix
            better in the same memory, and cost window - 1 more decoded frames each.
        stride: windows at every stride-th step of an episode alone, from its first one on: those of
            a fast robot are nearly alike one after the other.
        shuffle: endless shuffled epochs; False: one pass in file order.
        sensors: that are read, see vla_jax/robot/sensing.py; what a dataset lacks is masked.
        past_action: also give the action before each frame.
        future: also give the frames so many steps after each frame; () decodes none.
        action_names, state_names: dims of the policy, d and p, among which a dataset's are placed
            by name; (): all that the members have, in the order in which they come.
        embodiments: names of datasets: what Observation.embodiment counts; (): all are 0.
    """

    window: int = 1
    chunk: int = 1
    cameras: tuple[str, ...] = ("primary",)
    image_size: tuple[int, ...] = (224,)
    resize: str = "lanczos"
    prompt_length: int | None = None
    batch_size: int = 8
    seed: int = 0
    ram_budget: int = 2 * 2**30
    windows_per_visit: int = 64
    stride: int = 1
    shuffle: bool = True
    sensors: tuple[Sensor, ...] = ()
    past_action: bool = False
    future: tuple[int, ...] = ()
    action_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    embodiments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise ValueError(
                f"model.resize: expected one of {', '.join(RESIZES)}, got {self.resize!r}"
            )
