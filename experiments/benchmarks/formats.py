"""Measures how fast windows come from the same recordings in RLDS and in LeRobot's formats.

    python -m experiments.benchmark formats [--json=FILE] [--root=DIR] [--rounds=5]

Bridge-like episodes (16 of 40 steps, two cameras of 256 px, JPEGs of about 23 KB) are written as
RLDS and converted: to LeRobot v3.0 with videos (h264, every other frame a key frame, as lerobot
encodes) and with the same JPEGs in parquet. In one process, in turns: windows of 8 frames, one
camera, 224 px Lanczos, batch 16, 64 windows a visit, the same windows in the same order.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from data_pipelines import convert
from data_pipelines.config import LoaderConfig
from data_pipelines.datasets import Dataset
from data_pipelines.files import formats
from data_pipelines.index import open_index
from data_pipelines.loader import Loader
from data_pipelines.mixture import Member
from experiments.benchmarks.data import BATCH, BRIDGE, CHUNK, SIZE, WINDOW, write_files

EPISODES, BATCHES = 16, 38  # batches of a round: an epoch
SETS = ("JPEG in RLDS", "JPEG in parquet", "h264 video")


def main(argv: list[str]) -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(
        prog="experiments.benchmark formats",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=Path("runs/benchmark_formats"))
    parser.add_argument("--json", type=Path, default=None, help="write the table here too")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    loaders = {name: _loader(root, dataset) for name, (root, dataset) in _sets(args.root).items()}
    rounds = [
        {name: _round(loader) for name, loader in loaders.items()} for _ in range(args.rounds)
    ]
    table = {}
    for name in SETS:
        wall, cpu = (np.median([each[name][i] for each in rounds]) for i in (0, 1))
        table[name] = {
            "windows_per_s": BATCHES * BATCH / float(wall),
            "cpu_ms_per_window": 1000 * float(cpu) / (BATCHES * BATCH),
        }
    first = table[SETS[0]]["windows_per_s"]
    for name, row in table.items():
        row["slower"] = first / row["windows_per_s"]
        print(
            f"{name:16s} {row['windows_per_s']:7.0f} windows/s {row['cpu_ms_per_window']:7.2f} CPU"
            f" ms a window {row['slower']:5.2f} times the first's time"
        )
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


def _sets(root: Path) -> dict[str, tuple[Path, Dataset]]:
    """Each format's data root and description; written where they are not there."""
    write_files(root / "rlds", EPISODES)
    found = {SETS[0]: (root / "rlds", BRIDGE)}
    for name, lossless in ((SETS[1], True), (SETS[2], False)):
        out = root / ("images" if lossless else "video")
        dataset = convert.described(BRIDGE, convert.LEROBOT, lossless)
        if formats.missing(str(out), dataset):
            convert.convert(str(root / "rlds"), BRIDGE, convert.LEROBOT, str(out), lossless)
        found[name] = (out, dataset)
    return found


def _loader(root: Path, dataset: Dataset) -> Loader:
    member = Member.fit(open_index(root, dataset), "train", 1.0, ("q99",))
    config = LoaderConfig(
        window=WINDOW, chunk=CHUNK, cameras=("primary",), image_size=(SIZE,), batch_size=BATCH
    )
    return Loader([member], config, lambda text: np.frombuffer(text.encode(), np.uint8))


def _round(loader: Loader) -> tuple[float, float]:
    """Seconds, and CPU seconds of all threads, for BATCHES batches from the beginning."""
    began, cpu = time.perf_counter(), time.process_time()
    stream = loader.batches(0)
    try:
        for _ in range(BATCHES):
            next(stream)
    finally:
        stream.close()
    return time.perf_counter() - began, time.process_time() - cpu
