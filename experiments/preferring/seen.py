"""What a model sees of clips, and what was chosen, as batches to learn from.

Axes: b pairs, s looks at a clip, t window step.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.learning.batches import window_of
from experiments.preferring.pairs import Choice, Clip, Pairs
from experiments.rolling.actors import of_cameras
from experiments.rolling.episodes import Orders, Played, Watch, actions_of
from vla_jax.policy import JaxPolicy
from vla_jax.progress import Progress
from vla_jax.rl.reward import Comparisons
from vla_jax.types import Observation

WORTH = {"left": 1.0, "right": 0.0, "tie": 0.5}


def watched(
    world: Any, policy: JaxPolicy, pairs: Pairs, every: int, window: int
) -> dict[Clip, Observation]:
    """Each clip as the network sees it, before every `every`-th action and at its end: leaves
    [s t ...]. Raises RuntimeError where the world's process ends, and what worlds and policies
    raise.
    """
    clips = sorted({clip for pair in pairs.pairs for clip in pair})
    out = {}
    with Progress("looking at clips", len(clips), "clips") as progress:
        for clip in clips:
            actions = actions_of(Path(clip.rollout), clip.episode)
            orders = Orders(pairs.world["seed"])
            world.begin(Watch(orders, clip.episode, actions, every))
            frames: list[Observation] = []
            while not isinstance(message := world.take(), Played):
                if message.instruction is not None:
                    policy.reset(message.instruction)
                frames.append(policy.looked(of_cameras(message.seen, policy.cameras)))
                world.answer(None)
            windows = [window_of(frames, i, window) for i in range(len(frames))]
            out[clip] = jax.tree.map(lambda *rows: np.concatenate(rows), *windows)
            progress.add(1)
    return out


def compared(pairs: Pairs, choices: Sequence[Choice], seen: dict[Clip, Observation]) -> Comparisons:
    """All choices but those that were skipped, numpy. Clips that are shorter are filled up."""
    kept = [choice for choice in choices if choice.choice in WORTH]
    shown = [pairs.pairs[choice.pair] for choice in kept]
    most = max(_length(seen[clip]) for pair in shown for clip in pair)
    n = len(kept)
    lengths = np.array([[_length(seen[clip]) for clip in pair] for pair in shown])

    def filled(*rows: np.ndarray) -> np.ndarray:
        width = [(0, 0)] * (rows[0].ndim - 1)
        padded = [np.pad(row, [(0, most - len(row)), *width], mode="edge") for row in rows]
        return np.stack(padded).reshape(n, 2, *padded[0].shape)

    return Comparisons(
        obs=jax.tree.map(filled, *(seen[clip] for pair in shown for clip in pair)),
        looks=np.arange(most)[None, None] < lengths[:, :, None],
        choice=np.array([WORTH[choice.choice] for choice in kept], np.float32),
        valid=np.ones(n, bool),
        dataset_id=np.zeros(n, np.int32),
    )


def rows_of(data: Comparisons, places: np.ndarray, size: int) -> Comparisons:
    """The pairs at these places, filled up to `size` with such as are not valid."""
    filled = np.concatenate([places, np.zeros(size - len(places), places.dtype)])
    batch: Comparisons = jax.tree.map(lambda x: x[filled], data)
    return batch._replace(valid=batch.valid & (np.arange(size) < len(places)))


def in_order(n: int, size: int) -> Iterator[np.ndarray]:
    """Places 0 to n - 1, `size` at a time."""
    for start in range(0, n, size):
        yield np.arange(start, min(n, start + size))


def _length(obs: Observation) -> int:
    return len(obs.step_mask)
