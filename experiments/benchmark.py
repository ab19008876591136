"""Benchmarks, each against a named peer on the same work in the same run.

    python -m experiments.benchmark data [--json=FILE] [--root=DIR] [--windows=100000]
    python -m experiments.benchmark inference [--size tiny|100m|3b] [--head lstm]

They are benchmarks/data.py and benchmarks/inference.py.
"""

import argparse
import sys

from experiments.benchmarks import data, inference

BENCHMARKS = {"data": data.main, "inference": inference.main}


def main(argv: list[str]) -> None:
    """Runs one benchmark, which parses the arguments after its name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(BENCHMARKS))
    BENCHMARKS[parser.parse_args(argv[:1]).what](argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
