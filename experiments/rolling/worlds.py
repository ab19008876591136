"""Worlds at work: in this process, or each in one of its own, which may end as simulators do. Both
take an order, ask, take answers, and tell when they are done.
"""

import contextlib
import multiprocessing.connection
import subprocess
import sys
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
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
from experiments.sims import Sim

REPOSITORY = Path(__file__).resolve().parents[2]  # where the worlds' modules are found

Message = Query | Played | Filmed


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
    kind = Local if sim.partition(":")[0] in sims.IN_PROCESS else Apart
    return [kind(sim) for _ in range(count)]


class Trouble(NamedTuple):
    """What a world's process could not do: a person's to mend, or else a traceback."""

    text: str
    mendable: bool


class Lost(RuntimeError):
    """A world's process ended."""


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
    """A world in a process of its own. It opens while others do: `about` waits for it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._about: About | None = None
        self._connection, other = multiprocessing.Pipe()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "experiments.rolling.child", str(other.fileno()), name],
                pass_fds=(other.fileno(),), cwd=REPOSITORY,
            )  # fmt: skip

    @property
    def about(self) -> About:
        """What it says of itself. Raises ValueError where it cannot be opened."""
        if self._about is None:
            self._about = cast(About, self._received())
        return self._about

    @property
    def process(self) -> int | None:
        """The number of its process."""
        return self._process.pid

    def begin(self, order: Play | Film | Probe | Watch) -> None:
        """Takes an order. Raises as `about` does."""
        assert self.about is not None  # what it says first
        self._send(order)

    def answer(self, chunk: np.ndarray | None) -> None:
        """Goes on with the actions [k d] that were asked for."""
        self._send(chunk)

    def take(self) -> Message:
        """What it asks, or what it did. Raises Lost where its process ended, ValueError for what a
        person can mend, RuntimeError for the rest.
        """
        return cast(Message, self._received())

    @staticmethod
    def ready(worlds: "Sequence[Apart]") -> "Sequence[Apart]":
        """Waits until there are some that have something to tell, their end too."""
        by_connection = {world._connection: world for world in worlds}
        found = multiprocessing.connection.wait(list(by_connection))
        return [by_connection[cast(Connection, each)] for each in found]

    def close(self) -> None:
        """Ends its process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it ended: `take` says so
            self._connection.send(message)

    def _received(self) -> Any:
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            status = self._process.wait()
            raise Lost(
                f"the process of {self._name} ended with "
                + (f"signal {-status}" if status < 0 else f"status {status}")
            ) from None
        if isinstance(message, Trouble):
            kind = ValueError if message.mendable else RuntimeError
            raise kind(message.text)
        return message
