"""Changing the files of the embedded dataset, so that they are wrong in one way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.builders.blocks import play
from data_pipelines.files import tfrecord

FIRST = len(play(0, 0, 0).actions)  # steps of the first training episode


def files(root: Path) -> Path:
    """The folder of the dataset."""
    return root / "blocks" / "1.0.0"


def shard(root: Path, split: str = "train") -> Path:
    """The first file of a split."""
    return sorted(files(root).glob(f"*-{split}.*"))[0]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object], records: int = 1) -> None:
    """Applies `change(features)` to the first records of a file and writes all of it again with
    right checksums.
    """
    bodies = [record.data for record in tfrecord.read(path)]
    for i, body in enumerate(bodies[:records]):
        features = {
            key: [body[a : a + n] for a, n in zip(*value, strict=True)]
            if isinstance(value, tfrecord.Spans)
            else value.copy()
            for key, value in tfrecord.parse(body).items()
        }
        change(features)
        bodies[i] = tfrecord.encode(features)
    tfrecord.write(path, bodies)


def flip(path: Path, record: int) -> None:
    """Flips a bit inside the data of a record."""
    body = bytearray(path.read_bytes())
    body[list(tfrecord.read(path))[record].offset + 50] ^= 1
    path.write_bytes(body)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Applies `change(body)` to a JSON file."""
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
