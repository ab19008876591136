"""RLDS episodes: what is read, and what is refused."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.builders import rlds_files
from data_pipelines.datasets import DATASETS
from data_pipelines.files import rlds, tfds_folder, tfrecord
from data_pipelines.files.features import FLAGS
from data_pipelines.index import FOLDER, open_index
from tests.data_pipelines.blocks_files import FIRST, edit, files, flip, rewrite, shard
from tests.wheels import needs_tensorflow

BLOCKS = DATASETS["blocks"]


def step(body):
    """The features of a step in features.json."""
    steps = body["featuresDict"]["features"]["steps"]
    return steps["sequence"]["feature"]["featuresDict"]["features"]


@pytest.mark.parametrize("where", ["header", "data", "end"])
def test_flipped_bit_names_file_and_record(root, where):
    path = shard(root)
    second = list(tfrecord.read(path))[1]
    body = bytearray(path.read_bytes())
    body[
        {
            "header": second.offset - 12,
            "data": second.offset + 100,
            "end": second.offset + len(second.data),
        }[where]
    ] ^= 4
    path.write_bytes(body)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: record 1: damaged"):
        open_index(root, BLOCKS)
    assert not (files(root) / FOLDER).exists()


@pytest.mark.parametrize("cut", [1, 5, "header"])
def test_truncated_record_names_file_and_record(root, cut):
    path = shard(root)
    last = list(tfrecord.read(path))[-1]
    os.truncate(path, last.offset - 5 if cut == "header" else path.stat().st_size - cut)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: record 2: damaged.*cut short"):
        open_index(root, BLOCKS)


def test_missing_records_are_refused(root):
    path = shard(root)
    os.truncate(path, list(tfrecord.read(path))[-1].offset - 12)
    with pytest.raises(ValueError, match=r"expected 3 records.*got 2"):
        open_index(root, BLOCKS)


@pytest.mark.parametrize(
    ("key", "what"), [("image", "camera 'primary'"), ("state", "column 'state'")]
)
def test_missing_feature_is_named(root, key, what):
    def drop(body):
        step = body["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"][
            "features"
        ]
        del step["observation"]["featuresDict"]["features"][key]

    edit(files(root) / tfds_folder.FEATURES, drop)
    with pytest.raises(
        ValueError, match=rf"promises {what} .*'steps/observation/{key}', got no such feature"
    ):
        open_index(root, BLOCKS)


@pytest.mark.parametrize("key", ["action", "language_instruction"])
def test_missing_step_feature_is_named(root, key):
    def drop(body):
        del body["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"][
            "features"
        ][key]

    edit(files(root) / tfds_folder.FEATURES, drop)
    with pytest.raises(ValueError, match=rf"'steps/{key}', got no such feature"):
        open_index(root, BLOCKS)


@pytest.mark.parametrize(
    ("dtype", "channels"),
    [("uint16", "1"), ("float32", "1"), ("uint8", "2"), ("float32", "4"), ("uint16", "3")],
)
def test_depth_is_no_camera(root, dtype, channels):
    """16 bits in a PNG, or a float32 in the four bytes of an RGBA one: colours out of nothing."""

    def declare(body):
        image = step(body)["observation"]["featuresDict"]["features"]["image"]["image"]
        image["dtype"], image["shape"]["dimensions"][-1] = dtype, channels

    edit(files(root) / tfds_folder.FEATURES, declare)
    with pytest.raises(
        ValueError,
        match=rf"'steps/observation/image': expected a picture of uint8 .* got {dtype} of shape"
        rf" \[32, 32, {channels}\]; depth is no camera",
    ):
        open_index(root, BLOCKS)


@pytest.mark.parametrize("change", ["1", "4", "", "no shape", "no dtype"])
def test_pictures_that_are_taken(root, change, capsys):
    """Gray, with alpha, and where features.json does not say."""

    def declare(body):
        image = step(body)["observation"]["featuresDict"]["features"]["image"]["image"]
        if change.startswith("no "):
            del image[change[3:]]
        else:
            image["shape"]["dimensions"][-1] = change or "-1"

    edit(files(root) / tfds_folder.FEATURES, declare)
    open_index(root, BLOCKS)
    said = {"1": "image is gray: three equal channels", "4": "image has alpha, which is dropped"}
    assert (f"observation/{said.get(change, '')}" in capsys.readouterr().out) == (change in said)


def test_feature_missing_from_a_record_is_named(root):
    rewrite(shard(root), lambda features: features.pop("steps/observation/image"))
    with pytest.raises(
        ValueError, match=r"record 0: observation/image: expected byte strings, got nothing"
    ):
        open_index(root, BLOCKS)


def test_uneven_features_are_refused(root):
    rewrite(shard(root), lambda features: features["steps/observation/image"].pop())
    with pytest.raises(
        ValueError,
        match=(
            r"record 0: observation/image: expected as many steps in every feature,"
            rf" got .*image {FIRST - 1},"
        ),
    ):
        open_index(root, BLOCKS)


@pytest.mark.parametrize("key", ["action", "observation/state"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_names_file_episode_step_and_field(root, key, value):
    def spoil(features):
        features[f"steps/{key}"][7 * 3 + 2] = value

    path = shard(root, "val")
    rewrite(path, spoil)
    with pytest.raises(
        ValueError,
        match=rf"{re.escape(str(path))}: record 0: step 3: {key}\[2\]: expected a finite",
    ):
        open_index(root, BLOCKS)


def test_wrong_width_is_named(root):
    rewrite(
        shard(root),
        lambda f: f.update({"steps/action": np.zeros(len(f["steps/is_first"]) * 8, np.float32)}),
    )
    with pytest.raises(
        ValueError,
        match=rf"record 0: action: expected 7 numbers a step .*got 8 in each of {FIRST} steps",
    ):
        open_index(root, BLOCKS)


def test_episode_without_steps_is_refused(root):
    rewrite(shard(root), lambda f: f.update({key: value[:0] for key, value in f.items()}))
    with pytest.raises(
        ValueError,
        match=r"record 0: expected at least one step, got an episode of none; .*quarantine",
    ):
        open_index(root, BLOCKS)


def test_episode_that_standardisation_empties_is_kept(root, capsys):
    def last_only(columns):
        whole = BLOCKS.standardise(columns)
        return type(whole)(*(value[:0] if len(value) == FIRST else value for value in whole))

    index = open_index(root, dataclasses.replace(BLOCKS, standardise=last_only))
    split = index.splits["train"]
    assert "episodes too short for a step" in capsys.readouterr().out
    assert len(split.length) == 6
    assert 0 < (split.length == 0).sum() < 6
    assert split.length.sum() == len(split.actions) == len(split.frames["wrist"].offset)
    np.testing.assert_array_equal(split.first, np.cumsum(split.length) - split.length)


@pytest.mark.parametrize(("flag", "step", "only"), [("is_first", 4, 0), ("is_last", 0, FIRST - 1)])
def test_order_of_steps_that_contradicts_the_flags_is_refused(root, flag, step, only):
    rewrite(shard(root), lambda f: f[f"steps/{flag}"].__setitem__(step, 1))
    expected = (
        rf"record 0: step {step}: {flag}: RLDS step order: expected True at step {only} alone"
    )
    with pytest.raises(ValueError, match=expected):
        open_index(root, BLOCKS)


def test_reversed_steps_are_refused(root):
    rewrite(
        shard(root),
        lambda f: f.update({f"steps/{k}": f[f"steps/{k}"][::-1].copy() for k in FLAGS}),
    )
    with pytest.raises(
        ValueError,
        match=(
            rf"record 0: step {FIRST - 1}: is_first: RLDS step order: expected True at step 0"
            " alone"
        ),
    ):
        open_index(root, BLOCKS)


def test_an_episode_cut_out_of_a_longer_one_is_read(root):
    rewrite(
        shard(root), lambda f: f.update({f"steps/{k}": np.zeros(FIRST, np.int64) for k in FLAGS})
    )
    assert len(open_index(root, BLOCKS).splits["train"].length) == 6


def test_empty_file_is_refused(root):
    shard(root).write_bytes(b"")
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(shard(root)))}: expected 3 records .*the file is empty"
    ):
        open_index(root, BLOCKS)


def test_words_that_are_not_utf8_are_refused(root):
    rewrite(shard(root), lambda f: f.update({"steps/language_instruction": [b"push \xff"] * FIRST}))
    with pytest.raises(
        ValueError,
        match=r"record 0: step 0: language_instruction: expected an instruction in UTF-8",
    ):
        open_index(root, BLOCKS)


def language_as_code_points(root, points):
    """The dataset with eight code points a step for an instruction."""

    def change(body):
        step = body["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"][
            "features"
        ]
        shape = {"dimensions": ["8"]}
        step["words"] = {
            "pythonClassName": "Tensor",
            "tensor": {"shape": shape, "dtype": "int32", "encoding": "none"},
        }

    edit(files(root) / tfds_folder.FEATURES, change)
    for path in files(root).glob("*.tfrecord*"):
        rewrite(
            path,
            lambda f: f.update({"steps/words": np.tile(points, len(f["steps/is_first"]))}),
            records=3,
        )
    return dataclasses.replace(BLOCKS, language="words")


def test_episodes_that_are_not_to_be_used_are_left_out(root):
    """Kuka's failures, for one."""
    wanted = dataclasses.replace(BLOCKS, require="success")
    with pytest.raises(
        ValueError, match=r"promises the episode feature 'success', got no such feature"
    ):
        open_index(root, wanted)

    def declare(body):
        body["featuresDict"]["features"]["success"] = rlds_files.tensor("bool")

    edit(files(root) / tfds_folder.FEATURES, declare)
    for split in ("train", "val"):
        for path in files(root).glob(f"*-{split}.*"):
            used = iter([True, False, True])
            rewrite(
                path,
                lambda features, used=used: features.update(success=np.array([next(used)])),
                records=9,
            )
    assert len(open_index(root, BLOCKS).splits["train"].length) == 6
    train = open_index(root, wanted).splits["train"]
    assert train.record.tolist() == [0, 2, 0, 2]
    rewrite(shard(root), lambda features: features.pop("success"))
    with pytest.raises(ValueError, match=r"record 0: success: expected one number"):
        open_index(root, wanted)


