"""Which episodes of a dataset are trained on, which are held out, and which are left out on
purpose.
"""

import dataclasses
import hashlib
import json
from collections.abc import Set
from typing import Any

import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.windows import motion

Quarantine = frozenset[tuple[str, int]]  # (name of the shard's file, number of the record in it)

HELD_OUT = ("val", "validation", "test")  # names of splits that are not trained on
HELD_OUT_SHARE = 0.05  # of a dataset that has none of these, as Octo and OpenVLA do
OF_TRAIN = "held out of train"  # what messages call those episodes
IDLE = 0.01  # of a dim's q01 to q99 range: less motion than that is none


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is read of a dataset: part of what its index is made from.

    Attributes:
        quarantine: records to leave out, damaged or not; those of other datasets' files are
            ignored.
        skip_unlabelled: leave out episodes without any words, as OpenVLA does.
        min_length: leave out episodes of fewer steps.
        max_idle: leave out episodes of which a larger share of the steps hardly moves
            (`idle_steps`, with the limits of all episodes of train).
        held_out: what becomes "val" of a dataset without a held-out split of its own: a share of
            its episodes, a number of them (0: none), or the records that a list names.
    """

    quarantine: Quarantine = frozenset()
    skip_unlabelled: bool = True
    min_length: int = 0
    max_idle: float = 1.0
    held_out: float | int | Quarantine = HELD_OUT_SHARE

    def __post_init__(self) -> None:
        held = self.held_out
        if not isinstance(held, frozenset) and (
            held < 0 or (isinstance(held, float) and held >= 1)
        ):
            raise ValueError(
                "data.held_out: expected a share below 1, a number of episodes or a list, got"
                f" {held}"
            )
        if self.min_length < 0 or not 0 < self.max_idle <= 1:
            raise ValueError(
                "data.min_length, data.max_idle: expected a number of steps, and a share above 0"
                f" and up to 1, got {self.min_length} and {self.max_idle}"
            )

    def key(self, files: Set[str] | None = None) -> dict[str, Any]:
        """All but the quarantine, JSON-able; of a list what names `files`."""
        held: Any = self.held_out
        if isinstance(held, frozenset):
            held = sorted([file, n] for file, n in held if files is None or file in files)
        return {
            "skip_unlabelled": self.skip_unlabelled,
            "min_length": self.min_length,
            "max_idle": self.max_idle,
            "held_out": held,
        }

    def suffix(self) -> str:
        """What tells the index of this selection from others of the same files; "" by default."""
        if self.key() == Selection().key():
            return ""
        return "-" + hashlib.sha256(json.dumps(self.key()).encode()).hexdigest()[:8]


def last_records(records: np.ndarray, total: int, wanted: float | int) -> np.ndarray:
    """Which episodes are among the last records: [E] bool. `records` are numbers in the split,
    which holds `total`.

    Raises ValueError when nothing would be left to train on.
    """
    count = max(1, round(wanted * total)) if isinstance(wanted, float) else wanted
    if count >= total and not isinstance(wanted, float):
        raise ValueError(
            f"data.held_out: expected fewer than the {total} episodes of train, got {wanted}; with"
            " 0 nothing is held out"
        )
    return records >= total - count if wanted and total > 1 else np.zeros(len(records), bool)


def last_stretches(
    first: np.ndarray, stop: np.ndarray, wanted: float | int, where: str
) -> np.ndarray:
    """Which episodes [E] lie after a cut in their recording that no episode crosses: [E] bool.

    Args:
        first, stop: their frames [first, stop) in the recording.
        wanted: share of episodes, or how many; the cut is where it comes closest.
        where: begins the error.

    Raises ValueError when there is no such cut.
    """
    held = np.zeros(len(first), bool)
    used = np.flatnonzero(stop > first)
    if not wanted or len(used) < 2:
        return held
    count = max(1, round(wanted * len(used))) if isinstance(wanted, float) else wanted
    order = used[np.argsort(first[used], kind="stable")]
    reached = np.maximum.accumulate(stop[order])
    cuts = np.flatnonzero(first[order][1:] >= reached[:-1]) + 1  # episodes before the cut
    if not len(cuts):
        raise ValueError(
            f"{where}: the {len(used)} episodes of train overlap one another from end to end: what"
            " is held out would be trained on too; convert a split of its own (data_pipelines."
            "builders.calvin --splits training,validation), or hold nothing out with"
            " data.held_out=0 and eval_every=0"
        )
    # Of two cuts as close, the one that leaves more to train on.
    cut = cuts[::-1][np.argmin(np.abs(len(order) - cuts[::-1] - count))]
    held[order[cut:]] = True
    return held


def check_apart(first: np.ndarray, stop: np.ndarray, held: np.ndarray, where: str) -> None:
    """Raises ValueError when a held-out episode shares frames [first, stop) with one that is
    trained on.
    """
    order = np.argsort(first, kind="stable")
    order = order[stop[order] > first[order]]
    for kind in (held, ~held):
        reached = np.maximum.accumulate(np.where(kind[order], stop[order], -1))
        crossed = np.flatnonzero(~kind[order][1:] & (first[order][1:] < reached[:-1]))
        if len(crossed):
            at = int(first[order][1:][crossed[0]])
            raise ValueError(
                f"{where}: frame {at} of the recording is in an episode that the list holds out and"
                " in one that it does not; list both, or neither"
            )


def idle_steps(
    dataset: Dataset, actions: np.ndarray, length: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Which steps [N] of episodes of `length` steps hardly move and do not change a binary dim.
    `limits` [d] are how little that is, NaN for dims that are no motion (`idle_limits`).
    """
    moving = np.flatnonzero(~np.isnan(limits))
    if not len(moving):
        return np.zeros(len(actions), bool)
    still = (np.abs(actions[:, moving]) <= limits[moving]).all(1)
    binary = actions[:, list(dataset.binary)]
    changed = np.zeros(len(still), bool)
    changed[1:] = (binary[1:] != binary[:-1]).any(1)
    # The step before belongs to another episode.
    changed[(np.cumsum(length) - length)[length > 0]] = False
    return still & ~changed


def idle_limits(dataset: Dataset, q01: np.ndarray, q99: np.ndarray) -> np.ndarray:
    """How little motion is none, in each dim's own units; NaN for a dim that is no motion: [d]."""
    moves = np.isin(np.arange(len(q01)), motion(dataset))
    return np.where(moves, IDLE * (q99 - q01), np.nan)
