"""Demonstrations of LIBERO's tasks in the layout of OpenVLA's edition, made by a scripted expert.

    python -m data_pipelines.builders.libero --out DIR         # libero_object, 20 of each task
    ... --suite libero_spatial --pictures fast --train 50 --val 2 --processes 2

LIBERO's own demonstrations were made by people and are not in its package. These begin where LIBERO
draws things with seeds of ours: none of the official initial states, which rollouts begin in. Every
other training episode is pushed about while the expert goes on: what it wanted is recorded, not
what was carried out, so there are ways back from where a policy that errs comes to be. An episode
that does not succeed is tried again with other places, and all end some steps after their success.
A policy is to be evaluated with the pictures of its data.

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
from data_pipelines.builders.libero_expert import SUITES, Expert
from data_pipelines.builders.libero_world import PICTURES, SIDE, World
from data_pipelines.datasets import DATASETS
from data_pipelines.files import tfrecord
from vla_jax import command

SPLITS = ("train", "val")
TASKS = 10  # of a suite
SHARD = 10  # episodes of a file
TAIL = 4  # steps behind the success
TRIES = 20  # places that are tried for one demonstration
# A push: how strong (standard deviation; 1 is 0.05 m), how many steps it lasts, steps from one to
# the next.
PUSH, LASTS, EVERY = 0.5, 4, 16


class Plan(NamedTuple):
    """What is built.

    Attributes:
        suite, pictures: see World.
        train, val: episodes of each task.
        seed: all is drawn from it.
    """

    suite: str
    pictures: str
    train: int
    val: int
    seed: int


class Demonstration(NamedTuple):
    """One episode: T steps of pictures by camera, states, joints and actions, its words, its task,
    and the seed of where things are.
    """

    pictures: list[dict[str, np.ndarray]]
    states: np.ndarray  # T 8, float32
    joints: np.ndarray  # T 7, float32
    actions: np.ndarray  # T 7, float32
    instruction: str
    task: str
    place: int


def play(world: World, plan: Plan, split: int, episode: int) -> Demonstration:
    """One episode of the expert. The first episodes are of the first task, and so on; `split`
    counts in SPLITS. Raises ValueError for a task that the expert does not solve.
    """
    each = (plan.train, plan.val)[split]
    task = list(world.tasks)[episode // each]
    pushed = SPLITS[split] == "train" and episode % each % 2 == 1
    for attempt in range(TRIES):
        draw = made.drawn(split, plan.seed, episode, attempt)
        place = int(draw.integers(2**31))
        world.reset(task, place)
        steps = _recorded(world, draw if pushed else None)
        if world.outcome == "success":
            pictures, *numbers = zip(*steps, strict=True)
            states, joints, actions = (np.stack(each) for each in numbers)
            words = world.tasks[task].sentence
            return Demonstration(list(pictures), states, joints, actions, words, task, place)
    raise ValueError(
        f"{task}: expected a success of the expert, got none in {TRIES} attempts; choose another"
        " --suite or --seed"
    )


def _recorded(
    world: World, draw: np.random.Generator | None
) -> list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]]:
    """Of each step pictures, state, joints and the expert's action, to some steps behind its
    success. With `draw` it is pushed.
    """
    steps, expert = [], Expert(world)
    push, left = np.zeros(7), TAIL
    while left and world.outcome != "out of time":
        if draw is not None and world.steps % EVERY == 0:
            push[:3] = draw.normal(0.0, PUSH, 3)
        action = expert.act().astype(np.float32)
        steps.append((world.observe(), world.state(), world.joints(), action))
        world.step(action + push * (world.steps % EVERY < LASTS))
        left -= world.outcome == "success"
    return steps


def write_libero(
    root: str | Path,
    suite: str = "libero_object",
    pictures: str = "official",
    train: int = 20,
    val: int = 2,
    seed: int = 0,
    processes: int = 1,
) -> Path:
    """Writes the dataset under root/SUITE_no_noops/1.0.0 and returns that folder. The same
    arguments give the same episodes, on one machine, however many processes.

    Raises ValueError where LIBERO is not there, for a suite that the expert does not know, and
    where the folder holds what other arguments began.
    """
    if suite not in SUITES:
        raise ValueError(
            f"--suite={suite}: expected one that the expert solves, {' or '.join(SUITES)}"
        )
    facts = World(suite, pictures).facts
    plan = Plan(suite, pictures, train, val, seed)
    counts = {name: TASKS * each for name, each in zip(SPLITS, (train, val), strict=True)}
    dataset = DATASETS[f"{suite}_no_noops"]
    what = shards.Made(dataset, plan, counts, SHARD, _features(), __doc__ or "")
    return shards.make(root, what, facts, _write, processes)


_worlds: dict[tuple[str, str], World] = {}  # this process's, once it has one


def _write(shard: shards.Shard) -> None:
    """Writes one file. It has its name when it is whole."""
    plan: Plan = shard.plan
    key = (plan.suite, plan.pictures)
    if key not in _worlds:
        _worlds[key] = World(*key)
    numbers = range(shard.first, shard.first + shard.episodes)
    demonstrations = (play(_worlds[key], plan, shard.split, number) for number in numbers)
    shards.write_file(shard.file, map(_example, demonstrations))


def _example(demonstration: Demonstration) -> bytes:
    """A tf.train.Example laid out as TFDS does for an RLDS episode."""
    steps = len(demonstration.actions)
    body: dict[str, Any] = {
        **rlds_files.flags(steps),
        # Where the original has the path of a recording: task and seed say what this one is.
        "episode_metadata/file_path": [f"{demonstration.task}/{demonstration.place}".encode()],
        "steps/action": demonstration.actions,
        "steps/language_instruction": [demonstration.instruction.encode()] * steps,
        "steps/observation/state": demonstration.states,
        "steps/observation/joint_state": demonstration.joints,
    }
    for slot, key in (("primary", "image"), ("wrist", "wrist_image")):
        pictures = (each[slot] for each in demonstration.pictures)
        body[f"steps/observation/{key}"] = [compress(picture, "JPEG") for picture in pictures]
    return tfrecord.encode(body)


def _features() -> rlds_files.Feature:
    """The content of features.json."""
    seen = {
        "image": rlds_files.image("jpeg", SIDE, SIDE),
        "wrist_image": rlds_files.image("jpeg", SIDE, SIDE),
        "state": rlds_files.tensor("float32", 8),
        "joint_state": rlds_files.tensor("float32", 7),
    }
    return rlds_files.episode(
        {
            "action": rlds_files.tensor("float32", 7),
            "language_instruction": rlds_files.text(),
            "observation": rlds_files.folder(seen),
        },
        {"file_path": rlds_files.text()},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Writes demonstrations of LIBERO.", argument_default=argparse.SUPPRESS
    )
    parser.add_argument(
        "--out", required=True, help="data root; the dataset goes to OUT/SUITE_no_noops/1.0.0"
    )
    parser.add_argument("--suite", choices=SUITES, help="by default libero_object")
    parser.add_argument("--pictures", choices=PICTURES, help="fast: without MSAA, in half the time")
    parser.add_argument("--train", type=command.positive, help="training episodes of each task")
    parser.add_argument("--val", type=command.positive, help="held-out episodes of each task")
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--processes", type=command.positive, help="that build side by side; each takes about 2 GB"
    )
    given = vars(parser.parse_args(argv))
    print(f"wrote {write_libero(given.pop('out'), **given)}")


if __name__ == "__main__":
    command.run(main)
