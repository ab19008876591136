"""RLDS datasets as TFDS writes them: features.json, dataset_info.json, and episodes in TFRecord
shards.
"""

from collections.abc import Callable, Iterator, Set

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import remote, sensors, tfds_folder, tfrecord
from data_pipelines.files.features import described_features
from data_pipelines.files.record import SEGMENTS, Episode, EpisodeError, Record, Shard, raised
from data_pipelines.files.tfds_folder import AGAIN, INFO


def check(folder: str, dataset: Dataset) -> dict[str, list[Shard]]:
    """The shards of each split. Raises ValueError when a file or a promised feature is missing, or
    a split is empty.
    """
    splits = tfds_folder.splits(folder)
    kinds = described_features(folder, dataset)
    where = remote.join(folder, tfds_folder.FEATURES)
    stored = sensors.described(where, dataset, tfds_folder.features(folder))
    return {
        split: [Shard(file, kinds, stored) for file in files] for split, files in splits.items()
    }


def episodes(
    shard: Shard,
    number: int,
    dataset: Dataset,
    on_error: Callable[[EpisodeError], None] | None = None,
    skip: Set[int] = frozenset(),
    checksums: tfrecord.Checksums | None = None,
) -> Iterator[Episode]:
    """The standardised episodes of a shard, in one pass. A record of play data holds one for each
    of its segments.

    Args:
        shard: from `check`.
        number: the shard's in its split.
        dataset: what the records hold.
        on_error: called for each bad episode, which is then left out; by default it is raised.
        skip: numbers of records (from 0) that are passed over, damaged or not.
        checksums: as of `tfrecord.read`.

    Raises EpisodeError (a ValueError) naming file, record, step and field when something is
    damaged, incomplete, not finite or in a wrong order.
    """
    count = 0
    wanted = {f"steps/{key}" for key in shard.features}
    whole = (dataset.require, dataset.first_frame, dataset.outcome, *dataset.languages)
    wanted |= {*whole} - {""}
    looked = [each for each in shard.sensors.values() if each.form in ("numbers", "picture")]
    wanted |= {f"steps/{each.key}" for each in looked}  # others are only found
    wanted |= set(SEGMENTS) if dataset.segments else set()

    report = on_error or raised

    def report_damage(error: tfrecord.Damaged) -> None:
        problem = f"damaged: {error.problem}"
        report(EpisodeError(shard.path, error.record, None, "", problem, error.fix))

    def damaged(error: tfrecord.Damaged) -> None:
        nonlocal count
        count = error.record + 1
        if error.record not in skip:
            report_damage(error)

    try:
        for record in tfrecord.read(shard.path, damaged, checksums):
            count = record.number + 1
            if record.number in skip:
                continue
            try:
                yield from Record(shard, record, wanted).episodes(number, dataset)
            except EpisodeError as error:
                report(error)
    except tfrecord.Damaged as error:
        # Whatever `skip` says: the records after this one cannot be found.
        report_damage(error)
        return
    if count != shard.file.records:
        got = f"{count}, and the file is empty" if not shard.file.size else str(count)
        problem = f"expected {shard.file.records} records ({INFO}), got {got}"
        report(EpisodeError(shard.path, None, None, "", problem, AGAIN))
