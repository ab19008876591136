"""CALVIN (one npz per frame) to RLDS, twice: play frames stored once, and one episode per
annotation.

    python -m data_pipelines.builders.calvin --source DIR/task_D_D --out ROOT [--splits
    training,validation]

Writes ROOT/calvin_play/1.0.0 and ROOT/calvin/1.0.0; both give the same windows
(data_pipelines/datasets/calvin.py). calvin_play holds every recorded frame once, in records of up
to 512 steps that no annotation crosses; its annotations point into them, so that they may overlap
for nothing. calvin is the
standard view: whoever reads RLDS reads it.

Everything is checked before it is written, and a folder becomes a dataset only when all of it is
there. Where apache_beam is installed the records are made in a Beam pipeline
(--beam_options="--runner=..." for Dataflow, Flink or Spark, with --source and --out at URLs that
all workers reach), else in threads: the files are the same, byte for byte.
"""

import argparse
import io
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.builders import rlds_files
from data_pipelines.builders.calvin_source import (
    Annotation,
    Recording,
    frame_name,
    read_frame,
    read_recording,
)
from data_pipelines.files import remote, tfrecord
from vla_jax import command
from vla_jax.progress import Progress

VERSION = "1.0.0"
STEPS = 512  # of a play record at most, unless an annotation is longer
SHARD_FRAMES = 12_800  # about 250 MB
SPLITS = {"training": "train", "validation": "val"}


class Task(NamedTuple):
    """One record to be made: the frames [first, stop) of a folder, and the annotations inside."""

    folder: str
    first: int
    stop: int
    annotations: tuple[Annotation, ...]
    scene: str
    play: bool


class Shard(NamedTuple):
    """One file to be written."""

    path: str
    tasks: tuple[Task, ...]


def build(
    source: str, out: str, splits: Sequence[str] = tuple(SPLITS), beam_options: str | None = None
) -> list[str]:
    """Writes both datasets and returns their folders.

    Args:
        source: folder or URL with training/ and validation/.
        out: data root.
        splits: which of these to convert.
        beam_options: for Beam, when it is installed; None = threads.

    Raises ValueError when the source is not whole (all missing frames are counted and the first
    ones named) or when a dataset is there already.
    """
    recordings = {split: read_recording(remote.join(source, split)) for split in splits}
    finals = [remote.join(out, name, VERSION) for name in ("calvin_play", "calvin")]
    for final in finals:
        if remote.exists(final):
            raise ValueError(
                f"{final}: expected nothing there, got a dataset; remove it or choose another --out"
            )
    written = []
    for final, cut in zip(finals, (play_tasks, episode_tasks), strict=True):
        folder = (
            final if remote.is_remote(final) else f"{final}.part/{final.split('/')[-2]}/{VERSION}"
        )
        shutil.rmtree(f"{final}.part", ignore_errors=True)
        entries = []
        for split, recording in recordings.items():
            shards = _shards(folder, SPLITS[split], cut(recording))
            if not shards:
                raise ValueError(
                    f"{recording.folder}: expected frames and annotations, got none; download it"
                    " again"
                )
            sizes = _write(shards, beam_options)
            entries.append(
                rlds_files.split_info(
                    SPLITS[split], [len(shard.tasks) for shard in shards], sum(sizes)
                )
            )
        rlds_files.finish(folder, __doc__ or "", features(play=cut is play_tasks), entries)
        if folder != final:
            os.replace(folder, final)
            shutil.rmtree(f"{final}.part")
        written.append(final)
    return written


def play_tasks(recording: Recording) -> list[Task]:
    """The recorded stretches, cut into records of at most STEPS steps that no annotation
    crosses.
    """
    tasks = []
    for first, last in recording.ranges:
        inside = sorted(
            (a for a in recording.annotations if first <= a.first <= last),
            key=lambda a: (a.first, a.stop),
        )
        begin = first
        while begin <= last:
            stop = _cut(begin, last + 1, inside)
            held = tuple(a for a in inside if begin <= a.first < stop)
            tasks.append(Task(recording.folder, begin, stop, held, recording.scene(begin), True))
            begin = stop
    return tasks


