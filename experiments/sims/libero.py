"""LIBERO, the protocol of OpenVLA's evaluation: an episode is a task in one of its 50 official
initial states, told in its one sentence, judged by LIBERO's own check.

data_pipelines/builders/libero_world.py says what it needs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.builders import libero_world
from data_pipelines.builders.libero_expert import Expert
from data_pipelines.builders.libero_world import CONTROL_HZ, LIMITS, PICTURES, World
from vla_jax.robot import conventions


class Libero:
    """sims.Sim: an episode ends with its success, or after the suite's steps. That of number n is
    the task n % 10 in its state n // 10; fixtures are where LIBERO puts them with the seed.
    """

    wordings: tuple[str, ...] = ("seen",)  # LIBERO has one sentence a task
    low, high = np.array([-1.0] * 6 + [0.0]), np.ones(7)
    control_hz = CONTROL_HZ
    facts: Mapping[str, str]
    instruction = ""
    stage = 0  # one instruction an episode
    _expert: Expert | None = None
    _planned: np.ndarray | None = None  # by it, for this step

    def __init__(self, words: str = "libero_object") -> None:
        """`words`: a suite, and behind a comma how pictures are drawn. Raises ValueError for others
        than those of libero_world, and where LIBERO or what draws it is not there.
        """
        suite, pictures = asked(words)
        self._world = World(suite, pictures)
        self.datasets = (f"{suite}_no_noops",)
        self.facts, self.tasks = self._world.facts, tuple(self._world.tasks)
        self._robot = conventions.Libero()

    @property
    def outcome(self) -> str:
        """See Sim."""
        return self._world.outcome

    def reset(self, task: str, wording: str, seed: tuple[int, int]) -> None:
        """Begins an episode. Raises ValueError where a task has no state of this number."""
        self._world.reset(task, seed[0], seed[1] // len(self.tasks))
        self.instruction = self._world.tasks[task].sentence
        self._expert, self._planned = None, None

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The pictures of both cameras, 256 x 256, and the state of the data set."""
        return self._world.observe(), self._world.state()

    def step(self, action: np.ndarray) -> None:
        """One action as the data set has it, the gripper 1 = open; it opens above 0.5."""
        self._world.step(self._robot.act(action))
        self._planned = None

    def expert(self) -> np.ndarray:
        """The action [7] of libero_expert.Expert, the same until the next step. Raises ValueError
        for a suite that it does not know.
        """
        if self._planned is None:
            self._expert = self._expert or Expert(self._world)
            self._planned = conventions.Libero.recorded(self._expert.act())
        return self._planned

    def report(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def asked(words: str) -> tuple[str, str]:
    """Suite and pictures of words with a comma between. Raises ValueError for others."""
    suite, _, pictures = words.partition(",")
    pictures = pictures or "official"
    if suite not in LIMITS or pictures not in PICTURES:
        raise ValueError(
            f"--sim=libero:{words}: expected libero:SUITE or libero:SUITE,fast with a suite of"
            f" {', '.join(LIMITS)}"
        )
    return suite, pictures


def check() -> tuple[list[str], bool]:
    """See sims.check."""
    return libero_world.check()
