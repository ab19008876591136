"""Worlds at work: in this process, or in others, which may end as simulators do. Both take an
order, ask, take answers, and tell when they are done.
"""

import os
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from experiments import sims
from experiments.rolling.episodes import (
    Film,
    Filmed,
    Play,
    Played,
    Probe,
    Query,
    Watch,
    perform,
)
from experiments.rolling.processes import Process, wait
from experiments.sims import Sim

Message = Query | Played | Filmed

# Parts of all worlds that a policy plays in beside each other: it thinks for one while the worlds
# of another step; with two, either waits for the other, a quarter of the time of two processors.
LANES = 3


class About(NamedTuple):
    """What is to be known of a world: sims.Sim's attributes of these names."""

    datasets: tuple[str, ...]
    tasks: tuple[str, ...]
    wordings: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    control_hz: float
    facts: dict[str, str]


def about(sim: Sim) -> About:
    """What a world says of itself."""
    own = sim.datasets, sim.tasks, sim.wordings, sim.low, sim.high, sim.control_hz
    return About(*own, dict(sim.facts))


def opened(sim: str, count: int) -> list[Any]:
    """So many worlds. Raises ValueError where the simulator is not there."""
    if sim.partition(":")[0] in sims.IN_PROCESS:
        return [Local(sim) for _ in range(count)]
    return [Apart(Process(sim, 1), 0) for _ in range(count)]


def apart(sim: str, count: int) -> "list[Apart]":
    """So many worlds in other processes, which go on while a policy thinks: several in each, and
    one process more than there are processors, where the simulator cannot take its process down
    with it; else each in one of its own. Raises as `opened`.
    """
    processes = count
    if sim.partition(":")[0] in sims.IN_PROCESS:
        processes = min(count, max(LANES, len(os.sched_getaffinity(0)) + 1))
    out = []
    for i in range(processes):
        places = range(count // processes + (i < count % processes))
        process = Process(sim, len(places))
        out += [Apart(process, place) for place in places]
    return out


def lanes(worlds: Sequence[Any]) -> list[list[Any]]:
    """The worlds in LANES parts, each of whole processes; fewer where they have fewer."""
    by_process: dict[int | None, list[Any]] = {}
    for world in worlds:
        by_process.setdefault(world.process, []).append(world)
    own = list(by_process.values())
    count = min(LANES, len(own))
    return [[world for part in own[i::count] for world in part] for i in range(count)]


class Local:
    """A world in this process."""

    process: int | None = None  # of its own, which it has not

    def __init__(self, name: str) -> None:
        self._sim = sims.opened(name)
        self.about = about(self._sim)
        self._message: Message | None = None

    def begin(self, order: Play | Film | Probe | Watch) -> None:
        """Takes an order."""
        self._work = cast(Generator[Message, Any, Message], perform(self._sim, order))
        self.answer(None)

    def answer(self, chunk: np.ndarray | None) -> None:
        """Goes on with the actions [k d] that were asked for."""
        try:
            self._message = self._work.send(chunk)
        except StopIteration as end:
            self._message = end.value

    def take(self) -> Message:
        """What it asks, or what it did."""
        message, self._message = self._message, None
        assert message is not None
        return message

    @staticmethod
    def ready(worlds: "Sequence[Local]") -> "Sequence[Local]":
        """Those that have something to tell."""
        return [world for world in worlds if world._message is not None]

    def close(self) -> None:
        """Nothing is to be ended."""


class Apart:
    """A world in another process, perhaps beside others."""

    def __init__(self, process: Process, place: int) -> None:
        """`place` is its own among the worlds of the process."""
        self._process, self._place = process, place

    @property
    def about(self) -> About:
        """What it says of itself. Raises ValueError where it cannot be opened."""
        return cast(About, self._process.about)

    @property
    def process(self) -> int | None:
        """The number of its process."""
        return self._process.number

    def begin(self, order: Play | Film | Probe | Watch) -> None:
        """Takes an order. Raises as `about` does."""
        assert self.about is not None  # what its process says first
        self._process.tell(self._place, order)

    def answer(self, chunk: np.ndarray | None) -> None:
        """Goes on with the actions [k d] that were asked for."""
        self._process.tell(self._place, chunk)

    def take(self) -> Message:
        """What it asks, or what it did. Raises Lost where its process ended, ValueError for what a
        person can mend, RuntimeError for the rest.
        """
        return cast(Message, self._process.said(self._place))

    @staticmethod
    def ready(worlds: "Sequence[Apart]") -> "Sequence[Apart]":
        """Waits until there are some that have something to tell, their end too."""
        by_process: dict[Process, list[Apart]] = {}
        for world in worlds:
            by_process.setdefault(world._process, []).append(world)
        return [world for process in wait(by_process) for world in by_process[process]]

    def close(self) -> None:
        """Ends its process."""
        self._process.close()
