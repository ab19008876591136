"""How likely paths are, in numpy: Flow-GRPO's steps written out."""

import numpy as np

STEPS = 10


def one_by_one(
    path: np.ndarray, velocity: np.ndarray, other: np.ndarray, std: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of one path [p k a], the velocities of two policies along it [q k a], and each number's noise
    level [a]: the logarithms of the density of its numbers by the first, and that one's divergence
    from the second, [a].
    """
    dt, log_prob, divergence = 1 / STEPS, np.zeros(len(std)), np.zeros(len(std))
    for q in range(STEPS):
        s = 1 - q / STEPS
        sigma = std * np.sqrt(s / (1 - s if q else dt))  # as Flow-GRPO's program has it at s = 1
        x, width = path[q].astype(np.float64), sigma * np.sqrt(dt)
        one, two = (
            x - (y[q] + sigma**2 / (2 * s) * (x + (1 - s) * y[q])) * dt
            for y in (velocity.astype(np.float64), other.astype(np.float64))
        )
        each = -0.5 * ((path[q + 1] - one) / width) ** 2 - np.log(width * np.sqrt(2 * np.pi))
        log_prob += each.sum(axis=0)
        divergence += (0.5 * ((one - two) / width) ** 2).sum(axis=0)
    return log_prob, divergence
