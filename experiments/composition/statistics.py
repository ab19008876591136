"""Others' files of action statistics: RoboVLMs', Octo's, OpenVLA's and openpi's, told apart by what
is in them.

    {"action": {"q01": [..], ...}}                          one dataset, unnamed: RoboVLMs, Octo
    {"bridge_orig": {"action": {"q01": [..], ...}}, ...}    a mixture, by name: OpenVLA, Octo
    {"norm_stats": {"actions": {"q01": [..], ...},          one dataset, unnamed: openpi, which pads
                    "state": {...}}}                        to 32 numbers
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.datasets import DATASETS, Dataset
from vla_jax.actions import ActionSpec, Affine, Stats

KEYS = ("mean", "std", "min", "max", "q01", "q99")
OTHER_WORDS = {"p01": "q01", "p99": "q99"}  # Octo's
# openpi keeps none. They matter for dims that hardly vary alone, which stay within them.
STAND_INS = {"min": "q01", "max": "q99"}
UNNAMED = ""
PADDED, FLAT = 32, 1e-6  # numbers that openpi pads to, and how little the padding varies
# Their name of a dataset -> ours, where they differ.
THEIR_NAMES = {
    "rt_1": "fractal20220817_data",
    "bridge_orig": "bridge",
    "bridge_dataset": "bridge_oxe",
}


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Statistics of actions by the file's names of datasets; UNNAMED where it has none.

    Raises ValueError for a file that is none of these.
    """
    try:
        body = json.loads(file.expanduser().read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected a file of statistics in JSON ({error})") from error
    found: dict[str, Any] = {}
    if isinstance(body, dict):
        if isinstance(body.get("norm_stats"), dict):
            found = {UNNAMED: body["norm_stats"].get("actions")}
        elif "action" in body:
            found = {UNNAMED: body["action"]}
        else:
            found = {name: one.get("action") for name, one in body.items() if isinstance(one, dict)}
    if not found or not all(isinstance(one, dict) for one in found.values()):
        top = ", ".join(list(body)[:5]) if isinstance(body, dict) else type(body).__name__
        raise ValueError(
            f"{file}: expected statistics of RoboVLMs or Octo (an action), OpenVLA (an action for"
            f" each dataset) or openpi (norm_stats), got {top or 'nothing'}"
        )
    return found


def of_dataset(file: Path, found: dict[str, Any], dataset: Dataset, what: str = "action") -> Stats:
    """The statistics of one dataset's actions, each [d], or of its "state", each [p]. Raises
    ValueError where a number is missing, there are more or less than its dims, or a mask
    contradicts what is binary in it.
    """
    given = {OTHER_WORDS.get(key, key): value for key, value in found.items()}
    for key, other in STAND_INS.items():
        if given.get(key) is None:
            given[key] = given.get(other)
    names = dataset.action_names if what == "action" else dataset.state_names
    out = {}
    for key in KEYS:
        if given.get(key) is None:
            raise ValueError(f"{file}: expected {key} of the {what}, got {', '.join(found)}")
        out[key] = np.asarray(given[key], np.float64)
        if out[key].shape == (PADDED,) and _is_padding(given, len(names)):
            out[key] = out[key][: len(names)]
        if out[key].shape != (len(names),):
            raise ValueError(
                f"{file}: {what}: {key}: expected {len(names)} numbers ({', '.join(names)}) for"
                f" {dataset.name}, got shape {list(out[key].shape)}; are they another robot's?"
            )
    mask = given.get("mask")
    plain = None if mask is None else tuple(i for i, scaled in enumerate(mask) if not scaled)
    if plain is not None and plain != tuple(dataset.binary):
        raise ValueError(
            f"{file}: mask: expected {dataset.name}'s binary dims {tuple(dataset.binary)} left as"
            f" they are, got {plain}"
        )
    return out


def specs(config: ConfigDict, given: list[str]) -> dict[str, ActionSpec]:
    """What actions mean, by dataset: from files of statistics ("FILE" or "NAME=FILE"), or of a
    dataset whose normalisation the config says whole. Raises ValueError for a name that is no
    dataset's, and as `read` and `of_dataset` do.
    """
    rules, own = tuple(config.data.normalise), config.data.mixture
    out: dict[str, ActionSpec] = {}
    for argument in given:
        name, _, path = argument.rpartition("=")
        file = Path(path)
        for theirs, found in read(file).items():
            dataset = _dataset(argument, name or theirs or own)
            stats = of_dataset(file, found, dataset)
            out[dataset.name] = ActionSpec.fit(dataset.action_names, dataset.binary, stats, rules)
            q01, q99 = (np.array2string(stats[key], precision=4) for key in ("q01", "q99"))
            print(f"statistics of {dataset.name} from {file}: q01 {q01}, q99 {q99}")
    needed = [rule for rule in rules if isinstance(rule, str) and rule != "none"]
    if not out and own in DATASETS and not needed:
        dataset = DATASETS[own]
        unread = {key: np.zeros(len(dataset.action_names)) for key in KEYS}
        out[own] = ActionSpec.fit(dataset.action_names, dataset.binary, unread, rules)
    if not out:
        print(
            f"\naction spec: {rules} needs the statistics of the data: give --statistics=FILE, or"
            " they come with the data at the first training"
        )
    return out


def states(config: ConfigDict, given: list[str]) -> dict[str, ActionSpec]:
    """What the numbers of the state mean, by dataset: of those of `given` that are openpi's, the
    only ones that say it; of a state in words as openpi normalises it (`unclipped`). Raises
    ValueError where one of these lacks it, and as `of_dataset` does.
    """
    rules, out = tuple(config.data.normalise), {}
    for argument in given:
        name, _, path = argument.rpartition("=")
        body = json.loads(Path(path).expanduser().read_text())
        if not isinstance(body.get("norm_stats"), dict):
            continue
        found = body["norm_stats"].get("state")
        if not isinstance(found, dict):
            raise ValueError(f"{path}: expected norm_stats.state, which the policy sees, got none")
        dataset = _dataset(argument, name or config.data.mixture)
        stats = of_dataset(Path(path), found, dataset, "state")
        if config.model.state_words:
            out[dataset.name] = unclipped(dataset.state_names, stats)
        else:
            out[dataset.name] = ActionSpec.fit(dataset.state_names, (), stats, rules)
    return out


def unclipped(names: Sequence[str], stats: Stats) -> ActionSpec:
    """Quantiles as openpi normalises by them: 2 (x - q01) / (q99 - q01 + 1e-6) - 1, constant
    numbers too and beyond them as far as they go, for which the state's words have one of their
    own below and one above.
    """
    scale = (stats["q99"] - stats["q01"] + 1e-6) / 2
    far = (float("inf"),) * len(names)
    near = tuple(-x for x in far)
    step = Affine(
        "q99", near, far, tuple(map(float, stats["q01"] + scale)), tuple(map(float, scale))
    )
    return ActionSpec(tuple(names), steps=(step,))


def _is_padding(given: dict[str, Any], count: int) -> bool:
    """Whether all numbers from `count` on are constant."""
    low, high = (np.asarray(given[key], np.float64) for key in ("q01", "q99"))
    return low.shape == high.shape and bool(np.all(high[count:] - low[count:] < FLAT))


def _dataset(argument: str, name: str) -> Dataset:
    """The dataset of that name, or of the one that OpenVLA calls so."""
    known = name if name in DATASETS else THEIR_NAMES.get(name, "")
    if known not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.0)
        raise ValueError(
            f"--statistics={argument}: expected the name of a dataset of ours, got {name!r};"
            f" nearest are {', '.join(near)}: give NAME=FILE"
        )
    return DATASETS[known]
