"""Episodes of rollouts as a LeRobot dataset (v3.0) with how they ended, and its description.

Row t of an episode is what was seen before action t. One more row is what was seen at its end, with
an action at rest: motions are 0, the rest is as it was. Only there a success is to be seen.

Axes: t step, d action dim.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.builders import lerobot_files, recorded
from data_pipelines.builders.lerobot_files import Measured
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.windows import motion
from vla_jax.types import Seen

PICTURES, STATE, ACTION = "observation.images.", "observation.state", "action"
OUTCOME = "next.success"
LARGEST = 64 * 2**20  # bytes of pictures after which another file begins

DESCRIPTION = '''"""Episodes of rollouts, written by experiments.record."""

import dataclasses

from data_pipelines.datasets import DATASETS as KNOWN
from data_pipelines.standardise import Recipe

DATASETS = {{
    {name!r}: dataclasses.replace(
        KNOWN[{robot!r}],
        name={name!r},
        tfds_name={name!r},
        version="",
        cameras={cameras!r},
        language="task",
        instruction="",
        control_hz={hz!r},
        standardise=Recipe(actions=({action!r},), state={state!r}),
        outcome={outcome!r},
        require="",
        pattern="",
        first_frame="",
        segments=False,
        sensors={{}},
        bgr=(),
        download="python -m experiments.record",
        notes=(),
    )
}}
'''


class Recording:
    """A dataset while it is written, to be closed; before `finish` it is none."""

    def __init__(self, root: Path, name: str, robot: Dataset, control_hz: float) -> None:
        """It goes to root/name, `robot` is the dataset whose robot acts. Raises ValueError for a
        folder that is not new.
        """
        self._folder, self._name, self._robot, self._hz = root / name, name, robot, control_hz
        if self._folder.exists() and any(self._folder.iterdir()):
            raise ValueError(f"{self._folder}: expected a folder that is new, got files; remove it")
        self._tasks: dict[str, int] = {}
        self._facts: list[dict[str, Any]] = []
        self._measured: list[dict[str, Measured]] = []
        self._features: dict[str, Any] = {}
        self._frames = self._bytes = self._number = 0
        self._file = lerobot_files.DataFile(str(self._folder), 0)

    def add(self, told: str, seen: Sequence[Seen], actions: np.ndarray, success: bool) -> None:
        """The next episode: what was told, what was seen [t + 1], and what was done [t d]. Raises
        ValueError for a world with another state than the robot's.
        """
        if self._bytes > LARGEST:
            self._file.close()
            self._number, self._bytes = self._number + 1, 0
            self._file = lerobot_files.DataFile(str(self._folder), self._number)
        length, number = len(seen), len(self._facts)
        rest = np.array(actions[-1])
        rest[motion(self._robot)] = 0
        numbers: dict[str, np.ndarray] = {
            ACTION: np.concatenate([actions, rest[None]]).astype(np.float32),
            OUTCOME: success & (np.arange(length) >= length - 2),
        }
        if self._robot.state_names:
            state = np.array([each.proprio for each in seen], np.float32)
            if state.shape[1:] != (len(self._robot.state_names),):
                raise ValueError(
                    f"{self._robot.name}: expected a state of {len(self._robot.state_names)}"
                    f" numbers of the world, got {list(state.shape[1:])}"
                )
            numbers[STATE] = state
        pictures = {
            f"{PICTURES}{slot}": [recorded.encoded(each.images[slot], "JPEG") for each in seen]
            for slot in seen[0].images
        }
        steps = np.arange(length)
        own: dict[str, np.ndarray] = {
            "timestamp": (steps / self._hz).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": self._frames + steps,
            "task_index": np.full(length, self._tasks.setdefault(told, len(self._tasks))),
        }
        self._file.add({**numbers, **pictures, **own})
        self._bytes += sum(len(each) for rows in pictures.values() for each in rows)
        self._note({**numbers, **own}, seen, told)

    def _note(self, columns: dict[str, np.ndarray], seen: Sequence[Seen], told: str) -> None:
        """What meta/ says of the episode that was added."""
        length = len(seen)
        measured = {name: lerobot_files.measure(values) for name, values in columns.items()}
        names = {ACTION: list(self._robot.action_names), STATE: list(self._robot.state_names)}
        for name, values in columns.items():
            shape = list(values.shape[1:]) or [1]
            kind = {"dtype": str(values.dtype), "shape": shape, "names": names.get(name)}
            self._features[name] = kind
        for slot, picture in seen[-1].images.items():
            pixels = np.concatenate([seen[0].images[slot], picture]).reshape(-1, 3)
            measured[f"{PICTURES}{slot}"] = lerobot_files.measure(pixels)
            self._features[f"{PICTURES}{slot}"] = {
                "dtype": "image",
                "shape": list(picture.shape),
                "names": ["height", "width", "channels"],
            }
        facts: dict[str, Any] = {"episode_index": len(self._facts), "length": length}
        facts |= {"tasks": [told], "dataset_from_index": self._frames}
        facts["dataset_to_index"] = self._frames + length
        at = lerobot_files.place(self._number)
        facts |= {f"data/{name}": value for name, value in at.items()}
        for name, each in measured.items():
            said = lerobot_files.statistics(each, name.startswith(PICTURES))
            facts |= {f"stats/{name}/{statistic}": value for statistic, value in said.items()}
        self._facts.append(facts)
        self._measured.append(measured)
        self._frames += length

    def close(self) -> None:
        """Closes its files, whether it was finished or not."""
        self._file.close()

    def finish(self) -> Path:
        """Ends it; the file with its description, which lies beside its folder."""
        self._file.close()
        stats = {}
        for name in self._measured[0]:
            whole = lerobot_files.together([each[name] for each in self._measured])
            stats[name] = lerobot_files.statistics(whole, name.startswith(PICTURES))
        fps = int(self._hz) if self._hz == int(self._hz) else self._hz
        info = {"robot_type": self._robot.robot, "fps": fps, "features": self._features}
        info["splits"] = {"train": f"0:{len(self._facts)}"}
        out = self._folder.with_name(f"{self._name}.py")
        part = out.with_name(out.name + ".part")
        slots = [name for name in self._features if name.startswith(PICTURES)]
        text = DESCRIPTION.format(
            name=self._name,
            robot=self._robot.name,
            cameras={name.removeprefix(PICTURES): name for name in slots},
            hz=float(self._hz),
            action=ACTION,
            state=(STATE,) if STATE in self._features else (),
            outcome=OUTCOME,
        )
        part.write_text(text, encoding="utf-8")
        os.replace(part, out)
        lerobot_files.finish(str(self._folder), info, self._facts, list(self._tasks), stats)
        return out
