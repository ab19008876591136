"""What a model sees of clips, and what was chosen, as batches to learn from.

Axes: b pairs, s looks at a clip, t window step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.learning.batches import windows_of
from experiments.preferring.pairs import Choice, Clip, Pair, Pairs
from experiments.rolling.actors import of_cameras
from experiments.rolling.episodes import Orders, Played, Watch, actions_of
from vla_jax.policy import JaxPolicy
from vla_jax.progress import Progress
from vla_jax.rl.direct import Contests
from vla_jax.rl.reward import Comparisons, shares
from vla_jax.types import Observation

WORTH = {"left": 1.0, "right": 0.0, "tie": 0.5}


class Watched(NamedTuple):
    """A clip as the network sees it: leaves [s t ...], and what was carried out from each look on,
    [s k d] in network units, and how many steps of it, [s]; none from the last.
    """

    obs: Observation
    chunk: np.ndarray
    steps: np.ndarray


def watched(
    world: Any, policy: JaxPolicy, pairs: Pairs, every: int, window: int
) -> dict[Clip, Watched]:
    """Each clip, looked at before every `every`-th action and at its end. Raises RuntimeError where
    the world's process ends, and what worlds and policies raise.
    """
    clips = sorted({clip for pair in pairs.pairs for clip in pair})
    out = {}
    with Progress("looking at clips", len(clips), "clips") as progress:
        for clip in clips:
            actions = actions_of(Path(clip.rollout), clip.episode)
            orders = Orders(pairs.world["seed"])
            world.begin(Watch(orders, clip.episode, actions, every))
            frames, chunks, steps = list[Observation](), list[np.ndarray](), list[int]()
            while not isinstance(message := world.take(), Played):
                if message.instruction is not None:
                    policy.reset(message.instruction)
                frames.append(policy.looked(of_cameras(message.seen, policy.cameras)))
                rest = actions[sum(steps) :][:every]
                made = policy.in_network_units(rest, message.seen)
                chunks.append(np.pad(made, ((0, every - len(made)), (0, 0))))
                steps.append(len(rest))
                world.answer(None)
            out[clip] = Watched(windows_of(frames, window), np.stack(chunks), np.array(steps))
            progress.add(1)
    return out


def compared(pairs: Pairs, choices: Sequence[Choice], clips: Mapping[Clip, Watched]) -> Comparisons:
    """All choices but those that were skipped, numpy. Clips that are shorter are filled up."""
    shown, choice = _shown(pairs, choices)
    most, end = _most_looks(clips), longest(clips)
    counts = {clip: shares(own.steps, own.chunk.shape[1], end) for clip, own in clips.items()}
    return Comparisons(
        obs=_filled([[clips[clip].obs for clip in pair] for pair in shown], most),
        counts=_ended([[counts[clip] for clip in pair] for pair in shown], most),
        choice=choice,
        valid=np.ones(len(shown), bool),
        dataset_id=np.zeros(len(shown), np.int32),
    )


def contests(
    pairs: Pairs, choices: Sequence[Choice], clips: Mapping[Clip, Watched], dims: np.ndarray
) -> Contests:
    """The same with what was carried out; `dims` [d] are those of the actions that vary. What the
    policy before all learning says is not there yet.
    """
    shown, choice = _shown(pairs, choices)
    most = _most_looks(clips)
    chunk = _filled([[clips[clip].chunk for clip in pair] for pair in shown], most)
    steps = _ended([[clips[clip].steps for clip in pair] for pair in shown], most)
    return Contests(
        obs=_filled([[clips[clip].obs for clip in pair] for pair in shown], most),
        chunk=chunk,
        mask=(np.arange(chunk.shape[3]) < steps[..., None])[..., None] & dims,
        reference=np.zeros_like(chunk),
        choice=choice,
        valid=np.ones(len(shown), bool),
        dataset_id=np.zeros(len(shown), np.int32),
    )


def _shown(pairs: Pairs, choices: Sequence[Choice]) -> tuple[list[Pair], np.ndarray]:
    kept = [choice for choice in choices if choice.choice in WORTH]
    worth = np.array([WORTH[choice.choice] for choice in kept], np.float32)
    return [pairs.pairs[choice.pair] for choice in kept], worth


def longest(clips: Mapping[Clip, Watched]) -> int:
    """Steps of the longest of all clips."""
    return max(int(clip.steps.sum()) for clip in clips.values())


def _most_looks(clips: Mapping[Clip, Watched]) -> int:
    return max(len(clip.steps) for clip in clips.values())


def _ended(rows: Sequence[Sequence[np.ndarray]], most: int) -> np.ndarray:
    """Numbers of looks [s] at both clips of each pair -> [n 2 most], 0 where there is no look."""
    return np.array([[np.pad(own, (0, most - len(own))) for own in pair] for pair in rows])


def _filled(rows: Sequence[Sequence[Any]], most: int) -> Any:
    """Trees of leaves [s ...] of both clips of each pair -> leaves [n 2 most ...], the last look
    repeated.
    """

    def stacked(*leaves: np.ndarray) -> np.ndarray:
        width = [(0, 0)] * (leaves[0].ndim - 1)
        padded = [np.pad(leaf, [(0, most - len(leaf)), *width], mode="edge") for leaf in leaves]
        return np.stack(padded).reshape(len(rows), 2, *padded[0].shape)

    return jax.tree.map(stacked, *(tree for pair in rows for tree in pair))
