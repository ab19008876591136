"""Writes the recorded episodes of a dataset as LeRobot v3.0."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines import images
from data_pipelines.builders import lerobot_files, recorded
from data_pipelines.builders.lerobot_files import Measured
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import formats, remote, video
from data_pipelines.files.lerobot_features import TASK
from vla_jax.progress import Progress

SAMPLED = 20  # frames of an episode and camera that the statistics are made of


class ToLeRobot:
    """A LeRobot dataset while it is written."""

    def __init__(
        self, dataset: Dataset, target: Dataset, out: str, fps: float, loss: recorded.Loss | None
    ) -> None:
        """`target` describes what is written; without `loss` images are stored, else videos, whose
        loss it measures.
        """
        self._dataset, self._target, self._out = dataset, target, out
        self._fps, self._loss = fps, loss
        self._tasks: dict[str, int] = {}
        self._facts: list[dict[str, Any]] = []
        self._measured: list[dict[str, Measured]] = []
        self._features: dict[str, Any] = {}
        self._frames = 0

    def write(self, whole: dict[str, list[formats.Shard]], progress: Progress) -> None:
        """All of it: a data file for each shard."""
        splits, number = {}, 0
        for split, shards in whole.items():
            begin = len(self._facts)
            for shard in shards:
                file = lerobot_files.DataFile(self._out, number)
                for raw in recorded.episodes(shard, self._dataset):
                    if raw.words:
                        file.add(self._episode(raw, number))
                file.close()
                progress.add(shard.file.size)
                number += 1
            splits[split] = f"{begin}:{len(self._facts)}"
        kept = {key for each in self._measured for key in each}
        parts = {key: [each[key] for each in self._measured] for key in sorted(kept)}
        filmed = set(self._target.cameras.values())
        stats = {
            key: lerobot_files.statistics(lerobot_files.together(each), key in filmed)
            for key, each in parts.items()
        }
        fps = int(self._fps) if self._fps == int(self._fps) else self._fps
        about = {"robot_type": self._dataset.robot, "fps": fps, "splits": splits}
        about["features"] = self._features
        lerobot_files.finish(self._out, about, self._facts, list(self._tasks), stats)

    def _episode(self, raw: recorded.Raw, file: int) -> lerobot_files.Rows:
        """The rows of the next episode; its videos are written."""
        number, length = len(self._facts), len(raw.words)
        facts: dict[str, Any] = {"episode_index": number, "length": length}
        facts["tasks"] = list(dict.fromkeys(words[0] for words in raw.words))
        facts |= {f"data/{name}": at for name, at in lerobot_files.place(file).items()}
        facts |= {
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
        }
        rows: lerobot_files.Rows = {}
        measured: dict[str, Measured] = {}
        for key, values in raw.columns.items():
            name = self._name(key)
            # LeRobot has a vector of one number as that number.
            rows[name] = values.reshape(len(values)) if values.shape[1:] == (1,) else values
            measured[name] = lerobot_files.measure(values)
            shape = list(values.shape[1:]) or [1]
            self._features[name] = {"dtype": str(values.dtype), "shape": shape, "names": None}
        for i, key in enumerate(self._target.languages[1:], 1):
            rows[key] = [words[i] if i < len(words) else "" for words in raw.words]
            self._features[key] = {"dtype": "string", "shape": [1], "names": None}
        for slot in raw.stored:
            self._camera(raw, slot, number, rows, facts, measured)
        told = [self._tasks.setdefault(words[0], len(self._tasks)) for words in raw.words]
        steps = np.arange(length)
        own: dict[str, np.ndarray] = {
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": self._frames + steps,
            "task_index": np.array(told),
        }
        for name, column in own.items():
            measured[name] = lerobot_files.measure(column)
            self._features[name] = {"dtype": str(column.dtype), "shape": [1], "names": None}
        for name, each in measured.items():
            said = lerobot_files.statistics(each, name in self._target.cameras.values())
            facts |= {f"stats/{name}/{statistic}": value for statistic, value in said.items()}
        self._facts.append(facts)
        self._measured.append(measured)
        self._frames += length
        return rows | own

    def _camera(
        self,
        raw: recorded.Raw,
        slot: str,
        number: int,
        rows: lerobot_files.Rows,
        facts: dict[str, Any],
        measured: dict[str, Measured],
    ) -> None:
        """One camera of an episode, into its rows or a video; what is said of it."""
        key, bgr = self._target.cameras[slot], slot in self._dataset.bgr
        self._name(self._dataset.cameras[slot])
        length = len(raw.words)
        sampled = set(np.linspace(0, length - 1, min(SAMPLED, length)).astype(int).tolist())
        pixels: list[recorded.Pixels] = []

        def shown(sample: bool) -> Iterator[recorded.Pixels]:
            for step, picture in enumerate(raw.stored[slot]()):
                seen = images.raw(picture, bgr)
                if sample and step in sampled:
                    pixels.append(seen)
                yield seen

        if self._loss is None:
            rows[key] = [recorded.encoded(picture, "PNG") for picture in raw.stored[slot]()]
            for _ in shown(True):
                pass
        else:
            at = lerobot_files.place(number)
            path = remote.join(self._out, lerobot_files.VIDEO.format(video_key=key, **at))
            lerobot_files.write_video(path, shown(True), self._fps)
            stamps = video.timeline(path).stamps.tolist()
            for was, now in zip(shown(False), video.frames(path, stamps), strict=True):
                self._loss.add(slot, was, now)
            facts |= {f"videos/{key}/{name}": value for name, value in at.items()}
            facts |= {
                f"videos/{key}/from_timestamp": 0.0,
                f"videos/{key}/to_timestamp": length / self._fps,
            }
        measured[key] = lerobot_files.measure(np.concatenate([p.reshape(-1, 3) for p in pixels]))
        self._features[key] = {
            "dtype": "image" if self._loss is None else "video",
            "shape": list(pixels[0].shape),
            "names": ["height", "width", "channels"],
        }

    def _name(self, key: str) -> str:
        """The key of a feature here. Raises ValueError where it cannot be undone, or is taken."""
        name = key.replace("/", ".")
        if "." in key or name in (*lerobot_files.OWN, TASK):
            raise ValueError(
                f"{self._dataset.name}: expected features whose keys have no '.' and are none of"
                f" LeRobot's own, got {key!r}; rename it, or leave it out of the description"
            )
        return name
