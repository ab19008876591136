"""An episode in a world: what it asks of a policy, and what becomes of it. Everything follows from
the seed and the episode's number.

Axes: k chunk step, d action dim.
"""

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.rolling import films
from experiments.rolling.chunking import Chunking, Following, jerk, robot_of
from experiments.sims import Sim
from vla_jax.types import Seen

ACTIONS = "actions"  # the folder of those that were carried out

Row = dict[str, Any]


class Orders(NamedTuple):
    """How episodes are played.

    Attributes:
        seed: of all of them.
        script: who acts where no policy is asked: "expert" (who knows the world), "random"
            (anything that the robot can do), "replay" (what was carried out before); "": a policy
            is asked.
        execute: how many actions of a chunk are carried out before the next is asked for; 0: all. A
            policy that looks at several frames gets those at which it is asked.
        blank: the policy's instruction is "" in place of the world's.
        replay: the results whose actions are carried out again.
        chunking: how chunks follow each other, one of chunking.KINDS, where a plan takes `delay`
            control steps to come.
    """

    seed: int
    script: str = ""
    execute: int = 0
    blank: bool = False
    replay: Path | None = None
    chunking: str = "wait"
    delay: int = 0


class Play(NamedTuple):
    """An order: an episode from its beginning to its end; with `ending` what is seen there is told
    too.
    """

    orders: Orders
    number: int
    ending: bool = False


class Film(NamedTuple):
    """An order: pictures of the episode in which these actions [d] were carried out."""

    orders: Orders
    number: int
    actions: np.ndarray
    out: Path


class Watch(NamedTuple):
    """An order: the episode in which these actions [d] were carried out is looked at before every
    `every`-th of them, and at its end.
    """

    orders: Orders
    number: int
    actions: np.ndarray
    every: int


class Probe(NamedTuple):
    """An order: the expert acts, and a policy is asked at each step what it would do."""

    orders: Orders
    number: int


class Query(NamedTuple):
    """What a policy is asked: `instruction` where it begins anew, else None; and what it sees. Of a
    Probe the action [d] too that the expert carries out.
    """

    instruction: str | None
    seen: Seen
    expert: np.ndarray | None = None


class Played(NamedTuple):
    """An episode that ended: what became of it, JSON-able, the actions [d] carried out, and what is
    seen at its end, where that was asked for.
    """

    row: Row
    actions: np.ndarray
    last: Seen | None = None


class Filmed(NamedTuple):
    """The pictures are written."""


def perform(
    sim: Sim, order: Play | Film | Probe | Watch
) -> Generator[Query, np.ndarray, Played | Filmed]:
    """Does what is ordered; gives what a policy is asked on the way, and takes chunks [k d]."""
    if isinstance(order, Play):
        played = yield from play(sim, order.orders, order.number)
        actions = played.actions
        return played._replace(last=_sight(sim, actions, len(actions)) if order.ending else None)
    if isinstance(order, Probe):
        return (yield from probe(sim, order.orders, order.number))
    if isinstance(order, Watch):
        return (yield from watch(sim, order))
    begin(sim, order.orders.seed, order.number)
    films.keep(sim, order.actions, order.out, order.number)
    return Filmed()


