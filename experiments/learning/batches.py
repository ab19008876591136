"""What was tried becomes what is learnt from: windows of frames, advantages, batches of one size.

Axes: t window step, k chunk step, d action dim.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.learning.collecting import Trial
from vla_jax.policy_io import PolicyIO
from vla_jax.rl import advantages
from vla_jax.rl.learner import Decisions, unseen
from vla_jax.types import STREAMS, Array, Observation


class Judged(NamedTuple):
    """What the policy that acted and the one before all learning say of decisions."""

    log_prob: Array  # n
    value: Array  # n
    reference: Array  # n k d ..., what its head says


class Scoring(NamedTuple):
    """How trials are scored.

    Attributes:
        algorithm: "ppo" or "grpo".
        discount, decay: of generalised advantage estimation.
    """

    algorithm: str
    discount: float
    decay: float


def gathered(trials: Sequence[Trial], window: int, dims: np.ndarray) -> Decisions:
    """All decisions of the trials, in their order, numpy, not yet scored; with the readouts of
    trials that have them, in place of what was seen. `dims` [d] are those of the policy's actions
    that vary.
    """
    frames, chunks, masks, readouts = list[Observation](), [], [], list[np.ndarray]()
    for trial in trials:
        readouts += trial.readouts
        frames += map(unseen, trial.frames) if trial.readouts else trial.frames
        for chunk, steps in zip(trial.chunks, trial.steps, strict=True):
            chunks.append(chunk)
            masks.append((np.arange(len(chunk)) < steps)[:, None] & dims[None])
    n = len(chunks)
    zeros = np.zeros(n, np.float32)
    return Decisions(
        obs=windows_of(frames, window, [len(trial.frames) for trial in trials]),
        chunk=np.stack(chunks).astype(np.float32),
        mask=np.stack(masks),
        log_prob=zeros,
        advantage=zeros,
        returns=zeros,
        reference=np.zeros((n, *chunks[0].shape), np.float32),
        valid=np.ones(n, bool),
        kept=np.zeros(n, bool),
        dataset_id=np.zeros(n, np.int32),
        readouts=np.stack(readouts) if readouts else None,
    )


def window_of(frames: Sequence[Observation], newest: int, window: int) -> Observation:
    """The frames up to one, as the loader gives them: before the first stands that one again."""
    whole = windows_of(frames[max(0, newest - window + 1) : newest + 1], window)
    return jax.tree.map(lambda x: x[-1:], whole)


def windows_of(
    frames: Sequence[Observation], window: int, lengths: Sequence[int] = ()
) -> Observation:
    """The window that ends with each frame of an episode, or of several one behind the other, which
    are of these `lengths`; [n t ...]; see window_of.
    """
    counts = np.array(lengths or [len(frames)])
    first = np.repeat(np.cumsum(counts) - counts, counts)[:, None]
    places = np.arange(len(frames))[:, None] + np.arange(1 - window, 1)
    # Leaf by leaf: to map over thousands of trees takes twice as long.
    parts = zip(*map(jax.tree.leaves, frames), strict=True)
    rows = jax.tree.unflatten(jax.tree.structure(frames[0]), map(np.concatenate, parts))  # n 1 ...

    def along(part: np.ndarray) -> np.ndarray:
        return part[:, 0][np.maximum(places, first)]

    streams = {
        name: along(value)
        for name, stream in STREAMS.items()
        if "t" in stream.axes and (value := getattr(rows, name)) is not None
    }
    return rows._replace(
        images=tuple(map(along, rows.images)),
        sensors=jax.tree.map(along, rows.sensors),
        **streams | {"step_mask": places >= first},
    )


def scored(
    decisions: Decisions,
    judged: Judged,
    trials: Sequence[Trial],
    rewards: Sequence[Any],
    how: Scoring,
) -> Decisions:
    """The decisions with what came of each. `rewards` are of each trial what each decision earned,
    [n]. Raises ValueError for rewards that are not finite.
    """
    for trial, earned in zip(trials, rewards, strict=True):
        if not np.isfinite(earned).all():
            raise ValueError(
                f"reward of episode {trial.episode.number}: expected finite numbers, got {earned}"
            )
    if how.algorithm == "grpo":
        totals = np.array([np.sum(earned) for earned in rewards], np.float32)
        groups = np.array([trial.episode.number for trial in trials])
        each = advantages.of_groups(totals, groups)
        gains = [
            np.full(len(t.steps), gain, np.float32) for t, gain in zip(trials, each, strict=True)
        ]
        returns = [np.zeros(len(t.steps), np.float32) for t in trials]
    else:
        ends = np.cumsum([len(trial.steps) for trial in trials])
        values = np.split(judged.value, ends[:-1])
        pairs = [
            advantages.generalised(earned, value, np.array(trial.steps), how.discount, how.decay)
            for trial, earned, value in zip(trials, rewards, values, strict=True)
        ]
        gains, returns = advantages.normalised([gain for gain, _ in pairs]), [r for _, r in pairs]
    return decisions._replace(
        log_prob=judged.log_prob,
        reference=judged.reference,
        advantage=np.concatenate(gains),
        returns=np.concatenate(returns).astype(np.float32),
    )


def of_success(trials: Sequence[Trial]) -> list[np.ndarray]:
    """What each trial's decisions earned: 1 for the last one where it succeeded, else nothing."""
    out = [np.zeros(len(trial.steps), np.float32) for trial in trials]
    for earned, trial in zip(out, trials, strict=True):
        earned[-1] = float(trial.success)
    return out


def batches(data: Any, size: int, order: Callable[[int], np.ndarray]) -> Iterator[Any]:
    """All rows of Decisions, or of what else has `valid` rows, once, `size` at a time, in the order
    that `order(n)` gives; the last batch is filled with rows that are not valid.
    """
    n = len(data.valid)
    places = order(n)
    for start in range(0, n, size):
        yield rows_of(data, places[start : start + size], size)


def rows_of(data: Any, places: np.ndarray, size: int) -> Any:
    """The rows at these places, filled up to `size` with such as are not valid."""
    filled = np.concatenate([places, np.zeros(size - len(places), places.dtype)])
    batch = jax.tree.map(lambda x: x[filled], data)
    return batch._replace(valid=batch.valid & (np.arange(size) < len(places)))


def moving(config: ConfigDict, io: PolicyIO) -> np.ndarray:
    """Which of the policy's dims count, [d]: those that vary. Of a head that writes tokens all do:
    one that stands for a dim which does not vary is still drawn, and the next ones look at it. So
    do those that a robot has of a head that flows.
    """
    moving = np.full(len(config.model.action_names), config.model.head == "discrete")
    constant = np.isin(np.arange(len(io.action_places)), io.action_spec.constant)
    moving[io.action_places] |= ~constant | (config.model.head == "flow")
    return moving
