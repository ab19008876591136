"""What hosts compare, of copies that are and are not alike."""

import shutil

import pytest

from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets.blocks import BLOCKS
from data_pipelines.index import open_index
from data_pipelines.mixture import Member
from experiments.composition import replicas
from experiments.composition.config import load_config


def member(root):
    return Member.fit(open_index(root, BLOCKS), "train", 1.0, ("q99",))


def rot(root):
    """Flips a bit in every frame of an indexed dataset; its sizes, and so its index, stay."""
    for split in open_index(root, BLOCKS).splits.values():
        for frames in split.frames.values():
            for shard, offset, length in zip(*frames, strict=True):
                with open(split.shards[shard], "r+b") as file:
                    file.seek(int(offset) + int(length) // 2)
                    byte = file.read(1)[0]
                    file.seek(-1, 1)
                    file.write(bytes([byte ^ 1]))


def test_copies_have_equal_rows_until_a_bit_of_an_image_flips(tmp_path):
    write_blocks(tmp_path / "one", train=4, val=2)
    whole = member(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    first = replicas.rows([whole], 0, 0)
    assert list(first) == ["rows of blocks drawn for step 0"]
    assert replicas.rows([member(tmp_path / "other")], 0, 0) == first
    later = replicas.rows([whole], 0, 100)
    assert set(later.values()).isdisjoint(first.values())  # others are looked at
    rot(tmp_path / "other")
    rotten = replicas.rows([member(tmp_path / "other")], 0, 0)
    assert list(rotten) == list(first)
    assert rotten != first


def test_the_program_is_its_config_its_code_and_its_libraries(tmp_path, monkeypatch):
    for package in replicas.PACKAGES:
        (tmp_path / package / "part").mkdir(parents=True)
        (tmp_path / package / "part" / "file.py").write_text("x = 1\n")
    monkeypatch.setattr(replicas, "REPOSITORY", tmp_path)
    config = load_config("oxe_paligemma.py:tiny", ["--config.data.root=here"])
    before = replicas.program(config)
    moved = load_config("oxe_paligemma.py:tiny", ["--config.data.root=there"])
    assert replicas.program(moved) == before  # what is in it counts, not where it is
    (tmp_path / "vla_jax" / "part" / "file.py").write_text("x = 2\n")
    other = load_config("oxe_paligemma.py:tiny", ["--config.optim.lr=0.5"])
    after = replicas.program(other)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"config.optim.lr", "code of vla_jax"}


@pytest.mark.parametrize("name", ["version of jax", "version of python", "config.seed"])
def test_the_program_names_what_numbers_depend_on(name):
    assert name in replicas.program(load_config("oxe_paligemma.py:tiny"))
