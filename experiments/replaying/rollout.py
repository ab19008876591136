"""Recorded episodes through the policy: what it plans at their frames.

Axes: t steps of an episode, k chunk step, d action dim. "Network units" are normalised: an error of
1 is half of a dim's range in the training data (q99).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.replaying.recorded import Episode
from vla_jax.robot.torch_policy import Policy, act_in_row

ROW = 16  # frames that go through the network at once
TIMED = 40  # frames that go alone before that, where it is to be known how long a robot waits
TIMES = ("vision", "backbone", "total")


class Replayed(NamedTuple):
    """What the policy did in an episode. `frames` are gone."""

    episode: Episode
    chunks: np.ndarray  # t k d, robot units: planned anew at each step
    normalised: np.ndarray  # t k d: the same as the network says it
    open_loop: np.ndarray  # t d, robot units: whole chunks executed, nothing seen between
    confidence: dict[str, np.ndarray]  # name -> t ("steps": t k), NaN where there is none
    milliseconds: np.ndarray  # of TIMES, as a robot waits for them, at each frame that went alone


def replay(
    policy: Policy,
    episode: Episode,
    dataset: str,
    timed: int = 0,
    told: Callable[[int], None] = lambda n: None,
) -> Replayed:
    """The episode with a plan at each step, and again with one per chunk. A policy that sees one
    frame plans the same there whatever it saw before: nothing runs again. The first `timed` frames
    go alone. `told` is given the number of frames that are done.
    """
    every = plans(policy, episode, dataset, 1, timed, told)
    k = len(every[0]["actions"])
    if policy.config["network"]["sequence"]["window"] == 1:
        planned = every[::k]
    else:
        planned = plans(policy, episode, dataset, k)
    return _replayed(episode, every, planned)


def _replayed(
    episode: Episode, every: list[dict[str, Any]], planned: list[dict[str, Any]]
) -> Replayed:
    chunks = np.stack([out["actions"] for out in every])
    open_loop = np.concatenate([out["actions"] for out in planned])[: len(chunks)]
    confidence = {}
    for name in ("gripper", "agreement", "token", "steps"):
        none: Any = [np.nan] * chunks.shape[1] if name == "steps" else np.nan
        values = [out["confidence"][name] for out in every]
        confidence[name] = np.array([none if value is None else value for value in values])
    times = [[out["timing"][name] for name in TIMES] for out in every if "timing" in out]
    normalised = np.stack([out["normalised"] for out in every])
    return Replayed(
        episode._replace(frames=[]), chunks, normalised, open_loop, confidence,
        np.array(times).reshape(-1, len(TIMES)),
    )  # fmt: skip


def plans(
    policy: Policy,
    episode: Episode,
    dataset: str,
    every: int,
    timed: int = 0,
    told: Callable[[int], None] = lambda n: None,
) -> list[dict[str, Any]]:
    """What `Policy.act` gives at each `every`-th frame of the episode, and as "normalised" what the
    network said: clipped to no range, with probabilities. The actions carried out between are the
    recorded ones, so that nothing depends on what the policy said before, and several frames are
    one pass; but for the first `timed`.
    """
    policy.reset(episode.instruction, dataset)
    given: list[tuple[Any, ...]] = [
        (episode.frames[t], state(episode, t), episode.actions[t - 1] if t else None)
        for t in range(0, len(episode.frames), every)
    ]
    if episode.readings:  # behind the noise, which is drawn
        readings = episode.readings[::every]
        given = [(*each, None, seen) for each, seen in zip(given, readings, strict=True)]
    out: list[dict[str, Any]] = []
    for each in given[:timed]:
        acted = policy.act(*each)
        out.append(acted | {"normalised": policy.stages["action"].float().cpu().numpy()})
        told(1)
    for begin in range(timed, len(given), ROW):
        out += act_in_row(policy, given[begin : begin + ROW])
        told(len(given[begin : begin + ROW]))
    return out


def state(episode: Episode, t: int) -> np.ndarray | None:
    """The recorded state, if there is one."""
    return episode.state[t] if episode.state.shape[1] else None


def sensed(episode: Episode, t: int) -> dict[str, Any] | None:
    """The recorded readings of sensors, if the policy has some."""
    return episode.readings[t] if episode.readings else None
