"""Statistics of actions as a policy learns them: of relative targets, of their differences to the
state where their chunk starts, which no column of the index holds.
"""

import numpy as np

from data_pipelines import stats, windows
from data_pipelines.index import Index
from vla_jax.actions import Stats
from vla_jax.progress import Progress
from vla_jax.robot import relative

MOST = 2**20  # chunks that are looked at
BLOCK = 2**12  # chunks in memory at a time


def action_stats(index: Index, chunk: int) -> Stats:
    """mean, std, min, max, q01, q99 of the actions of train, each [d]: the index's own unless the
    targets are relative, else over the `chunk` steps of every chunk that lie within its episode; of
    more than MOST chunks, over every n-th with the least n that leaves no more.
    """
    dataset, split = index.dataset, index.splits["train"]
    parts = dataset.relative
    if not parts:
        return split.stats["action"]
    rows = np.arange(0, len(split.actions), -(-len(split.actions) // MOST) or 1)
    running = stats.empty(len(dataset.action_names))
    with Progress(f"{dataset.name}: relative targets", len(rows), "chunks") as progress:
        for start in range(0, len(rows), BLOCK):
            newest = rows[start : start + BLOCK]
            episode = np.searchsorted(split.first, newest, side="right") - 1
            first, length = (
                column[episode].astype(np.int64) for column in (split.first, split.length)
            )
            steps = windows.steps(newest - first, length, 1, chunk)
            actions = windows.actions(split.actions, first, steps, windows.motion(dataset))
            state = np.asarray(split.state[newest])[:, None, None]
            try:
                seen = relative.to_relative(parts, actions, state)
            except ValueError as error:
                raise ValueError(f"{dataset.name}: relative targets: {error}") from error
            running = stats.update(running, seen[steps.action_mask])
            progress.add(len(newest))
    return stats.summary(running)
