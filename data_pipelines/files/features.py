"""What features.json says of the features that a dataset promises."""

from typing import NamedTuple

import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import remote, tfds_folder
from data_pipelines.files.tfds_folder import FEATURES

FLAGS = ("is_first", "is_last")


class Kind(NamedTuple):
    """How the values of one feature lie in a record."""

    shape: tuple[int, ...]  # of one step
    strings: bool  # byte strings instead of numbers


def described_features(folder: str, dataset: Dataset) -> dict[str, Kind]:
    """How each feature of a step that is read is stored, by its key.

    Raises ValueError when one that `dataset` promises is missing or of another kind.
    """
    path, leaves = remote.join(folder, FEATURES), tfds_folder.features(folder)
    promised = [(f"camera {slot!r}", key, "image") for slot, key in dataset.cameras.items()]
    promised += [(f"column {name!r}", key, "tensor") for name, key in dataset.columns.items()]
    promised += [("language", dataset.language, "text")] if not dataset.segments else []
    promised += [("the flag", flag, "tensor") for flag in FLAGS if f"steps/{flag}" in leaves]
    if dataset.require and dataset.require not in leaves:
        raise ValueError(
            f"{path}: {dataset.name} promises the episode feature {dataset.require!r}, got no such"
            " feature; the episodes have"
            f" {', '.join(sorted(k for k in leaves if not k.startswith('steps/'))) or 'none'}"
        )
    kinds = {}
    for what, key, kind in promised:
        node = leaves.get(f"steps/{key}", {})
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
        encoding = tensor.get("encoding", "none").lower()
        shape = tuple(int(n) for n in tensor.get("shape", {}).get("dimensions", []))
        if (
            encoding != "none"
            or min(shape, default=1) < 1
            or (strings and int(np.prod(shape)) != 1)
        ):
            raise ValueError(
                f"{path}: 'steps/{key}': expected plain numbers of a fixed shape, or one string a"
                f" step, got encoding {encoding!r} of {tensor.get('dtype')} of shape {shape}; write"
                " the dataset again that way"
            )
        kinds[key] = Kind(shape, strings)
    return kinds
