"""Recorded episodes as a robot would have met them: frames as recorded and resized by it, numbers
as standardised.

What the commands that replay an artefact share. Nothing of JAX is imported: a robot computer can
run them.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import images, readings
from data_pipelines.datasets import user
from data_pipelines.files import pictures, remote
from data_pipelines.index import Index, Split, open_index
from data_pipelines.learnt import action_stats
from data_pipelines.selection import Selection
from experiments.composition import selecting
from vla_jax import command
from vla_jax.actions import ActionSpec, Rule
from vla_jax.robot.resize import resize
from vla_jax.robot.sensing import Sensor
from vla_jax.robot.torch_policy.spec import image_sizes, sensors_of

Images = dict[str, np.ndarray]


class Episode(NamedTuple):
    """One episode of t steps. `frames` are by camera, uint8 RGB, as large as the policy
    takes them.
    """

    number: int  # in its split, see Recording.episodes
    where: str  # file and record
    instruction: str
    frames: list[Images]  # t
    state: np.ndarray  # t p, robot units; p is 0 without a recorded state
    actions: np.ndarray  # t d, robot units
    # t, raw ones by sensor, of speech at the first step; () where the policy has no sensors
    readings: tuple[dict[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Recording:
    """A split of a dataset that belongs to an artefact: same actions, same statistics, all cameras
    there.
    """

    index: Index
    split: Split
    cameras: tuple[str, ...]
    sizes: dict[str, int]  # of the images that the policy takes, by camera
    resize: str  # how a robot makes them so large: a filter of vla_jax/robot/resize.py
    spec: ActionSpec
    mean: np.ndarray  # d: the mean of what is learnt in train, see data_pipelines/learnt.py
    sensors: tuple[Sensor, ...] = ()  # of the policy

    def episodes(self, most: int | None) -> list[int]:
        """Numbers of the first `most` episodes that have a step. One whose instruction changes is
        as many as it has instructions: a robot begins anew with each.
        """
        return np.flatnonzero(np.diff(self.split.run, append=len(self.split.actions)))[
            :most
        ].tolist()

    def episode(self, number: int) -> Episode:
        """An episode, its frames decoded as recorded and resized as a robot does it."""
        split, first = self.split, int(self.split.run[number])
        rows = np.arange(first, int([*split.run[number + 1 :][:1], len(split.actions)][0]))
        seen = {name: self._frames(name, rows) for name in self.cameras}
        return Episode(
            number,
            split.where(first),
            split.sentences[int(split.instruction[number, 0])],
            [{name: seen[name][t] for name in self.cameras} for t in range(len(rows))],
            np.array(split.state[rows]),
            np.array(split.actions[rows]),
            self._readings(rows),
        )

    def _readings(self, rows: np.ndarray) -> tuple[dict[str, Any], ...]:
        """Of the sensors that this data has."""
        if not self.sensors:
            return ()
        out: list[dict[str, Any]] = [{} for _ in rows]
        for sensor in self.sensors:
            if sensor.name in self.split.sensors:
                made = self.split.sensed(sensor.name, sensor.kind, rows)
                for here, raw in zip(out, made, strict=False):  # sound: the first step alone
                    here[sensor.name] = raw
        return tuple(out)

    def _frames(self, slot: str, rows: np.ndarray) -> list[np.ndarray]:
        """With one read or seek: the frames of an episode lie together."""
        stored, bgr = self.split.pictures(slot, rows), slot in self.index.dataset.bgr
        out: list[np.ndarray] = []
        for row in rows.tolist():
            try:
                out.append(resize(images.raw(next(stored), bgr), self.sizes[slot], self.resize))
            except ValueError as error:
                frames = self.split.frames[slot]
                path = self.split.shards[int(frames.shard[row])]
                raise ValueError(
                    f"{path}: {slot} frame {len(out)}"
                    f" ({pictures.where(path, int(frames.offset[row]))}): {error}; download it"
                    " again"
                ) from error
        return out


class Where(NamedTuple):
    """Which recorded data: as the options of the command say it."""

    root: str
    dataset: str
    split: str | None  # the held-out one by default
    datasets: str = ""  # a Python file that describes more
    selection: Selection = Selection()


def command_line(about: str | None) -> argparse.ArgumentParser:
    """The options of a command that runs an artefact on recorded episodes; `about` is its
    docstring.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--artefact", type=Path, required=True, help="the folder that experiments.export wrote"
    )
    parser.add_argument("--data", required=True, help="the folder or URL that holds the datasets")
    parser.add_argument(
        "--dataset", default="blocks", help="its name in data_pipelines/datasets or in --datasets"
    )
    parser.add_argument(
        "--datasets", default="", help="your own Python file that describes datasets"
    )
    parser.add_argument("--split", default=None, help="the held-out one by default")
    parser.add_argument(
        "--episodes", type=command.positive, default=None, help="the first N; all by default"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--require_signature",
        default=None,
        metavar="KEY",
        help="minisign.pub, or the key in it, by whose owner SHA256SUMS must be signed",
    )
    selecting.add_options(parser)  # with these as the artefact was trained
    return parser


