"""How much better a decision was than expected: numpy, episode by episode.

A decision is a chunk: what it earns is what its episode earned while it was carried out. Axes: n
decisions of an episode.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

EPS = 1e-6  # beside a deviation that may be 0


def generalised(
    rewards: Float[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    steps: Int[np.ndarray, " n"],
    discount: float,
    decay: float,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) over the decisions of an episode
    that ended, and what the critic should have said: advantage + value.

    Args:
        values: what the critic said.
        steps: control steps that each decision took: a reward counts `discount` less a step later.
        decay: lambda.
    """
    advantages = np.zeros(len(rewards), np.float32)
    ahead, value = 0.0, 0.0  # of the decision after: none after the last
    for i in reversed(range(len(rewards))):
        later = discount ** float(steps[i])
        error = rewards[i] + later * value - values[i]
        ahead = error + later * decay * ahead
        advantages[i], value = ahead, values[i]
    return advantages, advantages + values.astype(np.float32)


def of_groups(
    returns: Float[np.ndarray, " e"], groups: Int[np.ndarray, " e"]
) -> Float[np.ndarray, " e"]:
    """Group-relative advantages of episodes (GRPO, arXiv 2402.03300, 4.1.2): each return less its
    group's mean, in standard deviations of the group. 0 in a group whose returns are all alike: it
    teaches nothing.
    """
    out = np.zeros(len(returns), np.float32)
    for group in np.unique(groups):
        own = returns[groups == group]
        out[groups == group] = (own - own.mean()) / (own.std() + EPS)
    return out


def normalised(advantages: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Those of all episodes with mean 0 and deviation 1 over their decisions."""
    flat = np.concatenate(advantages)
    mean, deviation = flat.mean(), flat.std() + EPS
    return [((each - mean) / deviation).astype(np.float32) for each in advantages]
