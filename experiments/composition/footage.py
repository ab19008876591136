"""What an artefact tells of the recordings its policy learnt from, beside their numbers: how frames
of each camera look (vla_jax/robot/safety/cameras.py), and an instruction that occurs.
"""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import images
from data_pipelines.index import Split, open_index
from experiments.composition import datasets, selecting
from vla_jax import saved_config
from vla_jax.export.artefact import Footage
from vla_jax.robot.resize import resize
from vla_jax.robot.safety import cameras
from vla_jax.saved import SavedPolicy
from vla_jax.training.checkpoint import load_meta

FRAMES = 400  # of each camera, spread evenly over the training split


def of_checkpoint(
    directory: Path, step: int | None, source: SavedPolicy, root: str
) -> dict[str, Footage]:
    """By dataset of a checkpoint, whose files are under `root`.

    Raises ValueError for datasets that are not there or have not the policy's cameras.
    """
    config: Any = saved_config.of_checkpoint(load_meta(directory, step), directory)
    config.data.root = root
    if lines := datasets.missing(config):
        raise ValueError("--data: " + "\n".join(lines))
    chosen = selecting.of_config(config)
    out = {}
    for dataset, _ in datasets.members(config):
        split = open_index(datasets.root(config), dataset, selection=chosen).splits["train"]
        rows = np.unique(np.linspace(0, len(split.actions) - 1, FRAMES).astype(int)).tolist()
        seen = {
            name: cameras.statistics(
                frame(split, name, row, name in dataset.bgr, size, source.resize) for row in rows
            )
            for name, size in zip(config.model.cameras, source.image_size, strict=True)
        }
        said = (text for text in split.sentences if text)
        fitting = (text for text in said if len(source.encode(text)) <= source.prompt["length"])
        out[dataset.name] = Footage(seen, next(fitting, None))
    return out


def frame(split: Split, camera: str, row: int, bgr: bool, size: int, how: str) -> np.ndarray:
    """A frame as a robot sends it, uint8 RGB [size size 3]."""
    (picture,) = split.pictures(camera, np.array([row]))
    return resize(images.raw(picture, bgr), size, how)
