"""The index: what it holds, when it is used, rebuilt or refused, and what is left when it cannot be
written.
"""

import dataclasses
import errno
import json
import os
import re
import resource
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipelines import images
from data_pipelines.builders.blocks import play, write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.files import store, tfds_folder, tfrecord
from data_pipelines.files.features import FLAGS
from data_pipelines.index import FOLDER, open_index
from data_pipelines.selection import Selection
from tests.data_pipelines.blocks_files import files, flip, rewrite, shard

BLOCKS = DATASETS["blocks"]


def test_frames_are_found_at_their_bytes(root):
    split = open_index(root, BLOCKS).splits["val"]
    table = play(0, 1, 0)
    frames = split.frames["wrist"]
    for step in (0, len(table.wrist) - 1):
        body = Path(split.shards[frames.shard[step]]).read_bytes()
        picture = images.decode(
            body[frames.offset[step] : frames.offset[step] + frames.length[step]], 32
        )
        np.testing.assert_array_equal(picture, table.wrist[step])  # PNG: exact
    np.testing.assert_array_equal(split.actions[: split.length[0]], table.actions)
    assert split.words(0) == table.instruction


def test_instructions_are_kept_once_each(root):
    split = open_index(root, BLOCKS).splits["train"]
    words = [play(0, 0, i).instruction for i in range(6)]
    assert [split.words(i) for i in range(6)] == words
    rewritten = [b"push the thing"] * 60  # no episode is longer
    for path in files(root).glob("*-train.*"):  # the same words in two files
        rewrite(
            path,
            lambda f: f.update(
                {"steps/language_instruction": rewritten[: len(f["steps/is_first"])]}
            ),
        )
    split = open_index(root, BLOCKS).splits["train"]
    words[0] = words[3] = "push the thing"
    assert [split.words(i) for i in range(6)] == words
    assert len(split.sentences) == len(set(words))


def test_statistics_are_those_of_the_columns(root):
    split = open_index(root, BLOCKS).splits["train"]
    x = np.concatenate([play(0, 0, i).actions for i in range(6)]).astype(np.float64)
    stats = split.stats["action"]
    assert set(stats) == {"mean", "std", "min", "max", "q01", "q99"}
    np.testing.assert_array_equal(stats["min"], x.min(0))
    np.testing.assert_array_equal(stats["max"], x.max(0))
    np.testing.assert_allclose(stats["mean"], x.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(stats["std"], x.std(0), rtol=1e-12, atol=1e-15)
    for name, q in (("q01", 0.01), ("q99", 0.99)):
        assert (np.abs(stats[name] - np.quantile(x, q, axis=0)) <= 1e-4 * np.ptp(x, axis=0)).all()


@pytest.mark.parametrize("train", [2, 6, 31])
def test_the_last_episodes_are_held_out_where_no_split_is(tmp_path, train):
    """Whole episodes from the end, never seen by the statistics; shards that hold the cut are
    shared.
    """
    folder = files(tmp_path)
    write_blocks(tmp_path, train=train, val=1)
    whole = open_index(tmp_path, BLOCKS).splits["train"]
    info = json.loads((folder / tfds_folder.INFO).read_text())
    info["splits"] = info["splits"][:1]
    (folder / tfds_folder.INFO).write_text(json.dumps(info))
    splits = open_index(tmp_path, BLOCKS).splits
    held = max(1, round(0.05 * train))
    assert [len(splits[name].length) for name in ("train", "val")] == [train - held, held]
    for name in ("actions", "state"):
        parts = [getattr(splits[split], name) for split in ("train", "val")]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(whole, name))
        stats = splits["train"].stats[name.rstrip("s")]
        np.testing.assert_allclose(stats["mean"], parts[0].astype(float).mean(0), atol=1e-12)
        np.testing.assert_array_equal(stats["max"], parts[0].max(0))
    last = splits["val"]
    assert last.record[-1] == whole.record[-1]
    assert Path(last.shards[last.frames["primary"].shard[-1]]).name == Path(whole.shards[-1]).name
    assert last.frames["primary"].offset[-1] == whole.frames["primary"].offset[-1]


def test_quarantined_episodes_are_left_out(root, capsys):
    path = shard(root)
    whole = open_index(root, BLOCKS)
    flip(path, 1)
    (files(root) / FOLDER / "blocks.index").unlink()
    capsys.readouterr()
    val = shard(root, "val").name  # nothing is wrong with it
    quarantine = frozenset({(path.name, 1), (val, 0), ("of_another_dataset.tfrecord", 7)})
    index = open_index(root, BLOCKS, selection=Selection(quarantine=quarantine))
    assert capsys.readouterr().out.count("(1 episodes in quarantine left out)") == 2
    split, before = index.splits["train"], whole.splits["train"]
    assert split.record.tolist() == [0, 2, 0, 1, 2]
    assert index.splits["val"].record.tolist() == [1]
    assert index.digest != whole.digest
    left_out = before.first[1] + np.arange(before.length[1])
    np.testing.assert_array_equal(split.actions, np.delete(before.actions, left_out, axis=0))
    np.testing.assert_array_equal(split.stats["action"]["max"], split.actions.max(0))
    assert (
        open_index(root, BLOCKS, selection=Selection(quarantine=quarantine)).digest == index.digest
    )
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="record 1: damaged"):
        open_index(root, BLOCKS)
    assert "stale (quarantine changed)" in capsys.readouterr().out


