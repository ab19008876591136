"""LeRobot datasets (v2.1 and v3.0): what meta/ says, and the files it names.

A folder holds meta/info.json, parquet files of columns (v2.1: one an episode, v3.0: many episodes
in one) and videos, one for each episode or file and camera. An episode is told by its number, a
record of a file is an episode. lerobot_features.py looks at what info.json promises,
lerobot_rows.py reads the columns.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import lerobot_features, outcomes, remote, tfds_folder
from data_pipelines.files.features import OF_EPISODE, Kind, check_of_rlds
from data_pipelines.files.sensors import Stored
from data_pipelines.files.tfds_folder import AGAIN, File

INFO, EPISODES, TASKS = "meta/info.json", "meta/episodes", "meta/tasks"
STATS = "meta/stats.json"
OLD, NEW = "v2.1", "v3.0"  # what is read


class Facts(NamedTuple):
    """What meta/ says of an episode."""

    number: int
    length: int  # frames
    videos: dict[str, tuple[str, float]]  # camera key -> file, seconds at which it begins in it
    stats: dict[str, dict[str, list[float]]]  # column -> min, max, mean, std; those that are given


class Shard(NamedTuple):
    """One parquet file of columns, and what is read with it."""

    file: File
    features: dict[str, Kind]  # by feature key
    episodes: tuple[Facts, ...]  # in the file's order
    videos: tuple[File, ...]
    filmed: frozenset[str]  # keys of cameras whose frames are in videos
    fps: float
    tasks: dict[int, str]
    totals: dict[str, dict[str, list[float]]]  # of the whole dataset (v3.0), as Facts.stats
    meta: str  # digest of all that meta/ says of it
    sensors: dict[str, Stored]  # by name
    ended: dict[int, int]  # how episodes did, by number, where meta/ says it (Dataset.outcome)

    @property
    def path(self) -> str:
        """A path or URL."""
        return self.file.path

    @property
    def files(self) -> list[File]:
        """All that is read."""
        return [self.file, *self.videos]


def check(folder: str, dataset: Dataset) -> dict[str, list[Shard]]:
    """The shards of each split.

    Raises ValueError when the version is another, a file or a promised feature is missing, or
    meta/ contradicts itself.
    """
    info = info_of(folder)
    path = remote.join(folder, INFO)
    check_of_rlds(path, dataset)
    tasks, read = (_tasks_old, _old) if info["codebase_version"] == OLD else (_tasks_new, _new)
    by_file: dict[str, list[Facts]] = {}
    with _as_written(path):
        features, filmed = lerobot_features.promised(path, dataset, info["features"])
        fps = float(info["fps"])
        stored = lerobot_features.sensors(path, dataset, info["features"])
    with _as_written(remote.join(folder, TASKS)):
        named = tasks(folder)
    with _as_written(remote.join(folder, EPISODES)):
        for name, facts in read(folder, info, sorted(filmed), set(dataset.columns.values())):
            by_file.setdefault(name, []).append(facts)
        ended = _ended(folder, info, dataset)
    with _as_written(remote.join(folder, STATS)):
        totals = _totals(folder, info, features)
    _check_totals(path, info, by_file)
    versions = _versions(folder, by_file)
    common = json.dumps([info["fps"], sorted(named.items()), totals])
    common += json.dumps(sorted(ended.items())) if ended else ""
    by_split: dict[str, list[Shard]] = {}
    for name, episodes in by_file.items():
        videos = sorted({video for each in episodes for video, _ in each.videos.values()})
        said = hashlib.sha256((common + json.dumps(episodes)).encode()).hexdigest()
        shard = Shard(
            File(remote.join(folder, name), len(episodes), versions[name], folder),
            features,
            tuple(episodes),
            tuple(File(remote.join(folder, v), 1, versions[v], folder) for v in videos),
            filmed,
            fps,
            named,
            totals,
            said,
            stored,
            ended,
        )
        by_split.setdefault(_split(path, info, name, episodes), []).append(shard)
    return by_split


@contextmanager
def _as_written(path: str) -> Iterator[None]:
    """Raises ValueError, which begins with `path`, where what is read there is of another kind than
    LeRobot writes: a text for a number, an entry without something.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path}: expected what LeRobot writes there of every episode, task and feature, got an"
            f" entry that is not so ({error!r}); {AGAIN}"
        ) from error


def _statistics(said: dict[str, Any]) -> dict[str, list[float]]:
    """Those of a column that are compared, as numbers. Raises TypeError when they are none."""
    try:
        return {
            name: np.asarray(said[name], np.float64).reshape(-1).tolist()
            for name in ("min", "max", "mean", "std")
            if name in said
        }
    except ValueError as error:
        raise TypeError(f"statistics {said!r:.80}") from error


