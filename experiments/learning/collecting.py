"""Plays episodes for a policy that learns from them: many worlds at once, in lanes that are
played beside each other; what it saw and drew is kept.

Which episodes and what is drawn in them follows from the run's seed and the round's number: which
worlds are quicker changes no bit of it, and how many there are no more than rounding does, as
programs are of so many rows.

Axes: k chunk step, d action dim.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from experiments.rolling.actors import of_cameras
from experiments.rolling.episodes import Orders, Play, Played, Query
from experiments.rolling.processes import Lost
from experiments.rolling.turns import Turns
from experiments.rolling.worlds import About, lanes
from vla_jax.policy import JaxPolicy
from vla_jax.types import Observation


class Episode(NamedTuple):
    """One to be played: its number in the world, and the number of what is drawn in it."""

    number: int
    draw: int


class Trial(NamedTuple):
    """An episode that was played: the frames at which the policy decided, its chunks [k d] in
    network units, how many steps each was carried out for, and whether it succeeded. Where they are
    asked for, `last` is the frame at its end, and `readouts` [t n c] what its head read each time.
    """

    episode: Episode
    frames: list[Observation]
    chunks: list[np.ndarray]
    steps: list[int]
    success: bool
    readouts: list[np.ndarray]
    last: Observation | None = None


class Collector:
    """The worlds of a run, to be closed afterwards."""

    def __init__(
        self,
        worlds: Sequence[Any],
        again: Callable[[], Any],
        seed: int,
        ending: bool = False,
        reading: bool = False,
    ) -> None:
        """`again` opens another world in place of one that ended; `seed` is of all episodes; with
        `ending` trials have their last frame, with `reading` their readouts.
        """
        self._lanes = [Turns(own, again) for own in lanes(worlds)]
        self._orders, self._ending, self._reading = Orders(seed), ending, reading
        self._lost = list[Episode]()

    def collect(self, policy: JaxPolicy, episodes: Sequence[Episode]) -> list[Trial]:
        """Plays them all; trials are in their order. Raises RuntimeError where no world is left
        that plays one to its end, and what worlds and policies raise.
        """
        self._episodes = episodes
        self._open: dict[int, Trial] = {}  # by an episode's place: as far as it came
        done: dict[int, Trial] = {}
        todo, most = deque(range(len(episodes))), max(len(lane.worlds) for lane in self._lanes)

        def play(turns: Turns) -> None:
            sessions = policy.sessions(len(turns.worlds), most)  # programs of one size
            try:
                turns.start(todo, self._order)
                while turns.at:
                    self._answer(turns, sessions, self._heard(turns, sessions, done))
            finally:  # of an error, else it is empty: the others end, too
                todo.clear()

        # A thread holds the interpreter neither while the device computes nor while worlds step.
        with ThreadPoolExecutor(len(self._lanes)) as threads:
            try:
                list(threads.map(play, self._lanes))
            finally:
                todo.clear()
        if not done:
            raise RuntimeError(
                f"all {len(episodes)} episodes of this round were lost with their worlds' processes"
                "; --doctor of experiments.rollout says whether the simulator works here"
            )
        return [done[place] for place in sorted(done)]

    @property
    def about(self) -> About:
        """What the worlds say of themselves. Raises ValueError where they cannot be opened."""
        about: About = self._worlds[0].about
        return about

    @property
    def processes(self) -> list[int]:
        """Those of the worlds that are not in this one."""
        return list({world.process for world in self._worlds} - {None})

    @property
    def lost(self) -> int:
        """Episodes that were left out, as their worlds' processes ended again and again."""
        return len(self._lost)

    def close(self) -> None:
        """Ends the worlds."""
        for world in self._worlds:
            world.close()

    @property
    def _worlds(self) -> list[Any]:
        return [world for lane in self._lanes for world in lane.worlds]

    def _order(self, place: int) -> Play:
        episode = self._episodes[place]
        self._open[place] = Trial(episode, [], [], [], False, [])
        return Play(self._orders, episode.number, self._ending)

    def _heard(
        self, turns: Turns, sessions: Sequence[JaxPolicy], done: dict[int, Trial]
    ) -> dict[int, Query]:
        """What worlds ask; those that are done are put into `done`. An episode that was lost again
        is left out.
        """
        asked = {}
        for slot, message in turns.heard():
            place = turns.at[slot]
            if isinstance(message, Query):
                asked[slot] = message
            elif isinstance(message, Played):
                done[place] = _ended(self._open.pop(place), message, sessions[slot])
                turns.next(slot)
            elif isinstance(message, Lost) and not turns.replaced(slot):
                self._lost.append(self._open.pop(place).episode)
                turns.next(slot)
        return asked

    def _answer(self, turns: Turns, sessions: Sequence[JaxPolicy], asked: dict[int, Query]) -> None:
        """Asks the policy for all of them together, in the order of their worlds."""
        if not asked:
            return
        slots = sorted(asked)
        for slot in slots:
            trial, told = self._open[turns.at[slot]], asked[slot].instruction
            if told is not None:
                if trial.frames:
                    raise ValueError(
                        "rl.sim: expected a world with one instruction an episode, got one that"
                        " goes on to the next (calvin): learning by trial counts one success"
                    )
                sessions[slot].reset(told, trial.episode.draw)
        own = [sessions[slot] for slot in slots]
        seen = [of_cameras(asked[slot].seen, own[0].cameras) for slot in slots]
        chunks = own[0].act_together(own, seen)
        for slot, session, chunk in zip(slots, own, chunks, strict=True):
            trial = self._open[turns.at[slot]]
            frame, drawn = session.taken()
            trial.frames.append(frame)
            trial.chunks.append(drawn)
            if self._reading:
                trial.readouts.append(session.readouts())
            trial.steps.append(len(chunk))
            turns.worlds[slot].answer(np.asarray(chunk))


def _ended(trial: Trial, played: Played, session: JaxPolicy) -> Trial:
    """A trial with its outcome: of the last chunk only what was carried out."""
    last = None
    if played.last is not None:
        last = session.looked(of_cameras(played.last, session.cameras))
    rest = len(played.actions) - sum(trial.steps[:-1])
    steps = [*trial.steps[:-1], rest]
    return trial._replace(steps=steps, success=played.row["outcome"] == "success", last=last)


def of_round(round_: int, episodes: int, trials: int, tasks: int, wordings: int) -> list[Episode]:
    """The episodes of a round, from 0 on: each `trials` times, with draws of their own. Tasks come
    in turn, and all have the first kind of wording: those that training may know
    (rolling.episodes.begin).
    """
    out = []
    for i in range(round_ * episodes, (round_ + 1) * episodes):
        number = i // tasks * tasks * wordings + i % tasks
        out += [Episode(number, i * trials + trial) for trial in range(trials)]
    return out
