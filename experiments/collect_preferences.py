"""Shows pairs of clips of rollouts side by side and keeps which of both people prefer.

    python -m experiments.collect_preferences --rollouts OUT0 OUT1 [...] --out DIR [--pairs 100]
    [--judge NAME | --judge scripted] [--page FILE.html] [--apart]

The rollouts are of one world and one --seed, by other policies or checkpoints: a pair is one
episode twice. They are drawn, or with --apart those whose clips end farthest apart by what was
done, as of clips that end alike a choice says little. A page is served on this machine alone, to
who has the link that is printed: left, right, tie or skip, by a click or the keys of arrows, t and
s. With --page the same page becomes a file, which is filled in anywhere and whose choices are saved
to a file that belongs into DIR. The judge `scripted` chooses by the simulator's success and an
episode's length.

DIR/preferences.jsonl has a line for each choice with the hashes of both clips; a stopped command
goes on where it was. experiments.train_reward learns from it.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from experiments.preferring import page
from experiments.preferring import pairs as compared
from vla_jax import command

SCRIPTED = "scripted"


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=Path, nargs="+", required=True, metavar="OUT")
    parser.add_argument("--out", type=Path, required=True, help="folder of pairs and choices")
    parser.add_argument("--pairs", type=command.positive, default=100, help="at most so many")
    parser.add_argument("--seed", type=int, default=0, help="of which pairs, and which is left")
    parser.add_argument("--judge", default="me", help=f"who chooses; {SCRIPTED}: the simulator")
    parser.add_argument("--port", type=int, default=0, help="of the page; 0: any that is free")
    parser.add_argument("--page", type=Path, help="write the page there instead of serving it")
    parser.add_argument("--apart", action="store_true", help="pairs that end farthest apart")
    args = parser.parse_args(argv)
    if args.judge == SCRIPTED and args.page:
        raise ValueError("--page: the judge scripted looks at no page; leave one of both out")
    pairs = compared.drawn(args.rollouts, args.pairs, args.seed, args.apart)
    compared.keep(pairs, args.out)
    choices = compared.Choices(args.out, pairs)
    if args.judge == SCRIPTED:
        for choice in compared.scripted(pairs):
            choices.add(choice)
    else:
        shown = page.Page(pairs, args.out, args.judge)
        if args.page:
            args.page.write_text(shown.html(choices.made), encoding="utf-8")
            print(f"wrote {args.page}: its choices belong into {args.out / compared.PREFERENCES}")
            return
        page.serve(shown, choices, args.port)
    counts = Counter(choice.choice for choice in choices.made if choice.judge == args.judge)
    print(f"{args.out}: {json.dumps(counts)} of {len(pairs.pairs)} pairs by {args.judge}")


if __name__ == "__main__":
    command.run(main)
