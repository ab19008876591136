"""TFRecord files and tf.train.Example messages, read and written without TensorFlow.

A TFRecord file is a row of [length u64][masked crc of length u32][data][masked crc of data u32], little-endian. An
Example is the protobuf message {1: {1: map<string, {1: bytes list | 2: float list | 3: int64 list}>}}; each list has
its values in field 1.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Record(NamedTuple):
    """One record: where its data begins in the file, and the data."""

    offset: int
    data: bytes


class Spans(NamedTuple):
    """A list of byte strings, as places inside the record that holds them. Both [n] int64."""

    offset: np.ndarray
    length: np.ndarray


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted the way TFRecord stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read(path: Path) -> Iterator[Record]:
    """The records of a file in order, checksums verified. Raises ValueError naming the file and the record number."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        number, at = 0, 0
        while at < size:
            header = file.read(12)
            if len(header) < 12:
                raise _damaged(path, number, f"expected 12 header bytes, got {len(header)} (file cut short)")
            length, crc = struct.unpack("<QI", header)
            if masked_crc(header[:8]) != crc:
                raise _damaged(path, number, "the checksum of its length does not match")
            if at + 16 + length > size:
                raise _damaged(path, number, f"expected {length + 4} bytes, got {size - at - 12} (file cut short)")
            data = file.read(length)
            if masked_crc(data) != struct.unpack("<I", file.read(4))[0]:
                raise _damaged(path, number, "the checksum of its data does not match")
            yield Record(at + 12, data)
            number, at = number + 1, at + 16 + length


def write(path: Path, records: Iterable[bytes]) -> int:
    """Writes the records to a file; returns its size in bytes."""
    with open(path, "wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data)))
        return file.tell()


def parse(data: bytes, keys: Set[str] | None = None) -> dict[str, Spans | np.ndarray]:
    """The features of an Example: byte strings as Spans into `data`, numbers as [n] float32 or int64.

    Only `keys` are returned when given. Raises ValueError when the message is malformed.
    """
    found: dict[str, Spans | np.ndarray] = {}
    for number, _, start, end in _fields(data, 0, len(data)):
        if number != 1:
            continue
        for _, _, entry_start, entry_end in _fields(data, start, end):
            key, value = "", (0, 0)
            for part, _, a, b in _fields(data, entry_start, entry_end):
                if part == 1:
                    key = data[a:b].decode()
                else:
                    value = (a, b)
            if keys is None or key in keys:
                found[key] = _feature(data, *value)
    return found


def encode(features: Mapping[str, Sequence[bytes] | np.ndarray]) -> bytes:
    """An Example from lists of byte strings and arrays of numbers (floats as float32; ints and bools as int64)."""
    entries = []
    for key, values in sorted(features.items()):
        if not isinstance(values, np.ndarray):
            kind, body = 1, b"".join(_field(1, value) for value in values)
        elif values.dtype.kind == "f":
            kind, body = 2, _field(1, values.astype("<f4").tobytes())
        else:
            kind, body = 3, _field(1, b"".join(_encode_varint(int(v) & (2**64 - 1)) for v in values.ravel()))
        entries.append(_field(1, _field(1, key.encode()) + _field(2, _field(kind, body))))
    return _field(1, b"".join(entries))


def _feature(data: bytes, start: int, end: int) -> Spans | np.ndarray:
    """The values of one Feature message; an empty one reads as no floats."""
    for kind, _, list_start, list_end in _fields(data, start, end):
        values = [(wire, a, b) for number, wire, a, b in _fields(data, list_start, list_end) if number == 1]
        if kind == 1:
            spans = np.array([(a, b - a) for _, a, b in values], np.int64).reshape(-1, 2)
            return Spans(spans[:, 0], spans[:, 1])
        if kind == 2:  # packed and unpacked floats look alike here: little-endian bytes between a and b
            return np.frombuffer(b"".join(data[a:b] for _, a, b in values), "<f4")
        if kind == 3:
            return np.array([v for value in values for v in _integers(data, *value)], np.uint64).astype(np.int64)
    return np.zeros(0, np.float32)


def _integers(data: bytes, wire: int, start: int, end: int) -> Iterator[int]:
    """One varint, or a packed run of them."""
    if wire not in (VARINT, BYTES):
        raise ValueError(f"malformed Example: int64 values have wire type {wire} at byte {start}")
    while start < end:
        value, start = _varint(data, start, end)
        yield value


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, first byte, end) of every field of a message that lies in data[start:end]."""
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
            raise ValueError(f"malformed Example: wire type {wire} at byte {start}")
        if stop > end:
            raise ValueError(f"malformed Example: a field at byte {start} runs over its message by {stop - end} bytes")
        yield tag >> 3, wire, at, stop
        start = stop


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """The value of a varint and the byte after it."""
    value = 0
    for i, byte in enumerate(data[start : min(start + 10, end)]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & (2**64 - 1), start + i + 1
    raise ValueError(f"malformed Example: a varint at byte {start} does not end")


def _field(number: int, body: bytes) -> bytes:
    return _encode_varint(number << 3 | BYTES) + _encode_varint(len(body)) + body


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _damaged(path: Path, number: int, problem: str) -> ValueError:
    return ValueError(f"{path}: record {number} is damaged: {problem}; download the file again")
