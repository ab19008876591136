"""Order, windows and batches."""

import dataclasses
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines import windows
from data_pipelines.builders.blocks import play, write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index
from data_pipelines.loader import Loader, LoaderConfig
from vla_jax.actions import ActionSpec

RLDS = Path(__file__).parents[3] / "shared" / "data" / "rlds"
BASE = LoaderConfig(
    window=3,
    chunk=4,
    cameras=("primary",),
    image_size=32,
    prompt_length=40,
    batch_size=7,
    seed=5,
    ram_budget=10**9,
    shuffle=True,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("blocks")
    write_blocks(root, train=6, val=2)
    return root


@pytest.fixture(scope="module")
def index(root):
    return open_index(root, DATASETS["blocks"])


def encode(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def make(index, split="train", rows=None, **changes):
    stats, dataset = index.splits["train"].stats, index.dataset
    spec = ActionSpec.fit(dataset.action_names, dataset.binary, stats["action"], ("q99",))
    state = ActionSpec.fit(dataset.state_names, (), stats["state"], ("q99",))
    return Loader(index, split, (spec, state), dataclasses.replace(BASE, **changes), encode, rows)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def loaders():
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


@pytest.mark.parametrize("pool", [1, 3, 100])
def test_order_covers_every_window_once(pool):
    lengths = np.array([4, 0, 9, 1, 6, 3, 8])
    a, b, c = (
        windows.order(lengths, 1, 0, pool),
        windows.order(lengths, 1, 0, pool),
        windows.order(lengths, 1, 1, pool),
    )
    assert sorted(a) == sorted(c) == list(range(31))
    assert (a == b).all()
    assert (a != c).any()
    assert (a != windows.order(lengths, 2, 0, pool)).any()


def test_order_needs_few_episodes_at_a_time():
    lengths, pool = np.full(200, 10), 8
    episode = windows.order(lengths, 0, 0, pool) // 10
    spans = [np.flatnonzero(episode == e) for e in range(200)]
    live = sum((np.arange(2000) >= s[0]) & (np.arange(2000) <= s[-1]) for s in spans)
    assert live.max() <= 2 * pool
    assert len(set(episode[500:550])) > pool / 2


def test_steps_against_brute_force():
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
    loader = make(index, cameras=("wrist", "primary", "other"))
    batch, table = loader.episode(4), play(0, 0, 4)
    length = len(table.actions)
    assert [x.shape for x in batch.obs.images] == [(length, 3, 32, 32, 3)] * 3
    assert batch.obs.images[0].dtype == np.uint8
    assert batch.actions.dtype == batch.obs.proprio.dtype == np.float32
    np.testing.assert_array_equal(batch.obs.images[0][:, -1], table.wrist)
    np.testing.assert_array_equal(batch.obs.images[0][0, 0], table.wrist[0])  # before the beginning: the first frame
    assert np.abs(batch.obs.images[1][:, -1].astype(int) - table.primary).mean() < 6  # JPEG
    assert not batch.obs.images[2].any()
    np.testing.assert_array_equal(batch.obs.image_mask, np.broadcast_to([True, True, False], (length, 3, 3)))
    stats = index.splits["train"].stats["action"]
    spec = ActionSpec.fit(index.dataset.action_names, index.dataset.binary, stats, ("q99",))
    np.testing.assert_allclose(spec.unnormalise(batch.actions[:, -1, 0]), table.actions, atol=1e-6)
    np.testing.assert_array_equal(batch.actions[2:-1, 1, 1], batch.actions[2:-1, 2, 0])
    assert not batch.actions[~batch.action_mask].any()
    assert batch.obs.step_mask[0].tolist() == [False, False, True]
    assert batch.obs.proprio_mask.all()
    words = batch.obs.prompt[0][batch.obs.prompt_mask[0]]
    assert bytes(words.astype(np.uint8)).decode() == loader.instruction(4) == table.instruction
    n = len(words)
    assert batch.obs.prompt_mask[0, :n].all()
    assert not batch.obs.prompt_mask[0, n:].any()


def test_every_window_comes_once_an_epoch(index):
    loader = make(index, batch_size=1)
    seen = [
        loader.batch(i).obs.images[0].tobytes() + loader.batch(i).obs.proprio.tobytes() for i in range(loader.windows)
    ]
    expected = [
        batch.obs.images[0][i].tobytes() + batch.obs.proprio[i].tobytes()
        for batch in (loader.episode(e) for e in range(6))
        for i in range(len(batch.actions))
    ]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("budget", [10**9, 2 * 12 * 32 * 32 * 3, 0])
def test_batches_are_pure(index, budget):
    """Any position, in any order, from any loader, with any cache: the same batch. Epochs run into each other."""
    a, b = make(index, ram_budget=budget), make(index, ram_budget=budget)
    stream = a.batches(0)
    batches = [next(stream) for _ in range(2 * a.windows // 7)]
    stream.close()
    for position in (13, 3, a.windows // 7, 0):
        same(b.batch(position), batches[position])
    resumed = b.batches(5)
    for position in (5, 6, 7):
        same(next(resumed), batches[position])
    resumed.close()
    assert a.identity() == b.identity() != make(index, seed=6).identity()
    assert not loaders()


def test_rows_are_parts_of_the_global_batch(index):
    whole = make(index).batch(2)
    part = make(index, rows=np.array([5, 1])).batch(2)
    same(part, jax.tree.map(lambda x: x[[5, 1]], whole))
    with pytest.raises(ValueError, match="rows: expected rows of a batch of 7"):
        make(index, rows=np.array([7]))


def test_one_pass_without_shuffling(index):
    loader = make(index, "val", shuffle=False)
    batches = list(loader.batches())
    assert len(batches) == -(-loader.windows // 7)
    assert not loaders()
    expected = jax.tree.map(lambda *x: np.concatenate(x), loader.episode(0), loader.episode(1))
    got = jax.tree.map(lambda *x: np.concatenate(x), *batches)
    same(jax.tree.map(lambda x: x[: loader.windows], got), expected)
    assert len(got.actions) % 7 == 0
    assert not got.action_mask[loader.windows :].any()
    with pytest.raises(ValueError, match="one pass"):
        loader.batch(len(batches))


def test_closing_stops_the_thread_and_errors_arrive(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    index = open_index(tmp_path / "data", DATASETS["blocks"])
    stream = make(index).batches()
    next(stream)
    assert loaders()
    stream.close()
    assert not loaders()
    loader = make(index)
    for shard in index.splits["train"].shards:
        shard.unlink()
    with pytest.raises(FileNotFoundError):
        next(loader.batches())
    assert not loaders()


def test_damaged_image_is_named(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    index = open_index(tmp_path / "data", DATASETS["blocks"])
    split = index.splits["train"]
    frames, body = split.frames["primary"], bytearray(split.shards[0].read_bytes())
    body[frames.offset[2] : frames.offset[2] + 20] = bytes(20)
    split.shards[0].write_bytes(body)
    with pytest.raises(ValueError, match="primary frame 2 of episode 0: image: expected a whole JPEG or PNG"):
        make(index).episode(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 99}, r"model.window: expected at most \d+, the longest episode of blocks/train, got 99"),
        ({"cameras": ("other",)}, "model.cameras: expected at least one of primary, wrist"),
        ({"prompt_length": 9}, r"model.prompt_length: expected at least \d+ for the instruction '\w+"),
        ({"split": "test"}, "expected a split of train, val, got 'test'"),
    ],
)
def test_misfits_are_refused(index, changes, message):
    with pytest.raises(ValueError, match=message):
        make(index, **changes)


def test_blocks_need_both_picture_and_words(index):
    """Pushing goes where the words say; the approach goes where the named block is."""
    for episode in range(6):
        batch, table = make(index, window=1, chunk=1).episode(episode), play(0, 0, episode)
        word = next(w for w in ("left", "right", "up", "down") if w in table.instruction)
        closed = batch.actions[:, 0, 0, 6] == 0
        axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[word]
        assert closed.sum() == 6
        assert (np.sign(table.actions[closed, axis]) == sign).all()


@pytest.mark.skipif(not (RLDS / "bridge_dataset").is_dir(), reason="no Bridge sample beside the repository")
def test_bridge_batch(tmp_path):
    index = open_index(RLDS, DATASETS["bridge"], tmp_path)
    loader = make(index, window=8, chunk=10, cameras=("primary", "wrist"), prompt_length=128)
    batch = loader.batch(0)
    assert batch.actions.shape == (7, 8, 10, 7)
    assert np.abs(batch.actions).max() <= 1
    assert batch.obs.images[0].any()
    assert not batch.obs.image_mask[:, :, 1].any()
