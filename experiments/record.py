"""Writes episodes of rollouts as a dataset, with how they ended: what a success classifier learns
from, and after a look what a policy imitates.

    python -m experiments.record --rollouts OUT [OUT2 ...] --out ROOT --dataset NAME

The episodes that experiments.rollout kept in OUT are gone through once more with the actions that
were carried out, and what is seen is written to ROOT/NAME as LeRobot has it (v3.0, pictures in its
parquet files), how it ended as next.success. ROOT/NAME.py describes it, for --datasets and
--config.data.datasets. An episode that ends otherwise than it did is refused: the world is another.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from data_pipelines.datasets import DATASETS
from experiments.preferring import pairs
from experiments.rolling.episodes import Orders, Row, Watch, actions_of
from experiments.rolling.recording import Recording
from experiments.rolling.worlds import About, opened
from vla_jax import command
from vla_jax.progress import Progress
from vla_jax.types import Seen


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rollouts", type=Path, nargs="+", required=True, metavar="OUT",
        help="what experiments.rollout wrote, all in one world",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="data root of what is written")
    parser.add_argument("--dataset", required=True, help="its name, which is new")
    args = parser.parse_args(argv)
    if args.dataset in DATASETS or not args.dataset.isidentifier():
        raise ValueError(
            f"--dataset: expected a name of letters, digits and _ that is none of ours, got"
            f" {args.dataset!r}"
        )
    print(record(args.rollouts, args.out, args.dataset))


def record(rollouts: list[Path], root: Path, name: str) -> str:
    """Writes the episodes of all `rollouts` to root/name; what was written, in words. Raises
    ValueError for rollouts of several worlds, and for an episode that ends otherwise.
    """
    kept = [(out, *_settled(out)) for out in rollouts]
    sim = kept[0][1]["sim"]
    for out, settings, _ in kept:
        if settings["sim"] != sim:
            raise ValueError(
                f"{out}: expected a rollout in {sim} as {kept[0][0]}, got {settings['sim']}; record"
                " it as another dataset"
            )
    world = opened(sim, 1)[0]
    counts = {True: 0, False: 0}
    try:
        about: About = world.about
        robot = DATASETS[about.datasets[0]]
        with (
            closing(Recording(root.expanduser(), name, robot, about.control_hz)) as written,
            Progress("recording", sum(len(rows) for *_, rows in kept), "episodes") as progress,
        ):
            for out, settings, rows in kept:
                if settings["facts"] != about.facts:
                    raise ValueError(
                        f"{out}: expected a rollout in this world, {about.facts}, got one in"
                        f" {settings['facts']}"
                    )
                for _, row in sorted(rows.items()):
                    counts[_watched(written, world, out, settings["seed"], row)] += 1
                    progress.add(1)
            described = written.finish()
    finally:
        world.close()
    return (
        f"wrote {root / name}: {counts[True]} successes, {counts[False]} failures; {described}"
        " describes it"
    )


def _settled(out: Path) -> tuple[dict[str, Any], dict[int, Row]]:
    """The settings and episodes of a rollout."""
    rows = pairs.rows(out)
    if any("solved" in row for row in rows.values()):
        raise ValueError(
            f"{out}: expected episodes of one instruction, got chains of several, which succeed"
            " each for itself"
        )
    return json.loads((out / "settings.json").read_text(encoding="utf-8")), rows


def _watched(written: Recording, world: Any, out: Path, seed: int, row: Row) -> bool:
    """Writes an episode; whether it succeeded."""
    number = row["episode"]
    actions = actions_of(out, number)
    world.begin(Watch(Orders(seed), number, actions, 1))
    seen = list[Seen]()
    while hasattr(message := world.take(), "seen"):
        seen.append(message.seen)
        world.answer(None)
    if message.row["outcome"] != row["outcome"]:
        raise ValueError(
            f"{out}: expected that episode {number} ends with {row['outcome']!r} as it did, got"
            f" {message.row['outcome']!r}: this is another world; compare its settings.json"
        )
    success = row["outcome"] == "success"
    written.add(row["instruction"], seen, actions, success)
    return success


if __name__ == "__main__":
    command.run(main)