def _cut(begin: int, end: int, annotations: list[Annotation]) -> int:
    """Where a record that begins at `begin` stops: as late as STEPS allows, but in no annotation
    (sorted by first).
    """
    stop = min(begin + STEPS, end)
    joined: list[list[int]] = []  # annotations that overlap make one stretch
    for a in annotations:
        if joined and a.first < joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], a.stop)
        else:
            joined.append([a.first, a.stop])
    for first, after in joined:
        if first < stop < after:
            return first if first > begin else after  # after it, the record is longer than STEPS
    return stop


def episode_tasks(recording: Recording) -> list[Task]:
    """One record per annotation."""
    return [
        Task(recording.folder, a.first, a.stop, (a,), recording.scene(a.first), False)
        for a in recording.annotations
    ]


def make(task: Task) -> bytes:
    """The tf.train.Example of a record. Raises ValueError naming the frame's file when its content
    is wrong.
    """
    numbers = range(task.first, task.stop)
    frames = [read_frame(remote.join(task.folder, frame_name(number))) for number in numbers]
    return encode(task, frames)


def encode(task: Task, frames: Sequence[dict[str, np.ndarray]]) -> bytes:
    """The tf.train.Example of a record whose frames have been read: each the arrays of
    calvin_source.FRAME, and "scene" where the simulator was there to ask.
    """
    steps = len(frames)
    columns: dict[str, Sequence[bytes] | np.ndarray] = {
        "steps/action": np.stack([frame["rel_actions"] for frame in frames]).astype(np.float32),
        "steps/action_abs": np.stack([frame["actions"] for frame in frames]).astype(np.float32),
        "steps/observation/image": _jpegs(frames, "rgb_static"),
        "steps/observation/state": (
            np.stack([frame["robot_obs"] for frame in frames]).astype(np.float32)
        ),
        "steps/observation/wrist_image": _jpegs(frames, "rgb_gripper"),
        "episode_metadata/first_frame": np.array([task.first]),
        "episode_metadata/scene": [task.scene.encode()],
    }
    if "scene" in frames[0]:
        columns["steps/observation/scene"] = np.stack([frame["scene"] for frame in frames]).astype(
            np.float32
        )
    for name, values in rlds_files.flags(steps).items():
        # Play ends because the recording was cut, not because something was reached.
        ends = name in ("steps/is_terminal", "steps/reward")
        columns[name] = np.zeros_like(values) if task.play and ends else values
    if task.play:
        named = task.annotations
        columns["episode_metadata/segment_first"] = np.array(
            [a.first - task.first for a in named], np.int64
        )
        columns["episode_metadata/segment_stop"] = np.array(
            [a.stop - task.first for a in named], np.int64
        )
        columns["episode_metadata/segment_text"] = [a.text.encode() for a in named]
        columns["episode_metadata/segment_task"] = [a.task.encode() for a in named]
    else:
        columns["steps/language_instruction"] = [
            a.text.encode() for a in task.annotations for _ in range(a.first, a.stop)
        ]
        columns["episode_metadata/task"] = [task.annotations[0].task.encode()]
    return tfrecord.encode(columns)


def features(play: bool, scene: tuple[int, ...] = ()) -> rlds_files.Feature:
    """The content of features.json: of calvin_play, or of calvin, with numbers of the shape
    `scene` a step that say what is where.
    """
    whole, text = rlds_files.tensor("int64"), rlds_files.text()
    seen = {
        "image": rlds_files.image("jpeg", 200, 200),
        "wrist_image": rlds_files.image("jpeg", 84, 84),
        "state": rlds_files.tensor("float32", 15),
    }
    if scene:
        seen["scene"] = rlds_files.tensor("float32", *scene)
    step = {
        "action": rlds_files.tensor("float32", 7),
        "action_abs": rlds_files.tensor("float32", 7),
        "observation": rlds_files.folder(seen),
    }
    metadata = {"first_frame": whole, "scene": text}
    if not play:
        return rlds_files.episode(
            {**step, "language_instruction": text}, {**metadata, "task": text}
        )
    kinds = {"first": whole, "stop": whole, "text": text, "task": text}
    return rlds_files.episode(
        step,
        {
            **metadata,
            **{f"segment_{name}": rlds_files.sequence(kind) for name, kind in kinds.items()},
        },
    )


