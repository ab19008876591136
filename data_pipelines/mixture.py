"""Named mixtures of datasets, and the check that all of their files are there before anything costs
money.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from data_pipelines.datasets import Dataset
from data_pipelines.datasets.mixtures import Mixture
from data_pipelines.files import remote, tfds_folder
from data_pipelines.index import Index
from vla_jax.actions import ActionSpec


@dataclasses.dataclass(frozen=True)
class Part:
    """One dataset of a mixture."""

    index: Index
    split: str
    weight: float  # multiplies its number of windows
    action_spec: ActionSpec
    state_spec: ActionSpec


def members(
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
            )
    listed: Sequence[Sequence[Any]] = mixtures[wanted] if isinstance(wanted, str) else wanted
    pairs = tuple((str(name), float(weight)) for name, weight in listed)
    names = [name for name, _ in pairs]
    unknown = [name for name in names if name not in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    if unknown or twice or not pairs:
        raise ValueError(
            "data.mixture: expected known datasets, each once, got "
            + (
                f"unknown {', '.join(unknown)}"
                if unknown
                else f"{', '.join(twice)} twice"
                if twice
                else "none"
            )
            + "; see data_pipelines/datasets/README.md, or describe your own with data.datasets"
        )
    return pairs


def problems(root: str, datasets: list[Dataset]) -> list[str]:
    """One line for each dataset whose files are not under `root`, with what brings them; empty when
    all are there.
    """
    found = []
    for dataset in datasets:
        info = remote.join(root, dataset.tfds_name, dataset.version, tfds_folder.INFO)
        if not remote.exists(info):
            found.append(f"{dataset.name}: no {info}; {dataset.download.format(root=root)}")
    return found


def misfits(
    datasets: list[Dataset], cameras: tuple[str, ...], action_names: tuple[str, ...]
) -> list[str]:
    """One line for each dataset that a policy with these cameras and actions cannot learn from, and
    why.
    """
    found = []
    for dataset in datasets:
        if not set(cameras) & set(dataset.cameras):
            has = ", ".join(dataset.cameras) or "no camera"
            found.append(f"{dataset.name}: has {has}, none of model.cameras {cameras}")
        if dataset.action_names != action_names:
            found.append(
                f"{dataset.name}: its actions are {', '.join(dataset.action_names)}, not"
                f" {', '.join(action_names)}"
            )
    return found


def check(parts: list[Part], cameras: tuple[str, ...], window: int) -> None:
    """Raises ValueError when parts cannot be read together; everything that is wrong is listed."""
    wrong = []
    for part in parts:
        name, splits = part.index.dataset.name, part.index.splits
        if part.split not in splits:
            wrong.append(
                f"{name}: expected a split of {', '.join(sorted(splits))}, got {part.split!r}"
            )
            continue
        split = splits[part.split]
        longest = int(split.length.max())
        if window > longest:
            wrong.append(
                f"model.window: expected at most {longest}, the longest episode of"
                f" {name}/{part.split}, got {window}"
            )
        if not any(slot in split.frames for slot in cameras):
            has = ", ".join(sorted(split.frames)) or "no camera"
            wrong.append(
                f"model.cameras: expected at least one of {has}, which {name} has, got {cameras};"
                f" change it, or leave {name} out of data.mixture"
            )
        if not 0 < part.weight < float("inf"):
            wrong.append(f"data.mixture: expected a weight above 0 for {name}, got {part.weight}")
        if part.action_spec.names != parts[0].action_spec.names:
            wrong.append(
                f"data.mixture: expected the action dims {', '.join(parts[0].action_spec.names)} in"
                f" every dataset, {name} has {', '.join(part.action_spec.names)}"
            )
    if wrong:
        raise ValueError("\n".join(wrong))
