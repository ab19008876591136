"""The embedded dataset on disk."""

import shutil

import pytest

from data_pipelines.builders.blocks import write_blocks


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("blocks")
    write_blocks(root, train=6, val=2)
    return root


@pytest.fixture
def root(written, tmp_path):
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"
