"""Plays episodes in several worlds at once: whoever asks at one time is answered in one pass."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.rolling import films
from experiments.rolling.actors import Actors
from experiments.rolling.episodes import Film, Filmed, Orders, Play, Played, Query
from experiments.rolling.processes import Lost
from experiments.rolling.results import Kept
from experiments.rolling.turns import Turns
from experiments.rolling.worlds import Apart, Local
from vla_jax.progress import Progress


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
        self._turns = Turns(worlds, again)
        self._actors, self._kept = actors, kept
        self._plans: defaultdict[int, list[float]] = defaultdict(list)  # milliseconds, by episode
        self._warm = False

    @property
    def worlds(self) -> list[Any]:
        """See above."""
        return self._turns.worlds

    def run(self, orders: Orders, todo: Sequence[int]) -> None:
        """Plays the episodes `todo` and keeps each when it ended, its pictures before. Raises what
        worlds and policies raise.
        """
        self._orders = orders
        self._played: dict[int, Played] = {}  # world -> what is being filmed
        with Progress("rollout", len(todo), "episodes") as self._progress:
            self._turns.start(deque(todo), self._order)
            while self._turns.at:
                self._answer(self._heard())

    def _order(self, number: int) -> Play:
        self._plans.pop(number, None)
        return Play(self._orders, number)

    def _heard(self) -> dict[int, Query]:
        """Takes what worlds have to tell; returns what they ask."""
        asked = {}
        for slot, message in self._turns.heard():
            if isinstance(message, Lost):
                self._lost(slot, str(message))
            elif isinstance(message, Query):
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
            self._plans[self._turns.at[slot]].append(took)
            self.worlds[slot].answer(np.asarray(chunk))

    def _ended(self, slot: int, played: Played) -> None:
        """Has an episode filmed if it is among those that are, else keeps it."""
        number = self._turns.at[slot]
        if number in films.wanted([*self._kept.rows.values(), played.row]):
            self._played[slot] = played
            order = Film(self._orders, number, played.actions, self._kept.out)
            self.worlds[slot].begin(order)
        else:
            self._keep(slot, played)

    def _keep(self, slot: int, played: Played) -> None:
        number = self._turns.at[slot]
        plans = self._plans.pop(number, [])
        self._kept.add({**played.row, "milliseconds": plans}, played.actions)
        self._progress.add(1)
        self._turns.next(slot)

    def _lost(self, slot: int, why: str) -> None:
        """Plays an episode once more in a new world; if that ends too, it is an error, which is
        neither a success nor a failure.
        """
        number = self._turns.at[slot]
        self._played.pop(slot, None)
        if self._turns.replaced(slot):
            self._progress.say(f"episode {number}: {why}; it is played again")
            return
        self._progress.say(f"episode {number}: {why} again: kept as an error")
        self._kept.add({"episode": number, "outcome": "error", "error": why}, None)
        self._turns.next(slot)
