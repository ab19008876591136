"""Stored camera frames, however a dataset keeps them: encoded in a record, in a column of a parquet
file, in a dataset of an HDF5 file, or in a video.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.files import hdf5, remote, video

VIDEO, TABLE = ".mp4", ".parquet"

Picture = bytes | np.ndarray  # encoded, or uint8 RGB [h w 3]


def read(path: str, column: str, place: np.ndarray, length: np.ndarray) -> Iterator[Picture]:
    """The frames of a stretch of one episode and camera, in order, with one read.

    Args:
        path: the file that holds them all.
        column: the feature's key, which names a column of a parquet file, a dataset of an episode.
        place: [f] what `where` says: bytes from the beginning, rows, or time stamps.
        length: [f] bytes of each frame; 0 where bytes are not counted.

    Raises ValueError at a frame that is not there or is damaged.
    """
    if path.endswith(VIDEO):
        yield from video.frames(path, place.tolist())
    elif path.endswith(TABLE):
        yield from _rows(path, column, place)
    elif path.endswith(hdf5.ENDINGS):
        yield from hdf5.frames(path, column, place)
    else:
        start = int(place.min())
        data = memoryview(remote.read_range(path, start, int((place + length).max())))
        for at, n in zip((place - start).tolist(), length.tolist(), strict=True):
            yield bytes(data[at : at + n])


def where(path: str, place: int) -> str:
    """What `place` is in such a file, for a message."""
    if path.endswith(VIDEO):
        return f"time stamp {place}"
    if path.endswith(hdf5.ENDINGS):
        return hdf5.where(place)
    return f"row {place}" if path.endswith(TABLE) else f"byte {place}"


def _rows(path: str, column: str, rows: np.ndarray) -> Iterator[bytes]:
    """Encoded images of some rows; only the row groups that hold them are read."""
    try:
        with remote.open_stream(path) as stream, pq.ParquetFile(stream) as table:
            counts = [
                table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)
            ]
            ends = np.cumsum(counts)
            groups = np.unique(np.searchsorted(ends, rows, side="right")).tolist()
            begins = {group: int(ends[group]) - counts[group] for group in groups}
            for group in groups:
                cells = table.read_row_group(group, columns=[f"{column}.bytes"])[column]
                inside = rows[(rows >= begins[group]) & (rows < ends[group])] - begins[group]
                for cell in cells.take(pa.array(inside)):
                    yield cell["bytes"].as_py()
    except (pa.ArrowException, IndexError) as error:
        raise ValueError(f"expected a column {column} of images, got {error}") from error
