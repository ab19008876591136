"""CALVIN's long-horizon protocol without its simulator: the 1,000 official chains, the states that
they begin in, the sentences, and chains of one's own by the same rules.

    python -m data_pipelines.builders.calvin_chains     # makes the official chains, once

The official algorithm of the user's clone makes the chains, in about two minutes; they are kept in
$VLA_JAX_CACHE or ~/.cache/vla_jax, and known by their hash.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders import calvin_clones
from data_pipelines.builders.calvin_clones import Clones
from vla_jax import command
from vla_jax.progress import Progress

MODULE = "data_pipelines.builders.calvin_chains"  # this one, also where it is the command
CHAINS = 1_000
# of json.dumps of [initial state, [five tasks]] for each, in their order
SHA256 = "840cb992c69ce9b6d59f6020966b6300c15233f8e0b9667b6486c1962424d308"
BLOCKS = ("red", "blue", "pink")
FIRST_BLOCK, OF_A_BLOCK = 6, 6  # columns of scene_obs: each has a position and angles
APART = 0.09  # m between the middles of two blocks, at least
JOINTS, OF_ARM = slice(7, 14), 6  # of robot_obs; numbers of an action before the gripper's

FINGERS = 6  # of robot_obs: how far they are apart, m
STRAY = 0.35  # rad: how far each joint is from where chains begin, at most
# Places of a block, m: low and high of x, y and z. Those in the drawer move with it.
TABLE, SHELF, AIR, INSIDE = (
    ((-0.3, 0.35), (-0.22, -0.02), (0.46, 0.46)),
    ((-0.3, 0.3), (0.08, 0.1), (0.46, 0.46)),
    ((-0.3, 0.32), (-0.25, 0.05), (0.5, 0.7)),
    ((0.08, 0.28), (-0.16, -0.02), (0.36, 0.36)),
)
PLACES, OFTEN = (TABLE, SHELF, AIR, INSIDE), (0.6, 0.2, 0.1, 0.1)

Symbols = Mapping[str, Any]  # what is where: "drawer" -> "open", "red_block" -> "slider_left" ...


class Chain(NamedTuple):
    """Tasks to be solved one after the other, from a state in symbols."""

    initial: Symbols
    tasks: tuple[str, ...]


class Rules:
    """CALVIN's own functions about states and tasks, from the user's clone."""

    def __init__(self, clones: Clones) -> None:
        self._utils, self._sequences = calvin_clones.evaluation(clones)
        self.tasks = tuple(self._sequences.tasks)

    def begin(self, initial: Symbols) -> tuple[np.ndarray, np.ndarray]:
        """robot_obs [15] and scene_obs [24] of a state in symbols."""
        return self._utils.get_env_state_for_initial_condition(dict(initial))

    def after(self, state: Symbols, task: str) -> list[Symbols]:
        """What a state may become by a task; nothing where it cannot be done."""
        return self._sequences.valid_task(dict(state), self._sequences.tasks[task])

    def official(self) -> list[Chain]:
        """Makes the official chains."""
        multiprocessing.set_start_method("fork", force=True)  # its workers use stand-ins
        made = self._sequences.get_sequences(CHAINS)
        return [Chain(dict(initial), tuple(tasks)) for initial, tasks in made]

    def draw(self, draw: np.random.Generator, task: str, before: int) -> Chain:
        """A chain by chance whose last task is `task`, with `before` others or more ahead of it."""
        while True:
            begun = initial(draw)
            state: Symbols = begun
            tasks: list[str] = []
            while len(tasks) < before + 3:
                able = [name for name in self.tasks if len(self.after(state, name)) == 1]
                if task in able and len(tasks) >= before:
                    return Chain(begun, (*tasks, task))
                if not able:
                    break
                tasks.append(able[int(draw.integers(len(able)))])
                (state,) = self.after(state, tasks[-1])


def jittered(
    draw: np.random.Generator, robot: np.ndarray, scene: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """robot_obs [15] and scene_obs [24] with the arm's joints and the blocks moved by chance, those
    on the table anywhere around where they were, no two within APART.
    """
    while True:
        moved_robot, moved = robot.copy(), scene.copy()
        moved_robot[JOINTS] += draw.uniform(-0.05, 0.05, size=7)
        blocks = moved[FIRST_BLOCK:].reshape(-1, OF_A_BLOCK)
        for block in blocks:
            in_shelf = block[1] > 0
            block[0] += draw.uniform(-0.05, 0.05) if in_shelf else draw.uniform(-0.12, 0.09)
            block[1] += 0.0 if in_shelf else draw.uniform(-0.05, 0.05)
            block[5] += draw.uniform(-0.4, 0.4)
        places = blocks[:, :2]
        away = np.linalg.norm(places[:, None] - places, axis=-1) + np.eye(len(places))
        if away.min() > APART:
            return moved_robot, moved


def anywhere(
    draw: np.random.Generator, robot: np.ndarray, scene: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """robot_obs [15] and scene_obs [24] with arm, fingers, drawer, door and blocks anywhere, also
    where that could not stand.
    """
    robot, scene = robot.copy(), scene.copy()
    robot[JOINTS] += draw.uniform(-STRAY, STRAY, size=7)
    robot[FINGERS] = (0.0, 0.04, 0.08)[int(draw.integers(3))]
    robot[-1] = 1.0 if robot[FINGERS] > 0.06 else -1.0
    scene[:2] = draw.choice([0.0, 0.28, draw.uniform(0, 0.28)]), draw.choice([0, 0.22, 0.1])
    for block in scene[FIRST_BLOCK:].reshape(-1, OF_A_BLOCK):
        place = PLACES[draw.choice(len(PLACES), p=OFTEN)]
        block[:3] = [draw.uniform(*each) for each in place]
        block[1] -= scene[1] if place is INSIDE else 0.0
        block[3:] = 0.0, 0.0, draw.uniform(-np.pi, np.pi)
    return robot, scene


def sentences(clones: Clones, held_out: bool) -> dict[str, list[str]]:
    """What each task is told by: in training, or in the official validation (one sentence)."""
    yaml = calvin_clones.imported(clones.models, "omegaconf").OmegaConf
    file = f"new_playtable{'_validation' if held_out else ''}.yaml"
    return yaml.to_container(yaml.load(clones.models / "conf" / "annotations" / file))


def official(clones: Clones) -> list[Chain]:
    """The 1,000 official chains, from the cache; they are made where it has none. Raises ValueError
    where the clone makes others.
    """
    file = _cached()
    if not _whole(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".lock").open("w") as lock, Progress("CALVIN's chains"):
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever else wants them waits
            if not _whole(file):
                _make(clones, file)
    return [Chain(initial, tuple(tasks)) for initial, tasks in json.loads(file.read_text())]


def _make(clones: Clones, file: Path) -> None:
    """In a process of its own, which may fork."""
    print(f"CALVIN: its {CHAINS} chains are made by its own algorithm, once: about two minutes")
    part = file.with_suffix(f".{os.getpid()}.part")
    environment = os.environ | {
        "CALVIN_ROOT": str(clones.calvin),
        "CALVIN_ENV_ROOT": str(clones.env),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    words = [sys.executable, "-m", MODULE, "--make", str(part)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if not _whole(part):
        part.unlink(missing_ok=True)
        raise ValueError(
            f"CALVIN_ROOT={clones.calvin}: expected an algorithm that makes the official chains"
            f" (sha256 {SHA256[:12]}), got {done.stderr[-500:] or 'others'}; use an unchanged clone"
        )
    os.replace(part, file)


def initial(draw: np.random.Generator) -> dict[str, Any]:
    """One of the states that official chains begin in."""
    places = ("table", "table", "slider_right", "slider_left")  # one of them stays empty
    where = draw.permutation(places)[: len(BLOCKS)].tolist()
    return {
        "led": int(draw.integers(2)),
        "lightbulb": int(draw.integers(2)),
        "slider": ("right", "left")[int(draw.integers(2))],
        "drawer": ("closed", "open")[int(draw.integers(2))],
        **{f"{block}_block": place for block, place in zip(BLOCKS, where, strict=True)},
        "grasped": 0,
    }


def _cached() -> Path:
    folder = os.environ.get("VLA_JAX_CACHE") or "~/.cache/vla_jax"
    return Path(folder).expanduser() / "calvin_chains.json"


def _whole(file: Path) -> bool:
    """Whether a file holds the official chains."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == SHA256


def main(argv: list[str]) -> None:
    """Command line; with --make FILE what is made goes there and is checked by who asked."""
    clones = calvin_clones.located()
    if argv[:1] == ["--make"]:
        chains = Rules(clones).official()
        body = json.dumps([[chain.initial, list(chain.tasks)] for chain in chains])
        Path(argv[1]).write_text(body)
        return
    print(f"{len(official(clones))} chains: {_cached()}")


if __name__ == "__main__":
    command.run(main)
