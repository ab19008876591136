"""Observations to decide on."""

import numpy as np

from vla_jax.types import Observation, ObservationSizes, new_observation

SIZES = ObservationSizes(b=6, t=2, p=0, l=3, d=4, image_size=(8,))


def observed(t: int = SIZES.t) -> Observation:
    """Of b windows of t frames with pictures and words, all of which are there."""
    draw, b = np.random.default_rng(0), SIZES.b
    return new_observation(SIZES._replace(t=t), np.zeros)._replace(
        images=(draw.integers(0, 256, (b, t, 8, 8, 3), dtype=np.uint8),),
        image_mask=np.ones((b, t, 1), bool),
        prompt=draw.integers(0, 20, (b, 3)).astype(np.int32),
        prompt_mask=np.ones((b, 3), bool),
        step_mask=np.ones((b, t), bool),
    )
