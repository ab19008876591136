"""Learns what going on with a chunk costs, from episodes of which every chunk's errors are known.

For a price of a pass and an episode, the best way from any step to its end is known: go on, or plan
anew. The regret of going on is what the best way costs that begins with it, less that of the best
way that begins with a pass. A small network learns its mean, given what can be seen at that step
(vla_jax/robot/events/regret.py), for several prices at once.

The episodes are those of the training split: there are many. What the policy does better there than
elsewhere is made up for by the choice among the prices, on held-out episodes.

Axes: t steps of an episode, k chunk step, n pairs of a pass and a later step, f signals, q prices.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from experiments.replaying.figures import chunk_errors
from experiments.replaying.recorded import Episode, Recording
from experiments.replaying.rollout import plans
from vla_jax.progress import Progress
from vla_jax.robot.events.regret import FAR, Regret, signals
from vla_jax.robot.events.trigger import luminance
from vla_jax.robot.torch_policy import Policy

PRICES = np.geomspace(0.25, 8.0, 24)  # of a pass, in mean arm errors of a step that is planned anew
PAIRS = 300_000  # at most: 0.7 GB with one camera
HIDDEN, EPOCHS, LEAST_UPDATES, BATCH, RATE, DECAY, DROPOUT = 256, 10, 300, 256, 1e-3, 0.01, 0.05
# of a cell's luminance that counts as one deviation: a cell that hardly changes is not magnified
LEAST_CHANGE = 2.5
# of the regrets, each side, that count as its quantile: rare ones would drown the rest
TAILS = 0.005


class Known(NamedTuple):
    """An episode: error [t k] of each step of each chunk, 0 past the end, and what was seen and
    said at each step.
    """

    error: np.ndarray
    chunks: np.ndarray  # t k d
    sure: list[Sequence[float] | None]
    cells: list[dict[str, np.ndarray]]


def learn(policy: Policy, recording: Recording, episodes: int) -> list[Regret]:
    """One for each of PRICES, from the first `episodes` of the training split. The same data give
    the same.
    """
    source = dataclasses.replace(recording, split=recording.index.splits["train"])
    numbers, known = source.episodes(episodes), []
    with Progress("regret", int(source.split.length[numbers].sum()), "frames") as progress:
        for number in numbers:
            episode = source.episode(number)
            said = plans(policy, episode, source.index.dataset.name, 1, told=progress.add)
            known.append(_known(source, episode, said))
    mean_error = float(np.concatenate([one.error[:, 0] for one in known]).mean())
    regrets = [regret(one.error, mean_error * PRICES) for one in known]  # t k q
    pairs = np.array(
        [
            (e, t, j)
            for e, one in enumerate(known)
            for t in range(len(one.error))
            for j in _later(one.error, t)
        ]
    ).reshape(-1, 3)
    if not len(pairs):
        raise ValueError(
            "--trigger: expected chunks and episodes of two steps or more, to learn what going on"
            " costs"
        )
    random = np.random.default_rng(0)
    pairs = pairs[np.sort(random.permutation(len(pairs))[:PAIRS])]
    seen = np.stack([_seen(known[e], t, j) for e, t, j in pairs.tolist()])
    target = np.stack([regrets[e][t, j] for e, t, j in pairs.tolist()])
    pictures = 2 * sum(cells.size for cells in known[0].cells[0].values())
    least = np.repeat(np.array([0, LEAST_CHANGE], np.float32), [seen.shape[1] - pictures, pictures])
    with Progress("regret, learning"):
        return regress(
            seen,
            least,
            np.clip(target, *np.quantile(target, (TAILS, 1 - TAILS), axis=0)).astype(np.float32),
        )


def regret(error: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """[t k q] of executing step j >= 1 of the chunk made at t, at step t + j; 0 where there is
    none.

    `error` is as in Known, `prices` [q] of a pass in the same units. From the end backwards:
    `ahead` is the least cost from a step on with a pass at it, and both choices of a step lead to
    costs that are known by then.
    """
    length, k = error.shape
    out, ahead = np.zeros((length, k, len(prices))), np.zeros((length + 1, len(prices)))
    for t in range(length - 1, -1, -1):
        last = min(k, length - t)
        rest = ahead[t + last]  # after the chunk, or the episode
        for j in range(last - 1, 0, -1):
            on = error[t, j] + rest
            out[t, j] = on - ahead[t + j]
            rest = np.minimum(on, ahead[t + j])
        ahead[t] = prices + error[t, 0] + rest
    return out


def regress(seen: np.ndarray, least: np.ndarray, target: np.ndarray) -> list[Regret]:
    """Means of `target` [n q] given `seen` [n f], one network per column; they share all but the
    last layer.

    `least` [f] is what a signal's deviation is at least taken for. `seen` is overwritten: a copy
    could be a gigabyte.
    """
    torch.manual_seed(0)
    mean, deviation = seen.mean(0), np.maximum(seen.std(0), least)
    deviation = np.where(deviation > 0, deviation, 1).astype(np.float32)
    seen -= mean
    seen /= deviation
    x, scale = torch.from_numpy(np.clip(seen, -FAR, FAR, out=seen)), float(target.std()) or 1.0
    y = torch.from_numpy(target / scale)
    linear = [
        nn.Linear(x.shape[1], HIDDEN),
        nn.Linear(HIDDEN, HIDDEN),
        nn.Linear(HIDDEN, y.shape[1]),
    ]
    network = nn.Sequential(
        nn.Dropout(DROPOUT / 2), linear[0], nn.ReLU(), nn.Dropout(DROPOUT), linear[1], nn.ReLU(),
        nn.Dropout(DROPOUT),
        linear[2],
    )  # fmt: skip
    updates = max(LEAST_UPDATES, EPOCHS * len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        rows = torch.randint(0, len(x), (BATCH,))
        loss = (network(x[rows]) - y[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    *shared, (kernel, bias) = [
        (m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in linear
    ]
    last = [(kernel[:, [q]] * scale, bias[[q]] * scale) for q in range(y.shape[1])]
    return [Regret(mean, deviation, [*shared, layer]) for layer in last]


def _known(recording: Recording, episode: Episode, planned: list[dict[str, Any]]) -> Known:
    """An episode with a plan at each step."""
    chunks = np.stack([out["actions"] for out in planned])
    return Known(
        chunk_errors(recording.spec, chunks, episode),
        chunks,
        [out["confidence"]["steps"] for out in planned],
        [luminance(images) for images in episode.frames],
    )


def _later(error: np.ndarray, t: int) -> range:
    """Steps of the chunk made at t, after its first, that lie within the episode."""
    return range(1, min(error.shape[1], len(error) - t))


def _seen(one: Known, t: int, j: int) -> np.ndarray:
    return signals(one.chunks[t], j, one.sure[t], one.cells[t + j], one.cells[t])
