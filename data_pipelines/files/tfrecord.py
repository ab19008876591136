"""TFRecord files and tf.train.Example messages, read and written without TensorFlow.

A TFRecord file is a row of [length u64][masked crc of length u32][data][masked crc of data u32],
little-endian. An Example is the protobuf message {1: {1: map<string, {1: bytes list | 2: float list
| 3: int64 list}>}}; each list has its values in field 1.

Not parsed with protobuf, which copies byte strings out: an index needs the places of encoded images
in the file, so that one frame can be read without its episode.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from data_pipelines.files import remote

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Record(NamedTuple):
    """One record: its number in the file, where its data begin, and the data."""

    number: int
    offset: int  # bytes from the beginning of the file
    data: bytes


class Damaged(ValueError):
    """A record that is not what was written: `path`, `record` (its number in the file) and
    `problem`, in words, and what to do.
    """

    def __init__(
        self, path: str, record: int, problem: str, fix: str = "download the file again"
    ) -> None:
        super().__init__(f"{path}: record {record} is damaged: {problem}; {fix}")
        self.path, self.record, self.problem, self.fix = path, record, problem, fix


class Spans(NamedTuple):
    """A list of byte strings, as places inside the record that holds them. Both [n] int64."""

    offset: np.ndarray
    length: np.ndarray


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted the way TFRecord stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class Checksums:
    """The checksum fields of a file's records, as they were read: what tells one file from
    another.
    """

    def __init__(self) -> None:
        self.places: list[int] = []  # bytes from the beginning of the file
        self.values: list[int] = []

    def add(self, place: int, value: int) -> None:
        """The field of the next record."""
        self.places.append(place)
        self.values.append(value)

    def digest(self) -> str:
        """SHA-256 of all of them. The places say how long each record is."""
        total = hashlib.sha256(np.array(self.places, "<i8").tobytes())
        total.update(np.array(self.values, "<u4").tobytes())
        return total.hexdigest()


def checksum_fields(path: str) -> Checksums:
    """Those of a local file, without reading the records: from header to header. Stops where the
    file does; says nothing about damage.
    """
    fields, size = Checksums(), os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        at, header = 0, os.pread(file.fileno(), 12, 0)
        while len(header) == 12:
            place = at + 12 + struct.unpack("<Q", header[:8])[0]
            if place + 4 > size:
                break
            body = os.pread(file.fileno(), 16, place)  # the field, and the next record's header
            fields.add(place, struct.unpack("<I", body[:4])[0])
            at, header = place + 4, body[4:]
    return fields


def foreign(begin: bytes) -> tuple[str, str] | None:
    """(what a file is that begins with these bytes, what to do); None when it may be of its own
    kind.
    """
    if begin.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in its place", "run `git lfs pull` in its repository"
    if begin.startswith(b"\x1f\x8b"):
        return "a gzip file", "unpack it with gunzip: records are read at random"
    if begin.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page", "the download needs a login or another address"
    return None


def read(
    path: str | Path,
    on_damage: Callable[[Damaged], None] | None = None,
    checksums: Checksums | None = None,
) -> Iterator[Record]:
    """The records of a file (local or URL) in order, in one pass, checksums verified.

    Args:
        path: the file.
        on_damage: called for a record whose data are damaged, which is then left out; by default
            that is raised. What is raised in any case is damage after which the next record cannot
            be found.
        checksums: takes the checksum field of every record, a damaged one's too.

    Raises Damaged (a ValueError) naming the file and the record number.
    """
    path = str(path)
    size = remote.size(path)
    with remote.open_stream(path) as file:
        number, at = 0, 0
        while at < size:
            header = file.read(12)
            if len(header) < 12:
                raise Damaged(
                    path, number, f"expected 12 header bytes, got {len(header)} (file cut short)"
                )
            length, crc = struct.unpack("<QI", header)
            if masked_crc(header[:8]) != crc:
                got = None if at else foreign(header + file.read(52))
                if got is not None:
                    raise Damaged(path, number, f"expected a TFRecord file, got {got[0]}", got[1])
                raise Damaged(path, number, "the checksum of its length does not match")
            if at + 16 + length > size:
                raise Damaged(
                    path,
                    number,
                    f"expected {length + 4} bytes, got {size - at - 12} (file cut short)",
                )
            data, end = file.read(length), file.read(4)
            if len(data) + len(end) < length + 4:
                raise Damaged(
                    path,
                    number,
                    f"expected {length + 4} bytes, got {len(data) + len(end)} (file changed)",
                )
            stored = struct.unpack("<I", end)[0]
            if checksums is not None:
                checksums.add(at + 12 + length, stored)
            if masked_crc(data) == stored:
                yield Record(number, at + 12, data)
            else:
                damage = Damaged(path, number, "the checksum of its data does not match")
                if on_damage is None:
                    raise damage
                on_damage(damage)
            number, at = number + 1, at + 16 + length


def write(path: str | Path, records: Iterable[bytes]) -> int:
    """Writes the records to a file (a path or a URL); returns its size in bytes."""
    with remote.open_write(str(path)) as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(
                length
                + struct.pack("<I", masked_crc(length))
                + data
                + struct.pack("<I", masked_crc(data))
            )
        return file.tell()


def parse(data: bytes, keys: Set[str] | None = None) -> dict[str, Spans | np.ndarray]:
    """The features of an Example: byte strings as Spans into `data`, numbers as [n] float32 or
    int64.

    Only `keys` are returned when given. Raises ValueError when the message is malformed.
    """
    features: dict[str, Spans | np.ndarray] = {}
    for name, entry_start, value in _entries(data):
        if keys is not None and name not in keys:
            continue
        if name in features:
            raise _malformed(entry_start, f"the feature {name!r} stands there twice")
        features[name] = _feature(data, *value)
    return features


def packed(data: bytes, key: str) -> tuple[int, int]:
    """First byte and end of the numbers of a feature, which lie together in an Example: float32, or
    what `whole_numbers` reads. Raises ValueError where it has none, or apart.
    """
    runs = [
        (wire, a, b)
        for name, _, value in _entries(data)
        if name == key
        for kind, _, start, end in _fields(data, *value)
        if kind in (2, 3)
        for _, wire, a, b in _fields(data, start, end)
    ]
    if len(runs) != 1 or runs[0][0] != BYTES:
        raise ValueError(f"{key}: expected numbers that lie together, got {len(runs)} runs of them")
    return runs[0][1:]


def whole_numbers(data: bytes) -> np.ndarray:
    """[n] int64 of the bytes that `packed` found."""
    return _integers(data, 0, len(data))


def _entries(data: bytes) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """(name, first byte, first byte and end of the value) of the features of an Example."""
    for start, end in _messages(data, 0, len(data), 1):
        for entry_start, entry_end in _messages(data, start, end, 1):
            key, value = b"", (0, 0)
            for number, wire, a, b in _fields(data, entry_start, entry_end):
                if number in (1, 2) and wire != BYTES:
                    raise _malformed(a, f"a feature's key or value has wire type {wire}")
                if number == 1:
                    key = data[a:b]
                elif number == 2:
                    value = (a, b)
            try:
                yield key.decode(), entry_start, value
            except UnicodeDecodeError as error:
                raise _malformed(entry_start, f"the key {key[:40]!r} is not UTF-8") from error


def encode(features: Mapping[str, Sequence[bytes] | np.ndarray]) -> bytes:
    """An Example from lists of byte strings and arrays of numbers (floats as float32; ints and
    bools as int64).
    """
    entries = []
    for key, values in sorted(features.items()):
        if not isinstance(values, np.ndarray):
            kind, body = 1, b"".join(_field(1, value) for value in values)
        elif values.dtype.kind == "f":
            kind, body = 2, _field(1, values.astype("<f4").tobytes())
        else:
            kind, body = (
                3,
                _field(1, b"".join(_encode_varint(int(v) & (2**64 - 1)) for v in values.ravel())),
            )
        entries.append(_field(1, _field(1, key.encode()) + _field(2, _field(kind, body))))
    return _field(1, b"".join(entries))


def _feature(data: bytes, start: int, end: int) -> Spans | np.ndarray:
    """The values of one Feature message; an empty one reads as no floats."""
    lists = [field for field in _fields(data, start, end) if field[0] in (1, 2, 3)]
    if not lists:
        return np.zeros(0, np.float32)
    (kind, list_wire, list_start, list_end), *more = lists
    if more or list_wire != BYTES:
        raise _malformed(start, "a feature holds more than one list, or none that can be read")
    values = [
        (wire, a, b) for number, wire, a, b in _fields(data, list_start, list_end) if number == 1
    ]
    allowed = {1: (BYTES,), 2: (BYTES, FIXED32), 3: (BYTES, VARINT)}[kind]
    if any(wire not in allowed for wire, _, _ in values):
        raise _malformed(list_start, "values of the wrong wire type")
    if kind == 1:
        spans = np.array([(a, b - a) for _, a, b in values], np.int64).reshape(-1, 2)
        return Spans(spans[:, 0], spans[:, 1])
    if kind == 2:  # packed and unpacked floats look alike here: little-endian bytes between a and b
        if any((b - a) % 4 for _, a, b in values):
            raise _malformed(list_start, "floats that are not 4 bytes each")
        return np.frombuffer(b"".join(data[a:b] for _, a, b in values), "<f4")
    return np.concatenate([np.zeros(0, np.int64), *(_integers(data, a, b) for _, a, b in values)])


def _integers(data: bytes, start: int, end: int) -> np.ndarray:
    """[n] int64 of a run of varints."""
    if start == end:
        return np.zeros(0, np.int64)
    raw = np.frombuffer(data, np.uint8, end - start, start)
    last = np.flatnonzero(raw < 0x80)
    if not len(last) or last[-1] != len(raw) - 1:
        raise _malformed(start, "a varint does not end")
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    if sizes.max() > 10:
        raise _malformed(start, "a varint is longer than 10 bytes")
    place = np.arange(len(raw)) - np.repeat(first, sizes)
    parts = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, first).view(np.int64)


def _messages(data: bytes, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    """First byte and end of every message in one field of the message that lies in
    data[start:end].
    """
    for field, wire, a, b in _fields(data, start, end):
        if field == number:
            if wire != BYTES:
                raise _malformed(a, f"expected a message, got wire type {wire}")
            yield a, b


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, first byte, end) of every field of a message that lies in
    data[start:end].
    """
    while start < end:
        tag, at = _varint(data, start, end)
        wire = tag & 7
        if wire == VARINT:
            _, stop = _varint(data, at, end)
        elif wire == BYTES:
            length, at = _varint(data, at, end)
            stop = at + length
        elif wire in (FIXED32, FIXED64):
            stop = at + (4 if wire == FIXED32 else 8)
        else:
            raise _malformed(start, f"wire type {wire}")
        if stop > end:
            raise _malformed(start, f"a field runs over its message by {stop - end} bytes")
        if tag < 8:
            raise _malformed(start, "field number 0")
        yield tag >> 3, wire, at, stop
        start = stop


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """The value of a varint and the byte after it."""
    value = 0
    for i, byte in enumerate(data[start : min(start + 10, end)]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & (2**64 - 1), start + i + 1
    raise _malformed(start, "a varint does not end")


def _field(number: int, body: bytes) -> bytes:
    return _encode_varint(number << 3 | BYTES) + _encode_varint(len(body)) + body


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _malformed(at: int, problem: str) -> ValueError:
    return ValueError(f"malformed Example: {problem}, at byte {at}")
