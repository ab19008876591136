"""Running statistics: the same however the rows are cut into shards, and those of numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipelines import stats

SETTINGS = settings(derandomize=True, deadline=None, database=None, max_examples=60)

# Plain numbers, whole numbers, tiny and huge ones, side by side in one column.
NUMBERS = st.one_of(
    st.floats(-1, 1, width=32),
    st.integers(-3, 3).map(float),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.just(2)), elements=NUMBERS)


def tree(parts, draw):
    """Merges the parts pairwise in an order of chance."""
    parts = [stats.update(stats.empty(2), part) for part in parts]
    while len(parts) > 1:
        i = draw.integers(len(parts) - 1)
        a, b = parts.pop(i), parts.pop(i)
        parts.insert(i, stats.merge(b, a) if draw.integers(2) else stats.merge(a, b))
    return parts[0]


@SETTINGS
@given(ROWS, st.lists(st.integers(0, 60), max_size=8), st.integers(0, 2**32 - 1))
def test_cuts_and_order_do_not_matter(rows, cuts, seed):
    draw = np.random.default_rng(seed)
    parts = np.split(draw.permutation(rows), sorted(cuts))
    whole, merged = stats.update(stats.empty(2), rows), tree(parts, draw)
    for name in ("rows", "low", "high", "exponent", "first", "bins"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name), err_msg=name)
    a, b = stats.summary(whole), stats.summary(merged)
    largest = np.abs(rows.astype(np.float64)).max(0)
    for name in ("mean", "std"):
        assert (np.abs(a[name] - b[name]) <= 1e-12 * largest).all(), name
    for name in ("q01", "q99"):
        np.testing.assert_array_equal(a[name], b[name])


@SETTINGS
@given(ROWS)
def test_they_are_those_of_numpy(rows):
    x = rows.astype(np.float64)
    summary = stats.summary(stats.update(stats.empty(2), rows))
    largest, span = np.abs(x).max(0), np.ptp(x, axis=0)
    np.testing.assert_array_equal(summary["min"], x.min(0))
    np.testing.assert_array_equal(summary["max"], x.max(0))
    for name, value in (("mean", x.mean(0)), ("std", x.std(0))):
        assert (np.abs(summary[name] - value) <= 1e-12 * largest).all(), name
    for name, q in (("q01", 0.01), ("q99", 0.99)):
        assert (
            np.abs(summary[name] - np.quantile(x, q, axis=0)) <= 1e-4 * span + 1e-15 * largest
        ).all(), name


def test_long_columns_in_blocks():
    draw = np.random.default_rng(0)
    x = np.stack(
        [
            draw.normal(1e4, 0.01, 200_000),
            draw.standard_cauchy(200_000),
            draw.integers(0, 2, 200_000),
        ],
        1,
    )
    running = stats.empty(3)
    for block in np.array_split(x, 37):
        running = stats.update(running, block)
    summary = stats.summary(running)
    np.testing.assert_allclose(summary["mean"], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(summary["std"], x.std(0), rtol=1e-11)
    span = np.ptp(x, axis=0)
    for q in (0.01, 0.5, 0.99):
        assert (np.abs(stats.quantile(running, q) - np.quantile(x, q, axis=0)) <= 1e-4 * span).all()
    assert (summary["q01"][2], summary["q99"][2]) == (0, 1)  # a gripper's quantiles are its values


@pytest.mark.parametrize("value", [0.0, 0.1, -7.25, 1e-38, -3e38])
def test_constant_column_is_exact(value):
    rows = np.full((1000, 1), value, np.float32)
    running = stats.merge(
        stats.update(stats.empty(1), rows[:1]), stats.update(stats.empty(1), rows[1:])
    )
    summary = stats.summary(running)
    assert summary.pop("std") == 0
    assert {float(v[0]) for v in summary.values()} == {float(rows[0, 0])}


def test_two_rows_are_interpolated_as_numpy_does():
    summary = stats.summary(stats.update(stats.empty(1), np.array([[0.0], [1.0]])))
    np.testing.assert_allclose([summary["q01"][0], summary["q99"][0]], [0.01, 0.99], rtol=1e-12)


def test_no_rows_change_nothing_and_have_no_summary():
    rows = np.arange(6.0).reshape(3, 2)
    running = stats.update(stats.empty(2), rows)
    for same in (stats.merge(running, stats.empty(2)), stats.merge(stats.empty(2), running)):
        np.testing.assert_array_equal(same.bins, running.bins)
    assert stats.update(running, rows[:0]).rows == 3
    with pytest.raises(ValueError, match="at least one row"):
        stats.summary(stats.empty(2))


def test_no_dims():
    summary = stats.summary(stats.update(stats.empty(0), np.zeros((4, 0), np.float32)))
    assert all(value.shape == (0,) for value in summary.values())


def test_other_width_and_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"expected rows \[n, 2\], got shape \(3, 1\)"):
        stats.update(stats.empty(2), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="expected finite numbers"):
        stats.update(stats.empty(1), np.array([[np.nan]]))
