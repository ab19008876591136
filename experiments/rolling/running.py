"""Plays episodes in several worlds at once: whoever asks at one time is answered in one pass."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.rolling import films
from experiments.rolling.actors import Actors
from experiments.rolling.episodes import Film, Filmed, Orders, Play, Played, Query
from experiments.rolling.results import Kept
from experiments.rolling.worlds import Apart, Local, Lost
from vla_jax.progress import Progress

TRIES = 2  # of an episode whose world's process ends


class Running:
    """The episodes of one command.

    Attributes:
        worlds: as many as are played at once, all of one kind; to be closed afterwards.

    Args:
        again: opens another world in place of one that ended.
        actors: who is asked; None: episodes ask nobody.
        kept: where they go.
    """

    def __init__(
        self,
        worlds: Sequence[Local] | Sequence[Apart],
        again: Callable[[], Any],
        actors: Actors | None,
        kept: Kept,
    ) -> None:
        self.worlds: list[Any] = list(worlds)
        self._again, self._actors, self._kept = again, actors, kept
        self._tries: Counter[int] = Counter()
        self._plans: defaultdict[int, list[float]] = defaultdict(list)  # milliseconds, by episode
        self._warm = False

    def run(self, orders: Orders, todo: Sequence[int]) -> None:
        """Plays the episodes `todo` and keeps each when it ended, its pictures before. Raises what
        worlds and policies raise.
        """
        self._orders, self._todo = orders, deque(todo)
        self._numbers: dict[int, int] = {}  # world -> its episode
        self._played: dict[int, Played] = {}  # world -> what is being filmed
        with Progress("rollout", len(todo), "episodes") as self._progress:
            for slot in range(len(self.worlds)):
                self._next(slot)
            while self._numbers:
                self._answer(self._heard())

    def _next(self, slot: int) -> None:
        """Gives a world its next episode, if there is one."""
        self._numbers.pop(slot, None)
        if self._todo:
            self._begin(slot, self._todo.popleft())

    def _begin(self, slot: int, number: int) -> None:
        self._numbers[slot] = number
        self._plans.pop(number, None)
        self.worlds[slot].begin(Play(self._orders, number))

    def _heard(self) -> dict[int, Query]:
        """Takes what worlds have to tell; returns what they ask."""
        asked = {}
        busy = [self.worlds[slot] for slot in self._numbers]
        for world in type(busy[0]).ready(busy):
            slot = self.worlds.index(world)
            try:
                message = world.take()
            except Lost as error:
                self._lost(slot, str(error))
                continue
            if isinstance(message, Query):
                asked[slot] = message
            elif isinstance(message, Played):
                self._ended(slot, message)
            elif isinstance(message, Filmed):
                self._keep(slot, self._played.pop(slot))
        return asked

    def _answer(self, asked: dict[int, Query]) -> None:
        """Asks the policy for all of them together."""
        if not asked:
            return
        assert self._actors is not None
        if not self._warm:  # no episode's time holds a compilation; all begin, so it is forgotten
            self._actors.act(asked)
            self._warm = True
        began = time.perf_counter()
        chunks = self._actors.act(asked)
        took = round(1e3 * (time.perf_counter() - began), 3)
        for slot, chunk in chunks.items():
            self._plans[self._numbers[slot]].append(took)
            self.worlds[slot].answer(np.asarray(chunk))

    def _ended(self, slot: int, played: Played) -> None:
        """Has an episode filmed if it is among those that are, else keeps it."""
        number = self._numbers[slot]
        if number in films.wanted([*self._kept.rows.values(), played.row]):
            self._played[slot] = played
            order = Film(self._orders, number, played.actions, self._kept.out)
            self.worlds[slot].begin(order)
        else:
            self._keep(slot, played)

    def _keep(self, slot: int, played: Played) -> None:
        number = self._numbers[slot]
        plans = self._plans.pop(number, [])
        self._kept.add({**played.row, "milliseconds": plans}, played.actions)
        self._progress.add(1)
        self._next(slot)

    def _lost(self, slot: int, why: str) -> None:
        """Plays an episode once more in a new world; if that ends too, it is an error, which is
        neither a success nor a failure.
        """
        number = self._numbers[slot]
        self.worlds[slot].close()
        self.worlds[slot] = self._again()
        self._played.pop(slot, None)
        self._tries[number] += 1
        if self._tries[number] < TRIES:
            self._progress.say(f"episode {number}: {why}; it is played again")
            self._begin(slot, number)
            return
        self._progress.say(f"episode {number}: {why} again: kept as an error")
        self._kept.add({"episode": number, "outcome": "error", "error": why}, None)
        self._next(slot)
