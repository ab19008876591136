"""Episodes of a policy in a world. Everything follows from the seed and the episode's number.

Axes: k chunk step, d action dim.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.sims import Sim
from vla_jax.types import Policy


class Actor(NamedTuple):
    """Who acts.

    Attributes:
        policy: plans chunks; of an episode's number, which those that draw begin with.
        execute: how many actions of a chunk are carried out before it plans again; 0: all. A policy
            that looks at several frames gets those at which it plans.
        looks: whether it wants pictures; without it none is drawn.
        blank: its instruction is "" in place of the world's.
    """

    policy: Callable[[int], Policy]
    execute: int
    looks: bool = True
    blank: bool = False


class Expert:
    """types.Policy of who knows the world, one step at a time."""

    def __init__(self, sim: Sim) -> None:
        self._sim = sim

    def reset(self, instruction: str) -> None:
        """Nothing is to be told."""

    def act(self, images: dict[str, np.ndarray], proprio: np.ndarray | None = None) -> np.ndarray:
        """[1 d]."""
        return self._sim.expert()[None]


class Random:
    """types.Policy that does anything that the robot can, one step at a time."""

    def __init__(self, sim: Sim, seed: int, number: int) -> None:
        self._sim = sim
        seeds = np.random.SeedSequence((seed, number))
        self._draw = np.random.Generator(np.random.Philox(seeds))

    def reset(self, instruction: str) -> None:
        """Nothing is to be told."""

    def act(self, images: dict[str, np.ndarray], proprio: np.ndarray | None = None) -> np.ndarray:
        """[1 d]."""
        return self._draw.uniform(self._sim.low, self._sim.high)[None]


def begin(sim: Sim, seed: int, number: int) -> dict[str, Any]:
    """Resets the world to an episode, and says which it is: tasks come in turn, and when all had
    theirs, wordings.
    """
    task = sim.tasks[number % len(sim.tasks)]
    wording = sim.wordings[number // len(sim.tasks) % len(sim.wordings)]
    sim.reset(task, wording, (seed, number))
    return {"episode": number, "task": task, "wording": wording, "instruction": sim.instruction}


def warm_up(sim: Sim, actor: Actor, seed: int) -> None:
    """One plan, so that no episode's time holds a compilation."""
    policy = actor.policy(0)
    policy.reset(begin(sim, seed, 0)["instruction"])
    _planned(sim, actor, policy, 0)


def play(sim: Sim, actor: Actor, seed: int, number: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Runs an episode to its end: what became of it, JSON-able, and the actions [d] carried out.

    Raises ValueError for a chunk of another shape than [k d], too short for `execute`, or with a
    number that is not finite.
    """
    row = begin(sim, seed, number)
    policy = actor.policy(number)
    actions: list[np.ndarray] = []
    milliseconds: list[float] = []
    stage = -1
    while not sim.outcome:
        if sim.stage != stage:
            stage = sim.stage
            policy.reset("" if actor.blank else sim.instruction)
        began = time.perf_counter()
        chunk = _planned(sim, actor, policy, number)
        milliseconds.append(round(1e3 * (time.perf_counter() - began), 3))
        for action in chunk:
            if not sim.outcome and sim.stage == stage:
                sim.step(action)
                actions.append(action)
    row |= {"outcome": sim.outcome, "steps": len(actions), "milliseconds": milliseconds}
    row |= sim.report()
    return row, actions


def _planned(sim: Sim, actor: Actor, policy: Policy, number: int) -> np.ndarray:
    """The actions [k d] to carry out next, and no more."""
    images, proprio = sim.observe() if actor.looks else ({}, None)
    chunk = np.asarray(policy.act(images, proprio))
    d = len(sim.low)
    if chunk.ndim != 2 or chunk.shape[1] != d or len(chunk) < max(1, actor.execute):
        raise ValueError(
            f"episode {number}: expected of the policy a chunk of {max(1, actor.execute)} actions"
            f" or more of {d} numbers each, got {list(chunk.shape)}; give a policy for"
            f" {sim.dataset}, or a smaller --execute"
        )
    if not np.isfinite(chunk).all():
        raise ValueError(
            f"episode {number}: expected finite actions of the policy, got {chunk.tolist()}"
        )
    return chunk[: actor.execute or None]
