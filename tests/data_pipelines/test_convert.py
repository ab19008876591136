"""Datasets written in the other format: every bit of the numbers, and what pictures lose."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from data_pipelines import convert
from data_pipelines.index import open_index
from data_pipelines.selection import Selection
from data_pipelines.standardise import Moved, Recipe
from tests.data_pipelines import lerobot_files as written
from tests.data_pipelines.lerobot_files import CAMERAS, LENGTHS, MINE, number, told
from tests.data_pipelines.loading import BLOCKS, make

WHOLE = Selection(held_out=0)
THERE = convert.described(BLOCKS, "lerobot")
BACK = convert.described(THERE, "rlds")


def same_numbers(a, b):
    for name in ("length", "first", "run", "actions", "state"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    told = [[split.sentences[i] for i in split.instruction[:, 0].tolist()] for split in (a, b)]
    assert told[0] == told[1]
    for kind in ("action", "state"):
        for name, values in a.stats[kind].items():
            np.testing.assert_array_equal(values, b.stats[kind][name])


def same_pictures(a, b, slot):
    """The stored bytes of all frames of a camera."""
    for first, length in zip(a.first.tolist(), a.length.tolist(), strict=True):
        rows = np.arange(first, first + length)
        assert list(a.pictures(slot, rows)) == list(b.pictures(slot, rows))


@pytest.mark.parametrize("lossless", [True, False])
def test_rlds_there_and_back(index, root, tmp_path, lossless):
    there = convert.described(BLOCKS, "lerobot", lossless)
    loss = convert.convert(str(root), BLOCKS, "lerobot", str(tmp_path), lossless)
    assert (loss is None) == lossless
    middle = open_index(tmp_path, there)
    convert.convert(str(tmp_path), there, "rlds", str(tmp_path), lossless)
    last = open_index(tmp_path, convert.described(there, "rlds", lossless))
    for split in ("train", "val"):
        for other in (middle, last):
            same_numbers(index.splits[split], other.splits[split])
            if lossless:
                for slot in BLOCKS.cameras:
                    same_pictures(index.splits[split], other.splits[split], slot)
    if loss is not None:
        found = {slot: np.mean(each) for slot, each in loss.measured.items()}
        assert found.keys() == BLOCKS.cameras.keys()
        assert all(25 < mean < 60 for mean in found.values())
        assert "primary: " in loss.lines(["primary"])[0]
        first = index.splits["train"]
        assert len(loss.measured["primary"]) == len(first.actions) + len(
            index.splits["val"].actions
        )


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_as_rlds(tmp_path, version):
    written.write(tmp_path / "mine", version)
    convert.convert(str(tmp_path), MINE, "rlds", str(tmp_path))
    index = open_index(tmp_path, convert.described(MINE, "rlds"), selection=WHOLE)
    same_numbers(open_index(tmp_path, MINE, selection=WHOLE).splits["train"], index.splits["train"])
    batch = make(index, cameras=("wrist",), image_size=(64,)).episode(2)
    assert [number(pixels) for pixels in batch.obs.images[0][:, -1]] == [
        told(2, t, 1) for t in range(LENGTHS[2])
    ]


def test_images_in_parquet_are_copied(tmp_path):
    written.write(tmp_path / "mine", "v3.0", images=CAMERAS)
    loss = convert.convert(str(tmp_path), MINE, "rlds", str(tmp_path))
    assert "nothing is lost" in loss.lines(["primary"])[0]
    a = open_index(tmp_path, MINE, selection=WHOLE).splits["train"]
    b = open_index(tmp_path, convert.described(MINE, "rlds"), selection=WHOLE).splits["train"]
    same_pictures(a, b, "wrist")


def test_the_command_says_what_was_written(root, tmp_path, capsys):
    convert.main([
        f"--root={root}", "--dataset=blocks", "--to=lerobot", f"--out={tmp_path}"
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert f"wrote {tmp_path}/blocks_lerobot" in said
    assert "primary: " in said
    assert "dB on the average" in said
    info = json.loads((tmp_path / "blocks_lerobot/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 5)
    assert info["splits"] == {"train": "0:6", "val": "6:8"}
    with pytest.raises(ValueError, match="expected a folder that is new, got files"):
        convert.convert(str(root), BLOCKS, "lerobot", str(tmp_path))
    with pytest.raises(ValueError, match="expected files to be converted to lerobot, got lerobot"):
        convert.convert(str(tmp_path), THERE, "lerobot", str(tmp_path / "out"))


def test_numbers_that_tfrecord_cannot_hold_are_refused(tmp_path):
    written.write(tmp_path / "mine", "v3.0")
    rewrite = functools.partial(_as_float64, tmp_path / "mine")
    rewrite()
    with pytest.raises(ValueError, match=r"mine: action: expected numbers that fit into float32"):
        convert.convert(str(tmp_path), MINE, "rlds", str(tmp_path))


def _as_float64(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in (folder / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        values = np.array(table["action"].to_pylist()) * (1 + 1e-12)
        column = pa.array(values.tolist(), pa.list_(pa.float64()))
        at = table.column_names.index("action")
        pq.write_table(table.set_column(at, "action", column), path)


def test_a_recipe_keeps_its_meaning():
    recipe = Recipe(
        actions=(Moved("observation/state[0:6]", angles=(3,)), "action[-1:] clip01 invert"),
        state=("observation/state",),
    )
    dataset = dataclasses.replace(MINE, standardise=recipe, version="1.0.0")
    there = convert.described(dataset, "lerobot")
    assert there.standardise.actions == (
        Moved("observation.state[0:6]", angles=(3,)), "action[-1:] clip01 invert"
    )  # fmt: skip
    assert there.columns.keys() == {"observation.state", "action"}
    assert (there.version, there.language, there.name) == ("", "task", "mine_lerobot")
