"""Benchmarks, each against a named peer on the same work in the same run.

    python -m experiments.benchmark data [--json=FILE] [--root=DIR] [--windows=100000]
    python -m experiments.benchmark formats [--json=FILE] [--root=DIR] [--rounds=5]
    python -m experiments.benchmark inference [--size tiny|100m|3b] [--head lstm]
    python -m experiments.benchmark train [--size tiny|100m|3b] [--step action|language]
    python -m experiments.benchmark input [--size 100m|tiny] [--repeats 5]
    python -m experiments.benchmark kills [--kills 50] [--seed 0]
    python -m experiments.benchmark endurance [--steps 2000]

They are the files of these names in benchmarks/.
"""

import argparse
import contextlib
import sys

from experiments.benchmarks import data, endurance, formats, inference, input, kills, train
from vla_jax import command
from vla_jax.progress import Progress

BENCHMARKS = {
    "data": data.main, "endurance": endurance.main, "formats": formats.main,
    "inference": inference.main,
    "input": input.main, "kills": kills.main, "train": train.main,
}  # fmt: skip


def main(argv: list[str]) -> int | None:
    """Runs one benchmark, which parses the arguments after its name; its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(BENCHMARKS))
    what = parser.parse_args(argv[:1]).what
    # On a terminal it would tear their tables.
    alive = contextlib.nullcontext() if sys.stderr.isatty() else Progress(f"benchmark {what}")
    with alive:
        return BENCHMARKS[what](argv[1:])


if __name__ == "__main__":
    command.run(main)
