"""A process with worlds in it, which may end as simulators do. What its worlds are told at one time
goes over as one message, and so does what they say to that.
"""

import contextlib
import multiprocessing.connection
import subprocess
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, cast

REPOSITORY = Path(__file__).resolve().parents[2]  # where the worlds' modules are found


class Trouble(NamedTuple):
    """What a world's process could not do: a person's to mend, or else a traceback."""

    text: str
    mendable: bool


class Lost(RuntimeError):
    """A world's process ended."""


class Process:
    """One process. It opens its worlds while others do: `about` waits for it."""

    def __init__(self, name: str, worlds: int) -> None:
        """`name` is of all its worlds."""
        self._name = name
        self._about: Any = None
        self._connection, other = multiprocessing.Pipe()
        with other:
            self._child = subprocess.Popen(
                [
                    sys.executable, "-m", "experiments.rolling.child", str(other.fileno()), name,
                    str(worlds),
                ],
                pass_fds=(other.fileno(),), cwd=REPOSITORY,
            )  # fmt: skip
        self._outgoing: dict[int, Any] = {}  # by a world's place
        self._said: dict[int, Any] = {}
        self._at_work = False
        self._end: Exception | None = None  # why nothing more comes

    @property
    def number(self) -> int:
        """The system's."""
        return self._child.pid

    @property
    def about(self) -> Any:
        """What the first thing is that it says. Raises as `said`."""
        if self._about is None:
            self._about = self._received()
            if self._end is not None:
                raise self._end
        return self._about

    def tell(self, place: int, message: Any) -> None:
        """What the world at a place is to be told, with the next `send`."""
        self._outgoing[place] = message

    def send(self) -> None:
        """Sends what is to be told, if there is something."""
        if self._outgoing:
            with contextlib.suppress(OSError):  # it ended: `said` says so
                self._connection.send(self._outgoing)
            self._outgoing, self._at_work = {}, True

    @property
    def done(self) -> bool:
        """Whether there is something to take: what its worlds say, or that it ended."""
        return not self._at_work

    def said(self, place: int) -> Any:
        """Takes what the world at a place says, and waits for it. Raises Lost where the process
        ended, ValueError for what a person can mend, RuntimeError for the rest.
        """
        self.send()
        if self._at_work:
            self.receive()
        if self._end is not None:
            raise self._end
        return self._said.pop(place)

    def receive(self) -> None:
        """Waits for what its worlds say."""
        self._said.update(self._received() or {})
        self._at_work = False

    def close(self) -> None:
        """Ends it."""
        self._connection.close()
        self._child.kill()
        self._child.wait()

    def _received(self) -> Any:
        """Its next message; None where no more comes."""
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            status = self._child.wait()
            self._end = Lost(
                f"the process of {self._name} ended with "
                + (f"signal {-status}" if status < 0 else f"status {status}")
            )
            return None
        if isinstance(message, Trouble):
            self._end = (ValueError if message.mendable else RuntimeError)(message.text)
            return None
        return message


def wait(processes: Iterable[Process]) -> list[Process]:
    """Sends to all what they are to be told, and waits until some of them are done: these."""
    all_of_them = list(processes)
    for process in all_of_them:
        process.send()
    while not any(process.done for process in all_of_them):
        working = {process._connection: process for process in all_of_them if not process.done}
        for connection in multiprocessing.connection.wait(list(working)):
            working[cast(Connection, connection)].receive()
    return [each for each in all_of_them if each.done]
