"""Writes README.md in this folder: one row per dataset. `python -m
data_pipelines.datasets.table`
"""

import re
from pathlib import Path

from data_pipelines.datasets import DATASETS, Dataset
from data_pipelines.datasets.image_text import IMAGE_TEXT
from data_pipelines.datasets.mixtures import MIXTURES
from data_pipelines.datasets.names import EEF

README = Path(__file__).with_name("README.md")

INTRODUCTION = """\
# Datasets

Written by `python -m data_pipelines.datasets.table` from the entries in this folder; do not edit
it.

"7-D" is the field's convention: motion x, y, z, roll, pitch, yaw, and a gripper that is 1 when
open. A gripper is never normalised; where the recorded number could leave [0, 1], the entry clips
it. The control rate is that of the standardised steps. *BGR*: stored blue first, swapped on
reading. *Octo blanks*: Octo trains on it without its instructions; they are kept here.

## What actions aim at

`targets` of a dataset says it, for grippers too, which stay open or closed in all of them:

- `absolute`: positions to be reached, learnt as they are recorded.
- `delta`: motions during a step, in the base frame.
- `relative`: recorded as positions, learnt as their difference to the state at the frame where the
  chunk starts. The statistics are of these differences; the policy gives positions back, needs the
  robot's state for it at every request, and sees the action before from the newest state too.

Of ALOHA, whose targets are absolute joint positions, and of a hand's pose whose rotation is a
quaternion; `relative_to` pairs dims whose names differ, and what is not in it stays absolute:

```python
import dataclasses
from data_pipelines.datasets import DATASETS, Dataset
from data_pipelines.datasets.names import QUAT
from data_pipelines.standardise import Moved, Offset, Recipe, Turned

absolute = DATASETS["aloha_static_dataset"]
relative = dataclasses.replace(absolute, name="aloha_relative", targets="relative")
joints = absolute.standardise.actions  # four parts: joints, gripper, joints, gripper
delta = dataclasses.replace(
    absolute,
    name="aloha_delta",
    targets="delta",
    standardise=dataclasses.replace(
        absolute.standardise,
        actions=(
            Offset("action[0:6]", "observation/state[0:6]"),
            joints[1],
            Offset("action[7:13]", "observation/state[7:13]"),
            joints[3],
        ),
    ),
)
pose = Dataset(
    name="pose",
    version="1.0.0",
    cameras={"primary": "observation/image"},
    language="language_instruction",
    control_hz=10.0,
    download="ask Ada",
    standardise=Recipe(actions=("action",), state=("observation/pose",)),
    action_names=(*QUAT, "gripper"),
    state_names=QUAT,
    binary=(7,),
    targets="relative",
    rotations={"quat_xyzw": ("qx", "qy", "qz", "qw")},
)
reached = Recipe(  # the motion to the next step's pose, a rotation composed and not subtracted
    actions=(Moved("pose[0:3]"), Turned("pose[3:7]", "quat_xyzw"), "gripper")
)
```

A robot that is told positions and a policy of deltas: an `Offset` is added to the state measured at
its step (`vla_jax.robot.relative.compose`), motions reached add up from the state measured at the
chunk's first (`integrate` there). Rotations (`vla_jax/robot/rotations.py`): `euler`, `quat_xyzw`,
`quat_wxyz`, `rot6d`, `axis_angle`, each from each in a part (`"action[3:7] rot6d_from_quat_xyzw"`);
`rotations={"angle": (...)}` names single angles that go round.

## All of them

| name | robot | cameras | state | action | Hz | episodes | notes |
|---|---|---|---|---|---|---|---|
"""


def table() -> str:
    """The text of README.md."""
    rows = "".join(_row(dataset) for _, dataset in sorted(DATASETS.items()))
    mixtures = "".join(
        f"| `{name}` | {len(members)} |"
        f" {', '.join(f'{member} {weight:.12g}' for member, weight in members)} |\n"
        for name, members in MIXTURES.items()
    )
    texts = "".join(
        f"| `{name}` | {dataset.tfds_name}/{dataset.version} | {dataset.image} | "
        f"{dataset.question or repr(dataset.prompt)} | {dataset.answer} |\n"
        for name, dataset in IMAGE_TEXT.items()
    )
    return (
        f"{INTRODUCTION}{rows}\n## Mixtures\n\n| name | datasets | weights"
        f" |\n|---|---|---|\n{mixtures}\n## Images with texts\n\nFor co-training"
        " (`objectives.image_text`). Texts may be sequences: one of them is drawn each time.\n\n|"
        " name | files | image | question | answer |\n|---|---|---|---|---|\n" + texts
    )


def _row(dataset: Dataset) -> str:
    cameras = [
        f"{slot}: {key.removeprefix('observation/')}" + (" *BGR*" if slot in dataset.bgr else "")
        for slot, key in dataset.cameras.items()
    ]
    action = (
        "7-D"
        if dataset.action_names == EEF
        else f"{len(dataset.action_names)}-D{' ' * bool(dataset.targets)}{dataset.targets}:"
        f" {_words(dataset.action_names)}"
    )
    state = (
        f"{len(dataset.state_names)}-D: {_words(dataset.state_names)}"
        if dataset.state_names
        else "none"
    )
    rate = "unknown" if dataset.control_hz is None else f"{dataset.control_hz:g}"
    notes = ("*Octo blanks* its instructions.",) * dataset.blanked + dataset.notes
    cells = [
        f"`{dataset.name}`",
        dataset.robot or "unknown",
        ", ".join(cameras) or "none",
        state,
        action,
        rate,
    ]
    cells += ["" if dataset.episodes is None else f"{dataset.episodes:,}", " ".join(notes)]
    return f"| {' | '.join(cells)} |\n"


def _words(names: tuple[str, ...]) -> str:
    """Names with runs of joints in short: joint_1 ... joint_7 -> joint_1-7."""
    return re.sub(r"(\w*joint_1)(?:, \w*joint_\d)*, \w*joint_(\d)", r"\1-\2", ", ".join(names))


if __name__ == "__main__":
    README.write_text(table())
    print(f"{README}: {len(DATASETS)} datasets, {len(MIXTURES)} mixtures")
