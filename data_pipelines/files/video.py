"""Frames of video files: which there are, and those of a stretch by one seek and decoding onwards.

PyAV brings ffmpeg with it. A frame is named by its presentation time stamp, a whole number in units
of the stream's time base: exact, whatever the frame rate is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np

from data_pipelines.files import remote

READ = 2**18  # bytes that are fetched of a remote video at a time


class Timeline(NamedTuple):
    """The frames of a video in the order in which they are shown."""

    stamps: np.ndarray  # n, int64, ascending
    base: Fraction  # seconds of one unit of a stamp


def timeline(path: str) -> Timeline:
    """What frames a video has, from its packets; nothing is decoded. Raises ValueError when it is
    no video, or is cut short.
    """
    with _stream(path) as (container, stream):
        try:
            shown = [
                packet.pts
                for packet in container.demux(stream)
                if packet.size and packet.pts is not None and not packet.is_discard
            ]
        except av.error.FFmpegError as error:
            raise _damaged(path, error) from error
        return Timeline(np.sort(np.array(shown, np.int64)), stream.time_base)


def frames(path: str, stamps: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames at `stamps`, none before the one in front of it: each uint8 RGB [h w 3] as it was
    recorded.

    Raises ValueError at the first that is not there, or does not decode whole.
    """
    with _stream(path) as (container, stream):
        # A pool of threads decodes videos side by side (frames.py): one thread for each is enough.
        stream.codec_context.thread_count = 1
        try:
            shown, frame = _from(container, stream, stamps[0]), None
            for stamp in stamps:
                if frame is None or frame.pts < stamp:
                    frame = next((each for each in shown if each.pts >= stamp), None)
                if frame is None or frame.pts != stamp:
                    got = "the video ends" if frame is None else f"the next is at {frame.pts}"
                    raise ValueError(
                        f"expected a frame at time stamp {stamp} (units of {stream.time_base} s),"
                        f" got none: {got}"
                    )
                if frame.is_corrupt:
                    raise ValueError(f"the frame at time stamp {stamp} does not decode whole")
                yield frame.to_ndarray(format="rgb24")
        except av.error.FFmpegError as error:
            raise ValueError(f"the video does not decode there: {error}") from error


def _from(container: Any, stream: Any, stamp: int) -> Iterator[Any]:
    """Frames from the nearest key frame at or before `stamp` on. Where the container's table leads
    beyond it (frames shown in another order than stored), from an earlier one.
    """
    back = 0
    while True:
        container.seek(max(stamp - back, 0), stream=stream)
        shown = _decoded(container, stream)
        first = next(shown, None)
        if first is None or first.pts <= stamp or back > stamp:
            break
        back = max(2 * back, round(1 / stream.time_base))
    if first is not None:
        yield first
        yield from shown


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield frame


@contextmanager
def _stream(path: str) -> Iterator[tuple[Any, Any]]:
    """An open container and its video stream. Raises ValueError when it is no video."""
    file = remote.open_stream(path, READ) if remote.is_remote(path) else None
    try:
        container = av.open(file or path)
    except av.error.FFmpegError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _damaged(path, error) from error
    with file or nullcontext(), container:
        if not container.streams.video or container.streams.video[0].codec_context is None:
            raise ValueError(
                f"{path}: expected a video, got a file without a video stream, or one of a codec"
                " that ffmpeg does not know; encode it again (h264, av1)"
            )
        yield container, container.streams.video[0]


def _damaged(path: str, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: expected a whole video, got a file that is damaged or cut short ({error});"
        " download it again, or record it again"
    )
