"""Frames of recorded episodes as a policy sees them, and which of them show a success.

A policy looks once a chunk, at steps 0, k, 2k, ... of an episode, and at its end: a window holds
such frames, as it does where the policy acts.

Axes: b frames, t window step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines import images
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files.outcomes import FAILURE, SUCCESS
from data_pipelines.index import Index, Split
from experiments.learning.batches import window_of
from vla_jax.policy import JaxPolicy
from vla_jax.progress import Progress
from vla_jax.rl.success import Looks
from vla_jax.saved import SavedPolicy
from vla_jax.types import Observation, Seen

EARLY = 4  # frames of an episode that show no success
LEAST = 5  # successes and failures to learn from, each


class Watching(NamedTuple):
    """Who looks: a policy of the dataset's robot that decides every `every`-th step and sees a
    `window` of those frames.
    """

    policy: JaxPolicy
    every: int
    window: int


def robot(saved: SavedPolicy, dataset: Dataset, where: str) -> str:
    """The dataset that the policy in `where` knows and whose numbers mean what those of `dataset`
    do: itself, or the only one with the same dims. Raises ValueError where there is none.
    """
    if dataset.name in saved.specs:
        return dataset.name
    fits = [
        name
        for name, spec in saved.specs.items()
        if spec.action.names == dataset.action_names
        and (not saved.state_names or spec.state is None or spec.state.names == dataset.state_names)
    ]
    if len(fits) != 1:
        raise ValueError(
            f"{where}: expected a policy that knows {dataset.name}, or one dataset with its dims"
            f" ({', '.join(dataset.action_names)}), got one for {', '.join(saved.specs)};"
            f" {f'{len(fits)} of them have its dims: ' if fits else ''}train one on that robot's"
            " data"
        )
    return fits[0]


def check_says(dataset: Dataset) -> None:
    """Raises ValueError for a dataset that does not say how its episodes ended."""
    if not dataset.outcome:
        raise ValueError(
            f"{dataset.name}: expected a dataset that says how its episodes ended, got none that"
            " does: name what says it as `outcome` in its description (data_pipelines/README.md,"
            ' "How episodes ended"); experiments.record writes rollouts so'
        )


def check(index: Index, splits: Sequence[Split]) -> None:
    """Raises ValueError for a dataset with too few episodes of a kind: LEAST to learn from in the
    first of `splits`, one in the others.
    """
    dataset = index.dataset
    for split, least in zip(splits, (LEAST, *[1] * len(splits[1:])), strict=True):
        counts = [int((split.outcome == kind).sum()) for kind in (SUCCESS, FAILURE)]
        if min(counts) < least:
            unknown = len(split.outcome) - sum(counts)
            why = ""
            if dataset.require:
                why = f"; its description reads those alone whose {dataset.require} holds (require)"
            raise ValueError(
                f"{dataset.name}, {split.label}: expected at least {least} successes and as many"
                f" failures ({dataset.outcome}), got {counts[0]} and {counts[1]}, and {unknown}"
                f" unknown: from one kind nothing is told apart{why}; record more, or hold another"
                " share out (data.held_out)"
            )


class Frames:
    """The frames of a dataset, decoded when they are asked for."""

    def __init__(self, index: Index, watching: Watching) -> None:
        """Raises ValueError where the dataset lacks a camera of the policy."""
        self._index, self._watching = index, watching
        has = index.dataset.cameras
        missing = [slot for slot in watching.policy.cameras if slot not in has]
        if missing:
            raise ValueError(
                f"{index.dataset.name}: expected the policy's cameras, got none called"
                f" {', '.join(missing)}; it has {', '.join(has)}"
            )

    def at(self, split: Split, episode: int, steps: Sequence[int]) -> list[Observation]:
        """Windows [1 t ...] whose newest frames are these steps of an episode. Raises ValueError
        for a frame that is no picture.
        """
        policy, every, window = self._watching
        windows = [[*range(0, step, every), step][-window:] for step in steps]
        wanted = sorted({step for each in windows for step in each})
        first = int(split.first[episode])
        rows = first + np.array(wanted)
        pictures = {slot: self._pictures(split, slot, rows) for slot in policy.cameras}
        last = np.array([first + int(split.length[episode]) - 1])
        words = split.sentences[int(split.told(last, np.array([episode]), None)[0])]
        frames = dict[int, Observation]()
        policy.reset(words)
        for i, step in enumerate(wanted):
            state = np.array(split.state[rows[i]]) if split.state.shape[1] else None
            done = np.array(split.actions[rows[i] - 1]) if step else None
            seen = Seen({slot: each[i] for slot, each in pictures.items()}, state, done)
            if step and not i:
                policy.looked(seen)  # it is not the episode's first: what was done before is seen
            frames[step] = policy.looked(seen)
        return [
            window_of([frames[step] for step in each], len(each) - 1, window) for each in windows
        ]

    def _pictures(self, split: Split, slot: str, rows: np.ndarray) -> list[np.ndarray]:
        bgr = slot in self._index.dataset.bgr
        try:
            return [images.raw(each, bgr) for each in split.pictures(slot, rows)]
        except ValueError as error:
            raise ValueError(
                f"{split.where(int(rows[0]))}: {slot}: {error}; index_data --validate lists all"
                " that is wrong"
            ) from error


def chosen(length: int, success: bool, last: int, draw: np.random.Generator) -> list[int]:
    """The steps of an episode that are learnt from: the last ones, which show how it ended, and
    EARLY others that show no success. Of a success these are of its first half: what is between is
    not yet one, and hardly tells from it.
    """
    ends = [*range(max(0, length - last), length)]
    rest = min(length - last, (length + 1) // 2) if success else length - last
    early = draw.permutation(max(0, rest))[:EARLY]
    return [*ends, *sorted(early.tolist())]


def looks(
    frames: Frames, split: Split, last: int, seed: int, most: int
) -> tuple[Looks, np.ndarray]:
    """What is learnt from a split, numpy, and which rows [b] are the very last frames of their
    episodes. The last frames of an episode count as much together as the others do.

    Args:
        last: frames at the end of a success that show it.
        seed: of the others that are drawn.
        most: bytes that all of it may take.

    Raises ValueError for more than `most`.
    """
    known = np.flatnonzero((split.outcome >= 0) & (split.length > 0)).tolist()
    rows, success, weight, ends = list[Observation](), list[bool](), list[float](), list[bool]()
    with Progress(f"looking at {split.label}", len(known), "episodes") as progress:
        for episode in known:
            length, won = int(split.length[episode]), split.outcome[episode] == SUCCESS
            draw = np.random.default_rng((seed, episode))
            steps = chosen(length, won, last, draw)
            rows += frames.at(split, episode, steps)
            at_end = [step >= length - last for step in steps]
            success += [bool(won) and end for end in at_end]
            weight += [1 / at_end.count(end) for end in at_end]
            ends += [step == length - 1 for step in steps]
            _check_size(rows, len(known) * (last + EARLY), most)
            progress.add(1)
    n = len(rows)
    told = Looks(
        obs=jax.tree.map(lambda *each: np.concatenate(each), *rows),
        success=np.array(success),
        weight=np.array(weight, np.float32),
        valid=np.ones(n, bool),
        dataset_id=np.zeros(n, np.int32),
    )
    return told, np.array(ends)


def _check_size(rows: Sequence[Observation], count: int, most: int) -> None:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(rows[0])) * count
    if size > most:
        raise ValueError(
            f"--config.data.ram_budget: expected at least the {size / 2**30:.1f} GiB of {count:,}"
            f" frames that are learnt from, got {most / 2**30:.1f}; allow more, or leave episodes"
            " out (data.quarantine, data.min_length)"
        )
