"""Sensors' readings that stay in a dataset's files, read as the network's sensors take them."""

import io
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import images
from data_pipelines.files import remote, tfrecord
from data_pipelines.files.sensors import FEW, Stored
from vla_jax.robot.sensing import Sensor


def check_fits(stored: Stored, sensor: Sensor) -> None:
    """Raises ValueError when readings that are so stored are none of `sensor`."""
    if stored.form != "numbers" and sensor.fitted:
        raise sensor.error(
            f"expected at most {FEW} numbers of every step, which are normalised by what the data"
            f" has, got a {stored.form}; write fewer points or beams"
        )
    if stored.form == "sound":
        raw: Any = np.zeros(stored.rate, np.float32), stored.rate
    elif stored.form == "picture":
        raw = np.zeros((1, 1, 3) if sensor.kind == "tactile" else (1, 1), np.uint8)
    else:
        raw = np.zeros(stored.shape, np.uint8 if sensor.kind == "tactile" else np.float32)
    sensor.values(raw)


def raw(stored: Stored, kind: str, path: str, place: np.ndarray) -> list[Any]:
    """Raw readings that stay in a file, of steps [f] of one episode at `place` [f 2], with one
    read, as Sensor.values of that kind takes them; sound, which is the whole episode's, once.
    Raises ValueError for what is damaged.
    """
    start = int(place[:, 0].min())
    data = remote.read_range(path, start, int(place.sum(1).max()))
    if stored.form == "sound":
        floats = stored.dtype.startswith("float")
        samples = np.frombuffer(data, "<f4") if floats else tfrecord.whole_numbers(data)
        return [(samples, stored.rate)]
    pieces = [data[at - start : at - start + n] for at, n in place.tolist()]
    scale = np.float32(stored.scale)
    if stored.form == "floats":
        return [np.frombuffer(each, "<f4").reshape(stored.shape) * scale for each in pieces]
    if kind == "tactile":
        return [images.raw(each) for each in pieces]
    return [_map(each) * scale for each in pieces]


def _map(data: bytes) -> np.ndarray:
    """A depth map [h w] of an encoded picture of one channel."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as encoded:
            pixels = np.asarray(encoded)
    except (OSError, SyntaxError) as error:  # a broken PNG raises the latter
        raise ValueError(
            f"depth: expected a whole PNG, got {len(data)} bytes beginning {data[:8]!r}"
        ) from error
    if pixels.ndim != 2:
        raise ValueError(f"depth: expected a picture of one channel, got shape {pixels.shape}")
    return pixels.astype(np.float32)
