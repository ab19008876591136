"""How sure a policy is of a chunk: numbers in [0, 1], 1 is sure; None where there is none.

gripper: the probability of the gripper's state in the next action (the least sure one, with
    several).
agreement: exp(-r), r the root mean square difference of the arm, in network units, between the next
    action and what the last chunk (of one control step before) had in its place; None at the first
    frame, for chunks of one action, and for heads that write tokens. Later actions are left out:
    they may lie beyond the task's end, where nothing was trained, and with them more agreement went
    with more error when it was measured.
token: the geometric mean of the probabilities of the next action's tokens (discrete), or of all of
    the chunk's (fast).
steps: for each of the k actions what "token" is for the next one, or "gripper" where there are no
    tokens.

Axes: k chunk step, d action dim.
"""

from typing import Any

import numpy as np

from .spec import Spec


def confidence(
    spec: Spec, action: np.ndarray, probability: np.ndarray | None, expected: np.ndarray | None
) -> dict[str, Any]:
    """Of a chunk [k d] in network units with the probabilities of its tokens [k d]; `expected` is
    the next action [d] as the last chunk had it.
    """
    grippers = np.maximum(action, 1 - action)[:, spec.binary]
    steps = grippers.min(1) if grippers.size else None
    agreement = token = None
    if probability is not None:
        steps = np.exp(np.log(probability.astype(np.float64)).mean(1))
        token = float(steps[0])
    elif expected is not None and spec.arm:
        difference = (action[0] - expected)[spec.arm]
        agreement = float(np.exp(-np.sqrt(np.mean(difference.astype(np.float64) ** 2))))
    return {
        "gripper": float(grippers[0].min()) if grippers.size else None,
        "agreement": agreement,
        "token": token,
        "steps": None if steps is None else steps.tolist(),
    }


def unsure(steps: int) -> dict[str, Any]:
    """Of a chunk that a robot is held for."""
    return {"gripper": None, "agreement": None, "token": 0.0, "steps": [0.0] * steps}