def info_of(folder: str) -> dict[str, Any]:
    """meta/info.json, of a version that is read."""
    path = remote.join(folder, INFO)
    info = _json(path)
    version = str(info.get("codebase_version", "none"))
    if version not in (OLD, NEW):
        fix = (
            "convert it with lerobot's scripts (lerobot/datasets/v21, v30: they go from one version"
            " to the next)"
            if version == "none" or re.match(r"v[012]\.", version)
            else "it is newer than what is read here: write it again in v3.0"
        )
        raise ValueError(f"{path}: expected LeRobot {OLD} or {NEW}, got {version}; {fix}")
    lacking = [key for key in ("features", "fps", "data_path") if not info.get(key)]
    if lacking:
        raise ValueError(
            f"{path}: expected {', '.join(lacking)} as LeRobot writes it, got"
            f" {', '.join(sorted(info))}; was the dataset still being written? {AGAIN}"
        )
    return info


def _old(
    folder: str, info: dict[str, Any], cameras: list[str], columns: set[str]
) -> Iterator[tuple[str, Facts]]:
    """v2.1: (data file, episode) of every episode."""
    stats = {
        int(row["episode_index"]): row["stats"]
        for row in _lines(remote.join(folder, "meta/episodes_stats.jsonl"))
    }
    path = remote.join(folder, "meta/episodes.jsonl")
    for row in sorted(_lines(path), key=lambda row: int(row["episode_index"])):
        number, length = int(row["episode_index"]), int(row["length"])
        if number not in stats:
            raise ValueError(
                f"{folder}: meta/episodes_stats.jsonl: expected the statistics of episode {number},"
                f" got those of {len(stats)} others; {AGAIN}, or write them with lerobot"
            )
        at = {"episode_index": number, "episode_chunk": number // int(info["chunks_size"])}
        videos = {key: (_path(info, "video_path", video_key=key, **at), 0.0) for key in cameras}
        own = stats[number]
        known = {key: _statistics(own[key]) for key in sorted(columns & own.keys())}
        yield _path(info, "data_path", **at), Facts(number, length, videos, known)


def _new(
    folder: str, info: dict[str, Any], cameras: list[str], columns: set[str]
) -> Iterator[tuple[str, Facts]]:
    """v3.0: (data file, episode) of every episode."""
    for path in _episode_files(folder):
        table = _table(path)
        wanted = {"episode_index", "length", "data/chunk_index", "data/file_index"}
        parts = ("chunk_index", "file_index", "from_timestamp")
        wanted |= {f"videos/{key}/{part}" for key in cameras for part in parts}
        missing = sorted(wanted - set(table.column_names))
        if missing:
            raise ValueError(
                f"{path}: expected the columns {', '.join(missing)}, got none of them; {AGAIN}, or"
                " convert the dataset with lerobot again"
            )
        stats = [name for name in table.column_names if name.startswith("stats/")]
        stats = [name for name in stats if name[6:].rpartition("/")[0] in columns]
        for row in table.select([*sorted(wanted), *stats]).to_pylist():
            videos = {
                key: (
                    _path(
                        info,
                        "video_path",
                        video_key=key,
                        chunk_index=int(row[f"videos/{key}/chunk_index"]),
                        file_index=int(row[f"videos/{key}/file_index"]),
                    ),
                    float(row[f"videos/{key}/from_timestamp"]),
                )
                for key in cameras
            }
            known: dict[str, dict[str, Any]] = {}
            for name in stats:
                column, _, statistic = name[6:].rpartition("/")
                known.setdefault(column, {})[statistic] = row[name]
            at = {name: int(row[f"data/{name}"]) for name in ("chunk_index", "file_index")}
            measured = {key: _statistics(said) for key, said in known.items()}
            facts = Facts(int(row["episode_index"]), int(row["length"]), videos, measured)
            yield _path(info, "data_path", **at), facts


def _ended(folder: str, info: dict[str, Any], dataset: Dataset) -> dict[int, int]:
    """How each episode ended, where Dataset.outcome is a column of meta/episodes."""
    key = dataset.outcome.removeprefix(OF_EPISODE)
    if key == dataset.outcome:
        return {}
    rows: list[dict[str, Any]] = []
    if info["codebase_version"] == OLD:
        rows = _lines(remote.join(folder, "meta/episodes.jsonl"))
    else:
        for path in _episode_files(folder):
            table = _table(path)
            rows += table.select(
                [n for n in ("episode_index", key) if n in table.column_names]
            ).to_pylist()
    if not any(key in row for row in rows):
        raise ValueError(
            f"{folder}: {dataset.name} promises the outcome {key!r} of each episode in"
            f" {EPISODES}, which has none; name a feature of the frames as `outcome`, or none"
        )
    return {int(row["episode_index"]): outcomes.of_value(row.get(key)) for row in rows}


def _episode_files(folder: str) -> list[str]:
    """The files of meta/episodes; where a server does not list, the first."""
    root = remote.join(folder, EPISODES)
    found = [
        remote.join(root, chunk, name)
        for chunk in remote.list_folder(root)
        if chunk.startswith("chunk-")
        for name in remote.list_folder(remote.join(root, chunk))
        if name.endswith(".parquet")
    ]
    return found or [remote.join(root, "chunk-000", "file-000.parquet")]


def _tasks_old(folder: str) -> dict[int, str]:
    rows = _lines(remote.join(folder, f"{TASKS}.jsonl"))
    return {int(row["task_index"]): str(row["task"]) for row in rows}


def _tasks_new(folder: str) -> dict[int, str]:
    path = remote.join(folder, f"{TASKS}.parquet")
    table = _table(path)
    words = [name for name in table.column_names if pa.types.is_string(table[name].type)]
    words = words or [n for n in table.column_names if pa.types.is_large_string(table[n].type)]
    if "task_index" not in table.column_names or len(words) != 1:
        raise ValueError(
            f"{path}: expected task_index and one column of texts, got"
            f" {', '.join(table.column_names)}; {AGAIN}"
        )
    numbers, texts = table["task_index"].to_pylist(), table[words[0]].to_pylist()
    return dict(zip(numbers, texts, strict=True))


def _check_totals(path: str, info: dict[str, Any], by_file: dict[str, list[Facts]]) -> None:
    """Raises ValueError when info.json counts other episodes or frames than are listed."""
    listed = [each for episodes in by_file.values() for each in episodes]
    counts = {
        "total_episodes": len(listed),
        "total_frames": sum(each.length for each in listed),
    }
    for name, count in counts.items():
        if info.get(name, count) != count:
            raise ValueError(
                f"{path}: expected {info[name]} ({name}), meta/episodes lists {count}; a file of it"
                f" is missing, or the recording was not finished: {AGAIN}"
            )
    numbers = Counter(each.number for each in listed)
    twice = sorted(number for number, count in numbers.items() if count > 1)
    if twice:
        raise ValueError(
            f"{path}: expected every episode once, meta/episodes lists {twice[:3]} more"
            f" often; {AGAIN}"
        )
    if not listed:
        raise ValueError(f"{path}: expected at least one episode, got none; {AGAIN}")


def _versions(folder: str, by_file: dict[str, list[Facts]]) -> dict[str, remote.Version]:
    """Of every file that is read, by name. Raises ValueError when some are missing."""
    names = [*by_file]
    names += sorted({v for e in by_file.values() for each in e for v, _ in each.videos.values()})
    found = tfds_folder.versions_of([remote.join(folder, name) for name in names])
    missing = [name for name, version in zip(names, found, strict=True) if version is None]
    if missing:
        raise ValueError(
            f"{folder}: expected {len(names)} files of data and video (meta/), got"
            f" {len(names) - len(missing)}; missing {missing[:3]}; download them again"
        )
    return {name: of for name, of in zip(names, found, strict=True) if of is not None}


def _totals(
    folder: str, info: dict[str, Any], features: dict[str, Kind]
) -> dict[str, dict[str, list[float]]]:
    """meta/stats.json of a v3.0 dataset, which need not have one."""
    path = remote.join(folder, STATS)
    if info["codebase_version"] == OLD or not remote.exists(path):
        return {}
    return {key: _statistics(said) for key, said in _json(path).items() if key in features}


def _split(path: str, info: dict[str, Any], name: str, episodes: list[Facts]) -> str:
    """Which split a data file belongs to. Raises ValueError when it is none, or two."""
    splits = info.get("splits") or {}
    if len(splits) < 2:
        return "train"
    found = set()
    for split, text in splits.items():
        begin, _, end = str(text).partition(":")
        if any(int(begin or 0) <= each.number < int(end) for each in episodes):
            found.add(split)
    if len(found) != 1:
        raise ValueError(
            f"{path}: expected every data file in one of the splits {splits}, got {name} in"
            f" {sorted(found) or 'none'}; give one split, and say with data.held_out what is held"
            " out"
        )
    return found.pop()


def _path(info: dict[str, Any], template: str, **values: Any) -> str:
    """A file's name. Raises ValueError when info.json's template is none."""
    try:
        return str(info[template]).format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{INFO}: {template}: expected a template of {', '.join(values)}, got"
            f" {info.get(template)!r} ({error!r}); {AGAIN}"
        ) from error


def _lines(path: str) -> list[dict[str, Any]]:
    """The objects of a .jsonl file."""
    text = _read(path).decode()
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON object a line, got {error}; {AGAIN}") from error


def _json(path: str) -> dict[str, Any]:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}; {AGAIN}") from error


def _table(path: str) -> pa.Table:
    data = _read(path)
    try:
        return pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise ValueError(f"{path}: expected a parquet file, got {error}; {AGAIN}") from error


def _read(path: str) -> bytes:
    try:
        return remote.read(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: expected the file LeRobot writes, found none; is the download unfinished?"
            f" {AGAIN}"
        ) from None
