"""How the sensors of a dataset are stored, and where in a record their readings are.

numbers   a few numbers a step: a column of the index
floats    many float32 a step (a depth map), picture: PNG or JPEG, sound: samples of a whole
          episode; these stay in the files, and the index knows where
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import tfrecord
from data_pipelines.files.features import OF_EPISODE
from data_pipelines.files.tfds_folder import Feature

FEW = 4096  # numbers of a step in a column of the index

# (step, field, problem, fix) -> the error to raise
Fail = Callable[[int | None, str, str, str], ValueError]


class Stored(NamedTuple):
    """How a sensor is stored: `form` as at the top of this file, the shape of a step's numbers (of
    sound the dtype alone counts), samples a second of sound, and what numbers are multiplied by.
    """

    key: str
    form: str
    shape: tuple[int, ...]
    dtype: str
    rate: int
    scale: float


def described(path: str, dataset: Dataset, leaves: dict[str, Feature]) -> dict[str, Stored]:
    """Of RLDS files, whose features.json at `path` has these `leaves`. Raises ValueError for a
    sensor that is not there, or in a form that is not read.
    """
    out = {}
    for name, (key, scale) in dataset.sensor_keys.items():
        where = f"{path}: {dataset.name}: sensor {name!r}"
        whole = key.startswith(OF_EPISODE)
        feature = leaves.get(key if whole else f"steps/{key}")
        if feature is None:
            has = ", ".join(sorted(each.removeprefix("steps/") for each in leaves))
            raise ValueError(f"{where}: expected the feature {key!r}, got none; there are {has}")
        node = feature.node
        body = node.get("audio") or node.get("image") or node.get("tensor") or {}
        shape = tuple(int(n) for n in body.get("shape", {}).get("dimensions", []))
        dtype = body.get("dtype", "uint8")
        if "audio" in node:
            form, rate = "sound", int(body.get("sampleRate") or 0)
            _check_sound(where, whole, shape, rate, body)
            out[name] = Stored(key, form, shape, dtype, rate, scale)
            continue
        form = "picture" if "image" in node else "numbers"
        shape = shape if form == "picture" else (*feature.lengths[1:], *shape)
        good = dtype in ("uint8", "uint16") if form == "picture" else dtype != "string"
        plain = body.get("encoding", "none").lower() == "none" and min(shape, default=1) >= 1
        if whole or not body or not good or (form == "numbers" and not plain):
            got = f"{node.get('pythonClassName', '?').split('.')[-1]} of {dtype} {list(shape)}"
            raise ValueError(
                f"{where}: expected of every step numbers of a fixed shape, or a picture of 8 or 16"
                f" bits (PNG, JPEG), or of the whole episode a mono Audio feature; got {got} at"
                f" {key!r}; write it again in one of these forms"
            )
        if form == "numbers" and int(np.prod(shape)) > FEW:
            form = "floats"
            if dtype != "float32":
                raise ValueError(
                    f"{where}: expected float32, or a picture of 16 bits, for {list(shape)} numbers"
                    f" a step, got {dtype}; write it again in one of these forms"
                )
        out[name] = Stored(key, form, shape, dtype, 0, scale)
    return out


def _check_sound(
    where: str, whole: bool, shape: tuple[int, ...], rate: int, body: dict[str, Any]
) -> None:
    stored = body.get("encoding", "NONE").upper() in ("NONE", "")
    if not whole or shape != (-1,) or rate < 1 or not stored:
        raise ValueError(
            f"{where}: expected a mono Audio feature under {OF_EPISODE}, of any length, with its"
            f" sample rate, got shape {list(shape)} at {rate or 'no'} samples a second"
            f" ({'of an episode' if whole else 'of a step'}, encoding {body.get('encoding')});"
            " mix stereo down (samples.mean(1)) and write it with"
            " tfds.features.Audio(sample_rate=...)"
        )


def columns(
    stored: dict[str, Stored],
    features: dict[str, tfrecord.Spans | np.ndarray],
    record: tfrecord.Record,
    steps: int,
    fail: Fail,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Of an RLDS record of so many steps: readings [steps ...] float32 by name, NaN and infinity as
    they are, and of those that stay in the file their place [steps 2]: first byte and bytes.
    """
    readings, places = {}, {}
    for name, each in stored.items():
        size, key = int(np.prod(each.shape)), f"steps/{each.key}"
        values = features.get(key)
        if each.form == "numbers":
            if not isinstance(values, np.ndarray) or len(values) != steps * size:
                got = "none" if values is None else f"{len(values)} values"
                problem = f"expected {size} numbers in each of {steps} steps, got {got}"
                raise fail(None, each.key, problem, "repair the episode")
            rows = values.reshape(steps, *each.shape).astype(np.float32)
            readings[name] = rows * np.float32(each.scale)
        elif each.form == "picture":
            if not isinstance(values, tfrecord.Spans) or len(values.offset) != steps:
                problem = f"expected a picture in each of {steps} steps"
                raise fail(None, each.key, problem, "repair the episode")
            places[name] = np.stack([record.offset + values.offset, values.length], axis=1)
        else:
            begin, stop = tfrecord.packed(record.data, each.key if each.form == "sound" else key)
            if each.form == "floats" and stop - begin != 4 * steps * size:
                problem = f"expected {size} float32 in each of {steps} steps, got"
                problem += f" {(stop - begin) / 4:g} together"
                raise fail(None, each.key, problem, "repair the episode")
            if each.form == "sound":
                at = np.full(steps, record.offset + begin)
                places[name] = np.stack([at, np.full(steps, stop - begin)], axis=1)
            else:
                at = record.offset + begin + 4 * size * np.arange(steps)
                places[name] = np.stack([at, np.full(steps, 4 * size)], axis=1)
    return readings, places
