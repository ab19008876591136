"""Where a run reads on when seed, batch size or mixture are others, against windows told one by
one.
"""

import numpy as np
import pytest

from data_pipelines import place
from tests.data_pipelines.loading import make


def epoch_so_far(loader, position):
    """The windows of the running epoch that come before a position."""
    ids = np.concatenate([np.empty(0, int), *(loader.ids(i) for i in range(position))])
    return set(ids[len(ids) // loader.windows * loader.windows :].tolist())


@pytest.mark.parametrize("changes", [{"batch_size": 5}, {"seed": 6}, {"windows_per_visit": 3}])
def test_what_comes_again_and_what_does_not_come(index, changes):
    before, now = make(index), make(index, **changes)
    begun = 1 + before.windows // 7 + 3  # some batches into the second epoch
    moved = place.move(now, before.identity(), begun)
    batch = changes.get("batch_size", 7)
    assert begun * 7 - batch < moved.position * batch <= begun * 7
    seen, passed = epoch_so_far(before, begun), epoch_so_far(now, moved.position)
    assert seen - passed  # else nothing is shown
    assert moved.lines[1] == (
        f"  blocks: {len(seen)} windows of this epoch were read; {len(seen - passed)} of them come"
        f" again in it, {len(passed - seen)} others do not come in it"
    )
    assert (
        f"window {begun * 7 - before.windows:,} of {before.windows:,} of epoch 1;" in moved.lines[0]
    )


def test_the_same_order_goes_on_where_it_was(index):
    loader = make(index)
    moved = place.move(loader, loader.identity(), 5)
    assert moved.position == 5
    assert "35 windows of this epoch were read; 0 of them come again in it, 0" in moved.lines[1]


def test_a_dataset_that_is_added_begins_in_the_middle(index, bare):
    before, now = make(index), make(index, bare)
    half = before.windows // 2 // 7
    moved = place.move(now, before.identity(), half)
    assert moved.position == half * 7 * now.windows // before.windows // 7
    passed = epoch_so_far(now, moved.position)
    new = sum(i >= before.windows for i in passed)
    assert new
    assert moved.lines[2] == f"  bare: new; {new} of its windows are not read this epoch"


def test_of_data_that_are_gone_as_many_windows_count_as_read(index, bare):
    before, now = make(index, bare), make(index, batch_size=4)
    moved = place.move(now, before.identity(), 8)
    assert moved.position == 14
    assert "read up to 56 windows; goes on at window" in moved.lines[0]
    assert moved.lines[1:] == [
        "  bare: gone, or not the data it was: which windows of the epoch come again is not known"
    ]