def test_words_as_code_points(root):
    dataset = language_as_code_points(root, [*map(ord, "légo☃"), 0, ord("x"), 0])
    assert open_index(root, dataset).splits["val"].sentences == ("légo☃",)


@pytest.mark.parametrize("bad", [0xD800, -1, 0x110000, 2**40])
def test_code_points_that_are_none_are_refused(root, bad):
    dataset = language_as_code_points(root, [104, bad, 0, 0, 0, 0, 0, 0])
    with pytest.raises(
        ValueError, match="record 0: step 0: words: expected an instruction in UTF-8"
    ):
        open_index(root, dataset)


def test_strings_reach_standardise_as_bytes(root):
    seen = []

    def look(columns):
        seen.append(columns["words"])
        return BLOCKS.standardise(columns)

    columns = {**BLOCKS.columns, "words": "language_instruction"}
    index = open_index(root, dataclasses.replace(BLOCKS, columns=columns, standardise=look))
    # Threads read the files: the episodes come in any order.
    lengths = [steps for split in index.splits.values() for steps in split.length]
    assert sorted(words.shape for words in seen) == sorted((steps,) for steps in lengths)
    assert FIRST in lengths
    assert all(words.dtype == object for words in seen)
    assert all(isinstance(text, bytes) for words in seen for text in words)


