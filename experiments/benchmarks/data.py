"""Measures the data loader beside a plain tf.data pipeline, on the same files in the same run.

    python -m experiments.benchmark data [--json=FILE] [--root=DIR] [--windows=100000]

Writes Bridge-like episodes once (256 of 40 steps, 256 px JPEG, about 23 KB a frame) under --root.
Each line is a process of its own, so that its memory and CPU time are its own. Windows of 8 frames,
chunks of 10 actions, one camera, 224 px Lanczos, batch 16. The peer does what the field's loaders
do in their usual order: read, chunk, shuffle buffer, decode every window, resize, batch; it needs
tensorflow. The rest of the table is what mixing costs us.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import images, order
from data_pipelines.builders import rlds_files
from data_pipelines.config import LoaderConfig
from data_pipelines.datasets import DATASETS
from data_pipelines.files import tfds_folder
from data_pipelines.files.tfrecord import encode
from data_pipelines.index import open_index
from data_pipelines.loader import Loader
from data_pipelines.mixture import Member

EPISODES, STEPS, SHARDS, PIXELS = 256, 40, 8, 256
WINDOW, CHUNK, SIZE, BATCH, BUFFER = 8, 10, 224, 16, 10_000
BRIDGE = DATASETS["bridge"]
EPISODE_BYTES = (STEPS + WINDOW - 1) * SIZE * SIZE * 3

# RAM budget in bytes of decoded frames, windows per visit. The first is the one to compare.
OURS = (
    (int(1.8e9), 64),
    (192 * EPISODE_BYTES, 64),
    (64 * EPISODE_BYTES, 64),
    (64 * EPISODE_BYTES, 20),
    (64 * EPISODE_BYTES, 8),
    (0, 1),
)


def main(argv: list[str]) -> None:
    """Runs the benchmark, or one line of it."""
    parser = argparse.ArgumentParser(
        prog="experiments.benchmark data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--json", type=Path, default=None, help="write the table here too")
    parser.add_argument("--windows", type=int, default=100_000, help="windows of our first line")
    parser.add_argument("--line", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.line:
        settings = json.loads(args.line)
        measure = measure_peer if settings.pop("peer") else measure_ours
        print(json.dumps(measure(args.root, settings)))
        return
    data(args.root, args.windows, args.json)


def data(root: Path, windows: int, out: Path | None) -> None:
    """Prints the table and writes it to `out`."""
    report: dict[str, Any] = {"build": write_files(root)}
    build = report["build"]
    print(
        f"{build['data_mb']:.0f} MB; index built at {build['mb_per_s']:.0f} MB/s on one core,"
        f" {build['share']:.2%} of the data's size; {os.cpu_count()} cores, load"
        f" {os.getloadavg()[0]:.1f} before the start"
    )
    head = (
        f"{'windows/s':>10s} {'CPU-s/1k':>9s} {'RSS MB':>7s} {'first s':>8s} {'decodes':>8s}"
        f" {'decode %':>9s} "
    )
    print(
        f"{'loader':34s} {head} {'pairs/256':>9s} {'episodes':>9s} {'RSS at 25, 50, 75, 100 %'}",
        flush=True,
    )
    report["curve"] = []
    for number, (budget, visit) in enumerate(OURS):
        settings = {
            "budget": budget,
            "visit": visit,
            "windows": windows if number == 0 else 20_000 if visit > 1 else 2_000,
        }
        line = _line(root, {"peer": False, **settings})
        name = f"ours, {budget / 1e9:.2f} GB, {visit} a visit"
        if number == 0:
            report["ours"] = line
        report["curve"].append({"ram_budget": budget, "windows_per_visit": visit, **line})
        _print(name if visit > 1 else "ours, full shuffle, decode each", line)
    report["peer"] = _line(root, {"peer": True, "windows": 3_000})
    if "error" in report["peer"]:
        print(f"tf.data: {report['peer']['error']}")
    else:
        _print(f"tf.data, shuffle({BUFFER})", report["peer"])
        report["ratio"] = {
            "windows_per_s": report["ours"]["windows_per_s"] / report["peer"]["windows_per_s"],
            "cpu_s_per_1k_windows": (
                report["peer"]["cpu_s_per_1k_windows"] / report["ours"]["cpu_s_per_1k_windows"]
            ),
            "peak_rss_mb": report["peer"]["peak_rss_mb"] / report["ours"]["peak_rss_mb"],
        }
        print(
            "ours is better by: "
            + ", ".join(f"{key} x{value:.2f}" for key, value in report["ratio"].items())
        )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n")


def measure_ours(root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One line of ours."""
    began, cpu = time.perf_counter(), _cpu()
    index = open_index(root, BRIDGE)
    split = index.splits["train"]
    config = LoaderConfig(
        window=WINDOW,
        chunk=CHUNK,
        cameras=("primary",),
        image_size=(SIZE,),
        prompt_length=32,
        batch_size=BATCH,
        seed=0,
        ram_budget=settings["budget"],
        windows_per_visit=settings["visit"],
        shuffle=True,
    )
    loader = Loader(
        [Member.fit(index, "train", 1.0, ("q99",))],
        config,
        lambda text: np.frombuffer(text.encode(), np.uint8),
    )
    decoding = _Counter()
    stream = loader.batches()
    next(stream)
    first = time.perf_counter() - began
    # The start belongs to the rate: every epoch has one.
    rss = []
    count = settings["windows"] // BATCH
    for number in range(1, count):
        next(stream)
        if number % max(1, count // 4) == 0 or number == count - 1:
            rss.append(_rss())
    seconds, cpu = time.perf_counter() - began, _cpu() - cpu
    stream.close()
    epochs = -(-count * BATCH // loader.windows)
    served = np.concatenate([loader.epoch(epoch) for epoch in range(epochs)])[: count * BATCH]
    mixed = order.mixing(np.searchsorted(split.first, served, side="right"))
    return {
        **_rates(count * BATCH, seconds, cpu, first),
        "rss_mb": rss[:4],
        "decodes_per_window": decoding.frames / (count * BATCH),
        "decode_share": decoding.seconds / cpu,
        "same_episode_pairs": mixed.pairs,
        "distinct_episodes": mixed.episodes,
    }


def measure_peer(root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The same work by tf.data, the way the field's loaders order it. Pixels and labels are made
    and thrown away.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        import tensorflow as tf
    except ImportError as error:
        return {"error": f"not measured, {error}"}
    began = time.perf_counter()
    batches = iter(_peer_batches(tf, root))
    served = [np.asarray(next(batches)["episode"])]
    first = time.perf_counter() - began
    # Filling the buffer is not counted: it is paid once.
    start, start_cpu = time.perf_counter(), _cpu()
    rss = []
    count = settings["windows"] // BATCH
    for number in range(1, count + 1):
        served.append(np.asarray(next(batches)["episode"]))
        if number % max(1, count // 4) == 0:
            rss.append(_rss())
    mixed = order.mixing(np.unique(np.concatenate(served), return_inverse=True)[1])
    return {
        **_rates(count * BATCH, time.perf_counter() - start, _cpu() - start_cpu, first),
        "rss_mb": rss[:4],
        "decodes_per_window": float(WINDOW),
        "same_episode_pairs": mixed.pairs,
        "distinct_episodes": mixed.episodes,
    }


def _peer_batches(tf: Any, root: Path) -> Any:
    """A tf.data.Dataset of batches: read, chunk, shuffle, decode every window, resize, batch."""
    files = sorted(str(path) for path in (root / BRIDGE.tfds_name / BRIDGE.version).glob("*train*"))

    def ragged(shape: list[int], dtype: Any) -> Any:
        return tf.io.FixedLenSequenceFeature(shape, dtype, allow_missing=True)

    features = {
        "steps/observation/image_0": ragged([], tf.string),
        "steps/action": ragged([7], tf.float32),
        "steps/observation/state": ragged([7], tf.float32),
        "steps/language_instruction": ragged([], tf.string),
    }

    def episode(record: Any) -> Any:
        columns = tf.io.parse_single_example(record, features)
        # As our standardisation does: the first and the last step are dropped.
        steps = tf.range(1, tf.shape(columns["steps/action"])[0] - 1)
        past = tf.maximum(steps[:, None] + tf.range(1 - WINDOW, 1), 1)
        ahead = tf.minimum(
            steps[:, None, None] + tf.range(1 - WINDOW, 1)[:, None] + tf.range(CHUNK), steps[-1]
        )
        return {
            "image": tf.gather(columns["steps/observation/image_0"], past),
            "action": tf.gather(columns["steps/action"], tf.maximum(ahead, 1)),
            "state": tf.gather(columns["steps/observation/state"], past),
            "text": tf.gather(columns["steps/language_instruction"], steps),
            "episode": tf.repeat(tf.strings.to_hash_bucket_fast(record, 2**62), tf.size(steps)),
        }

    def pixels(window: Any) -> Any:
        def one(data: Any) -> Any:
            picture = tf.io.decode_jpeg(data, channels=3)
            picture = tf.image.resize(picture, (SIZE, SIZE), method="lanczos3", antialias=True)
            return tf.cast(tf.clip_by_value(tf.round(picture), 0, 255), tf.uint8)

        return {**window, "image": tf.map_fn(one, window["image"], fn_output_signature=tf.uint8)}

    unordered = {"num_parallel_calls": os.cpu_count(), "deterministic": False}
    records = (
        tf.data.Dataset.from_tensor_slices(files)
        .shuffle(len(files), seed=0)
        .interleave(tf.data.TFRecordDataset, cycle_length=os.cpu_count(), **unordered)
    )
    windows = records.map(episode, **unordered).repeat().unbatch().shuffle(BUFFER, seed=0)
    return windows.map(pixels, **unordered).batch(BATCH).prefetch(2)


def write_files(root: Path, episodes: int = EPISODES) -> dict[str, float]:
    """The episodes under root, written if they are not there, and how fast their index is built."""
    folder = root / BRIDGE.tfds_name / BRIDGE.version
    if not (folder / tfds_folder.INFO).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"writing {episodes} episodes to {folder}", flush=True)
        parts = np.array_split(np.arange(episodes), SHARDS)
        splits = [
            rlds_files.write_split(
                str(folder),
                BRIDGE.tfds_name,
                split,
                [(_episode(int(number)) for number in part) for part in shards],
            )
            for split, shards in (("train", parts), ("val", [np.array([episodes])]))
        ]
        camera = rlds_files.image("jpeg", PIXELS, PIXELS)
        numbers = {key: rlds_files.tensor("float32", 7) for key in ("action", "state")}
        step = {
            "action": numbers["action"],
            "language_instruction": rlds_files.text(),
            "observation": rlds_files.folder(
                {"image_0": camera, "image_1": camera, "state": numbers["state"]}
            ),
        }
        rlds_files.finish(str(folder), "benchmark", rlds_files.episode(step), splits)
    size = sum(path.stat().st_size for path in folder.glob("*tfrecord*"))
    for file in folder.glob("*/*.index"):
        file.unlink()
    cpu = _cpu()
    open_index(root, BRIDGE)
    built = sum(path.stat().st_size for path in folder.glob("*/*.index"))
    return {"data_mb": size / 1e6, "mb_per_s": size / 1e6 / (_cpu() - cpu), "share": built / size}


def _episode(number: int) -> bytes:
    """A wandering pattern under fixed noise: JPEGs of about 23 KB at quality 95."""
    draw = np.random.default_rng(number)
    coarse = np.asarray(
        Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
            (2 * PIXELS,) * 2, Image.Resampling.BICUBIC
        )
    )
    noise = draw.normal(0, 2.85, (PIXELS, PIXELS, 1))
    frames = []
    for step in range(STEPS):
        picture = coarse[3 * step : 3 * step + PIXELS, 2 * step : 2 * step + PIXELS] + noise
        buffer = io.BytesIO()
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
        frames.append(buffer.getvalue())
    state = np.cumsum(draw.normal(0, 0.01, (STEPS, 7)), axis=0).astype(np.float32)
    action = draw.normal(0, 0.01, (STEPS, 7)).astype(np.float32)
    action[:, 6] = draw.random() > 0.5
    return encode(
        {
            **rlds_files.flags(STEPS),
            "steps/action": action,
            "steps/language_instruction": (
                [f"put the block in drawer {number % 50}".encode()] * STEPS
            ),
            "steps/observation/image_0": frames,
            "steps/observation/image_1": frames,
            "steps/observation/state": state,
        }
    )


class _Counter:
    """Counts decoded frames and the CPU seconds they took, over all threads."""

    def __init__(self) -> None:
        self.frames, self.seconds = 0, 0.0
        decode = images.decode

        def counted(
            data: bytes | np.ndarray, size: int, bgr: bool = False, resize: str = "lanczos"
        ) -> np.ndarray:
            began = time.thread_time()
            pixels = decode(data, size, bgr, resize)
            self.seconds += time.thread_time() - began
            self.frames += 1
            return pixels

        images.decode = counted


def _line(root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "experiments.benchmark",
        "data",
        f"--root={root}",
        f"--line={json.dumps(settings)}",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _rates(windows: int, seconds: float, cpu: float, first: float) -> dict[str, float]:
    return {
        "windows": windows,
        "windows_per_s": windows / seconds,
        "cpu_s_per_1k_windows": cpu / windows * 1000,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "first_batch_s": first,
    }


def _print(name: str, line: dict[str, Any]) -> None:
    share = f"{line['decode_share']:9.0%}" if "decode_share" in line else f"{'':>9s}"
    print(
        f"{name:34s} {line['windows_per_s']:10.0f} {line['cpu_s_per_1k_windows']:9.2f}"
        f" {line['peak_rss_mb']:7.0f} {line['first_batch_s']:8.2f}"
        f" {line['decodes_per_window']:8.2f} {share} {line['same_episode_pairs']:9.1f}"
        f" {line['distinct_episodes']:9.1f}  {', '.join(f'{mb:.0f}' for mb in line['rss_mb'])}",
        flush=True,
    )


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _rss() -> float:
    """Resident megabytes now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
