"""Named mixtures of datasets, what dims one policy of a mixture has, and the check that all of its
files are there before anything costs money.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import readings
from data_pipelines.datasets import Dataset
from data_pipelines.datasets.mixtures import Mixture
from data_pipelines.files import formats
from data_pipelines.index import Index
from data_pipelines.learnt import action_stats
from vla_jax.actions import ActionSpec, Rule, Stats
from vla_jax.robot.sensing import Sensor


@dataclasses.dataclass(frozen=True)
class Member:
    """One dataset of a mixture."""

    index: Index
    split: str
    weight: float  # multiplies its number of windows
    action_spec: ActionSpec
    state_spec: ActionSpec
    action_stats: Stats  # of what is learnt, see learnt.py
    sensor_specs: dict[str, ActionSpec] = dataclasses.field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        index: Index,
        split: str,
        weight: float,
        rules: Sequence[Rule],
        chunk: int = 0,
        sensors: Sequence[Sensor] = (),
    ) -> "Member":
        """A member whose specs are fitted to the statistics of the split "train", whatever is read.

        `rules` normalise the actions (see ActionSpec.fit); the state is always normalised by q99,
        `sensors` by mean and deviation where they are of a kind that is fitted. Relative targets
        need the steps of a `chunk`. Raises ValueError when there is no such statistic, or a rule is
        none.
        """
        dataset = index.dataset
        if dataset.relative and chunk < 1:
            raise ValueError(
                f"{dataset.name}: relative targets: expected the steps of a chunk, got {chunk}"
            )
        names, binary, seen = dataset.action_names, dataset.binary, action_stats(index, chunk)
        return cls(
            index,
            split,
            weight,
            ActionSpec.fit(names, binary, seen, rules, dataset.relative),
            ActionSpec.fit(dataset.state_names, (), index.splits["train"].stats["state"], ("q99",)),
            seen,
            {
                sensor.name: _sensor_spec(sensor, index.splits["train"].stats[key])
                for sensor in sensors
                if sensor.fitted and (key := f"sensor_{sensor.name}") in index.splits["train"].stats
            },
        )


def _sensor_spec(sensor: Sensor, statistics: Stats) -> ActionSpec:
    """Of the numbers of a sample. Where a sample is one number (a beam) and the data has many, all
    are of one kind.
    """
    numbers = sensor.shape[-1]
    if numbers == 1 and len(statistics["mean"]) > 1:
        share = statistics["count"] / max(1.0, statistics["count"].sum())
        mean = (share * statistics["mean"]).sum()
        square = (share * (statistics["std"] ** 2 + statistics["mean"] ** 2)).sum()
        there = statistics["count"] > 0
        statistics = {
            "mean": np.array([mean]),
            "std": np.array([np.sqrt(max(0.0, square - mean**2))]),
            "min": statistics["min"].min(where=there, initial=np.inf, keepdims=True),
            "max": statistics["max"].max(where=there, initial=-np.inf, keepdims=True),
        }
    ends = {"q01": statistics["min"], "q99": statistics["max"]}  # looked at, and not used
    if len(statistics["mean"]) != numbers:
        raise sensor.error(
            f"expected samples of {numbers} numbers, the data has {len(statistics['mean'])}; change"
            " model.sensors"
        )
    names = tuple(f"{sensor.name}_{i}" for i in range(numbers))
    return ActionSpec.fit(names, (), {**statistics, **ends}, ("gaussian",))


BINARY, CONTINUOUS = "0 or 1", "continuous"


class Space(NamedTuple):
    """The dims of a policy by name: all those of its datasets, in the order in which they come."""

    names: tuple[str, ...]
    binary: tuple[str, ...]  # those of `names` that are 0 or 1


def action_space(datasets: Sequence[Dataset]) -> Space:
    """The actions of one policy for all of the datasets, matched by name.

    Raises ValueError, with all that is wrong, for a name that is binary in one dataset and not in
    another or that has two units, and for a dataset that shares no dim with any other.
    """
    names = tuple(dict.fromkeys(name for each in datasets for name in each.action_names))
    wrong = _two([(each.name, each.action_units) for each in datasets], "action", "unit")
    kinds = [(each.name, _kinds(each)) for each in datasets]
    wrong += _two(kinds, "action", "kind")
    for each in datasets:
        others = {name for one in datasets if one is not each for name in one.action_names}
        if len(datasets) > 1 and not others & set(each.action_names):
            wrong.append(
                f"{each.name}: its actions are {', '.join(each.action_names)}: expected a dim that"
                " another dataset of the mixture has too; train it alone, or name its dims as"
                " theirs where they mean the same"
            )
    if wrong:
        raise ValueError("\n".join(wrong))
    binary = {name for _, each in kinds for name, kind in each.items() if kind == BINARY}
    return Space(names, tuple(name for name in names if name in binary))


def state_space(datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """The numbers of the state that one policy sees for all of the datasets, matched by name.

    Raises ValueError for a name that has two units, and where no dataset has a state.
    """
    names = tuple(dict.fromkeys(name for each in datasets for name in each.state_names))
    wrong = _two([(each.name, each.state_units) for each in datasets], "state", "unit")
    if not names:
        wrong.append(
            "model.proprio: expected a dataset with a state, got none of"
            f" {', '.join(each.name for each in datasets)}; set it to False"
        )
    if wrong:
        raise ValueError("\n".join(wrong))
    return names


def _kinds(dataset: Dataset) -> dict[str, str]:
    """Of every action dim by its name."""
    names = enumerate(dataset.action_names)
    return {name: BINARY if dim in dataset.binary else CONTINUOUS for dim, name in names}


def _two(given: Sequence[tuple[str, dict[str, str]]], what: str, word: str) -> list[str]:
    """A line for each name for which two datasets say two things; `given` are (dataset, name ->
    what it says).
    """
    known: dict[str, tuple[str, str]] = {}
    lines = []
    for dataset, each in given:
        for name, says in each.items():
            other, first = known.setdefault(name, (dataset, says))
            if says != first:
                lines.append(
                    f"{what} {name}: expected one {word} in all datasets, got {first!r} in {other}"
                    f" and {says!r} in {dataset}; convert one in its description, name it otherwise"
                    " there, or leave one out"
                )
    return lines


def resolve(
    wanted: str | Sequence[Sequence[Any]], known: dict[str, Dataset], mixtures: dict[str, Mixture]
) -> Mixture:
    """(dataset, weight) pairs of a named mixture, of one dataset by its name, or as given.

    Raises ValueError for unknown names and for a dataset that comes twice.
    """
    if isinstance(wanted, str):
        if wanted in known and wanted not in mixtures:
            return ((wanted, 1.0),)
        if wanted not in mixtures:
            near = difflib.get_close_matches(wanted, [*mixtures, *known], n=3, cutoff=0.5)
            raise ValueError(
                f"data.mixture: expected a mixture ({', '.join(sorted(mixtures))}) or a dataset"
                f" (see data_pipelines/datasets/README.md), got {wanted!r}"
                + (f"; did you mean {', '.join(near)}?" if near else "")
                + "; describe your own with data.datasets, or name a LeRobot folder under data.root"
            )
    listed: Sequence[Sequence[Any]] = mixtures[wanted] if isinstance(wanted, str) else wanted
    pairs = tuple((str(name), float(weight)) for name, weight in listed)
    names = [name for name, _ in pairs]
    unknown = [name for name in names if name not in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    if unknown:
        wrong = f"unknown {', '.join(unknown)}"
    elif twice:
        wrong = f"{', '.join(twice)} twice"
    elif not pairs:
        wrong = "none"
    else:
        return pairs
    raise ValueError(
        f"data.mixture: expected known datasets, each once, got {wrong}; see"
        " data_pipelines/datasets/README.md, or describe your own with data.datasets"
    )


def problems(root: str, datasets: list[Dataset]) -> list[str]:
    """One line for each dataset whose files are not under `root`, with what brings them; empty when
    all are there.
    """
    lines = []
    for dataset in datasets:
        lacking = formats.missing(root, dataset)
        if lacking:
            lines.append(f"{dataset.name}: {lacking} {dataset.download.format(root=root)}")
    return lines


def misfits(datasets: list[Dataset], cameras: tuple[str, ...]) -> list[str]:
    """One line for each dataset that a policy with these cameras cannot learn from, and why."""
    lines = []
    for dataset in datasets:
        if not set(cameras) & set(dataset.cameras):
            has = ", ".join(dataset.cameras) or "no camera"
            lines.append(f"{dataset.name}: has {has}, none of model.cameras {cameras}")
    return lines


def check_sensors(members: list[Member], sensors: Sequence[Sensor]) -> None:
    """Raises ValueError, with all that is wrong, when a sensor is in no dataset, or another in
    one.
    """
    wrong = []
    for sensor in sensors:
        stored = {
            member.index.dataset.name: member.index.splits[member.split].sensors
            for member in members
        }
        if not any(sensor.name in each for each in stored.values()):
            has = sorted({name for each in stored.values() for name in each})
            wrong.append(
                f"model.sensors: expected sensors of the data ({', '.join(has) or 'none'}), got"
                f" {sensor.name}; name its feature in the description of a dataset"
                " (Dataset.sensors)"
            )
        for dataset, each in stored.items():
            if sensor.name in each:
                try:
                    readings.check_fits(each[sensor.name], sensor)
                except ValueError as error:
                    wrong.append(f"{dataset}: {error}")
    if wrong:
        raise ValueError("\n".join(wrong))


def check(members: list[Member], cameras: tuple[str, ...], window: int) -> None:
    """Raises ValueError, with all that is wrong, when members cannot be read together."""
    wrong = []
    for member in members:
        name, splits = member.index.dataset.name, member.index.splits
        if member.split not in splits:
            wrong.append(
                f"{name}: expected a split of {member.index.split_names()}, got {member.split!r}"
            )
            continue
        split = splits[member.split]
        longest = int(split.length.max())
        if window > longest:
            wrong.append(
                f"model.window: expected at most {longest}, the longest episode of"
                f" {name}, split {split.label}, got {window}"
            )
        if not any(slot in split.frames for slot in cameras):
            has = ", ".join(sorted(split.frames)) or "no camera"
            wrong.append(
                f"model.cameras: expected at least one of {has}, which {name} has, got {cameras};"
                f" change it, or leave {name} out of data.mixture"
            )
        if not 0 < member.weight < float("inf"):
            wrong.append(f"data.mixture: expected a weight above 0 for {name}, got {member.weight}")
    if wrong:
        raise ValueError("\n".join(wrong))
