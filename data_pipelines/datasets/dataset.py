"""The shape of a dataset entry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Standardised(NamedTuple):
    """One episode in the field's convention (xyz, rpy, gripper 1 = open)."""

    actions: Float[np.ndarray, "t d"]
    state: Float[np.ndarray, "t p"]
    frames: Int[np.ndarray, " t"]  # which raw steps remain


@dataclass(frozen=True)
class Dataset:
    """What a dataset is.

    Attributes:
        tfds_name, version: its folder is <root>/<tfds_name>/<version>.
        cameras: slot (primary, secondary, wrist) -> feature of a step.
        columns: name -> low-dimensional feature of a step, the input of `standardise`.
        language: text feature of a step.
        control_hz: frames per second.
        action_names, binary: of the standardised action; `binary` dims are 0 or 1.
        state_names: of the standardised state.
        standardise: columns {name: [T, ...]} of an episode -> Standardised.
    """

    name: str
    tfds_name: str
    version: str
    cameras: dict[str, str]
    columns: dict[str, str]
    language: str
    control_hz: float
    action_names: tuple[str, ...]
    binary: tuple[int, ...]
    state_names: tuple[str, ...]
    standardise: Callable[[dict[str, np.ndarray]], Standardised]


EEF_7D = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
