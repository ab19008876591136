"""Writes RLDS datasets as TFDS lays them out, without TensorFlow: what all builders share."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import rlds, tfrecord

CORE = "tensorflow_datasets.core.features."

Feature = dict[str, Any]


def folder(features: dict[str, Feature]) -> Feature:
    """A dictionary of features."""
    return {"pythonClassName": f"{CORE}features_dict.FeaturesDict", "featuresDict": {"features": features}}


def tensor(dtype: str, *shape: int) -> Feature:
    """Numbers of one step."""
    name = "tensor_feature.Tensor" if shape else "scalar.Scalar"
    size = {"dimensions": [str(n) for n in shape]} if shape else {}
    return {"pythonClassName": CORE + name, "tensor": {"shape": size, "dtype": dtype, "encoding": "none"}}


def image(kind: str, height: int, width: int) -> Feature:
    """An RGB image, encoded as "jpeg" or "png"."""
    size = {"dimensions": [str(height), str(width), "3"]}
    body = {"shape": size, "dtype": "uint8", "encodingFormat": kind}
    return {"pythonClassName": f"{CORE}image_feature.Image", "image": body}


def text() -> Feature:
    """A sentence."""
    return {"pythonClassName": f"{CORE}text_feature.Text", "text": {}}


def episode(step: dict[str, Feature], metadata: dict[str, Feature] | None = None) -> Feature:
    """An RLDS episode: steps with the standard flags, reward and discount, and what describes the whole."""
    standard = {
        "discount": tensor("float32"),
        "is_first": tensor("bool"),
        "is_last": tensor("bool"),
        "is_terminal": tensor("bool"),
        "reward": tensor("float32"),
    }
    sequence = {"feature": folder({**standard, **step}), "length": "-1"}
    steps = {"pythonClassName": f"{CORE}dataset_feature.Dataset", "sequence": sequence}
    return folder({"steps": steps} | ({"episode_metadata": folder(metadata)} if metadata else {}))


def flags(steps: int) -> dict[str, np.ndarray]:
    """The standard features of a demonstration that ends in success: [T] each."""
    at = np.arange(steps)
    last = at == steps - 1
    return {
        "steps/discount": np.ones(steps, np.float32),
        "steps/is_first": at == 0,
        "steps/is_last": last,
        "steps/is_terminal": last,
        "steps/reward": last.astype(np.float32),
    }


def write_split(out: Path, name: str, split: str, shards: Sequence[Iterable[bytes]]) -> dict[str, Any]:
    """Writes the examples of a split's shards; returns the split's entry in dataset_info.json."""
    lengths, size = [], 0
    for number, examples in enumerate(shards):
        count = _Counted(examples)
        size += tfrecord.write(out / f"{name}-{split}.tfrecord-{number:05d}-of-{len(shards):05d}", count)
        lengths.append(str(count.count))
    return {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "numBytes": str(size),
        "shardLengths": lengths,
    }


def finish(out: Path, name: str, description: str, features: Feature, splits: list[dict[str, Any]]) -> None:
    """Writes features.json and, last, dataset_info.json: with it the folder (named by its version) is a dataset."""
    (out / rlds.FEATURES).write_text(json.dumps(features, indent=2))
    info = {"description": description, "fileFormat": "tfrecord", "name": name, "splits": splits, "version": out.name}
    (out / rlds.INFO).write_text(json.dumps(info, indent=2))


class _Counted:
    """Iterates once and counts."""

    def __init__(self, items: Iterable[bytes]) -> None:
        self._items, self.count = items, 0

    def __iter__(self) -> Any:
        for item in self._items:
            self.count += 1
            yield item
