"""Indexes a dataset and says what is in it: look at this before training on it.

    python -m experiments.index_data --root DIR --dataset NAME [--datasets FILE.py] [--out DIR]
    python -m experiments.index_data --root DIR --dataset NAME --validate [--quarantine FILE]
    python -m experiments.index_data --root DIR --dataset NAME --shard 3/8

NAME is a dataset that data_pipelines/datasets or FILE.py describes, or a LeRobot folder DIR/NAME.

The first prints a report and writes OUT/NAME.json and a one-page picture OUT/NAME.png. The second
reads every record and decodes every image, names each bad episode (file, record, step, field, what
to do) and exits with 1 if there is any; --quarantine writes them as a list that, looked through by
a person, goes to --config.data.quarantine.

The third is one of eight jobs (0/8 to 7/8) that share the reading of a large dataset, on any
machines that see the folder of the index: each leaves its files' parts there, whatever the others
do, and goes on where it was stopped. When all are done, the first command, or a training run, joins
them to the index that one pass makes, bit for bit.
"""

import argparse
import json
import os
from pathlib import Path

from data_pipelines import quarantine, report
from data_pipelines.datasets import user
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import formats, remote
from data_pipelines.files.record import EpisodeError
from data_pipelines.index import Index, build_parts, open_index, parts_there
from experiments.composition import plots, selecting
from vla_jax import command


def main(argv: list[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    selecting.add_dataset(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/index_data"), help="where report and picture go"
    )
    parser.add_argument(
        "--validate", action="store_true", help="read everything and list all that is wrong"
    )
    parser.add_argument(
        "--shard", type=command.share, help="I/N: read the files of job I of N only"
    )
    selecting.add_options(parser)  # --quarantine is written with --validate, else read
    args = parser.parse_args(argv)
    root = remote.absolute(args.root)
    dataset = user.dataset(args.root, args.dataset, args.datasets)
    if args.validate:
        return validate(root, dataset, Path(args.quarantine) if args.quarantine else None)
    chosen = selecting.of_options(args)
    if args.shard:
        build_parts(root, dataset, args.shard, selection=chosen)
        there, of, _ = parts_there(root, dataset, selection=chosen)
        print(
            f"{dataset.name}: {there} of {of} files are read"
            + ("; without --shard this command joins them" if there == of else "")
        )
        return 0
    try:
        describe(open_index(root, dataset, selection=chosen), args.out)
    except EpisodeError as error:
        raise ValueError(f"{error}\n(--validate lists everything that is wrong)") from error
    return 0


def describe(index: Index, out: Path) -> None:
    """Prints the report of every split and writes it with its picture."""
    dataset = index.dataset
    by_split = {name: report.measure(dataset, split) for name, split in index.splits.items()}
    for name, numbers in by_split.items():
        print("\n".join(report.lines(dataset, index.splits[name].label, numbers)))
    for note in dataset.notes:
        print(f"  note: {note}")
    out.mkdir(parents=True, exist_ok=True)
    part = out / f"{dataset.name}.json.part"
    part.write_text(
        json.dumps({"dataset": dataset.name, "digest": index.digest, "splits": by_split}, indent=2)
        + "\n"
    )
    os.replace(part, out / f"{dataset.name}.json")
    plots.dataset(dataset, index.splits["train"], by_split["train"], out / f"{dataset.name}.png")
    print(f"wrote {out / dataset.name}.json and .png")


def validate(root: str, dataset: Dataset, listed: Path | None) -> int:
    """Prints every problem; returns the exit code."""
    problems: list[EpisodeError] = []

    def report_one(error: EpisodeError) -> None:
        problems.append(error)
        print(error, flush=True)

    folder = formats.folder(root, dataset)
    episodes, pictures = report.validate(folder, dataset, report_one)
    if listed is not None:
        rows = [
            (e.path.removeprefix(folder).lstrip("/"), e.record, f"{e.field}: {e.problem}")
            for e in problems
            if e.record is not None
        ]
        quarantine.write(listed, rows)
        print(
            f"wrote {listed}: {len({row[:2] for row in rows})} episodes; look through it before you"
            " use it"
        )
    print(
        f"{dataset.name}: {len(problems)} problems in {episodes} readable episodes with {pictures}"
        " images"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    command.run(main)
