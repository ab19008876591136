"""Shows recorded episodes on one web page, a file that needs neither server nor network.

    python -m experiments.view --root DIR --dataset NAME [--datasets FILE.py] [--split train]
    [--episodes N] --out PAGE.html

On top what is known of the whole split: statistics of every dim, what was left out and why. Then a
film strip of each camera, actions, states and words of N episodes, evenly spaced over the split;
the search box keeps those whose words or number are typed. PAGE.html#q=red opens it with a search,
and experiments.replay --view PAGE.html links its worst episodes into it.
"""

import argparse
from pathlib import Path

from data_pipelines.datasets import user
from data_pipelines.files import remote, rlds
from data_pipelines.index import Split, open_index
from data_pipelines.selection import Quarantine
from experiments.composition import selecting
from experiments.viewing import page
from vla_jax import command


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    selecting.add_dataset(parser)
    parser.add_argument("--split", default="train", help="the part of it that is shown")
    parser.add_argument(
        "--episodes", type=command.positive, default=40, help="at most N, evenly spaced"
    )
    parser.add_argument("--out", type=Path, required=True, help="the page's file, PAGE.html")
    selecting.add_options(parser)
    args = parser.parse_args(argv)
    if args.out.suffix != ".html" or args.out.is_dir():
        raise ValueError(f"--out: expected a file that ends in .html, got {args.out}")
    dataset = user.dataset(args.root, args.dataset, args.datasets)
    chosen = selecting.of_options(args)
    try:
        index = open_index(remote.absolute(args.root), dataset, selection=chosen)
    except rlds.EpisodeError as error:
        raise ValueError(f"{error}\n(index_data --validate lists everything)") from error
    if args.split not in index.splits:
        raise ValueError(f"--split: expected one of {index.split_names()}, got {args.split!r}")
    split = index.splits[args.split]
    size = page.write(index, split, args.episodes, _listed(split, chosen.quarantine), args.out)
    print(f"wrote {args.out}: {size / 2**20:.1f} MiB, for any browser")


def _listed(split: Split, quarantine: Quarantine) -> int:
    """How many episodes of a split's files the quarantine lists."""
    files = {shard.rsplit("/", 1)[-1] for shard in split.shards}
    return sum(file in files for file, _ in quarantine)


if __name__ == "__main__":
    command.run(main)
