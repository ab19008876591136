"""Named arrays in one file that is mapped into memory: written whole or not at all, and verified
before use.

The file is a line with the SHA-256 of the header and its length, the header (JSON: what the arrays
were made from, and name, dtype, shape, place and SHA-256 of each), and the raw arrays, each
beginning at a multiple of ALIGN bytes.

Not safetensors: it has no checksums, so a flipped bit would be trained on; its numpy reader copies
an array where this one maps it; and index files that lie beside the data today stay valid.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

ALIGN = 64  # bytes
CHUNK = 2**20  # bytes hashed at a time
LINE = 64 + 1 + 12 + 1  # digest, space, digits of the header's length, newline

Arrays = dict[str, np.ndarray]


class Stored(NamedTuple):
    """What a file holds."""

    arrays: Arrays  # read-only, mapped
    notes: dict[str, Any]  # what belongs to the arrays and is not what they were made from
    digest: str  # of names, dtypes, shapes and contents: equal for equal arrays


def save(path: Path, key: dict[str, Any], arrays: Arrays, notes: dict[str, Any]) -> None:
    """Writes the file so that a reader sees all of it or none of it. `key` and `notes` are
    JSON-able.

    Raises OSError naming the file when it cannot be written (disk full); nothing of it stays then.
    """
    entries: list[tuple[str, str, list[int], int, str]] = []
    at = 0
    for name, value in sorted(arrays.items()):
        at = -(-at // ALIGN) * ALIGN
        digest = hashlib.sha256(_bytes(value)).hexdigest()
        entries.append((name, value.dtype.str, list(value.shape), at, digest))
        at += value.nbytes
    header = json.dumps({"key": key, "notes": notes, "arrays": entries}).encode()
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with open(handle, "wb") as file:
            file.write(
                f"{hashlib.sha256(header).hexdigest()} {len(header):012d}\n".encode() + header
            )
            begin = _begin(len(header))
            for name, _, _, place, _ in entries:
                file.write(bytes(begin + place - file.tell()))
                file.write(_bytes(arrays[name]))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = ""
    except OSError as error:
        total = (_begin(len(header)) + at) / 1e6
        raise OSError(
            error.errno,
            f"writing the index failed ({error.strerror or error}); it needs {total:.1f} MB there:"
            " make room",
            str(path),
        ) from error
    finally:
        with contextlib.suppress(OSError):  # nothing there when all went well
            os.unlink(temporary)


def peek(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The notes of a file that was made from `key`; None where there is none. Its arrays are not
    verified, and nothing is said.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        header = _header(file)
    if header is None or header["key"] != json.loads(json.dumps(key)):
        return None
    return header["notes"]


def load(path: Path, key: dict[str, Any]) -> Stored | None:
    """What was made from `key`; None, with a line that says why, when it must be made again."""
    if not path.is_file():
        return None
    key = json.loads(json.dumps(key))  # tuples were written as lists
    with path.open("rb") as file:
        header = _header(file)
        if header is None or not _intact(file, header["arrays"], _begin(header["length"])):
            print(
                f"{path}: the index is damaged (its checksum does not match); building it again",
                flush=True,
            )
            return None
        if header["key"] != key:
            _say_stale(path, header["key"], key)
            return None
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {}
    for name, dtype, shape, at, _ in header["arrays"]:
        begin = _begin(header["length"]) + at
        arrays[name] = np.frombuffer(
            mapped, dtype, math.prod(shape), min(begin, len(mapped))
        ).reshape(shape)
    listed = [[name, dtype, shape, digest] for name, dtype, shape, _, digest in header["arrays"]]
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return Stored(arrays, header["notes"], digest)


def _say_stale(path: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    formats = was.get("schema"), now.get("schema")
    changed = ", ".join(sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k)))
    why = (
        f"is stale ({changed} changed)"
        if formats[0] == formats[1]
        else f"has format {formats[0]}, this version reads {formats[1]}"
    )
    print(f"{path}: the index {why}; building it again", flush=True)


def _header(file: BinaryIO) -> dict[str, Any] | None:
    """The header and its length, or None when it is not what was written."""
    digest, _, rest = file.read(LINE).partition(b" ")
    if not (rest.endswith(b"\n") and rest[:-1].isdigit()):
        return None
    body = file.read(int(rest))
    if len(body) != int(rest) or hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    return {**json.loads(body), "length": len(body)}


def _intact(file: BinaryIO, entries: list[list[Any]], begin: int) -> bool:
    """Whether every array is what was written. Reads them in chunks: hashing must not fill the
    memory.
    """
    buffer = bytearray(CHUNK)
    for _, dtype, shape, at, digest in entries:
        file.seek(begin + at)
        left, total = math.prod(shape) * np.dtype(dtype).itemsize, hashlib.sha256()
        while left:
            count = file.readinto(memoryview(buffer)[: min(left, CHUNK)])  # type: ignore[attr-defined]
            if not count:
                return False
            total.update(memoryview(buffer)[:count])
            left -= count
        if total.hexdigest() != digest:
            return False
    return True


def _begin(header: int) -> int:
    """Where the arrays begin."""
    return -(-(LINE + header) // ALIGN) * ALIGN


def _bytes(value: np.ndarray) -> memoryview:
    flat = np.ascontiguousarray(value).reshape(-1)
    return flat.view(np.uint8).data if flat.nbytes else memoryview(b"")
