"""How episodes ended, from the files of every format into the index, and what is refused."""

import dataclasses
import json

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import report
from data_pipelines.builders import rlds_files
from data_pipelines.datasets import DATASETS, lerobot
from data_pipelines.files import outcomes
from data_pipelines.files.outcomes import FAILURE, SUCCESS, UNKNOWN
from data_pipelines.index import open_index
from data_pipelines.selection import Selection
from tests.data_pipelines import hdf5_files, lerobot_files
from tests.data_pipelines.blocks_files import edit, files, rewrite, shard
from tests.data_pipelines.lerobot_files import CAMERAS, LENGTHS, MINE

ALL = Selection(held_out=0)
ENDED = (1, 0, 1, 0, 0, 1)
DROID = "gs://x/r2d2-data-full/{}/2023-04-21/Fri_Apr_21_10:42:22_2023/trajectory.h5"


@pytest.mark.parametrize(
    ("values", "ended"),
    [
        ([0, 0, 1], SUCCESS),
        ([True, True], SUCCESS),
        ([0.0, 0.0], FAILURE),
        ([0, 1, 0], UNKNOWN),  # undone
        ([np.nan], UNKNOWN),
        ([], UNKNOWN),
    ],
)
def test_the_last_step_counts(values, ended):
    assert outcomes.of_numbers(np.array(values)) == ended


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        (DROID.format("ILIAD/success"), SUCCESS),
        (DROID.format("ILIAD/failure"), FAILURE),
        ("Success", SUCCESS),
        ("unsuccessful", UNKNOWN),
        ("success/failure", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_texts_are_looked_through_for_words(text, ended):
    assert outcomes.of_text(text) == outcomes.of_value(text.encode()) == ended


def flagged(folder, flags, name="next.success"):
    """A LeRobot dataset whose frames say whether the episode succeeded, from two before the end."""
    lerobot_files.write(folder, "v3.0", images=CAMERAS)
    shape = {"dtype": "bool", "shape": [1], "names": None}
    edit(folder / "meta/info.json", lambda info: info["features"].update({name: shape}))
    for path in sorted(folder.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        numbers, frames = (table[key].to_pylist() for key in ("episode_index", "frame_index"))
        rows = [
            bool(flags[n]) and t >= LENGTHS[n] - 2 for n, t in zip(numbers, frames, strict=True)
        ]
        pq.write_table(table.append_column(name, pa.array(rows)), path)


def test_lerobots_flags_are_found_and_change_nothing_that_is_learnt(tmp_path, capsys):
    folder = tmp_path / "mine"
    flagged(folder, ENDED)
    own = lerobot.described(str(folder))
    assert own.outcome == "next.success"
    plain = dataclasses.replace(own, outcome="")
    before = open_index(tmp_path, plain, tmp_path / "a", Selection(held_out=2))
    assert not len(before.splits["train"].outcome)
    capsys.readouterr()
    index = open_index(tmp_path, own, tmp_path / "a", Selection(held_out=2))
    assert "outcome changed); building it again" in capsys.readouterr().out
    assert before.digest == index.digest  # a run goes on
    assert index.splits["train"].outcome.tolist() == list(ENDED[:4])
    assert index.splits["val"].outcome.tolist() == list(ENDED[4:])
    measured = report.measure(own, index.splits["train"])
    assert measured["outcomes"] == {"successes": 2, "failures": 2, "unknown": 0}
    assert any("2 successes, 2 failures" in line for line in report.lines(own, "train", measured))


@pytest.mark.slow
def test_what_meta_says_of_lerobots_episodes(tmp_path):
    described = dataclasses.replace(MINE, outcome="episode_metadata/how")
    lerobot_files.write(tmp_path / "old/mine", "v2.1", images=CAMERAS)
    listed = tmp_path / "old/mine/meta/episodes.jsonl"
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    with pytest.raises(ValueError, match="promises the outcome 'how' of each episode"):
        open_index(tmp_path / "old", described, tmp_path / "a", ALL)
    words = ("success", "failure", "success", None, "failure", "success")
    for row, how in zip(rows, words, strict=True):
        row["how"] = how
    lerobot_files.lines(listed, rows)
    split = open_index(tmp_path / "old", described, tmp_path / "b", ALL).splits["train"]
    assert split.outcome.tolist() == [1, 0, 1, UNKNOWN, 0, 1]
    lerobot_files.write(tmp_path / "new/mine", "v3.0", images=CAMERAS)
    (path,) = (tmp_path / "new/mine/meta/episodes").glob("*/*.parquet")
    table = pq.read_table(path)
    pq.write_table(
        table.append_column("how", pa.array([True, False, True, False, False, None])), path
    )
    split = open_index(tmp_path / "new", described, tmp_path / "c", ALL).splits["train"]
    assert split.outcome.tolist() == [1, 0, 1, 0, 0, UNKNOWN]


@pytest.mark.slow
def test_droids_paths_and_flags_of_steps_in_rlds(root, tmp_path):
    path = shard(root)
    said = iter(("success", "failure", "elsewhere"))

    def name(features):
        steps = len(features["steps/is_first"])
        features["episode_metadata/file_path"] = [DROID.format(word := next(said)).encode()]
        features["steps/won"] = np.array([0] * (steps - 1) + [word == "success"])

    rewrite(path, name, 3)
    for other in set(files(root).glob("*.tfrecord-*")) - {path}:
        said = iter(("failure",) * 3)
        rewrite(other, name, 3)

    def add(body):
        features = body["featuresDict"]["features"]
        features["episode_metadata"] = rlds_files.folder({"file_path": rlds_files.text()})
        steps = features["steps"]["sequence"]["feature"]["featuresDict"]["features"]
        steps["won"] = rlds_files.tensor("int64")
        steps["wide"] = rlds_files.tensor("int64", 2)

    edit(files(root) / "features.json", add)
    blocks = DATASETS["blocks"]
    for key, third in (("episode_metadata/file_path", UNKNOWN), ("won", FAILURE)):
        described = dataclasses.replace(blocks, outcome=key)
        split = open_index(root, described, tmp_path / key, ALL).splits["train"]
        assert split.outcome.tolist() == [SUCCESS, FAILURE, third, *[FAILURE] * 3]
    for key, problem in (
        ("lost", "promises outcome as the tensor feature 'steps/lost'"),
        ("episode_metadata/lost", "promises the episode feature 'episode_metadata/lost'"),
        ("wide", "expected one number a step as the outcome"),
        ("language_instruction", "as the outcome .*, got texts"),
    ):
        with pytest.raises(ValueError, match=problem):
            open_index(root, dataclasses.replace(blocks, outcome=key), tmp_path / "no", ALL)


@pytest.mark.slow
def test_rewards_and_attributes_in_hdf5(tmp_path):
    path = tmp_path / "libero/demo.hdf5"
    hdf5_files.write_demos(path)
    with h5py.File(path, "r+") as file:
        file["data/demo_1/rewards"][-1] = 1
        for demo in hdf5_files.LENGTHS:
            file[f"data/demo_{demo}"].attrs["how"] = "success" if demo == 10 else "failed"
    for key, ended in (("rewards", [0, 1, 0, 0]), ("how", [0, 0, 0, 1])):
        described = dataclasses.replace(hdf5_files.LIBERO, outcome=key)
        split = open_index(tmp_path, described, tmp_path / key, ALL).splits["train"]
        assert split.outcome.tolist() == ended
    described = dataclasses.replace(hdf5_files.LIBERO, outcome="lost")
    with pytest.raises(ValueError, match="expected the outcome 'lost'"):
        open_index(tmp_path, described, tmp_path / "no", ALL)
