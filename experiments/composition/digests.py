"""What names files wherever they lie."""

import hashlib
from pathlib import Path


def digest(path: Path) -> str:
    """sha256 of a file, or of the names and contents of all files of a folder."""
    sha = hashlib.sha256()
    for file in (
        [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    ):
        sha.update(b"" if path.is_file() else str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as handle:
            while chunk := handle.read(1 << 20):
                sha.update(chunk)
    return sha.hexdigest()
