"""Writes RLDS datasets as TFDS lays them out, without TensorFlow: what all builders share."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.files import remote, tfds_folder, tfrecord

CORE = "tensorflow_datasets.core.features."

Feature = dict[str, Any]


def folder(features: dict[str, Feature]) -> Feature:
    """A dictionary of features."""
    return {
        "pythonClassName": f"{CORE}features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def tensor(dtype: str, *shape: int) -> Feature:
    """Numbers of one step."""
    name = "tensor_feature.Tensor" if shape else "scalar.Scalar"
    size = {"dimensions": [str(n) for n in shape]} if shape else {}
    return {
        "pythonClassName": CORE + name,
        "tensor": {"shape": size, "dtype": dtype, "encoding": "none"},
    }


def image(kind: str, height: int, width: int) -> Feature:
    """An RGB image, encoded as "jpeg" or "png"."""
    size = {"dimensions": [str(height), str(width), "3"]}
    body = {"shape": size, "dtype": "uint8", "encodingFormat": kind}
    return {"pythonClassName": f"{CORE}image_feature.Image", "image": body}


def text() -> Feature:
    """A sentence."""
    return {"pythonClassName": f"{CORE}text_feature.Text", "text": {}}


def sequence(feature: Feature) -> Feature:
    """Any number of values."""
    body = {"feature": feature, "length": "-1"}
    return {"pythonClassName": f"{CORE}sequence_feature.Sequence", "sequence": body}


def episode(step: dict[str, Feature], metadata: dict[str, Feature] | None = None) -> Feature:
    """An RLDS episode: steps with the standard flags, reward and discount, and what describes the
    whole.
    """
    standard = {
        "discount": tensor("float32"),
        "is_first": tensor("bool"),
        "is_last": tensor("bool"),
        "is_terminal": tensor("bool"),
        "reward": tensor("float32"),
    }
    body = {"feature": folder({**standard, **step}), "length": "-1"}
    steps = {"pythonClassName": f"{CORE}dataset_feature.Dataset", "sequence": body}
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


def shard_name(name: str, split: str, number: int, count: int) -> str:
    """The file name TFDS gives a shard."""
    return f"{name}-{split}.tfrecord-{number:05d}-of-{count:05d}"


def write_split(
    out: str, name: str, split: str, shards: Sequence[Iterable[bytes]]
) -> dict[str, Any]:
    """Writes the examples of a split's shards; returns the split's entry in dataset_info.json."""
    lengths, size = [], 0
    for number, examples in enumerate(shards):
        count = _Counted(examples)
        size += tfrecord.write(
            remote.join(out, shard_name(name, split, number, len(shards))), count
        )
        lengths.append(count.count)
    return split_info(split, lengths, size)


def split_info(split: str, lengths: list[int], size: int) -> dict[str, Any]:
    """The entry of a split in dataset_info.json, from the records of its shards and their bytes."""
    return {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "numBytes": str(size),
        "shardLengths": [str(n) for n in lengths],
    }


def finish(
    out: str,
    description: str,
    features: Feature,
    splits: list[dict[str, Any]],
    simulator: Mapping[str, str] | None = None,
) -> None:
    """Writes features.json and, last, dataset_info.json: with it the folder <name>/<version> is a
    dataset. `simulator` is what the pictures of a simulated one depend on, see index.Index.
    """
    name, version = out.rstrip("/").split("/")[-2:]
    info = {
        "description": description,
        "fileFormat": "tfrecord",
        "name": name,
        "splits": splits,
        "version": version,
    }
    bodies: dict[str, Any] = {tfds_folder.SIMULATOR: dict(simulator)} if simulator else {}
    bodies |= {tfds_folder.FEATURES: features, tfds_folder.INFO: info}
    for file, body in bodies.items():
        with remote.open_write(remote.join(out, file)) as opened:
            opened.write(json.dumps(body, indent=2).encode())


class _Counted:
    """Iterates once and counts."""

    def __init__(self, items: Iterable[bytes]) -> None:
        self._items, self.count = items, 0

    def __iter__(self) -> Any:
        for item in self._items:
            self.count += 1
            yield item
