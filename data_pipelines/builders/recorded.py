"""A dataset's episodes as they were recorded, before they are standardised: what a converter
writes.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.datasets.dataset import Dataset, Standardised
from data_pipelines.files import formats, pictures, remote
from data_pipelines.files.record import Episode

JPEG = {"quality": 95, "subsampling": 0}

Pixels = np.ndarray  # uint8 RGB [h w 3]


class Raw(NamedTuple):
    """An episode of T steps as it was recorded."""

    columns: dict[str, np.ndarray]  # feature key -> T ...
    words: list[tuple[str, ...]]  # T: alternatives
    stored: dict[str, Callable[[], Iterator[pictures.Picture]]]  # slot -> T pictures, each time


@dataclasses.dataclass
class Loss:
    """How much pictures differ from the recorded ones, in dB of peak signal to noise."""

    measured: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, slot: str, recorded: Pixels, written: Pixels) -> None:
        """A picture of a camera."""
        error = np.mean((recorded.astype(np.float32) - written.astype(np.float32)) ** 2)
        psnr = np.inf if error == 0 else 10 * np.log10(255**2 / float(error))
        self.measured.setdefault(slot, []).append(psnr)

    def lines(self, slots: list[str]) -> list[str]:
        """A line for each camera."""
        said = []
        for slot in slots:
            found = np.array(self.measured.get(slot, []))
            if not len(found) or np.isinf(found).all():
                said.append(f"{slot}: pictures as they were recorded, nothing is lost")
                continue
            finite = found[np.isfinite(found)]
            said.append(
                f"{slot}: {len(found)} pictures differ from the recorded ones: PSNR"
                f" {finite.mean():.1f} dB on the average, {finite.min():.1f} dB the worst"
            )
        return said


def episodes(shard: formats.Shard, dataset: Dataset) -> Iterator[Raw]:
    """The episodes of a shard before they are standardised."""
    found: dict[str, np.ndarray] = {}

    def keep(columns: dict[str, np.ndarray]) -> Standardised:
        found.update(columns)
        steps = len(next(iter(columns.values())))
        nothing = np.zeros((steps, 0), np.float32)
        return Standardised(nothing, nothing, np.arange(steps))

    keys = {key: key for key in dataset.columns.values()}
    plain = dataclasses.replace(
        dataset, standardise=keep, columns=keys, action_names=(), state_names=(), binary=()
    )

    def stored(episode: Episode, slot: str) -> Iterator[pictures.Picture]:
        name = episode.videos.get(slot)
        path = shard.path if name is None else remote.join(shard.file.folder, name)
        places = episode.offset[slot], episode.size[slot]
        return pictures.read(path, dataset.cameras[slot], *places)

    for episode in formats.episodes(shard, 0, plain):
        yield Raw(
            {key: column[episode.frames] for key, column in found.items()},
            [run.texts for run in episode.runs for _ in range(run.steps)],
            {slot: functools.partial(stored, episode, slot) for slot in dataset.cameras},
        )


def encoded(picture: pictures.Picture, kind: str) -> bytes:
    """A picture as a "JPEG" or "PNG" file; one that is encoded already as it is."""
    if isinstance(picture, bytes):
        return picture
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **(JPEG if kind == "JPEG" else {}))
    return buffer.getvalue()
