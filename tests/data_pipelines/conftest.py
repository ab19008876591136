"""The embedded dataset on disk."""

import dataclasses
import shutil

import pytest

from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("blocks")
    write_blocks(root, train=6, val=2)
    return root


@pytest.fixture
def root(written, tmp_path):
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def index(written, tmp_path_factory):
    return open_index(written, DATASETS["blocks"], tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="session")
def bare(written, tmp_path_factory):
    """The same files as a dataset with one camera, stored blue first, and no state."""
    blocks = DATASETS["blocks"]

    def standardise(columns):
        whole = blocks.standardise(columns)
        return whole._replace(state=whole.state[:, :0])

    described = dataclasses.replace(
        blocks,
        name="bare",
        cameras={"primary": blocks.cameras["primary"]},
        state_names=(),
        standardise=standardise,
        bgr=("primary",),
        control_hz=10.0,
    )
    return open_index(written, described, tmp_path_factory.mktemp("bare"))
