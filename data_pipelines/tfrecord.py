"""TFRecord framing and the wire format of tf.train.Example, read and written without TensorFlow.

A record is: length (8 bytes), masked crc32c of the length (4), data, masked crc32c of the data (4). An Example is a map from
names to lists of bytes, floats or int64s. Bytes are returned as spans, so that an index can point into the file.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

Span = tuple[int, int]  # start and end within the record
Value = Sequence[bytes] | np.ndarray

BYTES, FLOATS, INTS = 1, 2, 3  # the field numbers of tf.train.Feature's oneof
KINDS = {BYTES: "bytes", FLOATS: "float", INTS: "int64"}


class Feature(NamedTuple):
    """One entry of an Example: its kind and the spans of its values (of its packed runs, for numbers)."""

    kind: int
    spans: list[Span]


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset of the data in the file, data) of every record.

    Raises ValueError naming file and record when one is cut short or fails its checksum.
    """
    with path.open("rb") as handle:
        offset = number = 0
        while header := handle.read(12):
            where = f"{path}: record {number} at byte {offset}"
            if len(header) < 12:
                raise ValueError(f"{where}: expected 12 bytes of header, got {len(header)}; the file is truncated, fetch it again")
            length, length_crc = struct.unpack("<QI", header)
            if masked_crc(header[:8]) != length_crc:
                raise ValueError(f"{where}: the checksum of its length does not match; the file is damaged, fetch it again")
            body = handle.read(length + 4)
            if len(body) < length + 4:
                raise ValueError(
                    f"{where}: expected {length + 4} bytes, got {len(body)}; the file is truncated, fetch it again"
                )
            data = body[:-4]
            if masked_crc(data) != struct.unpack("<I", body[-4:])[0]:
                raise ValueError(f"{where}: the checksum of its data does not match; the file is damaged, fetch it again")
            yield offset + 12, data
            offset += length + 16
            number += 1


def parse_example(data: bytes) -> dict[str, Feature]:
    """The features of a serialised tf.train.Example, without copying their values."""
    out = {}
    for _, features in _fields(data, (0, len(data))):  # Example.features
        for _, entry in _fields(data, features):  # one entry of the map
            parts = dict(_fields(data, entry))
            name = data[slice(*parts[1])].decode()
            for kind, values in _fields(data, parts[2]) if 2 in parts else ():
                out[name] = Feature(kind, [span for _, span in _fields(data, values)])
    return out


def numbers(data: bytes, feature: Feature) -> np.ndarray:
    """The values of a float (float32) or int64 feature, packed or not."""
    if feature.kind == FLOATS:
        return np.frombuffer(b"".join(data[a:b] for a, b in feature.spans), "<f4")
    if feature.kind == INTS:
        return np.concatenate([_varints(data[a:b]) for a, b in feature.spans] or [np.zeros(0, np.int64)])
    raise ValueError(f"expected float or int64 values, got {KINDS[feature.kind]}")


def write_records(path: Path, records: Iterator[bytes]) -> tuple[int, int]:
    """Writes a TFRecord file; returns the number of records and their bytes."""
    count = size = 0
    with path.open("wb") as handle:
        for data in records:
            length = struct.pack("<Q", len(data))
            handle.write(length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data)))
            count, size = count + 1, size + len(data)
    return count, size


def make_example(features: Mapping[str, Value]) -> bytes:
    """Serialises an Example. Floating arrays become float lists, integer and bool arrays int64 lists, the rest bytes lists."""
    out = b""
    for name, value in features.items():
        if isinstance(value, np.ndarray):
            is_float = np.issubdtype(value.dtype, np.floating)
            packed = value.astype("<f4").tobytes() if is_float else b"".join(_varint(int(v)) for v in value.ravel())
            feature = _field(FLOATS if is_float else INTS, _field(1, packed))
        else:
            feature = _field(BYTES, b"".join(_field(1, item) for item in value))
        out += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, out)


def masked_crc(data: bytes) -> int:
    """TFRecord's rotated crc32c."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _fields(data: bytes, span: Span) -> Iterator[tuple[int, Span]]:
    """(field number, span of the value) of a message; varint values are given by their own span."""
    at, end = span
    while at < end:
        key, at = _read_varint(data, at)
        wire = key & 7
        start = at
        if wire == 2:
            length, start = _read_varint(data, at)
            at = start + length
        elif wire == 0:
            _, at = _read_varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"tf.train.Example: wire type {wire} at byte {at}; not an Example")
        if at > end:
            raise ValueError(f"tf.train.Example: a field at byte {start} runs past the end of its message")
        yield key >> 3, (start, at)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varints(data: bytes) -> np.ndarray:
    out, at = [], 0
    while at < len(data):
        value, at = _read_varint(data, at)
        out.append(value - (1 << 64) if value >> 63 else value)
    return np.array(out, np.int64)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value
