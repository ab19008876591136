"""Demonstrations of all 34 tasks of CALVIN by the scripted expert, made in its simulator, as the
dataset `calvin`.

    python -m data_pipelines.builders.calvin_demonstrations --out ROOT --processes 2

A sequence is a task with up to two others before it, or as many as it takes; which it is comes in
turn: 816 are 24 of each, about 137,000 steps. It begins in one of the official states with its
blocks and the arm moved by chance: no official chain begins there. Now and then something pushes
the arm off its way, and the expert, which remembers nothing, goes on from there. What it does
between two pushes is an episode: its chunks are what the expert does from the first frame on, and
states that a policy gets to by its own mistakes are among them. Pushes are not recorded, nor is a
task that was not solved. Beside each sequence are STILLS episodes of one frame, each of a scene
where everything is anywhere: of sequences alone a policy knows the scenes by heart.

Each frame is told in a sentence of its own for the task, half of them CALVIN's own of training,
half those of calvin_wordings.py. The split `val` has scenes of its own and the official validation
sentences, which no training episode has. Every fifth step of an episode is drawn, from its first
one on, and the four after it show the same pictures: train with data.stride 5, which begins windows
where they are new. `observation/scene` says what is where (calvin_world.shown): a policy may learn
to say it (the dataset `calvin_scene`), none is told it.

Needs the clones of calvin_clones.py; pictures are those of CALVIN_RENDERER. A killed run goes on
with the same command, also with more: each sequence is a file in ROOT/calvin_parts, of which the
dataset is put together at the end, and which may be removed then.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders import (
    calvin,
    calvin_chains,
    calvin_clones,
    calvin_wordings,
    rlds_files,
)
from data_pipelines.builders.calvin_chains import OF_ARM, Rules, anywhere, jittered
from data_pipelines.builders.calvin_expert import OPEN, Expert
from data_pipelines.builders.calvin_source import Annotation
from data_pipelines.builders.calvin_world import METRES, RADIANS, SHOWN, Simulator, World, shown
from data_pipelines.builders.made import drawn
from data_pipelines.datasets.calvin import CALVIN
from data_pipelines.files import tfrecord
from vla_jax import command
from vla_jax.progress import Progress

SPLITS = ("train", "val")
SCENE = "calvin_scene_D"
LONGEST = 240  # steps of a task
BEFORE = 2  # tasks at most, unless it takes more
DRAWN_EVERY = 5  # steps: pictures take most of the time
# Steps that are played undisturbed, and of a push; how far off the arm may be pushed in one.
UNDISTURBED, PUSHED = (10, 36), (3, 10)
LEAST = 4  # steps of an episode
STILLS = 15  # beside each sequence
SLIPS = 0.1  # of the pushes: the fingers open or close too
OWN_WORDS = 0.5  # of the frames: told in a sentence of CALVIN's training
CAPITAL = 0.2  # of the frames: told in a sentence that begins with one, as some of CALVIN's do
SHARD = 100  # sequences a file
APART = 10_000  # the numbers of their first frames

Frame = dict[str, np.ndarray]


class Stage(NamedTuple):
    """What a process needs to make demonstrations."""

    world: Simulator
    rules: Rules
    told: dict[str, dict[str, list[list[str]]]]  # of each split, by task: CALVIN's and ours


def staged() -> Stage:
    """Of the clones that the environment names."""
    clones = calvin_clones.located()
    official, held_out = (calvin_chains.sentences(clones, held_out) for held_out in (False, True))
    without = [text for texts in held_out.values() for text in texts]
    ours = {task: calvin_wordings.wordings(task, without) for task in official}
    told = {
        "train": {task: [texts, ours[task]] for task, texts in official.items()},
        "val": {task: [texts] for task, texts in held_out.items()},
    }
    return Stage(World(clones), Rules(clones), told)


def play(stage: Stage, seed: int, split: str, number: int) -> list[tuple[str, list[Frame]]]:
    """The episodes of a sequence: of each its task and its frames, as calvin_source.FRAME. They
    follow from the arguments alone.
    """
    wanted = stage.rules.tasks[number % len(stage.rules.tasks)]
    draw = drawn(seed, SPLITS.index(split), number)
    episodes: list[tuple[str, list[Frame]]] = []
    while not any(task == wanted for task, _ in episodes):
        chain = stage.rules.draw(draw, wanted, int(draw.integers(BEFORE + 1)))
        stage.world.reset(*jittered(draw, *stage.rules.begin(chain.initial)))
        for task in chain.tasks:
            parts = _recorded(stage.world, task, draw)
            episodes += [(task, frames) for frames in parts if len(frames) >= LEAST]
            if not parts:
                break
    for _, frames in episodes:
        _draw(stage.world, frames)
    return episodes


def stills(stage: Stage, seed: int, split: str, number: int) -> list[tuple[str, list[Frame]]]:
    """Episodes of one frame, of any task, each in a scene where everything is anywhere: places are
    learnt from them, of which a sequence shows few. They follow from the arguments alone.
    """
    draw, tasks = drawn(seed, SPLITS.index(split), number, 2), stage.rules.tasks
    stage.world.reset(*stage.rules.begin(calvin_chains.initial(draw)))
    episodes = []
    for _ in range(STILLS):
        stage.world.put(*anywhere(draw, *stage.rules.begin(calvin_chains.initial(draw))))
        task = tasks[int(draw.integers(len(tasks)))]
        frame = _frame(stage.world, Expert(stage.world.scene, task).act())
        _draw(stage.world, [frame])
        episodes.append((task, [frame]))
    return episodes


def _recorded(world: Simulator, task: str, draw: np.random.Generator) -> list[list[Frame]]:
    """What the expert does in a task between pushes, without pictures; nothing where it was not
    solved.
    """
    start, expert = world.info(), Expert(world.scene, task)
    parts: list[list[Frame]] = [[]]
    left = int(draw.integers(*UNDISTURBED)) if draw.random() < 0.7 else 0
    gripper, steps = OPEN, 0
    while steps < LONGEST:
        steps += 1
        if not left:
            for push in _pushes(draw, gripper):
                if world.solved(task, start, world.step(push)):
                    return parts
            left = int(draw.integers(*UNDISTURBED))
            parts.append([])
        action = expert.act()
        parts[-1].append(_frame(world, action))
        gripper, left = float(action[6]), left - 1
        if world.solved(task, start, world.step(action)):
            return parts
    return []


def _pushes(draw: np.random.Generator, gripper: float) -> list[np.ndarray]:
    """Actions [7] that take the arm off its way: one direction, and half of the time a turn."""
    way = draw.normal(size=3)
    way /= np.linalg.norm(way)
    turn = draw.normal(size=3) * 0.5 * draw.integers(2)
    gripper = -gripper if draw.random() < SLIPS else gripper
    return [
        np.append(np.clip(np.append(way * draw.uniform(0.4, 1.2), turn), -1, 1), gripper)
        for _ in range(int(draw.integers(*PUSHED)))
    ]


def _frame(world: Simulator, action: np.ndarray) -> Frame:
    robot, scene = world.state()
    reach = np.array([METRES] * 3 + [RADIANS] * 3)
    return {
        "rel_actions": action,
        "actions": np.append(robot[:OF_ARM] + action[:6] * reach, action[6]),
        "robot_obs": robot,
        "scene_obs": scene,
    }


def _draw(world: Simulator, frames: list[Frame]) -> None:
    """Adds the pictures of an episode's frames, each as the camera last gave one; the simulator is
    put into their states, whatever it was doing.
    """
    for i, frame in enumerate(frames):
        if i % DRAWN_EVERY == 0:
            drawn = world.drawn(frame["robot_obs"], frame["scene_obs"])
            pictures = {name: np.ascontiguousarray(picture) for name, picture in drawn.items()}
        frame |= pictures
        frame["scene"] = shown(frame["robot_obs"], frame["scene_obs"])


def examples(stage: Stage, seed: int, split: str, number: int) -> list[bytes]:
    """The records of a sequence, an episode each, and their words."""
    records, first = [], number * APART
    draw = drawn(seed, SPLITS.index(split), number, 1)
    for task, frames in play(stage, seed, split, number) + stills(stage, seed, split, number):
        told = tuple(
            Annotation(i, i + 1, _said(stage.told[split][task], draw), task)
            for i in range(first, first + len(frames))
        )
        stretch = calvin.Task("", first, first + len(frames), told, SCENE, False)
        records.append(calvin.encode(stretch, frames))
        first += len(frames) + 1
    return records


def _said(told: Sequence[Sequence[str]], draw: np.random.Generator) -> str:
    """A sentence by chance: of CALVIN's, the first, or of others, if any."""
    sentences = told[0] if len(told) == 1 or draw.random() < OWN_WORDS else told[1]
    text = sentences[int(draw.integers(len(sentences)))]
    return text[:1].upper() + text[1:] if len(told) > 1 and draw.random() < CAPITAL else text


