"""Whether files are still those that an index was made from, without reading them again.

An index of 100 TB is opened more often than its files are read, so each open asks of every file
what is cheap: its size, the stamp that the disk or the store gives it, and the checksum fields of
its first, its last and some records in between (4 bytes each, which TFRecord keeps). A local file
with a new stamp may only have been copied or touched: then the checksum fields of all of its
records decide, which still reads none of their data. A remote one is taken as replaced. Parquet
and HDF5 files and videos keep no such fields: 4 bytes at some places stand for them, and of a local
file with a new stamp a digest of all its bytes, for which it is read again.

What passes unseen: a file changed in records or bytes that are not among those sampled, within the
stamp's resolution or with its old stamp put back.
"""

import functools
import hashlib
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from data_pipelines.files import remote, tfrecord
from data_pipelines.files.tfds_folder import REQUESTS, File

WHOLE = "sha256:"  # begins the digest of all bytes
SAMPLES = 4  # records whose checksum fields, or places whose bytes are compared at every open

Known = dict[str, Any]  # fingerprints as JSON gives them, by the file's name


class Fingerprint(NamedTuple):
    """What a file was when it was read."""

    size: int
    stamp: str
    records: str  # digest of the checksum fields of all records, or of all bytes
    samples: list[list[int]]  # (place, checksum field) of some of them


def of(version: remote.Version, checksums: tfrecord.Checksums) -> Fingerprint:
    """The fingerprint of a file whose version was taken before it was read."""
    last = len(checksums.places) - 1
    drawn = sorted({round(last * i / (SAMPLES - 1)) for i in range(SAMPLES)}) if last >= 0 else []
    samples = [[checksums.places[i], checksums.values[i]] for i in drawn]
    return Fingerprint(version.size, version.stamp, checksums.digest(), samples)


@functools.lru_cache(maxsize=4096)
def of_bytes(file: File) -> Fingerprint:
    """The fingerprint of a file that keeps no checksum fields."""
    last = file.size - 4
    places = sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)}) if last >= 0 else []
    samples = [
        [at, struct.unpack("<I", remote.read_range(file.path, at, at + 4))[0]] for at in places
    ]
    # Of a remote file that is written again the stamp is enough: it need not be read for a digest.
    digest = "" if remote.is_remote(file.path) else _whole(file.path)
    return Fingerprint(file.size, file.version.stamp, digest, samples)


def _whole(path: str) -> str:
    with open(path, "rb") as file:
        return WHOLE + hashlib.file_digest(file, "sha256").hexdigest()


def compare(files: Sequence[File], known: Known) -> tuple[list[str], Known]:
    """What has changed since the fingerprints `known` were taken, one reason for each replaced
    file; and the fingerprints of today, which differ where a file was copied or touched.
    """
    with ThreadPoolExecutor(REQUESTS) as threads:
        answers = list(threads.map(lambda file: _compare(file, known.get(file.name)), files))
    reasons = [reason for reason, _ in answers if reason]
    return reasons, {file.name: now for file, (_, now) in zip(files, answers, strict=True)}


def _compare(file: File, known: list[Any] | None) -> tuple[str, list[Any] | None]:
    """(why a file is another one, "" if it is not; its fingerprint)."""
    if known is None:
        return f"{file.name}: new", None
    was, now = Fingerprint(*known), file.version
    if was.size != now.size:
        return f"{file.name}: {was.size} bytes before, {now.size} now", known
    same = was.stamp == now.stamp
    if same and now.stamp and now.names_content:
        return "", known
    if not same and remote.is_remote(file.path):
        return f"{file.name}: written again ({was.stamp} before, {now.stamp} now)", known
    if not same:
        whole = was.records.startswith(WHOLE)
        now_has = _whole(file.path) if whole else tfrecord.checksum_fields(file.path).digest()
        equal = now_has == was.records
    else:
        equal = all(
            remote.read_range(file.path, at, at + 4) == struct.pack("<I", value)
            for at, value in was.samples
        )
    what = "other bytes" if was.records.startswith(WHOLE) else "other checksums"
    reason = "" if equal else f"{file.name}: its records have {what}"
    return reason, list(was._replace(stamp=now.stamp))