def test_what_standardise_refuses_names_the_episode(root):
    def fail(columns):
        raise ValueError("no gripper")

    with pytest.raises(
        rlds.EpisodeError, match="record 0: actions: standardising failed: no gripper"
    ) as caught:
        open_index(root, dataclasses.replace(BLOCKS, standardise=fail))
    assert (caught.value.record, caught.value.step, caught.value.field) == (0, None, "actions")


def test_bad_episodes_are_collected(root):
    path = shard(root)
    rewrite(path, lambda f: f["steps/action"].__setitem__(9, np.nan))
    flip(path, 1)
    errors = []
    episodes = list(
        rlds.episodes(rlds.check(str(files(root)), BLOCKS)["train"][0], 0, BLOCKS, errors.append)
    )
    assert [episode.record for episode in episodes] == [2]
    assert [(e.record, e.step, e.field) for e in errors] == [(0, 1, "action[2]"), (1, None, "")]
    assert all(e.path == str(path) and e.fix and e.problem in str(e) for e in errors)


def test_damage_that_hides_the_rest_is_reported_once(root):
    path = shard(root)
    body = bytearray(path.read_bytes())
    body[list(tfrecord.read(path))[1].offset - 12] ^= 1  # the length of record 1
    path.write_bytes(body)
    errors = []
    episodes = list(
        rlds.episodes(
            rlds.check(str(files(root)), BLOCKS)["train"][0], 0, BLOCKS, errors.append, {1, 2}
        )
    )
    assert [episode.record for episode in episodes] == [0]
    assert [e.record for e in errors] == [1]


def test_empty_split_is_refused(root):
    edit(files(root) / tfds_folder.INFO, lambda body: body["splits"][1].update(shardLengths=["0"]))
    with pytest.raises(ValueError, match="split 'val' is empty"):
        open_index(root, BLOCKS)


def test_wrong_shard_count_is_refused(root):
    edit(
        files(root) / tfds_folder.INFO,
        lambda body: body["splits"][0].update(shardLengths=["3", "2", "1"]),
    )
    with pytest.raises(ValueError, match=r"split 'train': expected 3 shards .*got 2 files"):
        open_index(root, BLOCKS)


def test_absent_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dataset_info\.json"):
        open_index(tmp_path, BLOCKS)


def test_no_tensorflow():
    rooms = "data_pipelines.loader, data_pipelines.image_text, data_pipelines.builders.blocks"
    code = f"import sys, {rooms}; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.slow
@needs_tensorflow
def test_tfds_reads_the_same(written, tmp_path):
    """In its own process: TensorFlow warns on import, and our warnings are errors."""
    code = """
import sys
import numpy as np, tensorflow_datasets as tfds
from data_pipelines.builders.blocks import play
builder = tfds.builder_from_directory(sys.argv[1])
for number, (split, count) in enumerate((("train", 6), ("val", 2))):
    episodes = list(builder.as_dataset(split=split))
    assert len(episodes) == count == builder.info.splits[split].num_examples
    for i, episode in enumerate(episodes):
        table, steps = play(0, number, i), list(episode["steps"].as_numpy_iterator())
        assert np.array_equal([s["action"] for s in steps], table.actions)
        assert np.array_equal([s["observation"]["state"] for s in steps], table.states)
        assert np.array_equal([s["observation"]["wrist_image"] for s in steps], table.wrist)
        assert {s["language_instruction"].decode() for s in steps} == {table.instruction}
        assert [s["is_last"] for s in steps] == [False] * (len(steps) - 1) + [True]
print("equal")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(files(written))],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
