"""A user's own dataset file, and reviewed lists of bad episodes."""

import re

import numpy as np
import pytest

from data_pipelines import quarantine
from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import user
from data_pipelines.index import open_index

OWN = """
import numpy as np
from data_pipelines.datasets import Dataset, Standardised

def standardise(columns):
    state = columns["pose"].astype(np.float32)
    actions = np.concatenate([np.diff(state[:, :6], axis=0), columns["command"][:-1, 6:]], axis=1)
    return Standardised(actions.astype(np.float32), state[:-1], np.arange(len(actions)))

mine = Dataset(
    name="mine",
    tfds_name="blocks",
    version="1.0.0",
    cameras={"wrist": "observation/wrist_image"},
    columns={"pose": "observation/state", "command": "action"},
    language="language_instruction",
    control_hz=12.0,
    download="ask me",
    standardise=standardise,
    state_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
)
DATASETS = {"mine": mine}
MIXTURES = {"both": (("mine", 1.0), ("bridge", 0.5))}
"""


def test_a_file_of_the_users_is_read_like_ours(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    datasets, mixtures = user.load(str(tmp_path / "own.py"))
    assert mixtures == {"both": (("mine", 1.0), ("bridge", 0.5))}
    write_blocks(tmp_path, train=3, val=1)
    split = open_index(tmp_path, datasets["mine"]).splits["train"]
    assert list(split.frames) == ["wrist"]
    first = slice(0, split.length[0] - 1)
    np.testing.assert_allclose(
        split.actions[first, :6], np.diff(split.state[: split.length[0], :6], axis=0), atol=1e-6
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"own.py: expected DATASETS = \{name: Dataset"),
        (
            "DATASETS = {'a': 1}",
            r"DATASETS\['a'\]: expected a data_pipelines.datasets.Dataset of that name, got int",
        ),
        (OWN.replace('{"mine"', '{"other"'), r"DATASETS\['other'\]: .*got Dataset 'mine'"),
        (OWN.replace('"both"', '"bridge"'), r"bridge: these names are ours"),
    ],
)
def test_what_is_not_a_dataset_file_is_refused(tmp_path, text, message):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        user.load(str(tmp_path / "own.py"))


def test_a_dataset_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.datasets: expected a Python file, found none at"):
        user.load(str(tmp_path / "none.py"))


def test_quarantine_lists_round_trip(tmp_path):
    path = tmp_path / "bad.txt"
    quarantine.write(
        path, [("b-train", 3, "step 1:\nNaN"), ("a-train", 7, "x"), ("b-train", 3, "no JPEG")]
    )
    assert path.read_text() == "a-train 7  # x\nb-train 3  # step 1: NaN | no JPEG\n"
    path.write_text("# reviewed\n\n" + path.read_text())
    assert quarantine.read(path) == {("a-train", 7), ("b-train", 3)}


@pytest.mark.parametrize("line", ["a-train", "a-train x", "a-train 1 2", "a-train -1"])
def test_a_line_that_is_no_episode_is_refused(tmp_path, line):
    (tmp_path / "bad.txt").write_text("a-train 1\n" + line)
    with pytest.raises(ValueError, match=re.escape("line 2: expected 'shard_file record_number")):
        quarantine.read(tmp_path / "bad.txt")


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.quarantine: no file"):
        quarantine.read(tmp_path / "bad.txt")
