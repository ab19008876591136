"""Where the records of an image-text dataset are: one pass over its files, kept as a sidecar like
the index of an RLDS dataset (index.py). After that every record is one ranged read.
"""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_pipelines.datasets.image_text import ImageTextDataset
from data_pipelines.files import fingerprint, remote, store, tfds_folder, tfrecord
from data_pipelines.files.features import check_image
from data_pipelines.files.tfds_folder import AGAIN, File
from data_pipelines.index import current, place
from vla_jax.progress import Progress

SCHEMA = 2
COLUMNS = {
    "shard": np.int32,
    "record": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "crc": np.uint32,
}

Pairs = list[tuple[str, str]]  # question, answer


@dataclasses.dataclass(frozen=True)
class Split:
    """Where the N records of a split are. The arrays are read-only."""

    shards: tuple[str, ...]  # paths or URLs
    shard: np.ndarray  # N, int32: index into shards
    record: np.ndarray  # N, int32: its number in the shard
    offset: np.ndarray  # N, int64: where its data begin
    length: np.ndarray  # N, int64: bytes of its data
    crc: np.ndarray  # N, uint32: checksum of its data, as TFRecord stores it


@dataclasses.dataclass(frozen=True)
class Table:
    """The splits of a dataset that are used. `digest` names their contents, wherever they are."""

    dataset: ImageTextDataset
    splits: dict[str, Split]
    digest: str


def problem(root: str, dataset: ImageTextDataset) -> str:
    """A line that says what brings the dataset, when its files are not under `root`; else ""."""
    info = remote.join(_folder(root, dataset), tfds_folder.INFO)
    return (
        ""
        if remote.exists(info)
        else f"{dataset.name}: no {info}; {dataset.download.format(root=root)}"
    )


def open_table(
    root: str | Path, dataset: ImageTextDataset, cache_dir: str | Path | None = None
) -> Table:
    """The table of root/tfds_name/version, made if there is none, or if it is stale or damaged.

    `cache_dir` as in `index.open_index`. Raises ValueError when files are missing, damaged or not
    what `dataset` promises, and OSError when the table cannot be written.
    """
    folder = _folder(str(root), dataset)
    if line := problem(str(root), dataset):
        raise ValueError(f"objectives.image_text.dataset: {line}")
    _check_features(folder, dataset)
    files = tfds_folder.splits(folder)
    wanted = list(dict.fromkeys((dataset.split, dataset.held_out)))
    absent = [split for split in wanted if split not in files]
    if absent:
        raise ValueError(
            f"{folder}: expected a split {absent[0]!r} ({dataset.name}), got"
            f" {', '.join(sorted(files))}"
        )
    used = {split: files[split] for split in wanted}
    key = {
        "schema": SCHEMA,
        "revision": dataset.revision,
        "description": [dataset.image, dataset.question, dataset.answer],
        "files": {split: {f.name: f.records for f in used[split]} for split in used},
    }
    path = place(folder, f"{dataset.name}.image_text", cache_dir)
    stored = current(path, key, [file for split in used for file in used[split]])
    if stored is None:
        known: fingerprint.Known = {}
        columns = {
            name: column
            for split in used
            for name, column in _build(dataset, split, used[split], known)
        }
        store.save(path, key, columns, {"files": known})
        stored = store.load(path, key)
        if stored is None:
            raise OSError(f"{path}: the table is not what was just written there; check the disk")
    arrays = stored.arrays
    splits = {
        split: Split(
            tuple(f.path for f in used[split]),
            **{name: arrays[f"{split}/{name}"] for name in COLUMNS},
        )
        for split in used
    }
    return Table(dataset, splits, stored.digest)


def _folder(root: str, dataset: ImageTextDataset) -> str:
    return remote.join(remote.absolute(root), dataset.tfds_name, dataset.version)


def _check_features(folder: str, dataset: ImageTextDataset) -> None:
    """Raises ValueError when features.json lacks a feature that `dataset` promises, or has it as
    another kind.
    """
    leaves = tfds_folder.features(folder)
    for what in ("image", "question", "answer"):
        key = getattr(dataset, what)
        node = leaves[key].node if key in leaves else {}
        text = "text" in node or node.get("tensor", {}).get("dtype") in ("string", "object")
        if key and not ("image" in node if what == "image" else text):
            got = (
                f"a {node.get('pythonClassName', '?').split('.')[-1]}"
                if node
                else "no such feature"
            )
            raise ValueError(
                f"{remote.join(folder, tfds_folder.FEATURES)}: {dataset.name} promises the {what}"
                f" as the {'image' if what == 'image' else 'text'} feature {key!r}, got {got}; the"
                f" records have {', '.join(sorted(leaves))}"
            )
        if what == "image":
            where = f"{remote.join(folder, tfds_folder.FEATURES)}: {dataset.name}: {key!r}"
            check_image(where, node["image"])