def _jpegs(frames: Sequence[dict[str, np.ndarray]], camera: str) -> list[bytes]:
    """The pictures of a camera; one that it gave in several frames is coded once."""
    files: list[bytes] = []
    for i, frame in enumerate(frames):
        same = i > 0 and frame[camera] is frames[i - 1][camera]
        files.append(files[-1] if same else jpeg(frame[camera]))
    return files


def jpeg(picture: np.ndarray) -> bytes:
    """Quality 95 without colour subsampling: the small wrist camera has no detail to lose."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _shards(folder: str, split: str, tasks: list[Task]) -> list[Shard]:
    """The files of a split; what goes where depends on the tasks alone."""
    frames = np.cumsum([task.stop - task.first for task in tasks])
    count = -(-int(frames[-1]) // SHARD_FRAMES) if tasks else 0
    place = np.minimum((frames - 1) // SHARD_FRAMES, count - 1)
    held = [
        tuple(task for task, at in zip(tasks, place, strict=True) if at == number)
        for number in range(count)
    ]
    held = [each for each in held if each]
    name = folder.split("/")[-2]
    return [
        Shard(remote.join(folder, rlds_files.shard_name(name, split, number, len(held))), each)
        for number, each in enumerate(held)
    ]


def _write(shards: list[Shard], beam_options: str | None) -> list[int]:
    """Writes the shards; returns their bytes."""
    if beam_options is not None:
        return _write_with_beam(shards, beam_options)
    what = f"writing {len(shards)} files to {shards[0].path.rsplit('/', 1)[0]}"
    total = sum(task.stop - task.first for shard in shards for task in shard.tasks)
    with Progress(what, total, "frames") as progress, ThreadPoolExecutor(os.cpu_count()) as threads:
        sizes = [
            tfrecord.write(shard.path, _made(shard.tasks, threads, progress)) for shard in shards
        ]
        print(f"{what}: {total} frames in {progress.spent()}", flush=True)
    return sizes


def _made(
    tasks: Sequence[Task], threads: ThreadPoolExecutor, progress: Progress
) -> Iterator[bytes]:
    """The records of the tasks in order, a few of them made ahead."""
    ahead: deque[tuple[Task, Future[bytes]]] = deque()
    for task in tasks:
        ahead.append((task, threads.submit(make, task)))
        if len(ahead) > 2 * (os.cpu_count() or 1):
            done, record = ahead.popleft()
            yield record.result()
            progress.add(done.stop - done.first)
    for done, record in ahead:
        yield record.result()
        progress.add(done.stop - done.first)


def _write_with_beam(shards: list[Shard], options: str) -> list[int]:
    """The same in a Beam pipeline: records are made one by one anywhere, files are put together in
    their order.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    tasks = [(s, n, task) for s, shard in enumerate(shards) for n, task in enumerate(shard.tasks)]
    paths = [shard.path for shard in shards]

    def record(item: tuple[int, int, Task]) -> tuple[int, tuple[int, bytes]]:
        return item[0], (item[1], make(item[2]))

    def file(item: tuple[int, Any]) -> None:
        tfrecord.write(paths[item[0]], (body for _, body in sorted(item[1])))

    with beam.Pipeline(options=PipelineOptions(options.split())) as pipeline:
        records = pipeline | beam.Create(tasks) | beam.Reshuffle() | beam.Map(record)
        _ = records | beam.GroupByKey() | beam.Map(file)
    return [remote.size(path) for path in paths]


def _beam_installed() -> bool:
    try:
        import apache_beam
    except ImportError:
        return False
    return bool(apache_beam.__version__)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="an unzipped task_*_* folder")
    parser.add_argument("--out", required=True, help="data root")
    parser.add_argument("--splits", default=",".join(SPLITS), help="training, validation or both")
    parser.add_argument(
        "--beam_options", default="--runner=DirectRunner", help="where apache_beam is installed"
    )
    args = parser.parse_args(argv)
    source, out = (
        p if remote.is_remote(p) else str(Path(p).expanduser().absolute())
        for p in (args.source, args.out)
    )
    options = args.beam_options if _beam_installed() else None
    for folder in build(source, out, tuple(args.splits.split(",")), options):
        print(f"wrote {folder}")


if __name__ == "__main__":
    command.run(main)
