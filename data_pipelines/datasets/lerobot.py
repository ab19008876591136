"""LeRobot datasets described by what their own meta/info.json says."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import lerobot, remote
from data_pipelines.files.lerobot_features import NUMBERS, TASK
from data_pipelines.standardise import Recipe

ACTION, STATE = "action", "observation.state"
WRIST = ("wrist", "hand", "gripper")  # words in the key of a camera that moves with the arm
SLOTS = ("primary", "secondary")
# Features that say of each frame whether the episode has succeeded, as LeRobot's own datasets call
# them.
OUTCOMES = ("next.success", "success", "is_episode_successful")


def described(folder: str) -> Dataset:
    """The dataset in a LeRobot folder, its name that of the folder: all numbers of its features
    `action` and `observation.state` as they are, by the names it gives them.

    Nothing is known of them but that, and how episodes ended where a feature is called as in
    OUTCOMES: no dim is binary, all are normalised. What else you know (a gripper, units, other
    columns) goes into a description of your own, or over this one with `dataclasses.replace`.
    Raises ValueError when it has no action, or is no LeRobot dataset.
    """
    folder = remote.absolute(folder).rstrip("/")
    info = lerobot.info_of(folder)
    features = info["features"]
    if ACTION not in features:
        raise ValueError(
            f"{folder}/{lerobot.INFO}: expected a feature {ACTION!r}, got"
            f" {', '.join(sorted(features))}; describe the dataset in a file of data.datasets, with"
            " the columns that its actions are made of"
        )
    cameras, rest = _cameras(features)
    has_state = STATE in features
    return Dataset(
        name=folder.rpartition("/")[2],
        version="",
        robot=str(info.get("robot_type") or ""),
        cameras=cameras,
        language=TASK,
        control_hz=float(info["fps"]),
        download=f"copy it from {folder}",
        standardise=Recipe(actions=(ACTION,), state=(STATE,) * has_state),
        action_names=_names(features[ACTION], "action"),
        state_names=_names(features[STATE], "state") if has_state else (),
        binary=(),
        outcome=_outcome(features),
        notes=(
            f"described by its own {lerobot.INFO}: no dim is taken for binary",
            *([f"cameras without a slot: {', '.join(rest)}"] if rest else []),
        ),
    )


def found(
    root: str, wanted: str | Sequence[Sequence[Any]], known: Mapping[str, Any]
) -> dict[str, Dataset]:
    """The LeRobot folders under `root` that a mixture names and nothing `known` describes."""
    names = [wanted] if isinstance(wanted, str) else [str(pair[0]) for pair in wanted]
    folders = {name: remote.join(remote.absolute(root), name) for name in names if name}
    return {
        name: described(folder)
        for name, folder in folders.items()
        if name not in known and remote.exists(remote.join(folder, lerobot.INFO))
    }


def _cameras(features: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Slot -> key, and the keys that have no slot."""
    cameras: dict[str, str] = {}
    rest = []
    for key, feature in features.items():
        info = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
        if feature["dtype"] not in ("video", "image") or info.get("video.is_depth_map"):
            continue
        moving = any(word in key.rpartition(".")[2] for word in WRIST)
        slot = next((s for s in (("wrist",) if moving else SLOTS) if s not in cameras), "")
        if slot:
            cameras[slot] = key
        else:
            rest.append(key)
    return cameras, rest


def _outcome(features: dict[str, Any]) -> str:
    """The feature that says how episodes ended; "" where none is called so and is one number."""
    listed = [key for key in OUTCOMES if key in features]
    fits = [
        key
        for key in listed
        if NUMBERS.fullmatch(str(features[key].get("dtype", "")))
        and math.prod(map(int, features[key].get("shape", ()))) == 1
    ]
    return next(iter(fits), "")


def _names(feature: dict[str, Any], word: str) -> tuple[str, ...]:
    """A word for each number of a vector; its own where it has as many, all different."""
    width = 1
    for size in feature["shape"]:
        width *= int(size)
    names = feature.get("names")
    if isinstance(names, dict):  # {"motors": [...]}
        names = next((each for each in names.values() if isinstance(each, list)), None)
    if isinstance(names, list) and len({str(name) for name in names}) == len(names) == width:
        return tuple(str(name) for name in names)
    return tuple(f"{word}_{i}" for i in range(1, width + 1))
