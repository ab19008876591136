"""Results of rollouts beside each other, as `make demo` ends.

    python -m experiments.rolling.beside runs/demo/acts/* [--alike policy artefact]

A line for each folder that experiments.rollout wrote to. With --alike it ends with 1 where not
every episode of these two folders ended alike, after as many steps.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from vla_jax import command

Body = dict[str, Any]


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="each with a results.json")
    parser.add_argument(
        "--alike", nargs=2, metavar="NAME", help="names of two folders whose episodes are compared"
    )
    args = parser.parse_args(argv)
    bodies = {folder.name: read(folder) for folder in args.folders}
    print(table(bodies))
    if not args.alike:
        return 0
    missing = [name for name in args.alike if name not in bodies]
    if missing:
        parser.error(f"--alike: expected names of {', '.join(bodies)}, got {missing[0]}")
    one, two = (bodies[name]["episodes"] for name in args.alike)
    others = unlike(one, two)
    said = (
        f"{', '.join(map(str, others))} do not" if others else "all end alike, after as many steps"
    )
    print(f"episodes of {' and '.join(args.alike)}: {said}")
    return 1 if others else 0


def read(folder: Path) -> Body:
    """What rollout wrote there. Raises ValueError without it."""
    file = folder / "results.json"
    if not file.is_file():
        raise ValueError(
            f"{file}: expected what experiments.rollout --out={folder} writes, got no such file"
        )
    body: Body = json.loads(file.read_text(encoding="utf-8"))
    return body


def table(bodies: dict[str, Body]) -> str:
    """Success of each, of all episodes with Wilson's interval at 95% and by wording."""
    wordings = list(dict.fromkeys(name for body in bodies.values() for name in body["by_wording"]))
    columns = ["who acts".ljust(16), *(f"{name:>18}" for name in wordings), "all".rjust(28)]
    lines = ["".join(columns)]
    for name, body in bodies.items():
        cells = (body["by_wording"].get(wording) for wording in wordings)
        shown = [f"{_percent(cell) if cell else '':>18}" for cell in cells]
        all_ = body["success"]
        whole = f"{_percent(all_)} [{100 * all_['low']:.0f}, {100 * all_['high']:.0f}]"
        lines.append("".join([name.ljust(16), *shown, f"{whole} of {all_['episodes']}".rjust(28)]))
    return "\n".join(lines)


def unlike(one: list[Body], two: list[Body]) -> list[int]:
    """The numbers of the episodes that did not end alike, or are in one alone."""
    ends = [{row["episode"]: (row["outcome"], row["steps"]) for row in rows} for rows in (one, two)]
    numbers = sorted(ends[0].keys() | ends[1].keys())
    return [number for number in numbers if ends[0].get(number) != ends[1].get(number)]


def _percent(share: dict[str, Any]) -> str:
    return f"{100 * share['successes'] / share['episodes']:.1f}%"


if __name__ == "__main__":
    command.run(main)
