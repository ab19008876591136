"""Writes a dataset in another format: RLDS or HDF5 as LeRobot v3.0, LeRobot or HDF5 as RLDS.

    python -m data_pipelines.convert --root DIR --dataset NAME --to lerobot --out DIR2
    python -m data_pipelines.convert --root DIR --dataset NAME --to rlds --out DIR2

What the dataset's description (--datasets FILE.py) names is written, as it was recorded: columns,
cameras, words; a LeRobot folder describes itself. Numbers keep every bit. Pictures become a video
(h264) or JPEGs, and what that loses is measured and printed; with --pictures=lossless they are
PNGs, and what is encoded already is copied. `described` gives the description of what was written:

    DATASETS = {"NAME_lerobot": convert.described(MINE, "lerobot")}
"""

import argparse
import dataclasses
import re

from data_pipelines.builders import recorded
from data_pipelines.builders.to_lerobot import ToLeRobot
from data_pipelines.builders.to_rlds import ToRlds
from data_pipelines.datasets import Dataset, user
from data_pipelines.files import formats, remote
from data_pipelines.files.formats import LEROBOT, RLDS
from data_pipelines.files.lerobot_features import TASK
from data_pipelines.standardise import Moved, Part, Recipe, Waypoint
from vla_jax import command
from vla_jax.progress import Progress

WORDS = "language_instruction"  # the RLDS key of what a LeRobot frame's task is
VERSION = "1.0.0"  # of what is written as RLDS


def described(dataset: Dataset, to: str, lossless: bool = False) -> Dataset:
    """The description of what `convert` writes of a dataset: the same numbers under their new
    keys. It has the format as a suffix of its name. `lossless` as --pictures was.
    """
    old, new = _separators(to)
    name = f"{dataset.name}_{to}"
    many = [WORDS if to == RLDS else TASK]
    many += [f"{many[0]}_{i}" for i in range(2, max(1, len(dataset.languages)) + 1)]

    def renamed(text: str) -> str:
        return re.sub(r"^[^\s\[\]]+", lambda match: match[0].replace(old, new), text)

    def part(of: Part) -> Part:
        if isinstance(of, str):
            return renamed(of)
        if isinstance(of, Moved):
            return of._replace(part=renamed(of.part))
        if isinstance(of, Waypoint):
            return Waypoint(renamed(of.pose), renamed(of.action))
        return of

    standardise = dataset.standardise
    if isinstance(standardise, Recipe):
        standardise = dataclasses.replace(
            standardise,
            actions=tuple(part(each) for each in standardise.actions),
            state=tuple(part(each) for each in standardise.state),
        )
    return dataclasses.replace(
        dataset,
        name=name,
        tfds_name=name,
        version=VERSION if to == RLDS else "",
        download=f"python -m data_pipelines.convert --dataset {dataset.name} --to {to}",
        cameras={slot: renamed(key) for slot, key in dataset.cameras.items()},
        columns={column: renamed(key) for column, key in dataset.columns.items()},
        language=tuple(many) if len(many) > 1 else many[0],
        instruction="",
        standardise=standardise,
        bgr=dataset.bgr if lossless else (),
        segments=False,
        first_frame="",
        require="",
        pattern="",
        outcome="",
    )


def convert(
    root: str, dataset: Dataset, to: str, out: str, lossless: bool = False, fps: float | None = None
) -> recorded.Loss | None:
    """Writes a dataset under `root` as out/NAME_lerobot or out/NAME_rlds/1.0.0; what became of its
    pictures, None with `lossless`.

    Args:
        to: "lerobot" or "rlds", the format that its files are not in.
        lossless: pictures as PNGs, copied where they are encoded already.
        fps: recorded steps a second; None: control_hz, of a Recipe times its stride.

    Raises ValueError when files are damaged or cannot be written so, and when there are some.
    """
    folder = formats.folder(remote.absolute(root), dataset)
    if formats.kind(folder) == to:
        raise ValueError(f"{folder}: expected files to be converted to {to}, got {to} already")
    if dataset.sensors:
        raise ValueError(
            f"{dataset.name}: expected no sensors, got {', '.join(dataset.sensors)}, which are not"
            " converted; describe it without them to leave them behind"
        )
    target = described(dataset, to, lossless)
    written = _written(out, target)
    if remote.list_folder(written):
        raise ValueError(f"{written}: expected a folder that is new, got files; remove them")
    whole = formats.check(folder, dataset)
    loss = None if lossless else recorded.Loss()
    writer = (
        ToLeRobot(dataset, target, written, fps or _rate(dataset), loss)
        if to == LEROBOT
        else ToRlds(dataset, target, written, loss)
    )
    total = sum(shard.file.size for shards in whole.values() for shard in shards)
    with Progress(f"{dataset.name}: converting to {to}", total) as progress:
        writer.write(whole, progress)
    return loss


def _written(out: str, target: Dataset) -> str:
    """The folder of what is written."""
    return remote.join(remote.absolute(out), target.tfds_name, target.version).rstrip("/")


def _rate(dataset: Dataset) -> float:
    if dataset.control_hz is None:
        raise ValueError(f"{dataset.name}: nobody says how many steps a second it has: give --fps")
    recipe = dataset.standardise
    return dataset.control_hz * (recipe.stride if isinstance(recipe, Recipe) else 1)


def _separators(to: str) -> tuple[str, str]:
    """What parts the words of a key, there and here."""
    return ("/", ".") if to == LEROBOT else (".", "/")


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="the folder or URL that holds the datasets")
    parser.add_argument("--dataset", required=True, help="its name")
    parser.add_argument("--datasets", default="", help="your own file that describes datasets")
    parser.add_argument("--to", required=True, choices=(LEROBOT, RLDS))
    parser.add_argument("--out", required=True, help="data root of what is written")
    parser.add_argument("--pictures", default="lossy", choices=("lossy", "lossless"))
    parser.add_argument("--fps", type=float, help="recorded steps a second, where nobody says")
    args = parser.parse_args(argv)
    dataset = user.dataset(args.root, args.dataset, args.datasets)
    lossless = args.pictures == "lossless"
    loss = convert(args.root, dataset, args.to, args.out, lossless, args.fps)
    target = described(dataset, args.to, lossless)
    print(f"wrote {_written(args.out, target)}")
    print("numbers: every bit as recorded")
    said = loss.lines([*dataset.cameras]) if loss else ["pictures: every bit as recorded"]
    print("\n".join(said))
    if dataset.outcome:
        print(f"{dataset.outcome}: how episodes ended is not written")
    keys = ", ".join((*target.cameras.values(), *target.columns.values(), *target.languages))
    print(f"its features are {keys}; convert.described(..., {args.to!r}) describes it")


if __name__ == "__main__":
    command.run(main)
