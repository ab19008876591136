"""What features.json says of the features that a dataset promises."""

from typing import Any, NamedTuple

import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import remote, tfds_folder
from data_pipelines.files.tfds_folder import FEATURES

FLAGS = ("is_first", "is_last")
OF_EPISODE = "episode_metadata/"  # how the keys of features of a whole episode begin
CHANNELS = (1, 3, 4)  # grayscale, RGB, RGB with alpha


class Kind(NamedTuple):
    """How the values of one feature lie in a record."""

    shape: tuple[int, ...]  # of one step
    strings: bool  # byte strings instead of numbers
    channels: int = 0  # of an image, where features.json says it


def described_features(folder: str, dataset: Dataset) -> dict[str, Kind]:
    """How each feature of a step that is read is stored, by its key.

    Raises ValueError when one that `dataset` promises is missing or of another kind.
    """
    path, leaves = remote.join(folder, FEATURES), tfds_folder.features(folder)
    promised = [(f"camera {slot!r}", key, "image") for slot, key in dataset.cameras.items()]
    promised += [(f"column {name!r}", key, "tensor") for name, key in dataset.columns.items()]
    words = () if dataset.segments else dataset.languages
    promised += [("language", key, "text") for key in words if not key.startswith(OF_EPISODE)]
    if dataset.outcome and not dataset.outcome.startswith(OF_EPISODE):
        promised.append(("outcome", dataset.outcome, "tensor"))
    promised += [("the flag", flag, "tensor") for flag in FLAGS if f"steps/{flag}" in leaves]
    _check_of_episode(path, dataset, words, leaves)
    kinds = {}
    for what, key, kind in promised:
        feature = leaves.get(f"steps/{key}", tfds_folder.Feature({}, ()))
        node, inside = feature.node, feature.lengths[1:]  # the outermost sequence is the steps
        tensor = node.get("tensor", {})
        whole = tensor.get("dtype", "").startswith(("int", "uint"))
        strings = "text" in node or "image" in node or tensor.get("dtype") in ("string", "object")
        # Words may be a plain string tensor or code points; numbers may be packed into strings.
        fits = {
            "image": "image" in node,
            "tensor": "tensor" in node or "text" in node,
            "text": "image" not in node and (strings or whole),
        }
        if not fits[kind]:
            got = (
                f"a {node.get('pythonClassName', '?').split('.')[-1]}"
                if node
                else "no such feature"
            )
            has = sorted(k.removeprefix("steps/") for k in leaves if k.startswith("steps/"))
            raise ValueError(
                f"{path}: {dataset.name} promises {what} as the {kind} feature 'steps/{key}', got"
                f" {got}; the steps have {', '.join(has)}"
            )
        channels = 0
        if kind == "image":
            channels = check_image(f"{path}: {what} as 'steps/{key}'", node["image"])
        encoding = tensor.get("encoding", "none").lower()
        shape = tuple(int(n) for n in tensor.get("shape", {}).get("dimensions", []))
        shape = (*inside, *shape)
        if (
            encoding != "none"
            or min(shape, default=1) < 1
            or (strings and int(np.prod(shape)) != 1)
        ):
            if -1 in inside:
                raise ValueError(
                    f"{path}: 'steps/{key}': expected as many numbers in every step, got a Sequence"
                    " of any length; write it as a Tensor of fixed shape, padded if it must be"
                )
            raise ValueError(
                f"{path}: 'steps/{key}': expected plain numbers of a fixed shape, or one string a"
                f" step, got encoding {encoding!r} of {tensor.get('dtype')} of shape {shape}; write"
                " the dataset again that way"
            )
        kinds[key] = Kind(shape, strings, channels)
        if what == "outcome":
            check_outcome(f"{path}: 'steps/{key}'", kinds[key])
    return kinds


def check_outcome(where: str, kind: Kind) -> None:
    """Raises ValueError, which begins with `where`, for a feature of steps that can be no outcome
    (Dataset.outcome).
    """
    if kind.strings or int(np.prod(kind.shape)) != 1:
        got = "texts" if kind.strings else f"numbers of shape {list(kind.shape)}"
        raise ValueError(
            f"{where}: expected one number a step as the outcome (Dataset.outcome), got {got}; name"
            " another, or a number or text of the whole episode"
        )


def check_of_rlds(path: str, dataset: Dataset) -> None:
    """Raises ValueError for what only RLDS files have; `path` has another format."""
    wrong = {
        "segments": dataset.segments,
        "require": dataset.require,
        "first_frame": dataset.first_frame,
    }
    if any(wrong.values()):
        raise ValueError(
            f"{path}: {dataset.name} asks for {', '.join(k for k, v in wrong.items() if v)}, which"
            " are of RLDS episodes; these files have none: leave them out of its description and"
            " its episodes out with data.quarantine"
        )


def _check_of_episode(
    path: str, dataset: Dataset, words: tuple[str, ...], leaves: dict[str, tfds_folder.Feature]
) -> None:
    """Raises ValueError when a promised feature of whole episodes is missing."""
    steps = (*words, dataset.outcome)  # may be of a step
    for key in (dataset.require, dataset.first_frame, *steps):
        if key and (key.startswith(OF_EPISODE) or key not in steps) and key not in leaves:
            raise ValueError(
                f"{path}: {dataset.name} promises the episode feature {key!r}, got no such feature;"
                " the episodes have"
                f" {', '.join(sorted(k for k in leaves if not k.startswith('steps/'))) or 'none'}"
            )


def check_image(where: str, image: dict[str, Any]) -> int:
    """The channels of an image feature, 0 where nobody says. `image` is what features.json says of
    it; older TFDS says less.

    Raises ValueError, which begins with `where`, when it is no picture of 8 bits a channel.
    """
    dtype, dimensions = image.get("dtype", "uint8"), image.get("shape", {}).get("dimensions", [])
    channels = max(0, int(dimensions[-1])) if dimensions else 0  # -1: any
    if dtype != "uint8" or (channels and channels not in CHANNELS):
        raise ValueError(
            f"{where}: expected a picture of uint8 with 1 (gray), 3 (RGB) or 4 (RGB, alpha)"
            f" channels, got {dtype} of shape [{', '.join(map(str, dimensions))}]; depth is no"
            " camera: name a colour feature"
        )
    return channels
