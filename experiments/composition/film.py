"""Film strips: evenly spaced frames of a recorded episode, side by side."""

import numpy as np
from jaxtyping import UInt8

from data_pipelines import images
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.index import Split

FRAMES = 10
LINE, COLOUR = 2, 255  # pixels between two frames, and how bright they are


def slots(dataset: Dataset, split: Split) -> list[str]:
    """The cameras that there are strips of, in the dataset's order."""
    return [slot for slot in dataset.cameras if slot in split.frames]


def steps(length: int) -> list[int]:
    """The steps of an episode of `length` steps that are shown: FRAMES of them at most."""
    return np.unique(np.linspace(0, length - 1, FRAMES).astype(int)).tolist()


def strip(
    dataset: Dataset, split: Split, episode: int, slot: str, height: int
) -> UInt8[np.ndarray, "height w 3"]:
    """The frames of `steps`, `height` pixels high and as wide as they were recorded, a line between
    two of them. Raises ValueError, naming episode and step, for one that is no picture.
    """
    shown, bgr, out = steps(int(split.length[episode])), slot in dataset.bgr, []
    stored = split.pictures(slot, int(split.first[episode]) + np.array(shown))
    for step in shown:
        try:
            out.append(images.thumbnail(next(stored), height, bgr))
        except ValueError as error:
            raise ValueError(
                f"{dataset.name}: {split.label}: episode {episode} (record {split.record[episode]}"
                f" of its file): {slot}, step {step}: {error}; index_data --validate lists all"
                " that is wrong"
            ) from error
    return joined(out)


def joined(pictures: list[np.ndarray]) -> UInt8[np.ndarray, "height w 3"]:
    """Pictures [height w 3] side by side with a line between two of them."""
    line = np.full((len(pictures[0]), LINE, 3), COLOUR, np.uint8)
    parts = [part for picture in pictures for part in (line, picture)][1:]
    return np.concatenate(parts, axis=1)
