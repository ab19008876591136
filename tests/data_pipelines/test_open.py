"""Python in ten lines: a loader without a run's config."""

import subprocess
import sys

import numpy as np
import pytest

import data_pipelines
from data_pipelines.config import LoaderConfig
from tests.data_pipelines.loading import BASE, BLOCKS, make, same


def words(batch, row):
    prompt = batch.obs.prompt[row][batch.obs.prompt_mask[row]]
    return bytes(prompt.astype(np.uint8)).decode()


def test_the_embedded_blocks_in_ten_lines(root):
    """As README has it."""
    config = LoaderConfig(window=2, chunk=5, cameras=("primary", "wrist"), image_size=(64, 64))
    loader = data_pipelines.open(root, "blocks", config)
    for _, batch in zip(range(3), loader.batches(), strict=False):
        assert batch.obs.images[0].shape == (8, 2, 64, 64, 3)
        assert batch.actions.shape == (8, 2, 5, 7)
        assert words(batch, 0) in {loader.instruction(episode) for episode in range(6)}
    assert loader.windows > 30


def test_nothing_but_root_and_name_is_needed(root):
    batch = data_pipelines.open(str(root), "blocks").batch(0)
    assert batch.obs.images[0].shape == (8, 1, 224, 224, 3)
    assert batch.actions.shape == (8, 1, 1, 7)
    assert batch.obs.image_mask.all()
    longest = max(batch.obs.prompt_mask.sum(1))
    assert batch.obs.prompt.shape[1] >= longest


@pytest.mark.parametrize("described", ["blocks", BLOCKS, [("blocks", 1.0)]])
def test_it_is_the_loader_that_a_run_makes(root, index, described):
    loader = data_pipelines.open(root, described, BASE, encode=lambda text: np.arange(len(text)))
    ours, runs = loader.batch(3), make(index).batch(3)
    assert loader.identity() == make(index).identity()
    same(ours.actions, runs.actions)
    same(ours.obs.images, runs.obs.images)
    same(ours.obs.prompt_mask, runs.obs.prompt_mask)


def test_split_and_normalisation_can_be_chosen(root):
    train = data_pipelines.open(root, "blocks", BASE, normalise=("none",))
    val = data_pipelines.open(root, "blocks", BASE, split="val")
    assert train.identity()["datasets"][0][1] == "train"
    assert val.identity()["datasets"][0][1] == "val"
    assert val.windows < train.windows
    one, other = train.batch(0), data_pipelines.open(root, "blocks", BASE).batch(0)
    same(one.obs.images, other.obs.images)
    assert np.abs(one.actions - other.actions).max() > 0.1


def test_what_is_missing_is_said(root, tmp_path):
    with pytest.raises(ValueError, match=r"viola: no .*viola/0\.1\.0/dataset_info\.json; .*gsutil"):
        data_pipelines.open(root, [("blocks", 1.0), ("viola", 1.0)])
    with pytest.raises(ValueError, match="did you mean blocks"):
        data_pipelines.open(root, "block")
    with pytest.raises(ValueError, match="expected a split of train, val, got 'test'"):
        data_pipelines.open(root, "blocks", split="test")
    short = LoaderConfig(prompt_length=3)
    with pytest.raises(ValueError, match=r"prompt_length: expected at least \d+ for the instr"):
        data_pipelines.open(root, "blocks", short)


def test_the_real_bridge_sample(bridge_root, tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr("data_pipelines.index._writable", lambda folder: False)  # leave it as it is
    config = LoaderConfig(window=4, chunk=3, batch_size=2)
    loader = data_pipelines.open(bridge_root, "bridge", config)
    for _, batch in zip(range(2), loader.batches(), strict=False):
        assert batch.obs.images[0].shape == (2, 4, 224, 224, 3)
        assert batch.obs.images[0].any()
        assert batch.actions.shape == (2, 4, 3, 7)
        assert np.abs(batch.actions).max() <= 1
        sentences = {loader.instruction(episode) for episode in range(25)}
        assert words(batch, 0) in sentences


def test_the_package_is_light_until_a_loader_is_opened():
    heavy = {"jax", "PIL", "fsspec"}
    code = f"import sys, data_pipelines; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
