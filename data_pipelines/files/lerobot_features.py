"""What info.json of a LeRobot dataset says of the features that a dataset promises."""

import re
from typing import Any

import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files.features import CHANNELS, OF_EPISODE, Kind, check_outcome
from data_pipelines.files.sensors import FEW, Stored

TASK = "task"  # as Dataset.language: what each frame's task_index stands for
NUMBERS = re.compile(r"(u?int|float)\d+|bool")  # dtypes of columns of numbers


def promised(
    path: str, dataset: Dataset, listed: dict[str, Any]
) -> tuple[dict[str, Kind], frozenset[str]]:
    """How the promised features are stored, and the keys of cameras that are videos. `listed` is
    what info.json, at `path`, says of all. Raises ValueError when one is missing or another.
    """
    kinds, filmed = {}, set()
    wanted_keys = [(f"camera {slot!r}", key, "picture") for slot, key in dataset.cameras.items()]
    wanted_keys += [(f"column {name!r}", key, "numbers") for name, key in dataset.columns.items()]
    wanted_keys += [("language", key, "text") for key in dataset.languages if key != TASK]
    if dataset.outcome and not dataset.outcome.startswith(OF_EPISODE):
        wanted_keys.append(("outcome", dataset.outcome, "numbers"))
    for what, key, wanted in wanted_keys:
        feature = listed.get(key, {})
        dtype = str(feature.get("dtype", ""))
        fits = {
            "picture": dtype in ("video", "image"),
            "numbers": bool(NUMBERS.fullmatch(dtype)),
            "text": dtype == "string",
        }
        if not fits[wanted]:
            got = f"one of {dtype}" if dtype else "no such feature"
            also = f" {TASK} (by task_index)," if wanted == "text" else ""
            raise ValueError(
                f"{path}: {dataset.name} promises {what} as the feature {key!r} of {wanted}, got"
                f" {got}; the frames have{also} {', '.join(sorted(listed))}"
            )
        shape = tuple(int(n) for n in feature.get("shape", ()))
        if wanted == "picture":
            kinds[key] = Kind(shape, True, _channels(f"{path}: {what} as {key!r}", feature, shape))
            filmed |= {key} if dtype == "video" else set()
        else:
            kinds[key] = Kind(shape, dtype == "string")
        if what == "outcome":
            check_outcome(f"{path}: {key!r}", kinds[key])
    return kinds, frozenset(filmed)


def sensors(path: str, dataset: Dataset, listed: dict[str, Any]) -> dict[str, Stored]:
    """How the sensors are stored, as `promised`. Raises ValueError for one that is not there, or
    is no column of numbers.
    """
    out = {}
    for name, (key, scale) in dataset.sensor_keys.items():
        feature = listed.get(key, {})
        dtype, shape = str(feature.get("dtype", "")), tuple(map(int, feature.get("shape", ())))
        if not NUMBERS.fullmatch(dtype) or int(np.prod(shape)) > FEW:
            got = f"{dtype} {list(shape)}" if feature else "no such feature"
            raise ValueError(
                f"{path}: {dataset.name}: sensor {name!r}: expected {key!r} as a column of at most"
                f" {FEW} numbers a frame, got {got}; the frames have {', '.join(sorted(listed))}"
            )
        out[name] = Stored(key, "numbers", shape, dtype, 0, scale)
    return out


def _channels(where: str, feature: dict[str, Any], shape: tuple[int, ...]) -> int:
    """The channels of a camera. Raises ValueError when it shows depth."""
    names = feature.get("names") or []
    at = next((i for i, name in enumerate(names) if str(name).startswith("channel")), -1)
    channels = shape[at] if shape else 0
    info = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    if info.get("video.is_depth_map") or (channels and channels not in CHANNELS):
        raise ValueError(
            f"{where}: expected a picture of 1 (gray), 3 (RGB) or 4 (RGB, alpha) channels, got"
            f" shape {list(shape)} ({names}){', depth' * bool(info.get('video.is_depth_map'))};"
            " depth is no camera: name a colour feature"
        )
    return channels
