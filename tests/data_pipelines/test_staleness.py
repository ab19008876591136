"""When an index is used, and when it is built again: files, descriptions and code that changed."""

import dataclasses
import json
import os
import re
import shutil

import fsspec
import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from data_pipelines.builders.blocks_captions import write_captions
from data_pipelines.datasets import DATASETS, user
from data_pipelines.datasets.image_text import BLOCKS_CAPTIONS
from data_pipelines.files import store, tfds_folder, tfrecord
from data_pipelines.image_text_table import open_table
from data_pipelines.index import FOLDER, open_index
from tests.data_pipelines.blocks_files import edit, files, rewrite, shard
from tests.older.unpack import unpack

BLOCKS = DATASETS["blocks"]


def test_index_is_kept_then_rebuilt_when_stale(root, capsys):
    first = open_index(root, BLOCKS)
    assert "indexed split train: 6 episodes" in capsys.readouterr().out
    again = open_index(root, BLOCKS)
    assert capsys.readouterr().out == ""
    assert again.digest == first.digest
    rewrite(shard(root), lambda features: features.update({"steps/extra": np.zeros(5, np.float32)}))
    changed = open_index(root, BLOCKS)
    out = capsys.readouterr().out
    assert re.search(rf"stale \({shard(root).name}: \d+ bytes before, \d+ now\)", out)
    assert "indexed split train" in out
    assert changed.digest != first.digest  # the offsets moved
    np.testing.assert_array_equal(changed.splits["train"].actions, first.splits["train"].actions)


def negate(path, records=9):
    """Other actions in a file of the same size."""
    rewrite(path, lambda f: f.update({"steps/action": -f["steps/action"]}), records)


