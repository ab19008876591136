"""Which data: a described dataset by its name, and what of it is held out and left out, from a
config or from the options of a command.
"""

import argparse
from typing import TYPE_CHECKING

from data_pipelines import quarantine
from data_pipelines.selection import HELD_OUT_SHARE, Quarantine, Selection

if TYPE_CHECKING:  # a robot's computer, which replays, need not have it
    from ml_collections import ConfigDict


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """The options --root, --dataset and --datasets of a command that looks at one dataset."""
    parser.add_argument("--root", required=True, help="the folder or URL that holds the datasets")
    parser.add_argument(
        "--dataset", required=True, help="its name in data_pipelines/datasets or in --datasets"
    )
    parser.add_argument(
        "--datasets", default="", help="your own Python file that describes datasets"
    )


def of_config(config: "ConfigDict") -> Selection:
    """What the fields under `data` say."""
    data = config.data
    return Selection(
        _listed("data.quarantine", data.quarantine),
        data.skip_unlabelled,
        data.min_length,
        data.max_idle,
        held_out(data.held_out),
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The same fields as options of a command."""
    parser.add_argument("--quarantine", default="", help="a list of episodes to leave out")
    parser.add_argument(
        "--held_out", default=str(HELD_OUT_SHARE), help="as data.held_out: share, number or list"
    )
    parser.add_argument(
        "--keep_unlabelled", action="store_true", help="as data.skip_unlabelled=False"
    )
    parser.add_argument("--min_length", type=int, default=0, help="as data.min_length")
    parser.add_argument("--max_idle", type=float, default=1.0, help="as data.max_idle")


def of_options(args: argparse.Namespace) -> Selection:
    """What the options of `add_options` say."""
    return Selection(
        _listed("--quarantine", args.quarantine),
        not args.keep_unlabelled,
        args.min_length,
        args.max_idle,
        held_out(args.held_out),
    )


def held_out(text: str) -> float | int | Quarantine:
    """A share ("0.05"), a number of episodes ("20"), or the file that lists them as a quarantine
    does.
    """
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return quarantine.read(text, "data.held_out")


def _listed(field: str, path: str) -> Quarantine:
    return quarantine.read(path, field) if path else frozenset()
