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
        else f"{len(dataset.action_names)}-D: {_words(dataset.action_names)}"
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
