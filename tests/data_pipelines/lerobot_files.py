"""Small LeRobot datasets, written from the format's description with pyarrow and PyAV alone.

Every picture tells which frame it is: 16 bright and dark blocks are the bits of a number that all
compression leaves readable.
"""

import contextlib
import io
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_pipelines.datasets import Dataset
from data_pipelines.standardise import Recipe

FPS, SIZE, BITS = 10, 64, 16
CAMERAS = ("observation.images.front", "observation.images.hand")
TASKS = ("push the red block left", "open the drawer", "close the drawer")
LENGTHS = (23, 9, 17, 30, 5, 12)
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")

MINE = Dataset(
    name="mine",
    version="",
    cameras=dict(zip(("primary", "wrist"), CAMERAS, strict=True)),
    language="task",
    control_hz=float(FPS),
    download="ask Ada",
    standardise=Recipe(
        actions=("action[0:6]", "action[6:7] clip01"), state=("observation.state[0:7]",)
    ),
    state_names=NAMES,
)


def picture(number):
    """The frame whose number can be read back: uint8 [SIZE SIZE 3]."""
    bits = np.array([number >> i & 1 for i in range(BITS)]).reshape(4, 4)
    gray = np.kron(bits, np.ones((SIZE // 4, SIZE // 4))) * 190 + 30
    return np.repeat(gray[..., None], 3, axis=2).astype(np.uint8)


def number(pixels):
    """The number of a picture of any size."""
    size = len(pixels) // 4
    means = np.asarray(pixels, float).mean(-1).reshape(4, size, 4, size).mean((1, 3))
    return int(sum((value > 125) << i for i, value in enumerate(means.reshape(-1))))


def told(episode, step, camera):
    """The number that a frame shows."""
    return 1 + episode * 256 + step * 2 + camera


def film(path, numbers, times=None, codec="mpeg4", gop=7):
    """A video of the pictures `numbers`, shown at `times` (seconds; default: a frame each
    1/FPS).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(len(numbers)) / FPS if times is None else times
    with _own_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", gop, 10**6
        stream.codec_context.time_base = Fraction(1, 1000 * FPS)
        for shown, at in zip(numbers, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture(shown), format="rgb24")
            frame.pts, frame.time_base = round(at * 1000 * FPS), Fraction(1, 1000 * FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@contextlib.contextmanager
def _own_priority():
    """Leaves this thread as it is scheduled: libsvtav1 turns the one that opens it into a real-time
    one where it may (root), and what that starts, other tests' processes, would keep every core.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def encoded(shown):
    """The picture as PNG."""
    out = io.BytesIO()
    Image.fromarray(picture(shown)).save(out, "PNG")
    return out.getvalue()


def columns(episode, length, start, images=()):
    """The rows of an episode as parquet holds them; `start` is the row of its first step in the
    dataset.
    """
    rng = np.random.default_rng(episode)
    action = rng.normal(size=(length, 7)).astype(np.float32)
    action[:, 6] = rng.integers(0, 2, length)
    rows = {
        "action": pa.array(action.tolist(), pa.list_(pa.float32())),
        "observation.state": pa.array(
            rng.normal(size=(length, 7)).astype(np.float32).tolist(), pa.list_(pa.float32(), 7)
        ),
        "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(np.arange(start, start + length)),
        # The task changes in the middle of an episode.
        "task_index": pa.array((episode + (np.arange(length) >= length // 2)) % len(TASKS)),
    }
    for key in images:
        cells = [
            {"bytes": encoded(told(episode, t, CAMERAS.index(key))), "path": None}
            for t in range(length)
        ]
        rows[key] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return rows


def statistics(tables):
    """What LeRobot says of each column of numbers over some tables."""
    out = {}
    for key in ("action", "observation.state"):
        values = np.concatenate([np.array(t[key].to_pylist(), np.float32) for t in tables])
        out[key] = {
            name: getattr(values, name)(0).tolist() for name in ("min", "max", "mean", "std")
        }
        out[key]["count"] = [len(values)]
    return out


def described(version, lengths, images=()):
    """meta/info.json."""
    features = {
        key: {"dtype": "float32", "shape": [7], "names": list(NAMES)}
        for key in ("action", "observation.state")
    }
    for key in CAMERAS:
        features[key] = {
            "dtype": "image" if key in images else "video",
            "shape": [SIZE, SIZE, 3],
            "names": ["height", "width", "channels"],
        }
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        dtype = "float32" if key == "timestamp" else "int64"
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    old = version == "v2.1"
    return {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 4 if old else 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        if old
        else "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        if old
        else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }


def lines(path, rows):
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_old(folder, numbers=(0, 1, 2, 3, 4, 5), images=(), **film_options):
    """A v2.1 dataset of the episodes `numbers`."""
    lengths = [LENGTHS[n] for n in numbers]
    (folder / "meta").mkdir(parents=True)
    info = described("v2.1", lengths, images)
    (folder / "meta/info.json").write_text(json.dumps(info))
    lines(folder / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(TASKS)])
    listed, stats, start = [], [], 0
    for n, length in zip(numbers, lengths, strict=True):
        rows, at = columns(n, length, start, images), {"episode_index": n, "episode_chunk": n // 4}
        path = folder / info["data_path"].format(**at)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows), path)
        for camera, key in enumerate(CAMERAS):
            if key not in images:
                shown = [told(n, t, camera) for t in range(length)]
                film(folder / info["video_path"].format(video_key=key, **at), shown, **film_options)
        listed.append({"episode_index": n, "tasks": list(TASKS), "length": length})
        stats.append({"episode_index": n, "stats": statistics([rows])})
        start += length
    lines(folder / "meta/episodes.jsonl", listed)
    lines(folder / "meta/episodes_stats.jsonl", stats)


def write_new(
    folder, images=(), data=((0, 1, 2), (3, 4, 5)), videos=((0, 1), (2, 3, 4, 5)), **film
):
    """A v3.0 dataset whose files hold the episodes of the tuples."""
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    info = described("v3.0", LENGTHS, images)
    (folder / "meta/info.json").write_text(json.dumps(info))
    tasks = {"task_index": pa.array(range(len(TASKS))), "__index_level_0__": pa.array(TASKS)}
    pq.write_table(pa.table(tasks), folder / "meta/tasks.parquet")
    begins = np.cumsum((0, *LENGTHS)).tolist()
    rows = [columns(n, length, begins[n], images) for n, length in enumerate(LENGTHS)]
    facts = [
        {"episode_index": n, "length": length, "tasks": list(TASKS)}
        | {"dataset_from_index": begins[n], "dataset_to_index": begins[n + 1]}
        for n, length in enumerate(LENGTHS)
    ]
    for n, row in enumerate(rows):
        for key, said in statistics([row]).items():
            facts[n] |= {f"stats/{key}/{name}": value for name, value in said.items()}
    for number_of_file, episodes in enumerate(data):
        path = folder / info["data_path"].format(chunk_index=0, file_index=number_of_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, pa.table(rows[0]).schema) as writer:
            for n in episodes:
                writer.write_table(pa.table(rows[n]))  # a row group an episode
                facts[n] |= {"data/chunk_index": 0, "data/file_index": number_of_file}
    for camera, key in enumerate(CAMERAS):
        if key not in images:
            _films(folder, info, camera, key, videos, facts, film)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pa.Table.from_pylist(facts), path)
    (folder / "meta/stats.json").write_text(json.dumps(statistics(rows)))


def _films(folder, info, camera, key, videos, facts, options):
    for number_of_file, episodes in enumerate(videos):
        shown, at = [], 0.0
        for n in episodes:
            shown += [told(n, t, camera) for t in range(LENGTHS[n])]
            place = {"chunk_index": 0, "file_index": number_of_file, "from_timestamp": at}
            at += LENGTHS[n] / FPS
            place["to_timestamp"] = at
            facts[n] |= {f"videos/{key}/{name}": value for name, value in place.items()}
        values = {"video_key": key, "chunk_index": 0, "file_index": number_of_file}
        film(folder / info["video_path"].format(**values), shown, **options)


def write(folder, version, **options):
    """A dataset of either version."""
    (write_old if version == "v2.1" else write_new)(Path(folder), **options)
