"""Statistics of columns in one pass: kept per shard or block, merged in any order.

Mean and squared deviation are merged in float64 (Chan's formula). Quantiles come from a histogram
whose bins are a power of two wide and aligned at zero. Their width depends on the smallest and the
largest value alone, and a narrow bin lies inside one wide bin, so every order of merging ends with
the same counts in the same bins.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

BINS = 2**16
SMALLEST = -1074  # exponent of the smallest float64 above zero
# A bin is never narrower than the distance of float64 values near the largest one, so that numbers
# of bins stay exact.
BITS = 52


class Running(NamedTuple):
    """What is kept of rows [n, d]. Bin k of a dim counts values in [first + k, first + k + 1) *
    2**exponent.
    """

    rows: int  # n
    mean: np.ndarray  # d, float64
    deviation: np.ndarray  # d, float64: sum of (x - mean)**2
    low: np.ndarray  # d, float64; +inf before the first row
    high: np.ndarray  # d, float64; -inf before the first row
    exponent: np.ndarray  # d, int64
    first: np.ndarray  # d, int64
    bins: np.ndarray  # d BINS, int64


def empty(dims: int) -> Running:
    """No rows yet of a column of `dims` numbers."""
    zeros, limit = np.zeros(dims), np.full(dims, np.inf)
    numbers = np.zeros(dims, np.int64)
    return Running(
        0,
        zeros,
        zeros,
        limit,
        -limit,
        numbers + SMALLEST,
        numbers,
        np.zeros((dims, BINS), np.int64),
    )


def update(running: Running, rows: np.ndarray) -> Running:
    """`running` with more rows [n, d], all finite. Raises ValueError for another width or a number
    that is not.
    """
    if rows.ndim != 2 or rows.shape[1] != len(running.mean):
        raise ValueError(
            f"statistics: expected rows [n, {len(running.mean)}], got shape {rows.shape}"
        )
    x = rows.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError(
            "statistics: expected finite numbers, got NaN or infinity; repair or remove the episode"
        )
    if not len(x):
        return running
    low, high = x.min(0), x.max(0)
    mean = np.clip(x.mean(0), low, high)  # rounding must not move a constant
    exponent, first = _grid(low, high)
    place = np.floor(np.ldexp(x, -exponent)).astype(np.int64) - first
    bins = (
        np.stack([np.bincount(column, minlength=BINS) for column in place.T])
        if x.shape[1]
        else running.bins
    )
    return merge(
        running, Running(len(x), mean, ((x - mean) ** 2).sum(0), low, high, exponent, first, bins)
    )


def merge(a: Running, b: Running) -> Running:
    """Both together. The same for (a, b) and (b, a), but for the last bits of mean and
    deviation.
    """
    if not a.rows or not b.rows:
        return a if a.rows else b
    count = a.rows + b.rows
    low, high = np.minimum(a.low, b.low), np.maximum(a.high, b.high)
    delta = b.mean - a.mean
    mean = np.clip(a.mean + delta * (b.rows / count), low, high)
    deviation = a.deviation + b.deviation + delta**2 * (a.rows * b.rows / count)
    exponent, first = _grid(low, high)
    bins = np.zeros_like(a.bins)
    for running in (a, b):
        for j in range(len(mean)):
            filled = np.flatnonzero(running.bins[j])
            # A shift by 63 or more is one by 62 here: bin numbers stay below 2**53.
            wider = (running.first[j] + filled) >> min(int(exponent[j] - running.exponent[j]), 62)
            np.add.at(bins[j], wider - first[j], running.bins[j, filled])
    return Running(count, mean, deviation, low, high, exponent, first, bins)


def quantile(running: Running, q: float) -> np.ndarray:
    """[d] quantiles, between the two values around each as np.quantile has them, to one bin (range
    / 2**15).

    A value counts as the lower edge of its bin, so numbers that lie on edges (0, 1, whole numbers)
    come out exactly.
    """
    at = q * (running.rows - 1)
    below, above = int(np.floor(at)), int(np.ceil(at))
    seen = running.bins.cumsum(1)
    left, right = ((seen <= rank).sum(1) + running.first for rank in (below, above))
    edges = [
        np.clip(np.ldexp(k.astype(np.float64), running.exponent), running.low, running.high)
        for k in (left, right)
    ]
    return edges[0] + (edges[1] - edges[0]) * (at - below)


def summary(running: Running) -> dict[str, np.ndarray]:
    """mean, std, min, max, q01, q99, each [d] float64. Raises ValueError when there were no
    rows.
    """
    if not running.rows:
        raise ValueError("statistics: expected at least one row, got none")
    return {
        "mean": running.mean,
        "std": np.sqrt(running.deviation / running.rows),
        "min": running.low,
        "max": running.high,
        "q01": quantile(running, 0.01),
        "q99": quantile(running, 0.99),
    }


def finite(blocks: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """count, mean, std, min, max, each [c] float64, of the finite numbers of blocks [n ... c]; of
    numbers that never are there 0.
    """
    count = mean = deviation = np.zeros(())
    low, high = np.full((), np.inf), np.full((), -np.inf)
    for block in blocks:
        x = block.reshape(-1, block.shape[-1] if block.ndim > 1 else 1).astype(np.float64)
        there = np.isfinite(x)
        n = there.sum(0)
        own = np.where(there, x, 0).sum(0) / np.maximum(n, 1)
        total = np.maximum(count + n, 1)
        delta = own - mean
        deviation = deviation + np.where(there, (x - own) ** 2, 0).sum(0)
        deviation = deviation + delta**2 * count * n / total
        mean, count = mean + delta * n / total, count + n
        low = np.minimum(low, np.where(there, x, np.inf).min(0, initial=np.inf))
        high = np.maximum(high, np.where(there, x, -np.inf).max(0, initial=-np.inf))
    return {
        "count": count.astype(np.float64),
        "mean": mean,
        "std": np.sqrt(deviation / np.maximum(count, 1)),
        "min": np.where(count > 0, low, 0.0),
        "max": np.where(count > 0, high, 0.0),
    }


def _grid(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(exponent of the bin width, number of the bin of `low`): the narrowest bins of which BINS
    hold all values.
    """
    span = high / 2 - low / 2  # halves: the difference may overflow
    largest = np.maximum(np.abs(low), np.abs(high))
    floor = np.where(largest > 0, np.frexp(largest)[1] - BITS, SMALLEST)
    least = np.where(span > 0, np.frexp(span)[1] + 1 - BINS.bit_length(), SMALLEST)
    exponent = np.maximum(np.maximum(floor, least), SMALLEST).astype(np.int64)
    for _ in range(2):  # `least` is at most 2 too small
        first, last = (np.floor(np.ldexp(x, -exponent)) for x in (low, high))
        exponent = exponent + (last - first >= BINS)
    return exponent, np.floor(np.ldexp(low, -exponent)).astype(np.int64)
