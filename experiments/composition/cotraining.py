"""What is co-trained on beside the robot data: images with texts, as config.objectives.image_text
says.
"""

from collections.abc import Callable, Generator
from typing import Any, Literal, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.datasets import user
from data_pipelines.datasets.image_text import IMAGE_TEXT, ImageTextDataset
from data_pipelines.image_text import Codec, Reader, ReaderConfig, attach
from data_pipelines.image_text_table import Table, open_table, problem
from data_pipelines.loader import Loader
from vla_jax.types import Batch


class Texts(NamedTuple):
    """An opened dataset, and how its texts become ids."""

    table: Table
    codec: Codec


def dataset(config: ConfigDict) -> ImageTextDataset | None:
    """What the config co-trains on; None when it does not. Raises ValueError for an unknown
    name.
    """
    if not config.objectives.image_text.weight:
        return None
    known = IMAGE_TEXT | (user.image_text(config.data.datasets) if config.data.datasets else {})
    name = config.objectives.image_text.dataset
    if name not in known:
        raise ValueError(
            f"objectives.image_text.dataset: expected one of {', '.join(known)}, got {name!r};"
            " describe your own as IMAGE_TEXT in the file of data.datasets"
        )
    return known[name]


def missing(config: ConfigDict, root: str) -> list[str]:
    """A line when the dataset is not under `root`, with the command that brings it."""
    wanted = dataset(config)
    line = problem(root, wanted) if wanted is not None else ""
    return [f"co-training: {line}\n    or --config.objectives.image_text.weight=0"] if line else []


def open_texts(
    config: ConfigDict,
    root: str,
    encode: Callable[[str], list[int]],
    answer: Callable[[str], list[int]],
) -> Texts | None:
    """Opens (or builds) the table of records; None when nothing is co-trained on.

    `encode` makes a question's prompt; `answer` gives ids that end with the end token.
    """
    wanted = dataset(config)
    return None if wanted is None else Texts(open_table(root, wanted), Codec(encode, answer))


def reader(
    config: ConfigDict,
    texts: Texts | None,
    split: Literal["train", "held_out"],
    rows: np.ndarray | None = None,
) -> Reader | None:
    """The rows that go with the batches of a loader; None without texts. `rows` of the global batch
    are this host's.
    """
    if texts is None:
        return None
    described = texts.table.dataset
    sizes = ReaderConfig(
        length=config.objectives.image_text.length,
        image_size=config.model.image_size,
        resize=config.model.resize,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    return Reader(
        texts.table,
        described.split if split == "train" else described.held_out,
        sizes,
        texts.codec,
        rows,
    )


def batches(
    loader: Loader, reader: Reader | None, start: int = 0, texts: int = 0
) -> Generator[Batch, None, None]:
    """What a run reads from positions on: windows from `start`, and images with texts, where there
    are any, from `texts`. To be closed.
    """
    windows = loader.batches(start)
    return windows if reader is None else attach(windows, reader.batches(texts))


def identity(loader: Loader, reader: Reader | None) -> dict[str, Any]:
    """What must be the same for a position to mean the same batch of `batches`; JSON-able."""
    return loader.identity() | ({} if reader is None else {"image_text": reader.identity()})
