"""The world of data_pipelines/builders/blocks.py, to act in: a hand pushes the named block of three
in the named direction.

Its layouts are none of the data set's: they are drawn from numbers of their own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.builders import blocks, blocks_expert, made
from data_pipelines.builders.blocks_world import CONTROL_HZ, FASTEST, TASKS, World


class Blocks:
    """sims.Sim: three colours in four directions are the tasks."""

    datasets = ("blocks",)
    tasks = tuple(TASKS)
    wordings: tuple[str, ...] = ("seen", "held out words", "held out colours")
    low, high = -np.array([*FASTEST, 0.0]), np.array([*FASTEST, 1.0])
    control_hz = CONTROL_HZ
    facts: Mapping[str, str] = {}  # its pictures are the same bits everywhere
    instruction = ""
    stage = 0  # one instruction an episode
    _world: World

    @property
    def outcome(self) -> str:
        """See Sim."""
        return self._world.outcome

    def reset(self, task: str, wording: str, seed: tuple[int, int]) -> None:
        """Begins an episode."""
        draw = made.drawn(made.ROLLOUTS, *seed)
        layout = blocks.laid(draw, wording == "held out colours")
        self._world = World(layout, TASKS[task])
        self.instruction = blocks.told(draw, TASKS[task], wording == "held out words")

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The pictures of both cameras and the state."""
        pictures = {"primary": self._world.picture(), "wrist": self._world.wrist()}
        return pictures, self._world.state()

    def step(self, action: np.ndarray) -> None:
        """Changes of x, y, z, roll, pitch and yaw in a step, and the gripper."""
        self._world.step(action.tolist())

    def expert(self) -> np.ndarray:
        """The action of the one who made the demonstrations."""
        return np.array(blocks_expert.act(self._world))

    def report(self) -> dict[str, Any]:
        """How far the named block came in the named direction, table widths."""
        return {"pushed": round(self._world.pushed(), 4)}


def check() -> tuple[list[str], bool]:
    """See sims.check."""
    return ["blocks: numpy alone, nothing to install"], True