def begin(sim: Sim, seed: int, number: int) -> Row:
    """Resets the world to an episode, and says which it is: tasks come in turn, and when all had
    theirs, wordings.
    """
    task = sim.tasks[number % len(sim.tasks)]
    wording = sim.wordings[number // len(sim.tasks) % len(sim.wordings)]
    sim.reset(task, wording, (seed, number))
    return {"episode": number, "task": task, "wording": wording, "instruction": sim.instruction}


def play(sim: Sim, orders: Orders, number: int) -> Generator[Query, np.ndarray, Played]:
    """Runs an episode to its end. Without a script it asks for chunks [k d]: it draws what the
    policy sees then, and only then.

    Raises ValueError for a chunk of another shape, too short for `execute` or the delay, or with a
    number that is not finite.
    """
    started, waited = time.perf_counter(), 0.0
    row = begin(sim, orders.seed, number)
    script = _script(sim, orders, number) if orders.script else None
    stage, actions, robot = -1, list[np.ndarray](), robot_of(sim.datasets)
    chunking = Chunking(orders.chunking, orders.delay, orders.execute)
    while not sim.outcome:
        told = None
        if sim.stage != stage:
            stage, told = sim.stage, "" if orders.blank else sim.instruction
            following = Following(chunking, robot)
        if script is not None:
            chunk = script()[None]
        else:
            images, proprio = sim.observe()
            before = None if told is not None else actions[-1]
            underway = following.underway(len(sim.low))
            asked = time.perf_counter()
            chunk = yield Query(told, Seen(images, proprio, before, underway=underway))
            waited += time.perf_counter() - asked
            chunk = following.next(_checked(chunk, sim, orders.execute, number), before)
        for action in chunk:
            if not sim.outcome and sim.stage == stage:
                sim.step(action)
                actions.append(action)
    row |= {"outcome": sim.outcome, "steps": len(actions)}
    row["jerk"] = jerk(robot, np.array(actions), sim.control_hz)
    row |= {"seconds": round(time.perf_counter() - started - waited, 4), **sim.report()}
    return Played(row, np.array(actions))


def probe(sim: Sim, orders: Orders, number: int) -> Generator[Query, np.ndarray, Played]:
    """Runs an episode of the expert to its end, and asks at each step. What is answered is not
    looked at.
    """
    row = begin(sim, orders.seed, number)
    stage, actions = -1, list[np.ndarray]()
    while not sim.outcome:
        told = None
        if sim.stage != stage:
            stage, told = sim.stage, sim.instruction
        images, proprio = sim.observe()
        action = np.asarray(sim.expert())
        before = None if told is not None else actions[-1]
        yield Query(told, Seen(images, proprio, before), action)
        sim.step(action)
        actions.append(action)
    return Played(row | {"outcome": sim.outcome, "steps": len(actions)}, np.array(actions))


def watch(sim: Sim, order: Watch) -> Generator[Query, np.ndarray, Played]:
    """Carries out an order to look. What is answered is not looked at."""
    row, actions = begin(sim, order.orders.seed, order.number), order.actions
    for i, action in enumerate(actions):
        if i % order.every == 0:
            yield Query(None if i else sim.instruction, _sight(sim, actions, i))
        sim.step(action)
    yield Query(None, _sight(sim, actions, len(actions)))
    return Played(row | {"outcome": sim.outcome}, actions)


def _sight(sim: Sim, actions: np.ndarray, i: int) -> Seen:
    """What is seen after the first i actions."""
    images, proprio = sim.observe()
    return Seen(images, proprio, actions[i - 1] if i else None)


def _script(sim: Sim, orders: Orders, number: int) -> Callable[[], np.ndarray]:
    """The next action [d] of who acts without being asked by anybody."""
    if orders.script == "expert":
        return sim.expert
    if orders.script == "random":
        seeds = np.random.SeedSequence((orders.seed, number))
        draw = np.random.Generator(np.random.Philox(seeds))
        return lambda: draw.uniform(sim.low, sim.high)
    assert orders.replay is not None
    rest = iter(actions_of(orders.replay, number))

    def again() -> np.ndarray:
        action = next(rest, None)
        if action is None:
            raise ValueError(
                f"--policy=replay:{orders.replay}: expected that episode {number} ends with its"
                " last action, as it did; this is another world: compare its settings.json"
            )
        return action

    return again


def actions_of(out: Path, number: int) -> np.ndarray:
    """The actions [steps d] of an episode that is kept in `out`. Raises ValueError where there are
    none.
    """
    file = out / ACTIONS / f"{number}.npy"
    if not file.is_file():
        raise ValueError(
            f"{file}: expected the actions of episode {number}; give the --out of a rollout that"
            " had it, or fewer --episodes"
        )
    return np.load(file, allow_pickle=False)


def _checked(chunk: np.ndarray, sim: Sim, execute: int, number: int) -> np.ndarray:
    """The policy's chunk [k d]."""
    chunk, d = np.asarray(chunk), len(sim.low)
    if chunk.ndim != 2 or chunk.shape[1] != d or len(chunk) < max(1, execute):
        raise ValueError(
            f"episode {number}: expected of the policy a chunk of {max(1, execute)} actions or more"
            f" of {d} numbers each, got {list(chunk.shape)}; give a policy for"
            f" {sim.datasets[0]}, or a smaller --execute"
        )
    if not np.isfinite(chunk).all():
        raise ValueError(
            f"episode {number}: expected finite actions of the policy, got {chunk.tolist()}"
        )
    return chunk