@pytest.mark.parametrize("stamp", ["new", "put back"])
def test_files_replaced_by_others_of_their_size_are_noticed(root, capsys, stamp):
    """A builder was mended, actions were negated, or other files were copied over."""
    first = open_index(root, BLOCKS).splits["train"]
    path = shard(root)
    before = path.stat()
    negate(path)
    assert path.stat().st_size == before.st_size
    if stamp == "put back":  # as rsync --times does
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    again = open_index(root, BLOCKS).splits["train"]
    rows = int(again.length[:3].sum())  # of that file
    np.testing.assert_array_equal(again.actions[:rows, :6], -first.actions[:rows, :6])
    assert not np.array_equal(again.stats["action"]["mean"], first.stats["action"]["mean"])
    assert (
        f"stale ({path.name}: its records have other checksums); building it again"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_change_of_any_record_is_noticed_where_the_stamp_is_new(tmp_path, capsys):
    """Not only of those whose checksums are looked at in every open."""
    write_blocks(tmp_path, train=60, val=1)
    open_index(tmp_path, BLOCKS)
    path = shard(tmp_path)
    bodies = [record.data for record in tfrecord.read(path)]
    for number in range(len(bodies)):
        changed = [*bodies]
        changed[number] = changed[number].replace(b"the", b"teh", 1)
        tfrecord.write(path, changed)
        capsys.readouterr()
        open_index(tmp_path, BLOCKS)
        assert "its records have other checksums" in capsys.readouterr().out, number


def test_files_that_were_touched_or_copied_keep_their_index(root, tmp_path, capsys):
    first = open_index(root, BLOCKS)
    capsys.readouterr()
    shutil.copytree(root, tmp_path / "copy")
    for path in files(tmp_path / "copy").glob("*.tfrecord*"):
        os.utime(path, (5, 5))
    assert open_index(tmp_path / "copy", BLOCKS).digest == first.digest
    notes = [
        store.load(files(at) / FOLDER / "blocks.index", key_of(at)).notes["files"][shard(root).name]
        for at in (root, tmp_path / "copy")
    ]
    assert notes[1] == [notes[0][0], str(5 * 10**9), *notes[0][2:]]
    assert capsys.readouterr().out == ""


def key_of(root):
    header = (files(root) / FOLDER / "blocks.index").read_bytes()[store.LINE :]
    return json.JSONDecoder().raw_decode(header.decode(errors="ignore"))[0]["key"]


def test_an_index_of_an_older_format_is_rebuilt_and_says_so(root, capsys):
    open_index(root, BLOCKS)
    path = files(root) / FOLDER / "blocks.index"
    stored = store.load(path, key_of(root))
    store.save(path, {**key_of(root), "schema": 3}, stored.arrays, stored.notes)
    capsys.readouterr()
    assert open_index(root, BLOCKS).digest == stored.digest
    out = capsys.readouterr().out
    assert f"{path}: the index has format 3, this version reads 4; building it again" in out


def test_digests_of_data_that_was_indexed_before_stay(tmp_path):
    """Checkpoints know their data by these: with others no run of an earlier version goes on."""
    root = unpack("data", tmp_path)
    assert open_index(root, BLOCKS).digest.startswith("ae5e920fd532a7ae")
    edit(files(root) / tfds_folder.INFO, lambda info: info["splits"].pop())
    assert open_index(root, BLOCKS).digest.startswith("60d14fa68eab589d")


@pytest.mark.parametrize("decorator", ["", "@np.errstate(invalid='ignore')\n"])
def test_changed_code_of_a_users_standardiser_is_noticed(root, tmp_path, capsys, decorator):
    """Nobody remembers to raise `revision`."""
    source = (
        "import dataclasses\nimport numpy as np\n"
        "from data_pipelines.datasets import DATASETS as OURS\n"
        f"{decorator}def standardise(columns):\n"
        "    whole = OURS['blocks'].standardise(columns)\n"
        "    return whole._replace(actions=whole.actions * {})\n"
        "mine = dataclasses.replace(OURS['blocks'], name='mine', standardise=standardise)\n"
        "DATASETS = {{'mine': mine}}\n"
    )
    largest = []
    for factor in (1, 0.5):
        (tmp_path / "own.py").write_text(source.format(factor))
        mine = user.load(str(tmp_path / "own.py"))[0]["mine"]
        largest.append(open_index(root, mine).splits["train"].stats["action"]["max"][0])
    assert largest[1] == largest[0] / 2
    assert "stale (recipe changed)" in capsys.readouterr().out


def test_index_of_another_standardiser_is_rebuilt(root, capsys):
    open_index(root, BLOCKS)
    open_index(root, dataclasses.replace(BLOCKS, revision=BLOCKS.revision + 1))
    assert "stale (revision changed)" in capsys.readouterr().out


def test_index_of_other_files_is_not_used(root, tmp_path, capsys):
    write_blocks(tmp_path / "other", train=6, val=2, seed=1)
    other = open_index(tmp_path / "other", BLOCKS)
    (files(root) / FOLDER).mkdir()
    shutil.copy(files(tmp_path / "other") / FOLDER / "blocks.index", files(root) / FOLDER)
    assert open_index(root, BLOCKS).digest != other.digest
    assert f"stale ({shard(root).name}: " in capsys.readouterr().out


@pytest.mark.parametrize("known", ["etag", "mtime", None])
def test_replaced_files_at_a_url_are_noticed(root, tmp_path, monkeypatch, capsys, known):
    """By what the store says of their content, or of when they were written, or by checksums."""
    memory = fsspec.filesystem("memory")
    url, changed = f"memory://{tmp_path.name}/{known}", shard(root).name
    stamps = {changed: "one"}

    def info(self, path, **options):
        found = {k: v for k, v in real(self, path, **options).items() if k != "created"}
        return found | ({known: stamps.get(path.rsplit("/", 1)[-1], "same")} if known else {})

    real = type(memory).info
    monkeypatch.setattr(type(memory), "info", info)

    def upload():
        for path in files(root).iterdir():
            if path.is_file():
                memory.pipe_file(f"{url}/blocks/1.0.0/{path.name}", path.read_bytes())

    upload()
    first = open_index(url, BLOCKS, tmp_path / "cache")
    capsys.readouterr()
    assert open_index(url, BLOCKS, tmp_path / "cache").digest == first.digest
    assert capsys.readouterr().out == ""
    negate(shard(root))
    stamps[changed] = "two"
    upload()
    assert open_index(url, BLOCKS, tmp_path / "cache").digest != first.digest
    why = "written again (one before, two now)" if known else "its records have other checksums"
    assert f"stale ({changed}: {why})" in capsys.readouterr().out


def test_records_of_texts_replaced_by_others_of_their_size_are_noticed(tmp_path, capsys):
    write_captions(tmp_path, train=6, val=2)
    first = open_table(tmp_path, BLOCKS_CAPTIONS)
    (path, *_) = sorted((tmp_path / "blocks_captions" / "1.0.0").glob("*-train.*"))
    before = path.stat()
    rewrite(path, lambda f: f.update({"captions/text": [t.swapcase() for t in f["captions/text"]]}))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    assert open_table(tmp_path, BLOCKS_CAPTIONS).digest != first.digest
    assert f"stale ({path.name}: its records have other checksums)" in capsys.readouterr().out


def test_depth_with_texts_is_refused(tmp_path):
    folder = write_captions(tmp_path, train=6, val=2)
    edit(
        folder / tfds_folder.FEATURES,
        lambda body: body["featuresDict"]["features"]["image"]["image"].update(dtype="uint16"),
    )
    with pytest.raises(ValueError, match=r"'image': expected a picture of uint8 .* got uint16"):
        open_table(tmp_path, BLOCKS_CAPTIONS)
