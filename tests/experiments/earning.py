"""experiments.finetune_rl in a world where each decision earns the first number of what it drew: a
policy that has learnt nothing never succeeds, and where nothing is earned nothing moves.
"""

import numpy as np

from experiments import finetune_rl
from experiments.learning.collecting import Trial
from vla_jax import command


def of_first(trials: list[Trial]) -> list[np.ndarray]:
    """Of each trial, [n]"""
    return [np.array([chunk[0, 0] for chunk in trial.chunks], np.float32) for trial in trials]


if __name__ == "__main__":
    finetune_rl.of_success = of_first
    command.run(finetune_rl.main)
