"""Says which recorded episodes failed, and writes a list to leave them out of a training by.

    python -m experiments.judge --root ROOT --dataset NAME [--datasets FILE.py] --out DIR
    ... --reward RUN [--threshold 0.5]

Without --reward an episode failed where its files say so (Dataset.outcome). With a work directory
of experiments.train_success one failed whose last frame has a smaller chance of success than the
threshold, whatever its files say; what they say is counted beside it. DIR/failures.txt, looked
through by a person, goes to --config.data.quarantine; DIR/scores.html shows what is left out and
what is kept by little, DIR/scores.csv has all episodes, DIR/scores.png how the chances lie. On
episodes that the classifier learnt from it knows the answers: judge others.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from data_pipelines import quarantine
from data_pipelines.datasets import user
from data_pipelines.files import remote
from data_pipelines.files.outcomes import FAILURE, UNKNOWN
from data_pipelines.index import Index, Split, open_index
from experiments.composition import selecting
from experiments.learning.judging import Worth
from experiments.succeeding import looks, scores
from experiments.succeeding.scores import Score
from vla_jax import command
from vla_jax.progress import Progress
from vla_jax.rl.success import ALGORITHM, chance
from vla_jax.saved import jax_policy, open_reward

TOGETHER = 64  # episodes that are judged at once
LIST, PAGE, TABLE, PICTURE = "failures.txt", "scores.html", "scores.csv", "scores.png"


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    selecting.add_dataset(parser)
    parser.add_argument(
        "--reward", type=Path, help="a work directory of train_success; without: what is recorded"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="chances below it are failures; with --reward"
    )
    parser.add_argument("--out", type=Path, required=True, help="where list, page and table go")
    selecting.add_options(parser)
    args = parser.parse_args(argv)
    if not 0 < args.threshold < 1:
        raise ValueError(f"--threshold: expected a chance between 0 and 1, got {args.threshold}")
    dataset = user.dataset(args.root, args.dataset, args.datasets)
    root, by_files = remote.absolute(args.root), args.reward is None
    if by_files:
        looks.check_says(dataset)
    index = open_index(root, dataset, selection=selecting.of_options(args))
    found = recorded(index) if by_files else judged(index, args.reward, args.threshold)
    args.out.mkdir(parents=True, exist_ok=True)
    left = [each for each in found if each.left_out]
    quarantine.write(args.out / LIST, [(*each.where, each.reason) for each in left])
    scores.write_table(found, args.out / TABLE)
    scores.write_page(dataset, found, args.threshold, args.out / PAGE)
    if not by_files:
        scores.draw(found, args.threshold, args.out / PICTURE)
    print(scores.text(found))
    print(f"wrote {args.out / LIST}: look through {args.out / PAGE} before you use it")


def recorded(index: Index) -> list[Score]:
    """By what the files say."""
    return [
        Score(split, episode, int(split.outcome[episode]), None, split.outcome[episode] == FAILURE)
        for split in index.splits.values()
        for episode in _there(split)
    ]


def judged(index: Index, folder: Path, threshold: float) -> list[Score]:
    """By what a classifier says of last frames. Raises ValueError for what is no classifier, and
    for one that does not know the robot.
    """
    asked = f"--reward={folder}"
    worth = Worth(folder, asked)
    if worth.config.rl.algorithm != ALGORITHM:
        raise ValueError(
            f"{asked}: expected a work directory of experiments.train_success, got a reward model"
            " of preferences, whose numbers are no chances"
        )
    saved, model = open_reward(worth.where), worth.config.model
    name = looks.robot(saved, index.dataset, asked)
    policy = jax_policy(saved, name)
    frames = looks.Frames(index, looks.Watching(policy, model.chunk, model.window))
    found = []
    for split in index.splits.values():
        there = _there(split)
        with Progress(f"judging {split.label}", len(there), "episodes") as progress:
            for at in range(0, len(there), TOGETHER):
                some = there[at : at + TOGETHER]
                windows = [
                    window
                    for episode in some
                    for window in frames.at(split, episode, [int(split.length[episode]) - 1])
                ]
                rows = jax.tree.map(lambda *each: np.concatenate(each), *windows)
                for episode, each in zip(some, chance(worth(rows)).tolist(), strict=True):
                    told = int(split.outcome[episode]) if len(split.outcome) else UNKNOWN
                    found.append(Score(split, episode, told, each, each < threshold))
                progress.add(len(some))
    return found


def _there(split: Split) -> list[int]:
    """Episodes with a step."""
    return np.flatnonzero(split.length > 0).tolist()


if __name__ == "__main__":
    command.run(main)
