"""tests.experiments.earning, where the tasks of rl.keep go by other names than those that are
learnt, though they are the same: a world in numpy has one list of tasks.
"""

from typing import Any

from experiments import finetune_rl
from experiments.rolling import worlds
from tests.experiments.earning import of_first
from vla_jax import command


def renamed(sim: str, count: int) -> list[Any]:
    """The worlds of blocks."""
    out = worlds.apart("blocks", count)
    if sim == "blocks:others":
        for process in {world._process for world in out}:
            tasks = tuple(f"other {task}" for task in process.about.tasks)
            process._about = process.about._replace(tasks=tasks)
    return out


if __name__ == "__main__":
    finetune_rl.of_success = of_first
    finetune_rl.apart = renamed
    command.run(finetune_rl.main)
