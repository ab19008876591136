"""Writes LeRobot datasets (v3.0) from the format's description: parquet files of columns with a row
group an episode, a video an episode and camera, and meta/.
"""

import io
import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.files import remote
from data_pipelines.files.lerobot import INFO, NEW

CHUNK = 1000  # files in a folder
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # columns of the format
# As lerobot encodes them: every other frame is a key frame, so that any is reached by two.
CODEC, OPTIONS = "libx264", {"g": "2", "crf": "18"}

Rows = dict[str, Any]  # column -> numbers [T, ...], texts or encoded images


class Measured(NamedTuple):
    """What the statistics of a column are made of: each [d], but the number of rows."""

    rows: int
    least: np.ndarray
    greatest: np.ndarray
    total: np.ndarray
    squares: np.ndarray


def measure(values: np.ndarray) -> Measured:
    """Of [n, ...] numbers, the first axis counted."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    return Measured(len(flat), flat.min(0), flat.max(0), flat.sum(0), (flat * flat).sum(0))


def together(parts: Sequence[Measured]) -> Measured:
    """Of all rows of some parts."""
    return Measured(
        sum(part.rows for part in parts),
        np.min([part.least for part in parts], axis=0),
        np.max([part.greatest for part in parts], axis=0),
        np.sum([part.total for part in parts], axis=0),
        np.sum([part.squares for part in parts], axis=0),
    )


def statistics(measured: Measured, picture: bool) -> dict[str, Any]:
    """As meta/ has them; of a picture's channels [3, 1, 1], in shares of 255."""
    mean = measured.total / measured.rows
    std = np.sqrt(np.maximum(measured.squares / measured.rows - mean * mean, 0))
    values = {"min": measured.least, "max": measured.greatest, "mean": mean, "std": std}
    shaped = {k: (v / 255).reshape(-1, 1, 1) if picture else v for k, v in values.items()}
    return {**{k: v.tolist() for k, v in shaped.items()}, "count": [measured.rows]}


def place(number: int) -> dict[str, int]:
    """The chunk and file of the number-th file of a kind."""
    return {"chunk_index": number // CHUNK, "file_index": number % CHUNK}


class DataFile:
    """A parquet file of episodes, each a row group, while it is written."""

    def __init__(self, folder: str, number: int) -> None:
        self._stream = remote.open_write(remote.join(folder, DATA.format(**place(number))))
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: Rows) -> None:
        """The next episode."""
        table = pa.table({key: _column(values) for key, values in rows.items()})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()
        self._stream.close()


def write_video(path: str, pictures: Iterable[np.ndarray], fps: float) -> None:
    """A video of uint8 RGB [h w 3] pictures of one size; those of odd sides keep all colours."""
    rate = Fraction(fps).limit_denominator(1000)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = None
        for number, pixels in enumerate(pictures):
            if stream is None:
                stream = container.add_stream(CODEC, rate=rate, options=OPTIONS)
                stream.height, stream.width = pixels.shape[:2]
                odd = stream.height % 2 or stream.width % 2
                stream.pix_fmt = "yuv444p" if odd else "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
    with remote.open_write(path) as file:
        file.write(buffer.getvalue())


def finish(
    folder: str,
    info: dict[str, Any],
    episodes: list[dict[str, Any]],
    tasks: Sequence[str],
    stats: dict[str, Any],
) -> None:
    """Writes meta/, info.json last: with it the folder is a dataset. `info` has fps, features,
    splits and robot_type.
    """
    place_of_facts = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    facts = pa.Table.from_pylist([{**episode, **place_of_facts} for episode in episodes])
    _table(remote.join(folder, "meta/episodes/chunk-000/file-000.parquet"), facts)
    named = pa.table({"task_index": pa.array(range(len(tasks))), "task": pa.array(tasks)})
    # lerobot reads it with pandas, whose index are the texts.
    words = {"field_name": "task", "name": "task", "pandas_type": "unicode"}
    numbers = {"field_name": "task_index", "name": "task_index", "pandas_type": "int64"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {**numbers, "numpy_type": "int64", "metadata": None},
            {**words, "numpy_type": "object", "metadata": None},
        ],
    }
    named = named.replace_schema_metadata({"pandas": json.dumps(pandas)})
    _table(remote.join(folder, "meta/tasks.parquet"), named)
    body = {
        "codebase_version": NEW,
        "total_episodes": len(episodes),
        "total_frames": sum(episode["length"] for episode in episodes),
        "total_tasks": len(tasks),
        "chunks_size": CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": DATA,
        "video_path": VIDEO,
        **info,
    }
    for name, content in (("meta/stats.json", stats), (INFO, body)):
        with remote.open_write(remote.join(folder, name)) as file:
            file.write(json.dumps(content, indent=2).encode())


def _table(path: str, table: pa.Table) -> None:
    with remote.open_write(path) as file:
        pq.write_table(table, file)


def _column(values: Any) -> pa.Array:
    """Numbers of a step as a number or (nested) list, texts, or images as bytes and no path."""
    if isinstance(values, np.ndarray):
        return pa.array(values.tolist(), _kind(pa.from_numpy_dtype(values.dtype), values.ndim - 1))
    if values and isinstance(values[0], bytes):
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.array([{"bytes": each, "path": None} for each in values], kind)
    return pa.array(values, pa.string())


def _kind(inner: pa.DataType, depth: int) -> pa.DataType:
    return inner if not depth else pa.list_(_kind(inner, depth - 1))
