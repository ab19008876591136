"""Indexes a dataset and says what is in it: look at this before training on it.

    python -m experiments.index_data --root DIR --dataset NAME [--datasets FILE.py] [--out DIR]
    python -m experiments.index_data --root DIR --dataset NAME --validate [--quarantine FILE]

The first prints a report and writes OUT/NAME.json and a one-page picture OUT/NAME.png. The second
reads every record and decodes every image, names each bad episode (file, record, step, field, what
to do) and exits with 1 if there is any; --quarantine writes them as a list that, looked through by
a person, goes to --config.data.quarantine.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from data_pipelines import quarantine, report
from data_pipelines.datasets import DATASETS, user
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import remote, rlds
from data_pipelines.index import Index, open_index
from experiments.composition import plots


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="the folder or URL that holds the datasets")
    parser.add_argument(
        "--dataset", required=True, help="its name in data_pipelines/datasets or in --datasets"
    )
    parser.add_argument(
        "--datasets", default="", help="your own Python file that describes datasets"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/index_data"), help="where report and picture go"
    )
    parser.add_argument(
        "--validate", action="store_true", help="read everything and list all that is wrong"
    )
    parser.add_argument(
        "--quarantine", type=Path, default=None, help="with --validate: write the bad episodes here"
    )
    args = parser.parse_args(argv)
    known = dict(DATASETS) | (user.load(args.datasets)[0] if args.datasets else {})
    if args.dataset not in known:
        raise SystemExit(f"--dataset: expected one of {', '.join(known)}; got {args.dataset!r}")
    if args.quarantine is not None and not args.validate:
        raise SystemExit("--quarantine: only --validate finds bad episodes; add it")
    dataset = known[args.dataset]
    root = (
        args.root if remote.is_remote(args.root) else str(Path(args.root).expanduser().absolute())
    )
    try:
        if args.validate:
            sys.exit(validate(root, dataset, args.quarantine))
        describe(open_index(root, dataset), args.out)
    except ValueError as error:
        raise SystemExit(f"{error}\n(--validate lists everything that is wrong)") from error


def describe(index: Index, out: Path) -> None:
    """Prints the report of every split and writes it with its picture."""
    dataset = index.dataset
    by_split = {name: report.measure(dataset, split) for name, split in index.splits.items()}
    for name, numbers in by_split.items():
        print("\n".join(report.lines(dataset, name, numbers)))
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
    problems: list[rlds.EpisodeError] = []

    def report_one(error: rlds.EpisodeError) -> None:
        problems.append(error)
        print(error, flush=True)

    episodes, pictures = report.validate(
        remote.join(root, dataset.tfds_name, dataset.version), dataset, report_one
    )
    if listed is not None:
        rows = [
            (e.path.rsplit("/", 1)[-1], e.record, f"{e.field}: {e.problem}")
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
    main(sys.argv[1:])
