"""The folders of README.md."""

import tarfile
from pathlib import Path

HERE = Path(__file__).parent


def unpack(name: str, root: Path) -> Path:
    """The folder of tests/older/<name>.tar.xz, under `root`."""
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        archive.extractall(root, filter="data")
    return root / name
