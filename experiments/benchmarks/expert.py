"""What the action expert costs beside its backbone: a whole pass of the policy over a frame (tower,
backbone, ten Euler steps behind its keys and values) over one of the backbone alone, both in JAX,
turn by turn.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from vla_jax import params as flat
from vla_jax.models.vla import VLA
from vla_jax.saved import SavedPolicy
from vla_jax.types import ObservationSizes, new_observation

ROUNDS = 5


class Ratio(NamedTuple):
    """Medians over the turns: seconds of wall and CPU of a pass, and the ratios of expert with
    backbone to the backbone alone.
    """

    backbone_s: float
    backbone_cpu_s: float
    wall: float
    cpu: float


def measure(source: SavedPolicy, dtype: str, rounds: int = ROUNDS) -> Ratio:
    """The ratio for a policy with the head expert."""
    graphdef, _, _ = flat.abstract(source.build)
    params = {name: jax.numpy.asarray(x, dtype) for name, x in source.params.items()}
    policy = cast(VLA, flat.merge(graphdef, params))
    sizes = ObservationSizes(
        b=1, t=1, p=len(source.state_names), l=int(source.prompt["length"]),
        d=policy.config.action_dim, image_size=source.image_size,
    )  # fmt: skip
    obs = new_observation(sizes, lambda shape, kind: np.ones(shape, kind))
    key = jax.random.key(0)

    def act(params: Any) -> Any:
        model = cast(VLA, flat.merge(graphdef, params))
        context = model.prefix_context(model.sequence(obs), 1, None)
        return model.head.act(context, key)

    backbone = jax.jit(lambda params: cast(VLA, flat.merge(graphdef, params)).readouts(obs))
    runs: tuple[Callable[[Any], Any], ...] = (backbone, jax.jit(act))
    taken: list[list[tuple[float, float]]] = [[], []]
    for turn in range(rounds + 2):  # the first two compile and warm up
        for run, own in zip(runs, taken, strict=True):
            begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(run(params))
            spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
            if turn >= 2:
                own.append(spent)
    alone, whole = (np.array(own) for own in taken)
    wall, cpu = np.median(whole / alone, axis=0)
    seconds, cpu_seconds = np.median(alone, axis=0)
    return Ratio(float(seconds), float(cpu_seconds), float(wall), float(cpu))
