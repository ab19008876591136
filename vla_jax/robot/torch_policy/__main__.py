"""python -m policy_torch [--device cuda] [--dtype bfloat16]: replays the golden file of the
artefact beside it.
"""

import argparse
import sys
from pathlib import Path

from .folder import load
from .golden import replay, table


def main(argv: list[str]) -> None:
    """Prints the table; exits with 1 when a stage differs too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artefact", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    policy = load(args.artefact, args.device, args.dtype)
    rows = replay(policy, args.artefact / "golden.npz", args.dtype)
    print(table(rows))
    sys.exit(any(row.exceeds for row in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
