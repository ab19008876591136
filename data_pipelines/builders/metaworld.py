"""Demonstrations of Meta-World's tasks in RLDS form, made by its own scripted policies.

    python -m data_pipelines.builders.metaworld --out DIR                  # MT10, 50 of each task
    ... --tasks door-open,drawer-open --train 20 --val 2 --processes 2

Every other training episode is pushed about while the expert goes on: what it wanted is recorded,
not what was carried out, so there are ways back from where a policy that errs comes to be. An
episode that does not succeed is tried again with other places, and all end some steps after their
success. The split val has places of its own, and of each task the words that no training episode
has.

A killed build goes on with the same command: a shard is there when it is whole, and the folder is a
data set when dataset_info.json is there, which is written last.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders import made, rlds_files, shards
from data_pipelines.builders.blocks import compress
from data_pipelines.builders.metaworld_words import MT10, WORDINGS
from data_pipelines.builders.metaworld_world import REACH, SIZES, World, facts
from data_pipelines.datasets.metaworld import METAWORLD
from data_pipelines.files import tfrecord
from vla_jax import command

SPLITS = ("train", "val")
SHARD = 10  # episodes of a file
TAIL = 8  # steps behind the success
LONGEST, TRIES = 250, 20  # steps of a demonstration; places that are tried for one
# A push: how strong (standard deviation), how many steps it lasts, steps from one to the next.
PUSH, LASTS, EVERY = 0.4 * REACH, 8, 24


class Plan(NamedTuple):
    """What is built.

    Attributes:
        tasks: their names.
        train, val: episodes of each task.
        seed: all is drawn from it.
    """

    tasks: tuple[str, ...]
    train: int
    val: int
    seed: int


class Demonstration(NamedTuple):
    """One episode: T steps of pictures by camera, states and actions, its words and its task."""

    pictures: list[dict[str, np.ndarray]]
    states: np.ndarray  # T 4, float32
    actions: np.ndarray  # T 4, float32
    instruction: str
    task: str


def chosen(tasks: str) -> tuple[str, ...]:
    """The names in `tasks`, commas between them; "": MT10. Raises ValueError for an unknown one."""
    names = tuple(name.strip() for name in tasks.split(",") if name.strip()) or MT10
    unknown = [name for name in names if name not in WORDINGS]
    if unknown or len(set(names)) < len(names):
        raise ValueError(
            f"tasks of Meta-World: expected different ones of {', '.join(WORDINGS)}, with commas"
            f" between, got {tasks!r}"
        )
    return names


def place(draw: np.random.Generator) -> int:
    """The seed of where things are; to be drawn first."""
    return int(draw.integers(2**31))


def said(draw: np.random.Generator, task: str, held_out: bool) -> str:
    """A sentence for the task: of training's, or of those kept from it."""
    sentences = WORDINGS[task].held_out if held_out else WORDINGS[task].seen
    return sentences[int(draw.integers(len(sentences)))]


def play(world: World, plan: Plan, split: int, episode: int) -> Demonstration:
    """One episode of the expert. Tasks come in turn, the rest by chance; `split` counts in SPLITS.
    Raises ValueError for a task that the expert does not solve.
    """
    task = plan.tasks[episode % len(plan.tasks)]
    training = SPLITS[split] == "train"
    pushed = training and episode // len(plan.tasks) % 2 == 1
    for attempt in range(TRIES):
        draw = made.drawn(split, plan.seed, episode, attempt)
        world.reset(task, place(draw))
        words = said(draw, task, not training)
        pictures, states, actions = _recorded(world, draw if pushed else None)
        if world.outcome == "success":
            return Demonstration(pictures, np.stack(states), np.stack(actions), words, task)
    raise ValueError(
        f"{task}: expected a success of Meta-World's own policy within {LONGEST} steps, got none in"
        f" {TRIES} attempts; leave the task out of --tasks"
    )


