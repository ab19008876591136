"""Which of several worlds plays which episode. One whose process ends is replaced, and its episode
begun once more.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.rolling.episodes import Play
from experiments.rolling.processes import Lost
from experiments.rolling.worlds import Apart, Local, Message

TRIES = 2  # of an episode whose world's process ends


class Turns:
    """The worlds of a command, and what each of them plays.

    Attributes:
        worlds: all of one kind; to be closed afterwards.
        at: a world's place among them -> its episode, as it is called in `start`.
    """

    def __init__(self, worlds: Sequence[Local] | Sequence[Apart], again: Callable[[], Any]) -> None:
        """`again` opens another world in place of one that ended."""
        self.worlds: list[Any] = list(worlds)
        self.at: dict[int, int] = {}
        self._again = again

    def start(self, todo: deque[int], order: Callable[[int], Play]) -> None:
        """Gives each world an episode of `todo`, from which other threads may take, too; `order` is
        asked when one begins, also again.
        """
        self._todo, self._order = todo, order
        self._tries: Counter[int] = Counter()
        for slot in range(len(self.worlds)):
            self.next(slot)

    def next(self, slot: int) -> None:
        """Gives a world its next episode, if there is one."""
        self.at.pop(slot, None)
        try:
            episode = self._todo.popleft()
        except IndexError:  # none is left
            return
        self._begin(slot, episode)

    def heard(self) -> Iterator[tuple[int, Message | Lost]]:
        """Waits, and gives what worlds have to tell; of one whose process ended, that."""
        busy = [self.worlds[slot] for slot in self.at]
        for world in type(busy[0]).ready(busy):
            try:
                message = world.take()
            except Lost as error:
                message = error
            yield self.worlds.index(world), message

    def replaced(self, slot: int) -> bool:
        """Puts another world in the place of one that ended. Whether it plays the episode once
        more: it does not where that has had its TRIES.
        """
        episode = self.at[slot]
        self.worlds[slot].close()
        self.worlds[slot] = self._again()
        self._tries[episode] += 1
        if self._tries[episode] == TRIES:
            return False
        self._begin(slot, episode)
        return True

    def _begin(self, slot: int, episode: int) -> None:
        self.at[slot] = episode
        self.worlds[slot].begin(self._order(episode))