def write_demonstrations(
    root: str | Path, train: int = 816, val: int = 12, seed: int = 0, processes: int = 1
) -> Path:
    """Writes the dataset under root/calvin/1.0.0 and returns that folder. The same arguments give
    the same demonstrations, with any number of processes. Raises ValueError where one is there, or
    parts of other settings.
    """
    root = Path(root).expanduser()
    folder, parts = root / CALVIN.tfds_name / CALVIN.version, root / "calvin_parts"
    if folder.exists():
        raise ValueError(
            f"{folder}: expected nothing there, got a dataset; remove it or choose another --out"
        )
    parts.mkdir(parents=True, exist_ok=True)
    stage = staged()  # what does not work is told here, once
    _agree(parts, {"seed": seed, **stage.world.facts})
    stage.world.close()
    counts = dict(zip(SPLITS, (train, val), strict=True))
    wanted = [(split, number) for split, count in counts.items() for number in range(count)]
    wanted.sort(key=lambda each: each[1] / counts[each[0]])  # what is there is always of both
    todo = [each for each in wanted if not _part(parts, *each).is_file()]
    spawn = multiprocessing.get_context("spawn")  # the simulator is loaded in each
    with (
        Progress("demonstrations", len(wanted), "sequences", len(wanted) - len(todo)) as progress,
        ProcessPoolExecutor(
            processes, mp_context=spawn, initializer=_open, initargs=(str(parts), seed)
        ) as pool,
    ):
        made = [pool.submit(_write, *each) for each in todo]
        try:
            for future in as_completed(made):
                future.result()
                progress.add(1)
        except BrokenProcessPool as error:
            raise ValueError(
                f"{parts}: a process of the simulator ended ({error}); the same command goes on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    return _assemble(folder, parts, counts)


_here: tuple[Stage, Path, int]  # of a worker's process


def _open(parts: str, seed: int) -> None:
    global _here
    _here = staged(), Path(parts), seed


def _agree(parts: Path, settings: dict[str, Any]) -> None:
    """Parts that are there are of these settings."""
    file = parts / "settings.json"
    there = json.loads(file.read_text()) if file.exists() else settings
    if there != settings:
        raise ValueError(
            f"{parts}: expected demonstrations of {settings}, got some of {there}; choose another"
            " --out"
        )
    part = file.with_suffix(".part")
    part.write_text(json.dumps(settings))
    os.replace(part, file)


def _write(split: str, number: int) -> None:
    stage, parts, seed = _here
    file = _part(parts, split, number)
    part = file.with_suffix(".part")
    tfrecord.write(part, examples(stage, seed, split, number))
    os.replace(part, file)


def _part(parts: Path, split: str, number: int) -> Path:
    return parts / f"{split}-{number:05d}.example"


def _assemble(folder: Path, parts: Path, counts: dict[str, int]) -> Path:
    """Puts the dataset together, whole or not at all."""
    made = folder.parent.with_name(f"{folder.parent.name}.part") / folder.parent.name / folder.name
    made.mkdir(parents=True, exist_ok=True)
    entries = []
    for split, count in counts.items():
        groups = np.array_split(np.arange(count), max(1, -(-count // SHARD)))
        shards = [
            (each.data for n in group.tolist() for each in tfrecord.read(_part(parts, split, n)))
            for group in groups
        ]
        entries.append(rlds_files.write_split(str(made), CALVIN.tfds_name, split, shards))
    settings = json.loads((parts / "settings.json").read_text())
    facts = {name: fact for name, fact in settings.items() if name != "seed"}
    features = calvin.features(play=False, scene=SHOWN)
    rlds_files.finish(str(made), __doc__ or "", features, entries, facts)
    folder.parent.mkdir(exist_ok=True)
    os.replace(made, folder)
    made.parent.rmdir()
    made.parent.parent.rmdir()
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="data root; OUT/calvin/1.0.0 is written")
    parser.add_argument("--train", type=command.positive, default=816, help="sequences")
    parser.add_argument("--val", type=command.positive, default=12, help="held-out ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=command.positive, default=1)
    args = parser.parse_args(argv)
    folder = write_demonstrations(args.out, args.train, args.val, args.seed, args.processes)
    print(f"wrote {folder}")


if __name__ == "__main__":
    command.run(main)
