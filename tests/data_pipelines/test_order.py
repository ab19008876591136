"""Which window comes at which position: coverage, shares, mixing, and what a host has to decode."""

import numpy as np
import pytest

from data_pipelines.order import MAX_LANES, Order, OrderConfig, mixing, visits


def lengths(n, low=1, high=90, seed=0):
    return np.random.default_rng(seed).integers(low, high, n)


def make(sizes, weights, *, batch_size=16, pool=40, per_visit=20, seed=3):
    return Order(
        [visits(x, per_visit) for x in sizes], weights, OrderConfig(seed, batch_size, pool)
    )


def test_visits_cut_episodes_into_even_runs():
    cut = visits(np.array([4, 0, 9, 1, 10]), 4)
    assert cut.start.tolist() == [0, 4, 7, 10, 13, 14, 17, 20]
    assert cut.windows.tolist() == [4, 3, 3, 3, 1, 3, 3, 4]
    assert visits(np.array([4, 0, 9]), 99).windows.tolist() == [4, 9]


def test_with_a_stride_there_are_windows_at_some_steps_alone():
    sizes = [np.array([4, 0, 9, 1]), np.array([3, 7])]
    cut = [visits(x, 99, stride=3) for x in sizes]
    assert cut[0].start.tolist() == [0, 3, 4, 7, 10, 13]
    order = Order(cut, [0.5, 0.5], OrderConfig(seed=3, batch_size=4, pool=99))
    rows = [0, 3, 4, 7, 10, 13, 14 + 0, 14 + 3, 14 + 6, 14 + 9]
    assert order.epoch_length == len(rows)
    assert sorted(order.epoch(0)) == sorted(order.epoch(1)) == rows


@pytest.mark.parametrize(
    ("pool", "per_visit", "batch_size"), [(1, 99, 7), (30, 8, 16), (64, 1, 64), (9999, 20, 6)]
)
def test_an_epoch_of_equal_weights_shows_every_window_once(pool, per_visit, batch_size):
    sizes = [lengths(50), lengths(7, seed=1), np.array([0, 3, 0])]
    order = make(sizes, [0.5] * 3, pool=pool, per_visit=per_visit, batch_size=batch_size)
    total = sum(int(x.sum()) for x in sizes)
    assert order.epoch_length == total
    first, second = order.epoch(0), order.epoch(1)
    assert sorted(first) == sorted(second) == list(range(total))
    assert (first != second).any()


@pytest.mark.parametrize("weights", [[1.0, 1.0, 0.2], [0.54, 2.0, 3.0], [0.1, 0.1, 0.3]])
def test_shares_follow_the_weights(weights):
    sizes = [lengths(300), lengths(40, seed=1), lengths(90, seed=2)]
    order = make(sizes, weights, pool=64)
    counts = np.array([x.sum() for x in sizes])
    expected = np.array(weights) * counts / (np.array(weights) * counts).sum()
    draws = 100_000
    part = np.searchsorted(np.cumsum(counts), order.windows(np.arange(draws)), side="right")
    realised = np.bincount(part, minlength=3) / draws
    assert (np.abs(realised - expected) <= 3 * np.sqrt(expected * (1 - expected) / draws)).all(), (
        realised,
        expected,
    )


def test_weights_repeat_and_spread_whole_passes():
    sizes = [lengths(30), lengths(30, seed=1), lengths(30, seed=2)]
    order = make(sizes, [1.0, 2.0, 0.5])
    ends = np.cumsum([x.sum() for x in sizes])
    one = np.bincount(order.epoch(0), minlength=ends[-1])
    assert (one[: ends[0]] == 1).all()
    assert (one[ends[0] : ends[1]] == 2).all()
    assert set(one[ends[1] :]) == {0, 1}
    both = one + np.bincount(order.epoch(1), minlength=ends[-1])
    half = both[ends[1] :]
    assert (half == 1).sum() >= len(half) - 1  # an odd number of windows cannot be halved


def test_a_position_means_the_same_in_any_order_of_asking():
    sizes = [lengths(40), lengths(9, seed=1)]
    samples = np.random.default_rng(0).permutation(3 * make(sizes, [1.0, 0.3]).epoch_length)
    straight = make(sizes, [1.0, 0.3]).windows(np.arange(len(samples)))
    np.testing.assert_array_equal(make(sizes, [1.0, 0.3]).windows(samples), straight[samples])
    assert (make(sizes, [1.0, 0.3], seed=4).windows(samples) != straight[samples]).any()


def test_the_order_never_changes():
    """Checkpoints hold positions: a new version of numpy, or of ours, must not give them another
    meaning.
    """
    order = make(
        [np.array([5, 3, 8]), np.array([4, 4])],
        [1.0, 0.5],
        batch_size=4,
        pool=2,
        per_visit=4,
        seed=7,
    )
    expected = [11, 8, 15, 22, 9, 10, 23, 20, 7, 6, 21, 4, 5, 14, 3, 2, 12, 13, 0, 1]
    assert order.windows(np.arange(20)).tolist() == expected


def test_few_visits_are_open_at_a_time():
    per_episode, pool = 20, 32
    order = make([np.full(400, per_episode)], [1.0], pool=pool, per_visit=64, batch_size=16)
    visit = order.epoch(0) // per_episode
    last = len(visit) - 1 - np.unique(visit[::-1], return_index=True)[1]
    first = np.unique(visit, return_index=True)[1]
    at = np.arange(len(visit))[:, None]
    assert ((first <= at) & (at <= last)).sum(1).max() <= pool
    assert mixing(visit[len(visit) // 2 :][:256], 256, 1).episodes > pool * 0.8


@pytest.mark.parametrize("hosts", [1, 2, 4, 16])
def test_hosts_share_the_decoding(hosts):
    """Every host's rows come from its own visits: together they decode hardly more than one host
    would.
    """
    order = make([lengths(500, 20, 60)], [1.0], pool=128, per_visit=64, batch_size=32)
    epoch = order.epoch(0)
    visit = np.searchsorted(visits(lengths(500, 20, 60), 64).start, epoch, side="right") - 1
    host = np.arange(len(epoch)) % 32 * hosts // 32
    assert len({*zip(visit.tolist(), host.tolist(), strict=True)}) <= 500 + MAX_LANES


def test_more_open_visits_mix_better_up_to_a_full_shuffle():
    sizes = [np.full(300, 30)]
    pairs = [
        mixing(make(sizes, [1.0], pool=pool, per_visit=64).epoch(0) // 30).pairs
        for pool in (16, 64, 300)
    ]
    assert pairs[0] > pairs[1] > pairs[2]
    chance = 256 * 255 / 2 * 29 / (300 * 30 - 1)  # of two windows drawn without replacement
    assert pairs[2] == pytest.approx(chance, rel=0.1)


def test_mixing_counts_pairs_and_episodes():
    mixed = mixing(np.array([1, 1, 1, 2, 3, 3, 4, 5]), batch=4, batches=2)
    assert mixed == (4, (3 + 1) / 2, (2 + 3) / 2)
