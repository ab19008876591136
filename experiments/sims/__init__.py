"""Worlds that policies act in, one file each, behind one protocol: what experiments.rollout needs
to know of them.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np

# Name, which is also the file's -> class. A simulator is imported when it is asked for.
SIMS = {
    "blocks": "Blocks",
    "calvin": "Calvin",
    "libero": "Libero",
    "metaworld": "Metaworld",
    "navigation": "Navigation",
}
# Those that are numpy alone, which cannot take their process down with them.
IN_PROCESS = ("blocks", "navigation")


class Sim(Protocol):
    """A world with tasks. One episode at a time; the same task, wording and seed give the same one.

    Attributes:
        datasets: those whose robot this is: the first of them that a policy knows says what its
            numbers mean.
        tasks: their names.
        wordings: kinds of instructions, in training ("seen") or kept from it ("held out").
        low, high: [d], robot units: between them lies what the robot can do.
        control_hz: steps per second.
        facts: what else an outcome depends on: the renderer, versions. Results of others are not
            counted together.
        instruction: what is to be done now.
        stage: how many of an episode's instructions were carried out. Where it grows, the policy
            begins anew with the next one.
        outcome: "" while the episode goes on, then "success" or why there is none.
    """

    datasets: tuple[str, ...]
    tasks: tuple[str, ...]
    wordings: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    control_hz: float
    facts: Mapping[str, str]

    @property
    def instruction(self) -> str: ...

    @property
    def stage(self) -> int: ...

    @property
    def outcome(self) -> str: ...

    def reset(self, task: str, wording: str, seed: tuple[int, int]) -> None:
        """Begins the episode of a seed and a number."""
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

    def report(self) -> dict[str, Any]:
        """What is to be kept of an episode that ended, beside its outcome; JSON-able."""
        ...


def opened(name: str) -> Sim:
    """The world of a name in SIMS; what stands behind a colon is told to it ("metaworld:push-v3").
    Raises ValueError, saying what to install, where its simulator is not there.
    """
    name, _, words = name.partition(":")
    kind = getattr(_module(name), SIMS[name])
    return cast(Sim, kind(words) if words else kind())


def check(name: str) -> tuple[list[str], bool]:
    """What of a world's needs is there, a line each, what to do at the first that is not, and
    whether all is.
    """
    return cast(tuple[list[str], bool], _module(name.partition(":")[0]).check())


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
