"""Trials by hand."""

import numpy as np

from experiments.learning.collecting import Episode, Trial
from vla_jax.types import ObservationSizes, new_observation


def trial(number: int, steps: list[int], success: bool = False) -> Trial:
    """One whose frames are as bright as their number, with chunks of four steps of two dims."""
    frames = []
    for i in range(len(steps)):
        obs = new_observation(ObservationSizes(1, 1, 0, 1, 2, (2,)), np.zeros)
        frames.append(obs._replace(images=(np.full((1, 1, 2, 2, 3), i, np.uint8),)))
    chunks = [np.zeros((4, 2), np.float32)] * len(steps)
    return Trial(Episode(number, 0), frames, chunks, steps, success, [])
