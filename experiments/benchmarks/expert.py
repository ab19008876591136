"""What the action expert costs beside its backbone: a whole pass of the policy over a frame (tower,
backbone, ten Euler steps behind its keys and values) over one of the backbone alone, both in JAX,
turn by turn.
"""

from typing import Any, NamedTuple, cast

import jax
import numpy as np

from experiments.benchmarks import turns
from vla_jax import params as flat
from vla_jax.models.vla import VLA
from vla_jax.saved import SavedPolicy

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
    obs, key = turns.frames(source, policy.config.action_dim, 1), jax.random.key(0)

    def act(params: Any) -> Any:
        model = cast(VLA, flat.merge(graphdef, params))
        context = model.prefix_context(model.sequence(obs), 1, None)
        return model.head.act(context, key)

    acted = jax.jit(act)
    backbone = jax.jit(lambda params: cast(VLA, flat.merge(graphdef, params)).readouts(obs))
    runs = {"alone": lambda: backbone(params), "whole": lambda: acted(params)}
    taken = turns.seconds(runs, rounds)
    wall, cpu = np.median(taken["whole"] / taken["alone"], axis=0)
    seconds, cpu_seconds = np.median(taken["alone"], axis=0)
    return Ratio(float(seconds), float(cpu_seconds), float(wall), float(cpu))
