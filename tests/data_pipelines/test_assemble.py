"""What stands in a batch: steps, numbers, words and pixels of its windows."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines import windows
from data_pipelines.builders.blocks import play
from data_pipelines.config import LoaderConfig
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index
from tests.data_pipelines.loading import make, member
from vla_jax.types import RESIZES

RLDS = Path(__file__).parents[3] / "shared" / "data" / "rlds"
needs_bridge = pytest.mark.skipif(
    not (RLDS / "bridge_dataset").is_dir(), reason="no Bridge sample beside the repository"
)


def test_steps_against_brute_force():
    """The chunk is whole to the true end of the episode (no goal cuts it), masked from there, and
    never one too far.
    """
    window, chunk = 3, 4
    pairs = [(t, length) for length in (1, 2, 3, 7) for t in range(length)]
    out = windows.steps(*(np.array(x) for x in zip(*pairs, strict=True)), window, chunk)
    for row, (t, length) in enumerate(pairs):
        for i in range(window):
            at = t - window + 1 + i
            assert out.frames[row, i] == max(at, 0)
            assert out.step_mask[row, i] == (at >= 0)
            for k in range(chunk):
                assert out.action_mask[row, i, k] == (at >= 0 and at + k < length)
                assert out.actions[row, i, k] == min(max(at + k, 0), length - 1)


def test_batch_holds_the_data(index):
    blocks = member(index, rules=("bounds",))  # limits that clip nothing
    loader = make(blocks, cameras=("wrist", "primary", "other"), image_size=(32, 24, 16))
    batch, table = loader.episode(4), play(0, 0, 4)
    length = len(table.actions)
    assert [x.shape for x in batch.obs.images] == [(length, 3, s, s, 3) for s in (32, 24, 16)]
    assert batch.obs.images[0].dtype == np.uint8
    assert batch.actions.dtype == batch.obs.proprio.dtype == np.float32
    np.testing.assert_array_equal(batch.obs.images[0][:, -1], table.wrist)
    # Before the beginning: the first frame.
    np.testing.assert_array_equal(batch.obs.images[0][0, 0], table.wrist[0])
    smaller = Image.fromarray(table.primary[3]).resize((24, 24), Image.Resampling.LANCZOS)
    assert np.abs(batch.obs.images[1][3, -1].astype(int) - np.asarray(smaller)).mean() < 6  # JPEG
    assert not batch.obs.images[2].any()
    np.testing.assert_array_equal(
        batch.obs.image_mask, np.broadcast_to([True, True, False], (length, 3, 3))
    )
    np.testing.assert_allclose(
        blocks.action_spec.unnormalise(batch.actions[:, -1, 0]), table.actions, atol=1e-6
    )
    np.testing.assert_array_equal(batch.actions[2:-1, 1, 1], batch.actions[2:-1, 2, 0])
    assert batch.obs.step_mask[0].tolist() == [False, False, True]
    assert batch.obs.proprio_mask.all()
    words = batch.obs.prompt[0][batch.obs.prompt_mask[0]]
    assert bytes(words.astype(np.uint8)).decode() == loader.instruction(4) == table.instruction
    n = len(words)
    assert batch.obs.prompt_mask[0, :n].all()
    assert not batch.obs.prompt_mask[0, n:].any()


def test_images_are_made_smaller_by_the_filter_that_is_asked_for(index):
    made = {
        name: make(index, image_size=(16,), resize=name).episode(4).obs.images[0][:, -1].astype(int)
        for name in RESIZES
    }
    table = play(0, 0, 4).primary[:3]
    for name in made:
        method = Image.Resampling[name.upper()]
        expected = np.stack([Image.fromarray(x).resize((16, 16), method) for x in table])
        errors = {other: np.abs(x[:3] - expected).mean() for other, x in made.items()}
        assert min(errors, key=errors.get) == name, errors  # what is left is JPEG
    with pytest.raises(ValueError, match=r"model\.resize: expected one of .* got 'nearest'"):
        LoaderConfig(resize="nearest")


def test_actions_past_the_end_are_neutral_in_the_robots_units(index):
    """No motion and the gripper as it was: where the limits are not symmetric, that is not 0 after
    normalisation.
    """
    loader, table = make(index), play(0, 0, 2)
    batch, spec = loader.episode(2), member(index).action_spec
    past = spec.unnormalise(batch.actions[-1, -1, 1:])
    assert not batch.action_mask[-1, -1, 1:].any()
    np.testing.assert_allclose(past[:, :6], 0, atol=1e-6)
    assert (past[:, 6] == table.actions[-1, 6]).all()
    assert np.abs(batch.actions[-1, -1, 1:, :3]).max() > 0.01


def test_which_dims_are_zero_at_rest_on_any_robot():
    """Motion and velocities; positions and grippers stay where they are."""
    moving = ("x", "left_yaw", "linear_y", "angular_z", "base_turn", "forward", "joint_1_velocity")
    names = ("joint_1", *moving, "left_joint_1", "wheel", "gripper", "right_gripper", "lift")
    units = {"wheel": "rad/s", "lift": "m"}
    found = windows.motion(
        dataclasses.replace(DATASETS["blocks"], action_names=names, action_units=units, binary=())
    )
    assert tuple(names[i] for i in found) == (*moving, "wheel")
    steps = windows.steps(np.array([1]), np.array([2]), 1, 3)
    column = np.arange(1, 27, dtype=np.float32).reshape(2, 13)
    past = windows.actions(column, np.array([0]), steps, found)[0, 0, 1]
    assert not past[found].any()
    held = [i for i in range(13) if i not in found]
    np.testing.assert_array_equal(past[held], column[1, held])


def test_normalising_twice_needs_explicit_limits(index):
    """RoboVLMs' OXE models clip q99-normalised actions again: only a config that asks for it (an
    import) gets that.
    """
    once, twice = member(index), member(index, rules=("q99", ("bounds", -0.65, 0.65)))
    a, b = make(once).episode(0).actions, make(twice).episode(0).actions
    np.testing.assert_allclose(b[..., :6], np.clip(a[..., :6], -0.65, 0.65) / 0.65, atol=1e-6)
    with pytest.raises(ValueError, match="needs explicit limits"):
        member(index, rules=("q99", "bounds"))


def test_a_mixture_masks_what_a_dataset_lacks(index, bare):
    loader = make(index, bare, cameras=("wrist", "primary"), image_size=(32, 32), batch_size=64)
    batch = loader.batch(0)
    lame = batch.dataset_id == 1
    assert lame.any()
    assert not lame.all()
    np.testing.assert_array_equal(batch.obs.proprio_mask, np.repeat(~lame[:, None], 7, axis=1))
    assert batch.obs.proprio.shape[-1] == 7
    assert not batch.obs.proprio[lame].any()
    assert batch.obs.proprio[~lame].any()
    assert not batch.obs.images[0][lame].any()
    assert not batch.obs.image_mask[lame][..., 0].any()
    assert batch.obs.image_mask[~lame].all()
    assert loader.instruction(6 + 1) == loader.instruction(1)
    with pytest.raises(ValueError, match="episode: expected one below 12, got 12"):
        loader.episode(12)


def test_cameras_stored_blue_first_are_swapped(index, bare):
    loader = make(index, bare)
    np.testing.assert_array_equal(
        loader.episode(6).obs.images[0], loader.episode(0).obs.images[0][..., ::-1]
    )


def test_blocks_need_both_picture_and_words(index):
    """Pushing goes where the words say; the approach goes where the named block is."""
    for episode in range(6):
        batch, table = make(index, window=1, chunk=1).episode(episode), play(0, 0, episode)
        word = next(w for w in ("left", "right", "up", "down") if w in table.instruction)
        closed = batch.actions[:, 0, 0, 6] == 0
        axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[word]
        assert closed.sum() >= 3  # from beside the block to where it has come far enough
        assert closed[-3:].all()
        assert (np.sign(table.actions[closed, axis]) == sign).all()


@needs_bridge
def test_bridge_batch(tmp_path):
    index = open_index(RLDS, DATASETS["bridge"], tmp_path)
    loader = make(
        index,
        window=8,
        chunk=10,
        cameras=("primary", "wrist"),
        image_size=(64, 64),
        prompt_length=128,
    )
    batch = loader.batch(0)
    assert batch.actions.shape == (7, 8, 10, 7)
    assert np.abs(batch.actions).max() <= 1
    assert batch.obs.images[0].any()
    assert not batch.obs.image_mask[:, :, 1].any()
