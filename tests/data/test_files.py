"""TFRecord, Example, features and index: what is read, and what is refused."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import images, rlds, tfrecord
from data_pipelines.builders.blocks import play, write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.datasets.bridge import binarise, standardise
from data_pipelines.index import FOLDER, open_index

BLOCKS = DATASETS["blocks"]
RLDS = Path(__file__).parents[3] / "shared" / "data" / "rlds"
needs_bridge = pytest.mark.skipif(
    not (RLDS / "bridge_dataset").is_dir(), reason="no Bridge sample beside the repository"
)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("blocks")
    write_blocks(root, train=6, val=2)
    return root


@pytest.fixture
def root(written, tmp_path):
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


def files(root):
    return root / "blocks" / "1.0.0"


def rewrite(path, change):
    """Applies `change(features)` to the first record of a file and writes all of it again with right checksums."""
    records = [record.data for record in tfrecord.read(path)]
    parsed = tfrecord.parse(records[0])
    features = {
        key: [records[0][a : a + n] for a, n in zip(*value, strict=True)]
        if isinstance(value, tfrecord.Spans)
        else value.copy()
        for key, value in parsed.items()
    }
    change(features)
    tfrecord.write(path, [tfrecord.encode(features), *records[1:]])


def edit(path, change):
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def shard(root, split="train"):
    return sorted(files(root).glob(f"*-{split}.*"))[0]


def test_masked_crc_is_that_of_the_format():
    # The CRC-32C check value of "123456789" is e3069283; rotated by 15 and shifted by the constant of the format.
    expected = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
    assert tfrecord.masked_crc(b"123456789") == expected


def test_example_round_trip():
    features = {
        "bytes": [b"", b"abc", b"x" * 300],
        "floats": np.array([1.5, -2, 3e8], np.float32),
        "ints": np.array([0, 1, -1, 2**62, -(2**63)]),
        "none": [],
    }
    data = tfrecord.encode(features)
    found = tfrecord.parse(data)
    assert [data[a : a + n] for a, n in zip(*found["bytes"], strict=True)] == features["bytes"]
    np.testing.assert_array_equal(found["floats"], features["floats"])
    np.testing.assert_array_equal(found["ints"], features["ints"])
    assert set(tfrecord.parse(data, {"ints"})) == {"ints"}


def test_unpacked_numbers_are_read():
    floats = b"".join(b"\x0d" + struct.pack("<f", v) for v in (1.0, 2.5))
    ints = b"\x08\x07\x08\x80\x01"

    def entry(key, kind, body):
        feature = bytes([kind << 3 | 2, len(body)]) + body
        inner = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(feature)]) + feature
        return b"\x0a" + bytes([len(inner)]) + inner

    body = entry(b"f", 2, floats) + entry(b"i", 3, ints)
    found = tfrecord.parse(b"\x0a" + bytes([len(body)]) + body)
    assert found["f"].tolist() == [1.0, 2.5]
    assert found["i"].tolist() == [7, 128]


def test_malformed_example_is_refused():
    data = tfrecord.encode({"a": np.arange(3.0)})
    for damaged in (data[:-2], data[:1] + b"\xff" * 11):
        with pytest.raises(ValueError, match="malformed Example"):
            tfrecord.parse(damaged)


def test_frames_are_found_at_their_bytes(root):
    split = open_index(root, BLOCKS).splits["val"]
    table = play(0, 1, 0)
    frames = split.frames["wrist"]
    for step in (0, len(table.wrist) - 1):
        body = split.shards[frames.shard[step]].read_bytes()
        picture = images.decode(body[frames.offset[step] : frames.offset[step] + frames.length[step]], 32)
        np.testing.assert_array_equal(picture, table.wrist[step])  # PNG: exact
    np.testing.assert_array_equal(split.actions[: split.length[0]], table.actions)
    assert split.instructions[0] == table.instruction


def test_statistics_are_exact(root):
    split = open_index(root, BLOCKS).splits["train"]
    x = np.concatenate([play(0, 0, i).actions for i in range(6)]).astype(np.float64)
    stats = split.stats["action"]
    expected = {"mean": x.mean(0), "std": x.std(0), "min": x.min(0), "max": x.max(0)}
    expected |= {"q01": np.quantile(x, 0.01, 0), "q99": np.quantile(x, 0.99, 0)}
    assert set(stats) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(stats[name], value)


@pytest.mark.parametrize("where", ["header", "data", "end"])
def test_flipped_bit_names_file_and_record(root, where):
    path = shard(root)
    second = list(tfrecord.read(path))[1]
    body = bytearray(path.read_bytes())
    body[
        {"header": second.offset - 12, "data": second.offset + 100, "end": second.offset + len(second.data)}[where]
    ] ^= 4
    path.write_bytes(body)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: record 1 is damaged"):
        open_index(root, BLOCKS)
    assert not (files(root) / FOLDER).exists()


@pytest.mark.parametrize("cut", [1, 5, "header"])
def test_truncated_record_names_file_and_record(root, cut):
    path = shard(root)
    last = list(tfrecord.read(path))[-1]
    os.truncate(path, last.offset - 5 if cut == "header" else path.stat().st_size - cut)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: record 2 is damaged.*cut short"):
        open_index(root, BLOCKS)


def test_missing_records_are_refused(root):
    path = shard(root)
    os.truncate(path, list(tfrecord.read(path))[-1].offset - 12)
    with pytest.raises(ValueError, match=r"expected 3 records.*got 2"):
        open_index(root, BLOCKS)


@pytest.mark.parametrize(("key", "what"), [("image", "camera 'primary'"), ("state", "column 'state'")])
def test_missing_feature_is_named(root, key, what):
    def drop(body):
        step = body["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
        del step["observation"]["featuresDict"]["features"][key]

    edit(files(root) / rlds.FEATURES, drop)
    with pytest.raises(ValueError, match=rf"promises {what} .*'steps/observation/{key}', got no such feature"):
        open_index(root, BLOCKS)


@pytest.mark.parametrize("key", ["action", "language_instruction"])
def test_missing_step_feature_is_named(root, key):
    def drop(body):
        del body["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"][key]

    edit(files(root) / rlds.FEATURES, drop)
    with pytest.raises(ValueError, match=rf"'steps/{key}', got no such feature"):
        open_index(root, BLOCKS)


def test_feature_missing_from_a_record_is_named(root):
    rewrite(shard(root), lambda features: features.pop("steps/observation/image"))
    with pytest.raises(ValueError, match=r"record 0: observation/image: expected byte strings, got nothing"):
        open_index(root, BLOCKS)


def test_uneven_features_are_refused(root):
    rewrite(shard(root), lambda features: features["steps/observation/image"].pop())
    with pytest.raises(ValueError, match="record 0: expected as many steps in every feature"):
        open_index(root, BLOCKS)


@pytest.mark.parametrize("key", ["action", "observation/state"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_names_file_episode_step_and_field(root, key, value):
    def spoil(features):
        features[f"steps/{key}"][7 * 3 + 2] = value

    path = shard(root, "val")
    rewrite(path, spoil)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: record 0: step 3: {key}\[2\]: expected a finite"):
        open_index(root, BLOCKS)


def test_empty_split_is_refused(root):
    edit(files(root) / rlds.INFO, lambda body: body["splits"][1].update(shardLengths=["0"]))
    with pytest.raises(ValueError, match="split 'val' is empty"):
        open_index(root, BLOCKS)


def test_wrong_shard_count_is_refused(root):
    edit(files(root) / rlds.INFO, lambda body: body["splits"][0].update(shardLengths=["3", "2", "1"]))
    with pytest.raises(ValueError, match=r"split 'train': expected 3 shards .*got 2 files"):
        open_index(root, BLOCKS)


def test_absent_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dataset_info\.json"):
        open_index(tmp_path, BLOCKS)


def test_index_is_kept_then_rebuilt_when_stale(root, capsys):
    first = open_index(root, BLOCKS)
    assert "indexed split train: 6 episodes" in capsys.readouterr().out
    again = open_index(root, BLOCKS)
    assert capsys.readouterr().out == ""
    assert again.digest == first.digest
    rewrite(shard(root), lambda features: features.update({"steps/extra": np.zeros(5, np.float32)}))
    changed = open_index(root, BLOCKS)
    out = capsys.readouterr().out
    assert "stale (files changed)" in out
    assert "indexed split train" in out
    assert changed.digest != first.digest  # the offsets moved
    np.testing.assert_array_equal(changed.splits["train"].actions, first.splits["train"].actions)


def test_index_of_another_standardiser_is_rebuilt(root, capsys):
    import dataclasses

    open_index(root, BLOCKS)
    open_index(root, dataclasses.replace(BLOCKS, revision=BLOCKS.revision + 1))
    assert "stale (revision changed)" in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0, 10, 5000, -1])
def test_damaged_index_is_rebuilt(root, capsys, keep):
    first = open_index(root, BLOCKS)
    path = files(root) / FOLDER / "blocks.index"
    path.write_bytes(path.read_bytes()[:keep])
    assert open_index(root, BLOCKS).digest == first.digest
    assert "damaged" in capsys.readouterr().out
    assert [p.name for p in path.parent.iterdir()] == ["blocks.index"]


def test_read_only_data_is_indexed_in_the_cache(root, tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_JAX_CACHE", str(tmp_path / "cache"))
    files(root).chmod(0o555)
    try:
        open_index(root, BLOCKS)
        assert not (files(root) / FOLDER).exists()
        assert len(list((tmp_path / "cache").rglob("blocks.index"))) == 1
    finally:
        files(root).chmod(0o755)


def test_gripper_becomes_what_it_settles_at():
    assert binarise(np.array([0.5, 0.99, 0.6, 0.4, 0.01, 0.3, 0.7])).tolist() == [1, 1, 0, 0, 0, 1, 1]
    assert binarise(np.array([0.2, 0.3])).tolist() == [0, 0]


def test_bridge_actions_are_reached_motion():
    rng = np.random.default_rng(0)
    state = rng.normal(size=(6, 7))
    state[2, 5], state[3, 5] = 3.1, -3.1
    action = rng.normal(size=(6, 7))
    action[:, 6] = [1, 1, 0.5, 0.5, 0.5, 0]
    out = standardise({"action": action, "state": state})
    assert out.frames.tolist() == [1, 2, 3, 4]
    assert out.actions.dtype == np.float32
    np.testing.assert_allclose(out.actions[:, :3], state[2:, :3] - state[1:-1, :3], rtol=1e-5)
    np.testing.assert_allclose(out.actions[1, 5], 2 * np.pi - 6.2, rtol=1e-5)
    assert out.actions[:, 6].tolist() == [1, 0, 0, 0]  # the dropped last step decides
    for short in (0, 1, 2):
        assert standardise({"action": action[:short], "state": state[:short]}).actions.shape == (0, 7)


@needs_bridge
def test_bridge_sample(tmp_path):
    index = open_index(RLDS, DATASETS["bridge"], tmp_path)
    for split in index.splits.values():
        assert len(split.length) == 25
        assert (split.length == 8).all()
        assert all(split.instructions)
        assert set(np.unique(split.actions[:, 6])) == {0, 1}
        moved = split.state[1:8, :3] - split.state[:7, :3]
        np.testing.assert_allclose(split.actions[:7, :3], moved, atol=1e-6)


def test_no_tensorflow():
    code = "import sys, data_pipelines.loader, data_pipelines.builders.blocks; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
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
        [sys.executable, "-c", code, str(files(written))], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
