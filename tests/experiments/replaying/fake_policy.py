"""A policy that knows the demonstrations, so that what a replay says of it is known beforehand."""

import dataclasses
from typing import Any

import numpy as np
import torch

from experiments.replaying import rollout
from experiments.replaying.recorded import Episode, Recording
from vla_jax.actions import ActionSpec

K = 3  # steps of a chunk


class FakePolicy:
    """Knows the demonstrations (it tells where it is by the state, which never comes twice) and
    gives them `late` steps late, with `offset` of each chunk step added to x. Sure of all but the
    third action.
    """

    def __init__(
        self,
        spec: ActionSpec,
        episodes: list[Episode],
        late: int = 0,
        offset: tuple[float, ...] = (0.0,) * K,
    ) -> None:
        self.spec, self.stages = spec, {}
        self.episodes, self.late, self.offset, self.seen = episodes, late, offset, []
        self.config = {"network": {"sequence": {"window": 1}, "head": {"chunk": K}}}

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        assert dataset == "blocks"
        assert instruction in [episode.instruction for episode in self.episodes]

    def act(self, images: Any, proprio: Any = None, executed: Any = None) -> dict[str, Any]:
        places = [
            (e, t)
            for e in self.episodes
            for t in np.flatnonzero((e.state == proprio).all(1)).tolist()
        ]
        ((episode, t),) = places
        assert images["primary"].shape == (24, 24, 3)
        self.seen.append((t, None if executed is None else executed.tolist()))
        actions = episode.actions[
            np.clip(t + np.arange(K) - self.late, 0, len(episode.actions) - 1)
        ].copy()
        actions[:, 0] += self.offset
        self.stages = {"action": torch.from_numpy(self.spec.normalise(actions))}
        confidence = {"gripper": 0.9, "agreement": None, "token": None, "steps": [0.9, 0.9, 0.4]}
        return {
            "actions": actions,
            "confidence": confidence,
            "timing": dict.fromkeys(rollout.TIMES, 1.0),
        }


def fake_of_all(
    recording: Recording, offset: tuple[float, ...], kind: type[FakePolicy] = FakePolicy
) -> FakePolicy:
    """It knows the training split too."""
    train = dataclasses.replace(recording, split=recording.index.splits["train"])
    return kind(
        recording.spec,
        [part.episode(i) for part in (recording, train) for i in part.episodes(None)],
        offset=offset,
    )


def replayed(
    recording: Recording, number: int = 0, late: int = 0, offset: float = 0.0
) -> rollout.Replayed:
    episode = recording.episode(number)
    policy = FakePolicy(recording.spec, [episode], late, (offset,) * K)
    return rollout.replay(policy, episode, "blocks", rollout.TIMED)
