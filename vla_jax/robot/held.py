"""Where a robot is held for which a policy has no chunk: one that writes its chunk as a string
whose length may vary (the head fast) may write none that is whole. Its network then gives NaN, and
what is carried out is this, marked by who carries it out.

Numpy only. Axes: k chunk step, d action dim, p state dim.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def is_none(chunk: np.ndarray) -> bool:
    """Whether a network's chunk [k d] is none."""
    return bool(np.isnan(chunk).all())


def at_rest(
    spec: Any,
    motion: Sequence[int],
    steps: int,
    before: np.ndarray | None,
    measured: np.ndarray | None,
) -> np.ndarray:
    """A chunk [k d] of `steps` in robot units that leaves a robot where it is.

    Motions are 0; what is relative to the state is the state; positions and grippers are what the
    action `before` told them, or where there was none, the middle of what the policy learnt.

    Args:
        spec: of the actions: `names`, `relative`, `unnormalise`, as actions.ActionSpec has them.
        motion: the dims that are motion: 0 at rest.
        measured: the state [p] that relative actions start from.
    """
    shape = (steps, len(spec.names))
    if before is None:
        out = np.array(spec.unnormalise(np.zeros(shape), measured), np.float32)
    else:
        out = np.broadcast_to(np.asarray(before, np.float32), shape).copy()
    for part in spec.relative:
        out[:, list(part.action)] = np.asarray(measured)[list(part.state)]
    out[:, list(motion)] = 0.0
    return out
