"""Batches: which windows come when, from how many hosts and threads, and what is refused."""

import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines import frames
from data_pipelines.index import open_index
from tests.data_pipelines.loading import BLOCKS, loaders, make, member, same, take


def test_the_summary_says_what_is_mixed(index, bare):
    text = make(index, member(bare, weight=0.5)).summary()
    assert "control rates differ (5, 10 Hz)" in text
    assert "distinct episodes" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines()}
    ours, theirs = (len(each.splits["train"].actions) for each in (index, bare))
    half = round(theirs / 2)  # whole windows
    assert lines["bare"][1:3] == ["0.5", f"{100 * half / (ours + half):.2f}%"]
    assert "control rates" not in make(index).summary()


def test_every_window_comes_once_an_epoch(index, bare):
    loader = make(index, bare, batch_size=1)
    count = loader.windows
    expected = [loader.episode(e) for e in range(12)]
    seen = take(loader, 0, count)

    def key(batch, i):
        return (
            batch.obs.images[0][i].tobytes()
            + batch.actions[i].tobytes()
            + bytes([int(batch.dataset_id[i])])
        )

    assert sorted(key(batch, 0) for batch in seen) == sorted(
        key(batch, i) for batch in expected for i in range(len(batch.actions))
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("budget", [10**9, 0])
def test_a_stride_leaves_out_windows_and_changes_none(index, bare, budget, shuffle):
    loader = make(index, bare, batch_size=2, stride=4, ram_budget=budget, shuffle=shuffle)
    every = make(index, bare, batch_size=1, shuffle=False)
    lengths = np.concatenate([each.splits["train"].length for each in (index, bare)])
    firsts = np.cumsum(lengths) - lengths
    rows = [r for first, n in zip(firsts, lengths, strict=True) for r in range(first, first + n, 4)]
    assert loader.windows == len(rows)
    batches = take(loader, 0, len(rows) // 2)
    ids = np.concatenate([loader.ids(i) for i in range(len(rows) // 2)])
    assert (sorted(ids) if shuffle else ids.tolist()) == rows[: len(ids)]
    for at, row in enumerate(ids.tolist()):
        own = jax.tree.map(lambda x, i=at % 2: x[i : i + 1], batches[at // 2])
        same(own, every.batch(row))
    assert loader.identity() != make(index, bare, batch_size=2, ram_budget=budget).identity()


@pytest.mark.parametrize(
    ("budget", "per_visit"), [(10**9, 64), (2 * 12 * 32 * 32 * 3, 5), (0, 64), (0, 1)]
)
def test_batches_are_pure(index, bare, budget, per_visit):
    """Any position, in any order, from any loader: the same batch. Epochs run into each other."""
    pair = [
        make(index, member(bare, weight=0.3), ram_budget=budget, windows_per_visit=per_visit)
        for _ in range(2)
    ]
    a, b = pair
    batches = take(a, 0, 2 * a.windows // 7)
    for position in (13, 3, a.windows // 7, 0):
        same(b.batch(position), batches[position])
    for position, batch in enumerate(take(b, 5, 3), 5):
        same(batch, batches[position])
    assert a.identity() == b.identity() != make(index, seed=6).identity()
    assert not loaders()


def test_frames_that_all_fit_are_decoded_once(index, monkeypatch):
    """Within the budget of all hosts; else each epoch decodes anew."""
    decode, spans = frames.Decoder.decode, []

    def counted(self, span, camera):
        spans.append(span)
        return decode(self, span, camera)

    monkeypatch.setattr(frames.Decoder, "decode", counted)
    monkeypatch.setattr(frames.remote, "workers", lambda path: 1)  # reads few visits ahead
    one = {"batch_size": 8, "windows_per_visit": 2}
    windows = make(index).windows
    visits = int((-(-index.splits["train"].length // 2)).sum())
    needed = (windows + 2 * visits) * 32 * 32 * 3  # windows of 3 frames of 32 pixels
    for budget, times in ((needed, 1), (needed // 8, 3)):
        spans.clear()
        loader = make(index, ram_budget=budget, **one)
        assert ("decoded once" in loader.summary()) == (times == 1)
        take(loader, 0, 3 * windows // 8)
        assert len(set(spans)) == visits
        assert len(spans) == visits if times == 1 else len(spans) > 2 * visits
    assert not make(index, ram_budget=needed - 1, **one).decoded_once
    half = np.arange(4)
    assert make(index, ram_budget=2 * needed, rows=half, **one).decoded_once
    assert not make(index, ram_budget=needed, rows=half, **one).decoded_once


def test_timing_does_not_matter(index, monkeypatch):
    expected = take(make(index), 0, 12)
    decode, draw = frames.Decoder.decode, np.random.default_rng(0)

    def late(self, span, camera):
        time.sleep(float(draw.random()) / 50)
        return decode(self, span, camera)

    monkeypatch.setattr(frames.Decoder, "decode", late)
    for batch, wanted in zip(take(make(index), 0, 12), expected, strict=True):
        same(batch, wanted)


def test_hosts_may_change_in_the_middle_of_an_epoch(index, bare):
    """1, then 2, then 4 hosts from saved positions: together they see what one host sees, no window
    twice or never.
    """
    size, members = 8, (member(index), member(bare, weight=2.0))
    whole = take(make(*members, batch_size=size), 0, 12)
    position, seen = 0, []
    for hosts in (1, 2, 4):
        slices = np.arange(size).reshape(hosts, -1)
        shares = [take(make(*members, batch_size=size, rows=rows), position, 4) for rows in slices]
        seen += [
            jax.tree.map(lambda *x: np.concatenate(x), *batches)
            for batches in zip(*shares, strict=True)
        ]
        state = json.dumps({"position": position + 4, **make(*members, batch_size=size).identity()})
        assert len(state) * 40 < 64_000  # of 2 datasets: all 80 of them would do
        position = json.loads(state)["position"]
    for batch, expected in zip(seen, whole, strict=True):
        same(batch, expected)


def test_rows_are_parts_of_the_global_batch(index):
    whole = make(index).batch(2)
    rows = make(index, rows=np.array([5, 1])).batch(2)
    same(rows, jax.tree.map(lambda x: x[[5, 1]], whole))
    with pytest.raises(ValueError, match="rows: expected rows of a batch of 7"):
        make(index, rows=np.array([7]))


def test_one_pass_without_shuffling(index):
    loader = make(member(index, "val"), shuffle=False)
    batches = [jax.tree.map(np.array, batch) for batch in loader.batches()]
    assert len(batches) == -(-loader.windows // 7)
    assert not loaders()
    expected = jax.tree.map(lambda *x: np.concatenate(x), loader.episode(0), loader.episode(1))
    got = jax.tree.map(lambda *x: np.concatenate(x), *batches)
    same(jax.tree.map(lambda x: x[: loader.windows], got), expected)
    assert len(got.actions) % 7 == 0
    assert not got.action_mask[loader.windows :].any()
    with pytest.raises(ValueError, match="one pass"):
        loader.batch(len(batches))


def test_batches_that_are_kept_do_not_change(index):
    stream = make(index).batches()
    kept = [next(stream) for _ in range(20)]
    copies = [jax.tree.map(np.array, batch) for batch in kept]
    for _ in range(20):
        next(stream)
    stream.close()
    for batch, copy in zip(kept, copies, strict=True):
        same(batch, copy)


def test_closing_stops_the_threads_and_errors_arrive(root):
    index = open_index(root, BLOCKS)
    stream = make(index).batches()
    next(stream)
    assert loaders()
    stream.close()
    assert not loaders()
    loader = make(index)
    for shard in index.splits["train"].shards:
        Path(shard).unlink()
    with pytest.raises(FileNotFoundError):
        next(loader.batches())
    assert not loaders()


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        (
            {"window": 99},
            "train",
            r"model.window: expected at most \d+, the longest .* of blocks, split train, got 99",
        ),
        (
            {"cameras": ("other",)},
            "train",
            "model.cameras: expected at least one of primary, wrist",
        ),
        (
            {"prompt_length": 9},
            "train",
            r"model.prompt_length: expected at least \d+ for the instruction '\w+",
        ),
        ({}, "test", "expected a split of train, val, got 'test'"),
        ({"cameras": ("primary", "wrist")}, "train", "model.image_size: expected one per camera"),
    ],
)
def test_misfits_are_refused(index, changes, split, message):
    with pytest.raises(ValueError, match=message):
        make(member(index, split), **changes)


def test_all_misfits_of_a_mixture_are_listed_at_once(index, bare):
    with pytest.raises(ValueError, match=r"model\.cameras") as caught:
        make(member(index, "test"), member(bare, weight=0.0), cameras=("wrist",))
    for line in (
        "blocks: expected a split",
        "at least one of primary, which bare has",
        "weight above 0 for bare",
    ):
        assert line in str(caught.value)
    with pytest.raises(ValueError, match=r"blocks: expected dims among the policy's x, y, got z,"):
        make(index, action_names=("x", "y"))
    with pytest.raises(ValueError, match=r"embodiments: expected bare among blocks; give"):
        make(index, bare, embodiments=("blocks",))
