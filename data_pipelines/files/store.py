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
    digest: str  # of names, dtypes, shapes and contents: equal for equal arrays


def save(path: Path, key: dict[str, Any], arrays: Arrays) -> None:
    """Writes the file so that a reader sees all of it or none of it.

    Raises OSError naming the file when it cannot be written (disk full); nothing of it stays then.
    """
    entries: list[tuple[str, str, list[int], int, str]] = []
    at = 0
    for name, value in sorted(arrays.items()):
        at = -(-at // ALIGN) * ALIGN
        digest = hashlib.sha256(_bytes(value)).hexdigest()
        entries.append((name, value.dtype.str, list(value.shape), at, digest))
        at += value.nbytes
    header = json.dumps({"key": key, "arrays": entries}).encode()
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


def load(path: Path, key: dict[str, Any]) -> Stored | None:
    """What was made from `key`; None, with a line that says why, when it must be made again."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        header = _header(file)
        if header is None or not _intact(file, header["arrays"], _begin(header["length"])):
            print(
                f"{path}: the index is damaged (its checksum does not match); building it again",
                flush=True,
            )
            return None
        if header["key"] != key:
            changed = sorted(k for k in key if header["key"].get(k) != key[k])
            print(
                f"{path}: the index is stale ({', '.join(changed)} changed); building it again",
                flush=True,
            )
            return None
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {}
    for name, dtype, shape, at, _ in header["arrays"]:
        begin = _begin(header["length"]) + at
        arrays[name] = np.frombuffer(
            mapped, dtype, math.prod(shape), min(begin, len(mapped))
        ).reshape(shape)
    listed = [[name, dtype, shape, digest] for name, dtype, shape, _, digest in header["arrays"]]
    return Stored(arrays, hashlib.sha256(json.dumps(listed).encode()).hexdigest())


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
