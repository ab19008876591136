"""The world of data_pipelines/builders/navigation.py, to act in: boxes, a cup, words in Korean.

Its layouts are none of the data set's: they are drawn from numbers of their own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.builders import made, navigation, navigation_expert
from data_pipelines.builders.navigation_world import CONTROL_HZ, FASTEST, World, scatter
from vla_jax.robot.navigation import SCENARIOS


class Navigation:
    """sims.Sim: the eight scenarios are the tasks."""

    datasets = ("navigation",)
    tasks = tuple(SCENARIOS)
    wordings: tuple[str, ...] = ("seen", "held out")
    low, high = -np.array(FASTEST), np.array(FASTEST)
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
        self._world = World(scatter(draw, task))
        said = navigation.sentences(task, wording == "held out")
        self.instruction = said[int(draw.integers(len(said)))]

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The camera's picture and the odometry."""
        return {"primary": self._world.picture()}, self._world.odometry()

    def step(self, action: np.ndarray) -> None:
        """linear_x, linear_y (m/s) and angular_z (rad/s) for one control step."""
        self._world.step(*action.tolist())

    def expert(self) -> np.ndarray:
        """The action of the one who made the demonstrations."""
        return np.array(navigation_expert.act(self._world.layout, self._world.pose))

    def report(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def check() -> tuple[list[str], bool]:
    """See sims.check."""
    return ["navigation: numpy alone, nothing to install"], True
