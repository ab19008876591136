"""Bridge: its actions, and the real sample."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index
from data_pipelines.standardise import binarise

standardise = DATASETS["bridge"].standardise
RLDS = Path(__file__).parents[3] / "shared" / "data" / "rlds"
needs_bridge = pytest.mark.skipif(
    not (RLDS / "bridge_dataset").is_dir(), reason="no Bridge sample beside the repository"
)


def test_gripper_becomes_what_it_settles_at():
    assert binarise(np.array([0.5, 0.99, 0.6, 0.4, 0.01, 0.3, 0.7])).tolist() == [
        1,
        1,
        0,
        0,
        0,
        1,
        1,
    ]
    assert binarise(np.array([0.2, 0.3])).tolist() == [0, 0]


def test_bridge_actions_are_reached_motion():
    rng = np.random.default_rng(0)
    state = rng.normal(size=(6, 7))
    state[2, 5], state[3, 5] = 3.1, -3.1
    action = rng.normal(size=(6, 7))
    action[:, 6] = [1, 1, 0.5, 0.5, 0.5, 0]
    out = standardise({"action": action, "observation/state": state})
    assert out.frames.tolist() == [1, 2, 3, 4]
    assert out.actions.dtype == np.float32
    np.testing.assert_allclose(out.actions[:, :3], state[2:, :3] - state[1:-1, :3], rtol=1e-5)
    np.testing.assert_allclose(out.actions[1, 5], 2 * np.pi - 6.2, rtol=1e-5)
    assert out.actions[:, 6].tolist() == [1, 0, 0, 0]  # the dropped last step decides
    for short in (0, 1, 2):
        assert standardise(
            {"action": action[:short], "observation/state": state[:short]}
        ).actions.shape == (0, 7)


@needs_bridge
def test_bridge_sample(tmp_path):
    index = open_index(RLDS, DATASETS["bridge"], tmp_path)
    for split in index.splits.values():
        assert len(split.length) == 25
        assert (split.length == 8).all()
        assert all(split.sentences)
        assert set(np.unique(split.actions[:, 6])) == {0, 1}
        moved = split.state[1:8, :3] - split.state[:7, :3]
        np.testing.assert_allclose(split.actions[:7, :3], moved, atol=1e-6)
