"""Which format the files of a dataset have, and its shards and episodes whatever it is.

RLDS as TFDS writes it is in root/tfds_name/version, LeRobot in root/tfds_name.
"""

from collections.abc import Callable, Iterator, Set

import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import lerobot, lerobot_rows, remote, rlds, tfds_folder, tfrecord
from data_pipelines.files.record import Episode, EpisodeError

Shard = rlds.Shard | lerobot.Shard


def folder(root: str, dataset: Dataset) -> str:
    """Where the files are. Raises ValueError when there are both formats."""
    plain = remote.join(root, dataset.tfds_name)
    versioned = remote.join(plain, dataset.version) if dataset.version else plain
    if not remote.exists(remote.join(plain, lerobot.INFO)):
        return versioned
    if remote.exists(remote.join(versioned, tfds_folder.INFO)):
        raise ValueError(
            f"{plain}: expected RLDS or LeRobot files, got {lerobot.INFO} and"
            f" {dataset.version}/{tfds_folder.INFO}; move one of the two elsewhere"
        )
    return plain


def missing(root: str, dataset: Dataset) -> str:
    """What of a dataset is not under `root`, and what is there instead; "" when it is there."""
    there = folder(root, dataset)
    info = remote.join(there, tfds_folder.INFO)
    if remote.exists(info) or is_lerobot(there):
        return ""
    if not dataset.version:
        return f"no {remote.join(there, lerobot.INFO)};"
    instead = tfds_folder.there(there)
    return f"no {info}; {instead}; or" if instead else f"no {info};"


def is_lerobot(folder: str) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return remote.exists(remote.join(folder, lerobot.INFO))


def check(folder: str, dataset: Dataset) -> dict[str, list[Shard]]:
    """The shards of each split. Raises ValueError when a file or a promised feature is missing, or
    a split is empty.
    """
    found = (lerobot if is_lerobot(folder) else rlds).check(folder, dataset)
    return {split: [*shards] for split, shards in found.items()}


def episodes(
    shard: Shard,
    number: int,
    dataset: Dataset,
    on_error: Callable[[EpisodeError], None] | None = None,
    skip: Set[int] = frozenset(),
    checksums: tfrecord.Checksums | None = None,
) -> Iterator[Episode]:
    """As `rlds.episodes`; parquet files have no `checksums`."""
    if isinstance(shard, lerobot.Shard):
        return lerobot_rows.episodes(shard, number, dataset, on_error, skip)
    return rlds.episodes(shard, number, dataset, on_error, skip, checksums)


def check_totals(shard: Shard, measured: list[dict[str, np.ndarray]]) -> None:
    """Raises ValueError when what was measured of all episodes (Episode.measured, one by one or
    together) is not what the dataset of `shard` says of itself; RLDS says nothing.
    """
    if isinstance(shard, lerobot.Shard):
        lerobot_rows.check_totals(shard, measured)