def _recorded(
    world: World, draw: np.random.Generator | None
) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray], list[np.ndarray]]:
    """Pictures, states and the expert's actions, to some steps behind its success. With `draw` it
    is pushed.
    """
    pictures: list[dict[str, np.ndarray]] = []
    states, actions = [], []
    push, left = np.zeros(4), TAIL
    while left and world.steps < LONGEST:
        if draw is not None and world.steps % EVERY == 0:
            push[:3] = draw.normal(0.0, PUSH, 3)
        pictures.append(world.observe())
        states.append(world.state())
        actions.append(world.expert())
        world.step(actions[-1] + push * (world.steps % EVERY < LASTS))
        left -= world.outcome == "success"
    return pictures, states, actions


def write_metaworld(
    root: str | Path,
    tasks: str = "",
    train: int = 50,
    val: int = 4,
    seed: int = 0,
    processes: int = 1,
) -> Path:
    """Writes the dataset under root/metaworld/1.0.0 and returns that folder. The same arguments
    give the same episodes, on one machine, however many processes.

    Raises ValueError where Meta-World is not there, and where the folder holds what other arguments
    began.
    """
    plan = Plan(chosen(tasks), train, val, seed)
    counts = {
        split: len(plan.tasks) * each for split, each in zip(SPLITS, (train, val), strict=True)
    }
    what = shards.Made(METAWORLD, plan, counts, SHARD, _features(), __doc__ or "")
    return shards.make(root, what, facts(), _write, processes)


_worlds: list[World] = []  # this process's, once it has one


def _write(shard: shards.Shard) -> None:
    """Writes one file. It has its name when it is whole."""
    if not _worlds:
        _worlds.append(World())
    numbers = range(shard.first, shard.first + shard.episodes)
    demonstrations = (play(_worlds[0], shard.plan, shard.split, number) for number in numbers)
    shards.write_file(shard.file, map(_example, demonstrations))


def _example(demonstration: Demonstration) -> bytes:
    """A tf.train.Example laid out as TFDS does for an RLDS episode."""
    steps = len(demonstration.actions)
    body: dict[str, Any] = {
        **rlds_files.flags(steps),
        "episode_metadata/task": [demonstration.task.encode()],
        "steps/action": demonstration.actions,
        "steps/language_instruction": [demonstration.instruction.encode()] * steps,
        "steps/observation/state": demonstration.states,
    }
    for slot, key in METAWORLD.cameras.items():
        pictures = (each[slot] for each in demonstration.pictures)
        body[f"steps/{key}"] = [compress(picture, "JPEG") for picture in pictures]
    return tfrecord.encode(body)


def _features() -> rlds_files.Feature:
    """The content of features.json."""
    seen = {"state": rlds_files.tensor("float32", 4)}
    for slot, key in METAWORLD.cameras.items():
        seen[key.removeprefix("observation/")] = rlds_files.image("jpeg", SIZES[slot], SIZES[slot])
    return rlds_files.episode(
        {
            "action": rlds_files.tensor("float32", 4),
            "language_instruction": rlds_files.text(),
            "observation": rlds_files.folder(seen),
        },
        {"task": rlds_files.text()},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Writes demonstrations of Meta-World.", argument_default=argparse.SUPPRESS
    )
    parser.add_argument(
        "--out", required=True, help="data root; the dataset goes to OUT/metaworld/1.0.0"
    )
    parser.add_argument("--tasks", help="names with commas between; by default the ten of MT10")
    parser.add_argument("--train", type=command.positive, help="training episodes of each task")
    parser.add_argument("--val", type=command.positive, help="held-out episodes of each task")
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--processes", type=command.positive, help="that build side by side; each takes about 1 GB"
    )
    given = vars(parser.parse_args(argv))
    print(f"wrote {write_metaworld(given.pop('out'), **given)}")


if __name__ == "__main__":
    command.run(main)