def where(args: argparse.Namespace) -> Where:
    """Which data the options of `command_line` name."""
    return Where(args.data, args.dataset, args.split, args.datasets, selecting.of_options(args))


def open_recording(artefact: Path, where: Where) -> Recording:
    """The data of an artefact.

    Raises ValueError, with what was expected and what is there, for a dataset, split or camera that
    is not there, and when the artefact normalises other than this data's statistics say: it was
    trained on other data.
    """
    config = json.loads((artefact / "config.json").read_text(encoding="utf-8"))
    specs = json.loads((artefact / "norm_stats.json").read_text(encoding="utf-8"))["datasets"]
    if where.dataset not in specs:
        raise ValueError(
            f"--dataset: expected one that {artefact} was trained on ({', '.join(specs)}), got"
            f" {where.dataset!r}"
        )
    known = user.known(where.root, where.dataset, where.datasets)
    if where.dataset not in known:
        raise ValueError(
            "--dataset: expected one of data_pipelines/datasets or of --datasets=FILE.py, got"
            f" {where.dataset!r}"
        )
    root = remote.absolute(where.root)
    index = open_index(root, known[where.dataset], selection=where.selection)
    name = where.split or (index.held_out.name if index.held_out else "")
    if name not in index.splits:
        raise ValueError(
            f"--split: expected one of {index.split_names()}, got"
            f" {repr(name) if name else 'none, and nothing is held out'}"
        )
    split, cameras = index.splits[name], tuple(config["cameras"])
    absent = [slot for slot in cameras if slot not in split.frames]
    if absent:
        raise ValueError(
            f"{artefact}: expected the cameras {', '.join(cameras)}, in this order, {where.dataset}"
            f" has {', '.join(split.frames) or 'none'}"
        )
    spec = ActionSpec.from_json(specs[where.dataset]["action"])
    if spec.relative != index.dataset.relative:
        raise ValueError(
            f"{artefact}: expected a dataset whose actions are learnt as"
            f" {spec.relative or 'they are recorded'}, {where.dataset} says"
            f" {index.dataset.relative or 'they are'} (Dataset.targets, relative_to, rotations)"
        )
    learnt = action_stats(index, config["network"]["head"]["chunk"])
    check(
        artefact,
        "action",
        specs[where.dataset]["action"],
        index.dataset.action_names,
        learnt,
    )
    if config["network"]["sequence"]["state"]:
        check(
            artefact,
            "state",
            specs[where.dataset]["state"],
            index.dataset.state_names,
            index.splits["train"].stats["state"],
        )
    sensors = sensors_of(config)
    for sensor in sensors:
        if sensor.name in split.sensors:
            readings.check_fits(split.sensors[sensor.name], sensor)
    return Recording(
        index,
        split,
        cameras,
        image_sizes(config),
        config["image"]["resize"].lower(),
        spec,
        learnt["mean"].astype(np.float32),
        sensors,
    )


def check(
    artefact: Path,
    what: str,
    body: dict[str, Any],
    names: tuple[str, ...],
    stats: dict[str, np.ndarray],
) -> None:
    """Raises ValueError unless a spec of the artefact is what these training statistics make of the
    same rules.
    """
    spec = ActionSpec.from_json(body)
    if spec.names != names:
        raise ValueError(
            f"{artefact}: {what}: expected the dims {', '.join(spec.names)}, the data has {names}"
        )
    refitted = ActionSpec.fit(names, spec.binary, stats, rules(spec))
    lines = [
        f"    {name} ({trained.kind}): expected offset {trained.offset[i]:.6g}, scale"
        f" {trained.scale[i]:.6g}, got {data.offset[i]:.6g}, {data.scale[i]:.6g}"
        for trained, data in zip(spec.steps, refitted.steps, strict=True)
        for i, name in enumerate(names)
        if (trained.offset[i], trained.scale[i]) != (data.offset[i], data.scale[i])
    ]
    if lines:
        raise ValueError(
            f"{artefact}: {what}: it is normalised with other statistics than those of this data\n"
            + "\n".join(lines)
            + "\n    give the data that it was trained on, with its --quarantine, --held_out,"
            " --keep_unlabelled (all that was trained before 2026-11-28), --min_length, --max_idle"
        )


def rules(spec: ActionSpec) -> list[Rule]:
    """The chain of rules that a spec was fitted with."""
    moving = [i for i in range(len(spec.names)) if i not in (*spec.binary, *spec.constant)]
    out: list[Rule] = []
    for number, step in enumerate(spec.steps):
        limits = {(step.low[i], step.high[i]) for i in moving}
        # "bounds" has limits of its own, the same for all dims, or the smallest and largest of the
        # data.
        given = step.kind == "bounds" and len(limits) == 1 and (number > 0 or len(moving) > 1)
        out.append(("bounds", *limits.pop()) if given else step.kind)
    return out
