"""The robot's side of a server: one file to copy, Python 3.8, numpy + msgpack + websockets.

The wire. A message is one binary websocket frame that holds one msgpack map. An array is the map {b"__ndarray__": True,
b"data": its bytes in C order, b"dtype": as numpy spells it ("<f4"), b"shape": [...]}, as openpi's client has it. Only
bool, integers and floats cross: nothing is ever unpickled.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

PROTOCOL = 1
DTYPE_KINDS = "biuf"


def pack(message: Any) -> bytes:
    """A message as bytes. Raises ValueError for an array of another kind than bool, integer or float."""
    return msgpack.packb(message, default=_encode, use_bin_type=True)


def unpack(data: bytes, limit: int = 1 << 26) -> Any:
    """A message from bytes; arrays are views of them, not to be written to.

    Raises ValueError for bytes that are not exactly one message, larger than `limit`, and for an array whose dtype,
    shape and bytes do not belong together.
    """
    if len(data) > limit:
        raise ValueError(f"message: expected at most {limit} bytes, got {len(data)}")
    try:
        return msgpack.unpackb(data, object_hook=_decode, raw=False, strict_map_key=False)
    except Exception as error:  # msgpack has errors of its own, some without words, for what it cannot read
        if str(error).startswith("message: "):
            raise
        raise ValueError(f"message: expected one msgpack message, got {type(error).__name__}: {error}") from None


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in DTYPE_KINDS:
            raise ValueError(f"message: expected arrays of bool, int or float, got {value.dtype}")
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"message: expected numbers, text, lists, maps and arrays, got {type(value).__name__}")


def _decode(found: Any) -> Any:
    if b"__ndarray__" in found:
        return _array(found.get(b"dtype"), found.get(b"shape"), found.get(b"data"))
    if b"__npgeneric__" in found:  # openpi's client sends numpy scalars so
        data = found.get(b"data")
        return data if isinstance(data, (bool, int, float)) else _array(found.get(b"dtype"), [], data)
    return found


def _array(dtype: Any, shape: Any, data: Any) -> np.ndarray:
    wrong = f"message: array: expected dtype, shape and data that belong together, got {str(dtype)[:40]!r}"
    if not isinstance(dtype, (str, bytes)) or not isinstance(data, bytes) or not isinstance(shape, (list, tuple)):
        raise ValueError(wrong)
    name = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype
    if len(name) > 4 or name[:1] not in "<>|=" or name[1:2] not in DTYPE_KINDS or not name[2:].isdigit():
        raise ValueError(wrong + ", no plain number")
    if len(shape) > 8 or not all(type(size) is int and 0 <= size < 1 << 31 for size in shape):
        raise ValueError(wrong + f" {str(shape)[:80]}")
    try:
        kind = np.dtype(name)
    except TypeError:
        raise ValueError(wrong) from None
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(wrong + f" {list(shape)} and {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape)
