"""What all commands share: how they end, what a person can mend without a traceback, and a type of
their arguments.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

REFUSED = 2  # the exit code, argparse's own for a wrong command line

TRACEBACK = "--traceback"


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command with the words of the command line and exits with its code (None: 0).

    A ValueError or OSError says what is wrong and what to do: it is printed, and the exit code is
    2. With --traceback it is raised, for developers.
    """
    words = sys.argv[1:]
    try:
        code = main([word for word in words if word != TRACEBACK])
    except (ValueError, OSError) as error:
        if TRACEBACK in words:
            raise
        name = Path(sys.argv[0]).stem
        print(f"{name}: {error}\n({TRACEBACK} shows where it was raised)", file=sys.stderr)
        sys.exit(REFUSED)
    sys.exit(code)


def positive(text: str) -> int:
    """A whole number of the command line, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number of the command line, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return int(text)


def share(text: str) -> tuple[int, int]:
    """I/N of the command line: job I of N, counted from 0."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N-1, as 3/8, got {text!r}")
    return int(number), int(count)