def test_quarantine_of_records_that_are_not_there_is_refused(root):
    with pytest.raises(
        ValueError, match=r"data.quarantine: expected records 0 to 2 of .*got \[3\]"
    ):
        open_index(root, BLOCKS, selection=Selection(quarantine=frozenset({(shard(root).name, 3)})))


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


@pytest.mark.parametrize("at", [70, 1000, -1])
def test_flipped_bit_in_the_index_is_found(root, capsys, at):
    first = open_index(root, BLOCKS)
    path = files(root) / FOLDER / "blocks.index"
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)
    assert open_index(root, BLOCKS).digest == first.digest
    assert "damaged" in capsys.readouterr().out


def test_digest_does_not_depend_on_the_place(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    assert (
        open_index(root, BLOCKS).digest
        == open_index(tmp_path / "copy", BLOCKS, tmp_path / "cache").digest
    )


def test_full_disk_leaves_nothing(root, monkeypatch):
    """A real limit on the size of files stops the writing half way; a failing fsync at its end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OSError, match=r"writing the index failed .*make room.*blocks\.index"):
            open_index(root, BLOCKS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((files(root) / FOLDER).iterdir()) == []

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            open_index(root, BLOCKS)
        assert caught.value.errno == errno.ENOSPC
    assert list((files(root) / FOLDER).iterdir()) == []
    open_index(root, BLOCKS)


def test_full_disk_keeps_the_old_index(root, monkeypatch):
    open_index(root, BLOCKS)
    path = files(root) / FOLDER / "blocks.index"
    body = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        open_index(root, dataclasses.replace(BLOCKS, revision=BLOCKS.revision + 1))
    assert path.read_bytes() == body
    assert [p.name for p in path.parent.iterdir()] == ["blocks.index"]


def test_columns_are_mapped_and_cannot_be_written(root):
    split = open_index(root, BLOCKS).splits["train"]
    for column in (split.actions, split.state, split.length, *split.frames["wrist"]):
        assert not column.flags.writeable
        assert not column.flags.owndata
    assert [column.dtype for column in split.frames["wrist"]] == [np.int32, np.int64, np.int32]
    assert sorted(set(split.sentences)) == sorted(split.sentences)


def test_stored_arrays_come_back(tmp_path):
    arrays = {
        "a": np.arange(7, dtype=np.int32),
        "b": np.zeros((5, 0), np.float32),
        "c": np.arange(12.0).reshape(4, 3)[:, ::2],
        "d": np.zeros(0, np.uint8),
    }
    store.save(tmp_path / "file", {"k": 1}, arrays, {"n": [2]})
    stored = store.load(tmp_path / "file", {"k": 1})
    assert stored.notes == {"n": [2]}
    assert set(stored.arrays) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(stored.arrays[name], value)
        assert (stored.arrays[name].dtype, stored.arrays[name].shape) == (value.dtype, value.shape)


def test_index_is_small_and_reads_only_what_it_needs(tmp_path):
    """23 KB pictures with three times as many bytes of no use: under 1 % of the data's size."""
    folder = write_blocks(tmp_path, train=4, val=2)
    draw, steps = np.random.default_rng(0), 40
    for path in sorted(folder.glob("*-train.*")):
        numbers = {
            key: draw.normal(size=(steps, 7)).astype(np.float32)
            for key in ("action", "observation/state")
        }
        strings = {
            key: [draw.bytes(23_000) for _ in range(steps)]
            for key in ("image", "wrist_image", "other")
        }
        features = {f"steps/{key}": value for key, value in numbers.items()}
        features |= {f"steps/observation/{key}": value for key, value in strings.items()}
        features |= {f"steps/{flag}": np.zeros(steps, np.int64) for flag in FLAGS}
        tfrecord.write(
            path,
            [tfrecord.encode({**features, "steps/language_instruction": [b"push"] * steps})] * 2,
        )
    open_index(tmp_path, BLOCKS)
    data = sum(path.stat().st_size for path in folder.glob("*.tfrecord*"))
    assert (folder / FOLDER / "blocks.index").stat().st_size < 0.005 * data


def test_url_is_indexed_in_the_cache(root, tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_JAX_CACHE", str(tmp_path / "cache"))
    local = open_index(root, BLOCKS)
    memory = fsspec.filesystem("memory")
    url = f"memory://{tmp_path.name}/data"
    for path in files(root).iterdir():
        if path.is_file():
            memory.pipe_file(f"{url}/blocks/1.0.0/{path.name}", path.read_bytes())
    index = open_index(url, BLOCKS)
    assert index.digest == local.digest
    assert all(path.startswith(f"{url}/blocks/1.0.0/") for path in index.splits["train"].shards)
    assert len(list((tmp_path / "cache").rglob("blocks.index"))) == 1


def test_missing_shard_at_a_url_is_named(root, tmp_path):
    memory = fsspec.filesystem("memory")
    url = f"memory://{tmp_path.name}/data"
    with pytest.raises(
        ValueError,
        match=rf"{re.escape(url)}/blocks/1.0.0/dataset_info.json: expected the file TFDS",
    ):
        open_index(url, BLOCKS, tmp_path)
    for path in files(root).iterdir():
        if path.is_file() and path != shard(root):
            memory.pipe_file(f"{url}/blocks/1.0.0/{path.name}", path.read_bytes())
    with pytest.raises(
        ValueError, match=rf"expected 2 shards .*got 1 files.*missing \['{shard(root).name}'\]"
    ):
        open_index(url, BLOCKS, tmp_path)
