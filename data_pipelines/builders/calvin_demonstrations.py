"""Demonstrations of all 34 tasks of CALVIN by the scripted expert, made in its simulator, as the
dataset `calvin`.

    python -m data_pipelines.builders.calvin_demonstrations --out ROOT --train 1020 --processes 2

Tasks come in turn: 1,020 are 30 of each. A demonstration begins where others of CALVIN's tasks, up
to two or as many as it takes, have left the scene, which began in one of the official states with
its blocks and the arm moved by chance: no official chain begins there. What is recorded is what the
expert would do; what is done drifts off it, so that there are frames of how to come back. Those
that fail are played again. Each frame is told in one of CALVIN's training sentences for its task,
drawn anew: a policy of one sentence an episode learns these by heart, and does not understand the
others. The split `val` has scenes of its own and the official validation sentences, which no
training episode has.

Needs the clones of calvin_clones.py; pictures are those of CALVIN_RENDERER. A killed run goes on
with the same command, also with more: each demonstration is a file in ROOT/calvin_parts, of which
the dataset is put together at the end, and which may be removed then.
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

from data_pipelines.builders import calvin, calvin_chains, calvin_clones, rlds_files
from data_pipelines.builders.calvin_chains import OF_ARM, Rules, jittered
from data_pipelines.builders.calvin_expert import Expert
from data_pipelines.builders.calvin_source import Annotation
from data_pipelines.builders.calvin_world import METRES, RADIANS, Simulator, World
from data_pipelines.builders.made import drawn
from data_pipelines.datasets.calvin import CALVIN
from vla_jax import command
from vla_jax.progress import Progress

SPLITS = ("train", "val")
SCENE = "calvin_scene_D"
LONGEST = 160  # steps of a demonstration
PATIENCE = 360  # steps for a task before it
BEFORE = 2  # tasks at most, unless it takes more
KEPT, PUSH = 0.9, 0.12  # how the drift goes on from step to step, and what is added to it
SHARD = 170  # demonstrations a file
APART = 1_000  # the numbers of their first frames

Frame = dict[str, np.ndarray]


class Stage(NamedTuple):
    """What a process needs to make demonstrations."""

    world: Simulator
    rules: Rules
    told: dict[str, dict[str, list[str]]]  # of each split, by task


def staged() -> Stage:
    """Of the clones that the environment names."""
    clones = calvin_clones.located()
    told = {split: calvin_chains.sentences(clones, split == "val") for split in SPLITS}
    return Stage(World(clones), Rules(clones), told)


def play(stage: Stage, seed: int, split: str, number: int) -> tuple[str, list[Frame]]:
    """The demonstration of a number: its task and its frames, as calvin_source.FRAME. It follows
    from the arguments alone.
    """
    task = stage.rules.tasks[number % len(stage.rules.tasks)]
    draw = drawn(seed, SPLITS.index(split), number)
    frames: list[Frame] = []
    while not frames:
        chain = stage.rules.draw(draw, task, int(draw.integers(BEFORE + 1)))
        stage.world.reset(*jittered(draw, *stage.rules.begin(chain.initial)))
        if all(_done(stage.world, earlier) for earlier in chain.tasks[:-1]):
            frames = _recorded(stage.world, task, draw)
    return task, frames


def _done(world: Simulator, task: str) -> bool:
    """The expert does a task, unseen; whether it succeeds."""
    start, expert = world.info(), Expert(world.scene, task)
    return any(world.solved(task, start, world.step(expert.act())) for _ in range(PATIENCE))


def _recorded(world: Simulator, task: str, draw: np.random.Generator) -> list[Frame]:
    """The frames of a task; none where it was not solved."""
    start, expert = world.info(), Expert(world.scene, task)
    frames: list[Frame] = []
    drift = np.zeros(OF_ARM)
    while len(frames) < LONGEST:
        action = expert.act()
        frames.append(_frame(world, action))
        drift = KEPT * drift + PUSH * draw.normal(size=OF_ARM)
        strength = np.abs(action[:3]).max()  # none while the fingers close, little at the goal
        done = action.copy()
        done[:3] = np.clip(done[:3] + strength * drift[:3], -1, 1)
        done[3:6] = np.clip(done[3:6] + 0.2 * strength * drift[3:6], -1, 1)
        if world.solved(task, start, world.step(done)):
            return frames
    return []


def _frame(world: Simulator, action: np.ndarray) -> Frame:
    seen, scene = world.observe(), world.scene()
    target = np.concatenate([scene.target, scene.target_angles])
    reach = np.array([METRES] * 3 + [RADIANS] * 3)
    return {
        "rgb_static": np.ascontiguousarray(seen["rgb_obs"]["rgb_static"]),
        "rgb_gripper": np.ascontiguousarray(seen["rgb_obs"]["rgb_gripper"]),
        "rel_actions": action,
        "actions": np.append(target + action[:6] * reach, action[6]),
        "robot_obs": seen["robot_obs"],
    }


def example(stage: Stage, seed: int, split: str, number: int) -> bytes:
    """The record of a demonstration, and its words."""
    task, frames = play(stage, seed, split, number)
    said, first = stage.told[split][task], number * APART
    drawn_ones = drawn(seed, SPLITS.index(split), number, 1).integers(len(said), size=len(frames))
    told = tuple(
        Annotation(i, i + 1, said[sentence], task)
        for i, sentence in enumerate(drawn_ones.tolist(), start=first)
    )
    return calvin.encode(calvin.Task("", first, first + len(frames), told, SCENE, False), frames)


def write_demonstrations(
    root: str | Path, train: int = 1_020, val: int = 102, seed: int = 0, processes: int = 1
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
        Progress("demonstrations", len(wanted), "episodes", len(wanted) - len(todo)) as progress,
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
    part.write_bytes(example(stage, seed, split, number))
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
            (_part(parts, split, number).read_bytes() for number in group.tolist())
            for group in groups
        ]
        entries.append(rlds_files.write_split(str(made), CALVIN.tfds_name, split, shards))
    settings = json.loads((parts / "settings.json").read_text())
    facts = {name: fact for name, fact in settings.items() if name != "seed"}
    features = calvin.features(play=False)
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
    parser.add_argument("--train", type=command.positive, default=1_020, help="demonstrations")
    parser.add_argument("--val", type=command.positive, default=102, help="held-out ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=command.positive, default=1)
    args = parser.parse_args(argv)
    folder = write_demonstrations(args.out, args.train, args.val, args.seed, args.processes)
    print(f"wrote {folder}")


if __name__ == "__main__":
    command.run(main)
