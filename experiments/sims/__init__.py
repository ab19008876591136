"""Worlds that policies act in, one file each, behind one protocol: what experiments.rollout needs
to know of them.
"""

from typing import Protocol

import numpy as np


class Sim(Protocol):
    """A world with tasks. One episode at a time; the same task, wording and seed give the same one.

    Attributes:
        dataset: the data set whose robot this is: it says what a policy's numbers mean.
        tasks: their names.
        wordings: kinds of instructions, in training ("seen") or kept from it ("held out").
        low, high: [d], robot units: between them lies what the robot can do.
        outcome: "" while the episode goes on, then "success" or why there is none.
    """

    dataset: str
    tasks: tuple[str, ...]
    wordings: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray

    @property
    def outcome(self) -> str: ...

    def reset(self, task: str, wording: str, seed: tuple[int, ...]) -> str:
        """Begins an episode; returns its instruction."""
        ...

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Images uint8 RGB [h w 3] by camera, drawn now, and the state [p] if there is one."""
        ...

    def step(self, action: np.ndarray) -> None:
        """Carries out an action [d], robot units, of which there may be more than it can do."""
        ...

    def expert(self) -> np.ndarray:
        """The action [d] of who knows the world."""
        ...