def _build(
    dataset: ImageTextDataset, split: str, files: list[File], known: fingerprint.Known
) -> Iterator[tuple[str, np.ndarray]]:
    """The columns of a split by their names in the sidecar: one pass over its files, some at a
    time. Adds the files' fingerprints to `known`.
    """
    with (
        Progress(f"{dataset.name}: reading {split}", sum(file.size for file in files)) as progress,
        ThreadPoolExecutor(remote.workers(files[0].path)) as threads,
    ):
        jobs = [
            threads.submit(_read, dataset, number, file, progress, known)
            for number, file in enumerate(files)
        ]
        try:
            rows = np.concatenate([job.result() for job in jobs])
        finally:
            threads.shutdown(cancel_futures=True)  # after an error the rest need not be read
    total = sum(file.records for file in files)
    if not len(rows):
        raise ValueError(
            f"{files[0].path}: expected texts in {dataset.answer!r}, all {total} records have none"
        )
    without = f" ({total - len(rows)} images without a text left out)" if total > len(rows) else ""
    print(
        f"{dataset.name}: split {split}: {len(rows)} images{without} in {progress.spent()}",
        flush=True,
    )
    for (name, kind), column in zip(COLUMNS.items(), rows.T, strict=True):
        yield f"{split}/{name}", column.astype(kind)


def _read(
    dataset: ImageTextDataset,
    number: int,
    file: File,
    progress: Progress,
    known: fingerprint.Known,
) -> np.ndarray:
    """The rows of a file, [n columns] int64: its records that have a text. Adds the file's
    fingerprint to `known`.
    """
    rows, count, checksums = [], 0, tfrecord.Checksums()
    for record in tfrecord.read(file.path, checksums=checksums):
        _, pairs = parse(record.data, dataset, f"{file.path}: record {record.number}")
        if pairs:
            rows.append(
                (
                    number,
                    record.number,
                    record.offset,
                    len(record.data),
                    tfrecord.masked_crc(record.data),
                )
            )
        count += 1
        progress.add(len(record.data) + 16)
    if count != file.records:
        raise ValueError(
            f"{file.path}: expected {file.records} records ({tfds_folder.INFO}), got {count};"
            f" {AGAIN}"
        )
    known[file.name] = list(fingerprint.of(file.version, checksums))
    return np.array(rows, np.int64).reshape(-1, len(COLUMNS))


def parse(data: bytes, dataset: ImageTextDataset, where: str) -> tuple[bytes, Pairs]:
    """The encoded image of a record, and its questions and answers that are not blank.

    Raises ValueError that begins with `where` when the record is not what `dataset` describes.
    """

    def strings(key: str) -> list[bytes]:
        value = features.get(key, np.zeros(0))
        if not isinstance(value, tfrecord.Spans):
            if len(value):  # an empty list has no type on the wire
                raise ValueError(f"{where}: {key}: expected byte strings, got numbers; {AGAIN}")
            return []
        return [
            data[at : at + n]
            for at, n in zip(value.offset.tolist(), value.length.tolist(), strict=True)
        ]

    def texts(key: str) -> list[str]:
        try:
            return [text.decode() for text in strings(key)]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: {key}: expected UTF-8, got {error}; write it again in UTF-8"
            ) from error

    try:
        features = tfrecord.parse(data, {dataset.image, dataset.question, dataset.answer})
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {AGAIN}") from error
    encoded, answers = strings(dataset.image), texts(dataset.answer)
    if len(encoded) != 1:
        raise ValueError(
            f"{where}: {dataset.image}: expected one encoded image, got {len(encoded)}; {AGAIN}"
        )
    questions = texts(dataset.question) if dataset.question else [dataset.prompt]
    if len(questions) == 1:
        questions *= len(answers)
    if len(questions) != len(answers):
        raise ValueError(
            f"{where}: expected one {dataset.question!r}, or one for each {dataset.answer!r}, got"
            f" {len(questions)} and {len(answers)}; {AGAIN}"
        )
    return encoded[0], [(q, a) for q, a in zip(questions, answers, strict=True) if a.strip()]
