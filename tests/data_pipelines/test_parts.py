"""An index whose files several jobs or hosts read: the one that a single pass makes."""

import dataclasses
import os

import numpy as np
import pytest

from data_pipelines import reading
from data_pipelines.builders import blocks, made
from data_pipelines.datasets import DATASETS
from data_pipelines.index import FOLDER, build_parts, open_index, parts_there
from data_pipelines.selection import Selection
from experiments import index_data
from tests.data_pipelines.blocks_files import files, flip, rewrite, shard

BLOCKS = DATASETS["blocks"]
TEXT = "steps/language_instruction"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Seven files. Some episodes are told several things, one nothing."""
    root = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "SHARDS", {"train": 6, "val": 1})
        blocks.write_blocks(root, train=13, val=2)
    for number, path in enumerate(sorted(files(root).glob("*-train.*"))):
        words = [b"word %d" % number] * 5 + [b"shared"] * 20
        rewrite(path, lambda f, words=words: f.update({TEXT: words[: len(f[TEXT])]}))
    rewrite(shard(root), lambda f: f.update({TEXT: [b""] * len(f[TEXT])}))
    return root


def body(cache):
    (path,) = cache.rglob("*.index")
    return path.read_bytes()


@pytest.mark.parametrize("selection", [Selection(), Selection(max_idle=0.5, min_length=12)])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_of_any_number_in_any_order_make_the_same_index(many, tmp_path, count, selection):
    whole = open_index(many, BLOCKS, tmp_path / "whole", selection)
    for number in np.random.default_rng(count).permutation(count).tolist():
        build_parts(many, BLOCKS, (number, count), tmp_path / "parts", selection)
    there, of, folder = parts_there(many, BLOCKS, tmp_path / "parts", selection)
    assert (there, of, len(list(folder.iterdir()))) == (7, 7, 7)
    joined = open_index(many, BLOCKS, tmp_path / "parts", selection)
    assert joined.digest == whole.digest
    assert body(tmp_path / "parts") == body(tmp_path / "whole")  # statistics and all
    assert not folder.exists()
    assert parts_there(many, BLOCKS, tmp_path / "parts", selection)[:2] == (7, 7)


def test_joining_reads_no_file(many, tmp_path, monkeypatch):
    for number in range(3):
        build_parts(many, BLOCKS, (number, 3), tmp_path)
    monkeypatch.setattr(reading, "read", lambda *a: pytest.fail("read again"))
    open_index(many, BLOCKS, tmp_path)
    build_parts(many, BLOCKS, (0, 1), tmp_path)  # there is an index


def test_what_no_job_has_read_is_read(many, tmp_path, monkeypatch, capsys):
    whole = open_index(many, BLOCKS, tmp_path / "whole")
    build_parts(many, BLOCKS, (1, 3), tmp_path / "parts")
    assert parts_there(many, BLOCKS, tmp_path / "parts")[:2] == (2, 7)
    assert "blocks: job 1 of 3: indexing 2 of 7 files in" in capsys.readouterr().out
    paths, read = [], reading.read
    monkeypatch.setattr(reading, "read", lambda d, s, *a: (paths.append(s.path), read(d, s, *a))[1])
    assert open_index(many, BLOCKS, tmp_path / "parts").digest == whole.digest
    assert len(paths) == 5


def test_a_job_goes_on_where_it_was_stopped(many, tmp_path, monkeypatch):
    paths, read = [], reading.read
    monkeypatch.setattr(reading, "read", lambda d, s, *a: (paths.append(s.path), read(d, s, *a))[1])
    build_parts(many, BLOCKS, (0, 2), tmp_path)
    build_parts(many, BLOCKS, (0, 2), tmp_path)
    assert len(paths) == len(set(paths)) == 4
    part = next(tmp_path.rglob("*.part"))
    part.write_bytes(part.read_bytes()[:-3])
    build_parts(many, BLOCKS, (0, 2), tmp_path)
    assert len(paths) == 5


@pytest.mark.parametrize("change", ["files", "stamp kept", "dataset"])
def test_parts_of_other_data_are_not_used(root, tmp_path, change):
    dataset = BLOCKS
    build_parts(root, BLOCKS, (0, 1), tmp_path / "parts")
    if change == "dataset":
        dataset = dataclasses.replace(BLOCKS, revision=2)
    else:
        before = shard(root).stat()
        rewrite(shard(root), lambda f: f.update({"steps/action": -f["steps/action"]}))
        if change == "stamp kept":
            os.utime(shard(root), ns=(before.st_atime_ns, before.st_mtime_ns))
    joined = open_index(root, dataset, tmp_path / "parts")
    assert joined.digest == open_index(root, dataset, tmp_path / "whole").digest


def test_damaged_files_are_named_and_leave_no_part(root, tmp_path):
    flip(shard(root), 1)
    with pytest.raises(ValueError, match=r"record 1: damaged"):
        build_parts(root, BLOCKS, (0, 1), tmp_path)
    assert shard(root).name not in {path.stem for path in tmp_path.rglob("*.part")}


def test_the_command_makes_and_joins_parts(many, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_JAX_CACHE", str(tmp_path))
    files(many).chmod(0o555)
    whole = open_index(many, BLOCKS, tmp_path / "whole")
    try:
        words = ["--root", str(many), "--dataset", "blocks", "--out", str(tmp_path)]
        for job in ("1/2", "0/2"):
            assert index_data.main([*words, "--shard", job]) == 0
        assert (
            "7 of 7 files are read; without --shard this command joins" in capsys.readouterr().out
        )
        index_data.main(words)
        assert open_index(many, BLOCKS).digest == whole.digest
        assert not (files(many) / FOLDER).exists()
    finally:
        files(many).chmod(0o755)
