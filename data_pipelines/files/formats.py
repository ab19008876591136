"""Which format the files of a dataset have, and its shards and episodes whatever it is.

RLDS as TFDS writes it is in root/tfds_name/version; LeRobot's folders, and HDF5 files, are in
root/tfds_name.
"""

from collections.abc import Callable, Iterator, Set

import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import hdf5, lerobot, lerobot_rows, remote, rlds, tfds_folder, tfrecord
from data_pipelines.files.record import Episode, EpisodeError

RLDS, LEROBOT, HDF5 = "rlds", "lerobot", "hdf5"
READERS = {RLDS: rlds, LEROBOT: lerobot, HDF5: hdf5}

Shard = rlds.Shard | lerobot.Shard | hdf5.Shard


def folder(root: str, dataset: Dataset) -> str:
    """Where the files are. Raises ValueError when there are several formats."""
    plain = remote.join(root, dataset.tfds_name)
    versioned = remote.join(plain, dataset.version) if dataset.version else plain
    found = [lerobot.INFO] if remote.exists(remote.join(plain, lerobot.INFO)) else []
    found += hdf5.names(plain)[:1]
    if not found:
        return versioned
    if remote.exists(remote.join(versioned, tfds_folder.INFO)):
        found.append(f"{dataset.version}/{tfds_folder.INFO}")
    if len(found) > 1:
        raise ValueError(
            f"{plain}: expected RLDS, LeRobot or HDF5 files, got {' and '.join(found)}; move all"
            " but one format elsewhere"
        )
    return plain


def missing(root: str, dataset: Dataset) -> str:
    """What of a dataset is not under `root`, and what is there instead; "" when it is there."""
    there = folder(root, dataset)
    info = remote.join(there, tfds_folder.INFO)
    if remote.exists(info) or kind(there) != RLDS:
        return ""
    if not dataset.version:
        return f"no {lerobot.INFO} and no HDF5 file in {there};"
    instead = tfds_folder.there(there)
    return f"no {info}; {instead}; or" if instead else f"no {info};"


def kind(folder: str) -> str:
    """Of READERS; that of RLDS where nothing says that it is another."""
    if remote.exists(remote.join(folder, lerobot.INFO)):
        return LEROBOT
    if remote.exists(remote.join(folder, tfds_folder.INFO)):
        return RLDS  # without a listing of its shards, of which there may be thousands
    return HDF5 if hdf5.names(folder) else RLDS


def check(folder: str, dataset: Dataset) -> dict[str, list[Shard]]:
    """The shards of each split. Raises ValueError when a file or a promised feature is missing, or
    a split is empty.
    """
    found = READERS[kind(folder)].check(folder, dataset)
    return {split: [*shards] for split, shards in found.items()}


def episodes(
    shard: Shard,
    number: int,
    dataset: Dataset,
    on_error: Callable[[EpisodeError], None] | None = None,
    skip: Set[int] = frozenset(),
    checksums: tfrecord.Checksums | None = None,
) -> Iterator[Episode]:
    """As `rlds.episodes`; files of the other formats have no `checksums`."""
    if isinstance(shard, lerobot.Shard):
        return lerobot_rows.episodes(shard, number, dataset, on_error, skip)
    if isinstance(shard, hdf5.Shard):
        return hdf5.episodes(shard, number, dataset, on_error, skip)
    return rlds.episodes(shard, number, dataset, on_error, skip, checksums)


def check_totals(shard: Shard, measured: list[dict[str, np.ndarray]]) -> None:
    """Raises ValueError when what was measured of all episodes (Episode.measured, one by one or
    together) is not what the dataset of `shard` says of itself; only LeRobot does.
    """
    if isinstance(shard, lerobot.Shard):
        lerobot_rows.check_totals(shard, measured)
