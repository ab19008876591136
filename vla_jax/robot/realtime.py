"""Real-time chunking (arXiv 2506.07339): a robot goes on with its chunk while the policy thinks, so
that the next one has to begin as the present one goes on. What a policy is told of the plan that is
underway, and how much of it each step of the new chunk keeps.

Numpy only. Axes: n steps that are left of the plan, k chunk step, d action dim, p state dim.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Underway(NamedTuple):
    """The plan that is carried out while the policy thinks.

    Attributes:
        actions: [n d], robot units, from the frame's own control step on; none: there is no plan.
        delay: control steps from the frame until the new chunk is there: the first `delay` actions
            will have been carried out by then.
    """

    actions: np.ndarray
    delay: int


def check(underway: Underway, names: Sequence[str], chunk: int, inpaints: bool) -> None:
    """Raises ValueError for a policy that cannot keep to a plan, a delay that is no part of a chunk
    of `chunk` steps or longer than the plan, and actions that are not `names` or not finite.
    """
    actions, delay = underway
    shape = np.shape(actions)
    if not inpaints:
        raise ValueError(
            "underway: real-time chunking: expected a policy that flows (the heads flow and"
            " expert), got another; blend its chunks (freeze)"
        )
    if not 0 <= delay < chunk:
        raise ValueError(
            f"underway: delay: expected 0 to {chunk - 1} control steps, fewer than a chunk has, got"
            f" {delay}; a chunk would be over before it is there: a faster policy, a lower control"
            " rate or longer chunks are needed"
        )
    if len(shape) != 2 or shape[1] != len(names) or shape[0] > chunk:
        raise ValueError(
            f"underway: actions: expected at most {chunk} of {len(names)} numbers"
            f" ({', '.join(names)}), got {list(shape)}"
        )
    if 0 < shape[0] < delay:
        raise ValueError(
            f"underway: actions: expected {delay} or more, those of the delay, got {shape[0]}; plan"
            " again earlier"
        )
    if not np.isfinite(actions).all():
        raise ValueError("underway: actions: expected finite numbers")


def soft_mask(left: int, delay: int, chunk: int) -> np.ndarray:
    """How much each step of a chunk keeps of a plan with `left` steps to go, float32 [k]: all of it
    before `delay`, then c (e^c - 1) / (e - 1) with c = (left - i) / (left - delay + 1), and nothing
    from `left` on (eq. 5 of the paper, where `left` is H - s).
    """
    step = np.arange(chunk)
    c = np.clip((left - step) / (max(left - delay, 0) + 1), 0, 1)
    weight = np.where(step < delay, 1.0, c * np.expm1(c) / np.expm1(1.0))
    return np.where(step < left, weight, 0.0).astype(np.float32)


def towards(
    underway: Underway,
    normalise: Callable[[np.ndarray], np.ndarray],
    places: Sequence[int],
    shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """What a network's chunk is led to, float32 [k d] of the policy's dims in network units, and
    how much each step counts [k]. `normalise` is of the robot's numbers, which stand at `places`
    among the policy's; `shape` is k d.
    """
    left = len(underway.actions)
    target = np.zeros(shape, np.float32)
    if left:
        target[:left, list(places)] = normalise(np.asarray(underway.actions, np.float64))
    return target, soft_mask(left, underway.delay, shape[0])
