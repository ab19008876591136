"""Where a run reads on when what it reads has changed: another seed, batch size or mixture.

A position is a place in one order of windows. The same place in another order is the same share of
an epoch: what was read of a pass then is neither read nor left out as a whole, and what does come
again, or not at all, in the epoch that has begun is counted.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.loader import Loader
from data_pipelines.order import Order


class Place(NamedTuple):
    """A position in an order, and how it follows from the one in another order."""

    position: int
    lines: list[str]  # what was read, what comes again, what does not come


def move(loader: Loader, then: Mapping[str, Any], position: int) -> Place:
    """Where in the order of `loader` a run goes on that stood at `position` of another one.

    Args:
        loader: of what is read now; it shuffles.
        then: the `Loader.identity()` of what was read until now.
        position: the next batch of that.
    """
    before, now = loader.order_of(then), loader.order_of(loader.identity())
    assert now is not None  # it has its own datasets
    batch, read = loader.identity()["batch_size"], position * then["batch_size"]
    if before is None:  # which windows an epoch had is not known: as many are taken for read
        at = read // batch
        return Place(at, [_told(read, None, at, batch, now), *_unknown(loader, then)])
    epoch, inside = divmod(read, before.epoch_length)
    share = inside * now.epoch_length // before.epoch_length
    at = (epoch * now.epoch_length + share) // batch
    return Place(
        at, [_told(read, before, at, batch, now), *_overlap(loader, then, before, now, read, at)]
    )


def _told(read: int, before: Order | None, at: int, batch: int, now: Order) -> str:
    """From where to where."""

    def where(windows: int, order: Order) -> str:
        epoch, inside = divmod(windows, order.epoch_length)
        return f"window {inside:,} of {order.epoch_length:,} of epoch {epoch}"

    old = f"{read:,} windows" if before is None else where(read, before)
    return f"data: read up to {old}; goes on at {where(at * batch, now)} of the new order"


def _unknown(loader: Loader, then: Mapping[str, Any]) -> list[str]:
    """Why nothing can be counted."""
    here = {(*each[:2], each[3]) for each in loader.identity()["datasets"]}
    return [
        f"  {name}: gone, or not the data it was: which windows of the epoch come again is not"
        " known"
        for name, split, _, digest in then["datasets"]
        if (name, split, digest) not in here
    ]


def _overlap(
    loader: Loader, then: Mapping[str, Any], before: Order, now: Order, read: int, at: int
) -> list[str]:
    """A line for each dataset: of the epoch that has begun, what comes again and what does not
    come.
    """
    batch = loader.identity()["batch_size"]
    epoch = read // before.epoch_length
    known = _rows(before, epoch, read - epoch * before.epoch_length)
    passed = _rows(now, epoch, at * batch - epoch * now.epoch_length)
    numbers = {each[0]: number for number, each in enumerate(then["datasets"])}
    lines = []
    for number, (name, *_) in enumerate(loader.identity()["datasets"]):
        left_out = passed[number]
        if name not in numbers:
            lines.append(
                f"  {name}: new; {_count(left_out)} of its windows are not read this epoch"
            )
            continue
        seen = known[numbers[name]]
        lines.append(
            f"  {name}: {_count(seen)} windows of this epoch were read; {_count(seen & ~left_out)}"
            f" of them come again in it, {_count(left_out & ~seen)} others do not come in it"
        )
    gone = numbers.keys() - {each[0] for each in loader.identity()["datasets"]}
    return lines + [f"  {name}: no longer read" for name in sorted(gone)]


def _rows(order: Order, epoch: int, count: int) -> list[np.ndarray]:
    """For each dataset which of its windows are among the first `count` of an epoch; none where the
    place is before it (a batch straddles two epochs).
    """
    ids = order.epoch(epoch)[: max(count, 0)]
    chosen = np.zeros(order.bases[-1], bool)
    chosen[ids] = True
    return np.split(chosen, order.bases[1:-1])


def _count(chosen: np.ndarray) -> str:
    return f"{int(chosen.sum()):,}"
