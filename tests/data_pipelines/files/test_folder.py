"""A folder that is no dataset, or not this one: what is there, what was expected, what to do."""

import gzip
import re

import pytest

from data_pipelines import mixture
from data_pipelines.datasets import DATASETS
from data_pipelines.files import tfds_folder
from data_pipelines.index import open_index
from tests.data_pipelines.blocks_files import edit, files, shard

BLOCKS = DATASETS["blocks"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("file", [tfds_folder.INFO, tfds_folder.FEATURES, "shard"])
@pytest.mark.parametrize(
    ("body", "got"),
    [
        (POINTER, "a Git LFS pointer in its place; run `git lfs pull`"),
        (gzip.compress(b"x" * 99, mtime=0), "a gzip file; unpack it with gunzip"),
        (b"<!DOCTYPE html><html>log in</html>" + b" " * 99, "a web page; the download needs"),
    ],
)
def test_another_kind_of_file_is_named(root, file, body, got):
    path = shard(root) if file == "shard" else files(root) / file
    path.write_bytes(body)
    kind = "a TFRecord file" if file == "shard" else "JSON"
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*expected {kind}, got {got}"):
        open_index(root, BLOCKS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.pop("name"), r"expected 'name' as TFDS writes it, got .*splits"),
        (lambda info: info.pop("splits"), r"expected 'splits' as TFDS writes it, got .*name"),
        (
            lambda info: info["splits"][0].pop("shardLengths"),
            r"split 'train': expected shardLengths.*got filepathTemplate, name, numBytes; the down",
        ),
    ],
)
def test_an_info_that_lacks_something_is_named(root, change, message):
    edit(files(root) / tfds_folder.INFO, change)
    with pytest.raises(ValueError, match=rf"{tfds_folder.INFO}: {message}"):
        open_index(root, BLOCKS)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("blocks/2.1.0", "version 2.1.0: give it as `version`"),
        ("blocks/1.0.0.incompleteA1B2", r"an unfinished download \(1.0.0.incompleteA1B2\)"),
        ("blocks/small/1.0.0", "the TFDS config small: give tfds_name='blocks/small'"),
        ("blocks/1.0.0", "the folder without dataset_info.json: its download is unfinished"),
    ],
)
def test_what_is_there_instead_is_said(root, tmp_path, place, said):
    folder = tmp_path / "other" / place
    folder.parent.mkdir(parents=True)
    files(root).rename(folder)
    if place == "blocks/1.0.0":
        (folder / tfds_folder.INFO).unlink()
    where = re.escape(str(tmp_path / "other" / "blocks"))
    with pytest.raises(ValueError, match=rf"found none; {where} has {said}"):
        open_index(tmp_path / "other", BLOCKS)
    (line,) = mixture.problems(str(tmp_path / "other"), [BLOCKS])
    assert re.search(rf"no .*dataset_info.json; {where} has {said}.*; or ", line)


def ragged(length):
    """Makes the action of a step a Sequence of single numbers."""

    def change(body):
        step = body["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        features = step["featuresDict"]["features"]
        scalar = {"tensor": {"shape": {}, "dtype": "float32", "encoding": "none"}}
        features["action"] = {"sequence": {"feature": scalar, "length": length}}

    return change


def test_steps_of_any_number_of_numbers_are_refused_by_name(root):
    edit(files(root) / tfds_folder.FEATURES, ragged("-1"))
    with pytest.raises(ValueError, match=r"'steps/action': .*got a Sequence of any length; write"):
        open_index(root, BLOCKS)


def test_a_sequence_of_fixed_length_is_a_row_of_numbers(root):
    whole = open_index(root, BLOCKS)
    edit(files(root) / tfds_folder.FEATURES, ragged("7"))
    assert open_index(root, BLOCKS).digest == whole.digest
