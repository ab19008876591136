"""Parts of a policy that are timed beside each other, turn by turn, on a frame of nothing."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from vla_jax.saved import SavedPolicy
from vla_jax.types import Observation, ObservationSizes, new_observation

WARM = 2  # turns that compile and warm up


def frames(source: SavedPolicy, action_dim: int, t: int) -> Observation:
    """So many frames of one episode, all ones."""
    sizes = ObservationSizes(
        b=1, t=t, p=len(source.state_names), l=int(source.prompt["length"]),
        d=action_dim, image_size=source.image_size,
    )  # fmt: skip
    return new_observation(sizes, lambda shape, kind: np.ones(shape, kind))


def seconds(
    runs: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, Float[np.ndarray, "r 2"]]:
    """Of each turn of each run, until what it gives is there: wall and CPU."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds + WARM):
        for name, run in runs.items():
            begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
            if turn >= WARM:
                taken[name].append(spent)
    return {name: np.array(own) for name, own in taken.items()}
