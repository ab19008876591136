"""The world of data_pipelines/builders/metaworld.py, to act in: a Sawyer arm and MT10's tasks, or
any list of Meta-World's fifty.

Where things are is drawn from numbers that no data set has.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.builders import made, metaworld, metaworld_world
from data_pipelines.builders.metaworld_world import CONTROL_HZ, REACH, World

ROLLOUTS = len(metaworld.SPLITS)  # in place of a split's number


class Metaworld:
    """sims.Sim: an episode ends with its first success, or after 500 steps."""

    datasets = ("metaworld",)
    wordings: tuple[str, ...] = ("seen", "held out")
    low, high = np.array([-REACH] * 3 + [0.0]), np.array([REACH] * 3 + [1.0])
    control_hz = CONTROL_HZ
    facts: Mapping[str, str]
    instruction = ""
    stage = 0  # one instruction an episode

    def __init__(self, tasks: str = "") -> None:
        """`tasks`: names with commas between, by default MT10's. Raises ValueError for an unknown
        one, and where Meta-World or what draws it is not there.
        """
        self.tasks = metaworld.chosen(tasks)
        self._world = World()
        self.facts = self._world.facts

    @property
    def outcome(self) -> str:
        """See Sim."""
        return self._world.outcome

    def reset(self, task: str, wording: str, seed: tuple[int, int]) -> None:
        """Begins an episode."""
        draw = made.drawn(ROLLOUTS, *seed)
        self._world.reset(task, metaworld.place(draw))
        self.instruction = metaworld.said(draw, task, wording == "held out")

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The pictures of both cameras; the hand's place and how open the gripper is."""
        return self._world.observe(), self._world.state()

    def step(self, action: np.ndarray) -> None:
        """x, y, z (m) and gripper (1 opens, 0 closes) for one control step."""
        self._world.step(action)

    def expert(self) -> np.ndarray:
        """The action of Meta-World's own scripted policy."""
        return self._world.expert()

    def report(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def check() -> tuple[list[str], bool]:
    """See sims.check."""
    return metaworld_world.check()
