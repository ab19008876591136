"""CALVIN, the official protocol: an episode is one of its 1,000 chains of five tasks, each in 360
steps, judged by its own oracle and told in its own validation sentences.

What it needs and CALVIN_ROOT, CALVIN_ENV_ROOT, CALVIN_RENDERER:
data_pipelines/builders/calvin_clones.py, calvin_world.py.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders import calvin_chains, calvin_clones
from data_pipelines.builders.calvin_chains import Chain, Rules
from data_pipelines.builders.calvin_expert import Expert
from data_pipelines.builders.calvin_world import CONTROL_HZ, Simulator, World
from vla_jax.robot import conventions

STEPS = 360  # for each task
# Chains that the expert solves, and in how many steps on the machine where they were recorded.
GOLDEN = {1: 259, 11: 221, 18: 171, 21: 160, 23: 120}


class Official(NamedTuple):
    """What the clones say of an evaluation.

    Attributes:
        chains: all of them.
        sentences: of each task, which is told by its first.
        begin: robot_obs [15] and scene_obs [24] of a state in symbols.
    """

    chains: list[Chain]
    sentences: Mapping[str, list[str]]
    begin: Callable[[calvin_chains.Symbols], tuple[np.ndarray, np.ndarray]]


class Calvin:
    """sims.Sim: the episode of a number is the official chain of that number."""

    datasets = ("calvin", "calvin_play", "calvin_scene")
    tasks: tuple[str, ...] = ("chain",)
    wordings: tuple[str, ...] = ("held out",)  # no validation sentence is one of training
    low, high = np.array([-1.0] * 6 + [0.0]), np.ones(7)
    control_hz = CONTROL_HZ
    stage = 0
    outcome = ""
    _planned: np.ndarray | None = None  # by the expert, for this step

    def __init__(
        self,
        renderer: str = "",
        simulator: Simulator | None = None,
        official: Official | None = None,
    ) -> None:
        """Of the clones that the environment names; `renderer` is one of calvin_world.RENDERERS,
        by default what CALVIN_RENDERER says. Raises ValueError, saying what to do, where they are
        not whole or what they need is not installed.
        """
        self._world = simulator or World(calvin_clones.located(), renderer)
        self._official = official or _official()
        self._robot = conventions.Calvin()
        self.facts = dict(self._world.facts)

    @property
    def instruction(self) -> str:
        """See Sim."""
        return self._official.sentences[self._chain.tasks[min(self.stage, self._last)]][0]

    def reset(self, task: str, wording: str, seed: tuple[int, int]) -> None:
        """Begins the chain of the seed's second number; the first changes nothing. Raises
        ValueError where there is no such chain.
        """
        number = seed[1]
        if number >= len(self._official.chains):
            raise ValueError(
                f"CALVIN: expected the number of one of {len(self._official.chains)} chains, got"
                f" {number}; ask for --episodes {len(self._official.chains)} at most"
            )
        self._chain = self._official.chains[number]
        self._last = len(self._chain.tasks) - 1
        self._world.reset(*self._official.begin(self._chain.initial))
        self._robot.reset()
        self.stage, self.outcome = 0, ""
        self._begin()

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The static camera 200x200, the gripper's 84x84, and the state of the data set."""
        return self._robot.observe(self._world.observe())

    def step(self, action: np.ndarray) -> None:
        """One action as the data set has it: nothing is clipped, as in the official evaluation, and
        the gripper opens above 0.5.
        """
        now = self._world.step(self._robot.act(action))
        self._steps += 1
        self._planned = None
        if self._world.solved(self._chain.tasks[self.stage], self._start, now):
            self.stage += 1
            if self.stage > self._last:
                self.outcome = "success"
            else:
                self._begin()
        elif self._steps == STEPS:
            self.outcome = f"subtask {self.stage + 1}: {self._chain.tasks[self.stage]}"

    def expert(self) -> np.ndarray:
        """The action [7] of calvin_expert.Expert, the same until the next step."""
        planned = self._planned
        if planned is None:
            action = self._expert.act()
            planned = self._planned = np.append(action[:6], (action[6] + 1) / 2)
        return planned

    def report(self) -> dict[str, Any]:
        """How many of the chain's tasks were solved, and which they are."""
        return {"solved": self.stage, "chain": list(self._chain.tasks)}

    def _begin(self) -> None:
        """A task begins, in the state that the one before left."""
        self._start, self._steps = self._world.info(), 0
        self._expert = Expert(self._world.scene, self._chain.tasks[self.stage])
        self._planned = None


def check() -> tuple[list[str], bool]:
    """What of the installation is as it should be, a line each, then what is not; whether all is.
    Its five golden chains take seconds.
    """
    lines: list[str] = []
    try:
        lines.extend(_checked())
    except ValueError as error:
        return [*lines, str(error)], False
    return lines, True


def _checked() -> Iterator[str]:
    """A line for each thing that is as it should be. Raises ValueError at the first that is not."""
    clones = calvin_clones.located()
    commits = clones.commits()
    yield f"clones: all files are there ({', '.join(f'{k} {v[:12]}' for k, v in commits.items())})"
    if commits["calvin_env"] not in calvin_clones.ENV_COMMITS:
        known = " or ".join(commit[:12] for commit in calvin_clones.ENV_COMMITS)
        raise ValueError(
            f"CALVIN_ENV_ROOT={clones.env}: expected an unchanged commit that was tried, {known},"
            f" got {commits['calvin_env'][:18]}; git checkout one of them, or do not compare its"
            " results with ours"
        )
    sim = Calvin()
    yield "chains: the official 1,000"
    sim.reset("chain", "held out", (0, 0))
    pictures, _ = sim.observe()
    for camera, picture in pictures.items():
        if picture.std() < 1.0:
            raise ValueError(
                f"renderer {sim.facts['renderer']}: expected pictures, the camera {camera} shows"
                " one colour; set CALVIN_RENDERER=tiny, or mend the graphics driver"
            )
    yield f"renderer: {sim.facts['renderer']}"
    for number, recorded in GOLDEN.items():
        sim.reset("chain", "held out", (0, number))
        steps = 0
        while not sim.outcome:
            sim.step(sim.expert())
            steps += 1
        if sim.outcome != "success":
            raise ValueError(
                f"golden chain {number}: expected the expert to solve it in about {recorded} steps,"
                f" got {sim.outcome} after {steps}; are pybullet {sim.facts['pybullet']} and the"
                " clones those of README?"
            )
        yield f"golden chain {number}: solved in {steps} steps ({recorded} where it was recorded)"


def _official() -> Official:
    clones = calvin_clones.located()
    rules = Rules(clones)
    told = calvin_chains.sentences(clones, held_out=True)
    return Official(calvin_chains.official(clones), told, rules.begin)
