"""Which window comes at which position: a pure function of (seed, position), for one dataset or a
weighted mixture.

The unit of decoding is a visit: up to `windows_per_visit` consecutive windows of an episode, whose
frames are decoded once. An epoch takes round(weight x windows) windows of each dataset, from where
its last epoch stopped in an endless row of shuffled passes over its visits. The visits of all
datasets are merged evenly into one line, the line is cut into lanes, and inside its lane every
window is delayed by a random number of up to pool / lanes visits. So about `pool` visits are open
at any time, and each is decoded once.

A lane owns fixed rows of every batch. A host that builds the rows of some lanes therefore decodes
only their visits, while the order itself knows nothing of hosts: 1, 2 or 4 of them see the same
batches.

Random numbers are raw Philox output, which numpy keeps stable, so that an order outlives a numpy
upgrade.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt64

MAX_LANES = 64  # a lane is one row of a batch at least, and hosts come in powers of two


class Visits(NamedTuple):
    """Runs of consecutive windows, named by the rows of their newest steps in a dataset's
    columns.
    """

    start: Int64[np.ndarray, " V"]
    windows: Int64[np.ndarray, " V"]
    rows: int  # of the columns


@dataclasses.dataclass(frozen=True)
class OrderConfig:
    """How windows are shuffled.

    Attributes:
        seed: of everything random.
        batch_size: windows per global batch.
        pool: visits open at a time; as many as there are, or more, shuffle the whole epoch.
    """

    seed: int
    batch_size: int
    pool: int

    @property
    def lanes(self) -> int:
        """The largest power of two that divides the batch and leaves every lane a visit, up to
        MAX_LANES.
        """
        lanes = MAX_LANES
        while self.batch_size % lanes or lanes > max(self.pool, 1):
            lanes //= 2
        return lanes


def windows(lengths: Integer[np.ndarray, " E"], stride: int) -> int:
    """How many windows there are at every stride-th step of episodes."""
    return int((-(-lengths // stride)).sum())


def visits(lengths: Int64[np.ndarray, " E"], windows_per_visit: int, stride: int = 1) -> Visits:
    """The visits of episodes whose windows stand one after the other: [E] -> [V], in the order of
    the rows.

    The runs of an episode differ by at most one window. With a stride there are windows at every
    stride-th step of an episode alone, from its first one on, each a visit of its own.
    """
    rows = int(lengths.sum())
    if stride > 1:
        inside = np.arange(rows) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        start = np.flatnonzero(inside % stride == 0)
        return Visits(start, np.ones(len(start), np.int64), rows)
    runs = -(-lengths // windows_per_visit)  # 0 for an empty episode
    run = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)  # 0.. inside each episode
    length, of = np.repeat(lengths, runs), np.repeat(runs, runs)
    begin, end = run * length // np.maximum(of, 1), (run + 1) * length // np.maximum(of, 1)
    return Visits(np.repeat(np.cumsum(lengths) - lengths, runs) + begin, end - begin, rows)


class Order:
    """The endless order of the windows of several datasets. `epoch_length` is the number of windows
    in an epoch, `bases` the id of each dataset's first row, and behind them the number of all.
    """

    def __init__(self, visits: list[Visits], weights: list[float], config: OrderConfig) -> None:
        """`visits` are each dataset's, in the order of its windows. Weights multiply a dataset's
        number of windows; equal ones make an epoch show every window once.
        """
        if len(set(weights)) == 1:
            weights = [1.0] * len(weights)
        self._visits, self._config = visits, config
        self._sizes = [int(runs.windows.sum()) for runs in visits]
        self.taken = [max(1, round(w * n)) for w, n in zip(weights, self._sizes, strict=True)]
        self.epoch_length = sum(self.taken)
        self.bases = np.cumsum([0, *(runs.rows for runs in visits)])
        self._kept: dict[int, np.ndarray] = {}

    def windows(self, samples: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The ids of the windows of samples (position x batch_size + row). An id is the row of the
        window's newest step in the columns of all datasets put one after the other.
        """
        epoch = samples // self.epoch_length
        ids = np.empty(len(samples), np.int64)
        for number in np.unique(epoch).tolist():
            asked = epoch == number
            ids[asked] = self.epoch(number)[samples[asked] - number * self.epoch_length]
        return ids

    def epoch(self, number: int) -> Integer[np.ndarray, " n"]:
        """The ids of all windows of an epoch in order."""
        if number not in self._kept:
            made = self._make(number)
            # A batch may straddle two epochs, and the next is asked for while the last is still
            # being read.
            self._kept = {n: kept for n, kept in self._kept.items() if abs(n - number) <= 1}
            self._kept[number] = made
        return self._kept[number]

    def _make(self, epoch: int) -> np.ndarray:
        start, count = self._line(epoch)
        lanes, batch, pool = self._config.lanes, self._config.batch_size, self._config.pool
        # The rows of the epoch's slots: epochs need not end with a batch.
        row = (np.arange(self.epoch_length) + epoch * self.epoch_length) % batch
        lane = (row * lanes // batch).astype(np.uint8)
        # All slots of the first lane, then of the second ...
        slots = np.argsort(lane, kind="stable")
        ends = np.cumsum(np.bincount(lane, minlength=lanes)).tolist()
        del row, lane
        visit = np.repeat(np.arange(len(count)), count)
        window = (start - np.cumsum(count) + count)[visit] + np.arange(self.epoch_length)
        out = np.empty(self.epoch_length, np.uint32 if self.bases[-1] < 2**32 else np.int64)
        for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            key = _uniform(end - begin, self._config.seed, epoch, 1, number)
            if pool < len(start):  # else all visits are open all the time
                key = visit[begin:end] + key * (pool / lanes)
            out[slots[begin:end]] = window[begin:end][np.argsort(key, kind="stable")]
        return out

    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Id of the first window, and number of windows, of every visit of the epoch, datasets
        merged.
        """
        shares = []
        for number, taken in enumerate(self.taken):
            start, count = self._take(number, epoch * taken, (epoch + 1) * taken)
            # Where the visit stands in the dataset's share of the epoch, 0 to 1: monotone, with a
            # random phase.
            at = (
                np.cumsum(count)
                - count
                + _uniform(len(count), self._config.seed, epoch, 2, number) * count
            )
            shares.append((start + self.bases[number], count, at / taken))
        starts, counts, places = (np.concatenate(columns) for columns in zip(*shares, strict=True))
        merged = np.argsort(places, kind="stable")
        return starts[merged], counts[merged]

    def _take(self, number: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows begin to end of a dataset's endless row of shuffled passes, as (row, count)
        pieces of visits.
        """
        visits, size = self._visits[number], self._sizes[number]
        pieces = []
        for turn in range(begin // size, -(-end // size)):
            shuffled = np.argsort(
                raw(len(visits.windows), self._config.seed, turn, 3, number), kind="stable"
            )
            count = visits.windows[shuffled]
            after = np.cumsum(count) + turn * size
            low, high = np.maximum(after - count, begin), np.minimum(after, end)
            keep = low < high
            pieces.append(
                (visits.start[shuffled][keep] + (low - after + count)[keep], (high - low)[keep])
            )
        starts, counts = zip(*pieces, strict=True)
        return np.concatenate(starts), np.concatenate(counts)


class Mixing(NamedTuple):
    """How well consecutive windows are mixed, as means over batches of `batch` windows."""

    batch: int
    pairs: float  # pairs of windows of the same episode
    episodes: float  # distinct episodes


def mixing(episode: Integer[np.ndarray, " n"], batch: int = 256, batches: int = 64) -> Mixing:
    """The mixing of windows that come in this order, from the episodes they belong to: batches
    spread over all.
    """
    batch = min(batch, len(episode))
    begins = np.unique(np.linspace(0, len(episode) - batch, batches).astype(np.int64))
    rows = np.sort(episode[begins[:, None] + np.arange(batch)], axis=1)
    new = np.concatenate([np.ones((len(rows), 1), bool), np.diff(rows, axis=1) != 0], axis=1)
    counts = np.diff(np.flatnonzero(np.append(new.ravel(), True)))
    return Mixing(
        batch, float((counts * (counts - 1) / 2).sum() / len(rows)), float(new.sum() / len(rows))
    )


def raw(n: int, *key: int) -> UInt64[np.ndarray, " n"]:
    """n random numbers that depend on the key alone."""
    return np.random.Philox(np.random.SeedSequence([k % 2**64 for k in key])).random_raw(n)


def _uniform(n: int, *key: int) -> Float64[np.ndarray, " n"]:
    """n random numbers in [0, 1) that depend on the key alone."""
    return (raw(n, *key) >> np.uint64(11)) * 2.0**-53
