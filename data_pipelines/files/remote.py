"""Reading data files wherever they are: a local path, or a URL that fsspec understands (gs://,
http://, memory://).

Paths are plain strings. A failed remote read is tried again with back-off; what still fails names
the URL. Whether a file is missing is an answer and is not tried again.
"""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import fsspec

DELAYS = (0.5, 1.0, 2.0, 4.0)  # seconds before the second, third ... attempt at a remote read
REMOTE_READS = 16  # extra threads where files are remote: they wait, they do not compute
BLOCK = 8 * 2**20  # bytes that a remote stream fetches at a time

# What stores say about the content of a file (GCS, S3, web servers), and about when it was written.
CONTENT = ("md5Hash", "crc32c", "Content-MD5", "Digest", "etag", "ETag", "generation")
WRITTEN = ("mtime", "updated", "LastModified", "last_modified", "Last-Modified", "created")

T = TypeVar("T")


class Version(NamedTuple):
    """What is known of a file without reading it."""

    size: int  # bytes
    stamp: str  # another one when the file is written again; "" where the store says nothing
    names_content: bool  # the stamp is made from the content: files of the same stamp are equal


def is_remote(path: str) -> bool:
    """Whether the path is a URL."""
    return "://" in path


def absolute(path: str | Path) -> str:
    """A URL as it is; a local path from the root on, with ~ put in."""
    path = str(path)
    return path if is_remote(path) else str(Path(path).expanduser().absolute())


def join(path: str, *names: str) -> str:
    """The path of a file below a folder."""
    return "/".join((path.rstrip("/"), *names)) if is_remote(path) else os.path.join(path, *names)


def exists(path: str) -> bool:
    """Whether there is a file or folder."""
    if not is_remote(path):
        return os.path.exists(path)
    filesystem, inside = _filesystem(path)
    return _attempt(path, lambda: filesystem.exists(inside))


def workers(path: str) -> int:
    """How many threads to read, decode or parse such files with."""
    return (os.cpu_count() or 1) + REMOTE_READS * is_remote(path)


def version(path: str) -> Version:
    """Size and stamp of a file, in one request. Raises FileNotFoundError when there is none."""
    if not is_remote(path):
        status = os.stat(path)
        return Version(status.st_size, str(status.st_mtime_ns), names_content=False)
    filesystem, inside = _filesystem(path)
    info = _attempt(path, lambda: filesystem.info(inside))
    if info.get("size") is None:
        raise OSError(
            f"{path}: expected the server to tell the file's size, got none; copy the data to a"
            " disk or bucket"
        )
    for keys in (CONTENT, WRITTEN):
        stamp = next((str(info[key]) for key in keys if info.get(key)), "")
        if stamp:
            return Version(int(info["size"]), stamp, keys is CONTENT)
    return Version(int(info["size"]), "", names_content=False)


def size(path: str) -> int:
    """Bytes of a file. Raises FileNotFoundError when there is none."""
    return version(path).size


def read(path: str) -> bytes:
    """All bytes of a (small) file."""
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    filesystem, inside = _filesystem(path)
    return _attempt(path, lambda: filesystem.cat_file(inside))


def read_range(path: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file, in one request. Raises OSError when the file ends before
    `stop`.
    """
    if not is_remote(path):
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), stop - start, start)
            while len(data) < stop - start and (
                more := os.pread(file.fileno(), stop - start - len(data), start + len(data))
            ):
                data += more  # one call returns at most 2 GiB
        _check_length(path, data, start, stop)
        return data
    filesystem, inside = _filesystem(path)

    def request() -> bytes:
        data = filesystem.cat_file(inside, start=start, end=stop)
        _check_length(path, data, start, stop)
        return data

    return _attempt(path, request)


def open_stream(path: str, block: int = BLOCK) -> io.BufferedReader:
    """A file to be read from front to back, or with seeks (local, or in blocks of so many
    bytes).
    """
    if not is_remote(path):
        return open(path, "rb")  # the caller closes it
    return io.BufferedReader(_Stream(path), block)


def open_write(path: str) -> BinaryIO:
    """A new file. Locally its folder is made; a remote one appears when it is closed."""
    if not is_remote(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        return open(path, "wb")  # the caller closes it
    filesystem, inside = _filesystem(path)
    return filesystem.open(inside, "wb")


def list_folder(path: str) -> list[str]:
    """Names of what is in a folder, sorted; empty when there is no such folder, or the server does
    not list.
    """
    if not is_remote(path):
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    filesystem, inside = _filesystem(path)
    try:
        names = _attempt(path, lambda: filesystem.ls(inside, detail=False))
    except OSError:  # only used to say what is there: a web server need not list
        return []
    return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in names)


class _Stream(io.RawIOBase):
    """Reads as ranged requests, each with its own retries."""

    def __init__(self, path: str) -> None:
        self._path, self._size, self._at = path, size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        data = read_range(self._path, self._at, stop) if stop > self._at else b""
        buffer[: len(data)] = data
        self._at = stop
        return len(data)


def _check_length(path: str, data: bytes, start: int, stop: int) -> None:
    if len(data) > stop - start:
        raise ValueError(
            f"{path}: expected the bytes {start} to {stop}, got {len(data)} bytes: the server does"
            " not serve byte ranges; use one that does, or copy the data"
        )
    if len(data) < stop - start:
        raise OSError(
            f"{path}: expected the bytes {start} to {stop}, got {len(data)} of {stop - start} (file"
            " cut short)"
        )


def _filesystem(path: str) -> tuple[Any, str]:
    """The file system and the path inside it; fsspec keeps one instance per bucket or server."""
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{path}: such paths cannot be read here ({error}); install the fsspec package for them"
            " (gcsfs for gs://, s3fs for s3://)"
        ) from error


def _attempt(path: str, request: Callable[[], T]) -> T:
    """The request's result; tried again after each of DELAYS. Any fault but a missing file may
    pass.
    """
    for delay in (*DELAYS, None):
        try:
            return request()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: no such file") from error
        except ValueError:  # the server cannot do it: asking again does not help
            raise
        except Exception as error:  # each fsspec implementation has its own exceptions
            if delay is None:
                raise OSError(
                    f"{path}: reading failed {len(DELAYS) + 1} times, last with {error!r}"
                ) from error
        time.sleep(delay)
    raise AssertionError("unreachable")
