"""What one RLDS dataset is: where its images, words and numbers are, and what its actions mean."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Standardised(NamedTuple):
    """One episode in the house convention. Rows of all three belong together."""

    actions: np.ndarray  # T d, float32; a binary dim is 1 = open
    state: np.ndarray  # T p, float32
    frames: np.ndarray  # T, int: the raw step of each row; its images are that step's


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Description of one dataset. Feature keys are relative to a step, e.g. "observation/image_0".

    Attributes:
        name: our word for it, used in mixtures and messages.
        tfds_name: folder and TFDS name. The files are in root/tfds_name/version.
        version: TFDS version.
        cameras: slot ("primary", "secondary", "wrist") -> feature key of an encoded image.
        columns: name -> feature key of the numbers that `standardise` wants.
        language: feature key of the instruction.
        control_hz: steps per second.
        action_names: one word per action dim after standardisation.
        binary: action dims that are 0 or 1.
        state_names: one word per state dim after standardisation.
        download: command that brings it under a data root, with {root} where that goes.
        standardise: raw columns (name -> [T_raw, ...]) to the house convention. May keep fewer steps than it gets.
        revision: raise it when `standardise` changes its result: indexes made by an older one are then rebuilt.
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
    download: str
    standardise: Callable[[dict[str, np.ndarray]], Standardised]
    revision: int
