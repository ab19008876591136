"""What a policy would do along the expert's way, and what it would do there if it were told or
shown something else: the numbers of which diagnosing.py says what they mean.

Axes: n frames of all episodes, d action dim, p state.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.composition.open_loop import GREY
from experiments.rolling.actors import of_cameras
from experiments.rolling.episodes import Orders, Probe, Query
from experiments.rolling.worlds import Apart, Local
from vla_jax.progress import Progress
from vla_jax.robot.safety.cameras import CameraWatch
from vla_jax.types import Seen

# How a policy is asked, each in a session of its own: as it is; told nothing, or another episode's
# words; shown grey, or another episode's pictures; told that another action was carried out.
WAYS = ("as it is", "no words", "other words", "no pictures", "other pictures", "other action")


class Evidence(NamedTuple):
    """Of every frame.

    Attributes:
        expert: [n d], what the expert did.
        planned: [n d] of each of WAYS, the first action of the policy's chunk.
        executed: [n d], what was carried out before; NaN at an episode's first frame.
        same: [n], whether the pictures are those of the frame before, though the expert moved.
        states: [n p]; None where the world has none.
        looks: of each frame what cameras.CameraWatch says of it.
        instructions: how many different ones there were.
    """

    expert: np.ndarray
    planned: dict[str, np.ndarray]
    executed: np.ndarray
    same: np.ndarray
    states: np.ndarray | None
    looks: list[Mapping[str, Any]]
    instructions: int


class _Frames:
    """Of one episode: what was seen and what is to be kept."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.told: list[str] = []


def probe(
    world: Local | Apart, policy: Any, episodes: int, seed: int, known: Mapping[str, Any] | None
) -> Evidence:
    """Asks `policy` along the expert's way of the first episodes of a seed. `known` is
    cameras.statistics of the training data by camera, where there is one.

    Raises ValueError for a policy that is not for this robot.
    """
    sessions = policy.sessions(len(WAYS))
    rows: dict[str, list[Any]] = {"expert": [], "executed": [], "same": [], "looks": []}
    plans: list[list[np.ndarray]] = []
    states: list[np.ndarray | None] = []
    told = set()
    other = _recorded(world, seed, episodes)  # of an episode that is not looked at otherwise
    with Progress("diagnosis", episodes, "episodes") as progress:
        for number in range(episodes):
            frames, watch = _Frames(), CameraWatch(frozen_after=2)
            world.begin(Probe(Orders(seed), number))
            while isinstance(query := world.take(), Query):
                instead = other.seen[min(len(frames.seen), len(other.seen) - 1)].images
                if query.instruction is not None:
                    words = _another(query.instruction, other.told)
                    _reset(sessions, query.instruction, words)
                    told.add(query.instruction)
                    frames.told.append(query.instruction)
                plans.append(_asked(sessions, query.seen, instead))
                assert query.expert is not None
                last = query.seen.executed
                moved = last is not None and bool(np.abs(last).max() > 0)
                rows["same"].append(
                    moved
                    and _equal(query.seen.images, frames.seen[-1].images if frames.seen else {})
                )
                rows["looks"].append(watch.look(query.seen.images, known))
                rows["expert"].append(query.expert)
                rows["executed"].append(
                    np.full_like(query.expert, np.nan) if last is None else last
                )
                states.append(query.seen.proprio)
                frames.seen.append(query.seen)
                world.answer(query.expert[None])
            other = frames
            progress.add(1)
    planned = np.array(plans)  # n ways d
    return Evidence(
        expert=np.array(rows["expert"]),
        planned={way: planned[:, i] for i, way in enumerate(WAYS)},
        executed=np.array(rows["executed"]),
        same=np.array(rows["same"]),
        states=None if states[0] is None else np.array(states),
        looks=rows["looks"],
        instructions=len(told),
    )


def _recorded(world: Local | Apart, seed: int, number: int) -> _Frames:
    """The expert's episode."""
    frames = _Frames()
    world.begin(Probe(Orders(seed), number))
    while isinstance(query := world.take(), Query):
        frames.seen.append(query.seen)
        if query.instruction is not None:
            frames.told.append(query.instruction)
        assert query.expert is not None
        world.answer(query.expert[None])
    return frames


def _another(instruction: str, told: Sequence[str]) -> str:
    """Other words, where the other episode had some."""
    return next((words for words in told if words != instruction), instruction)


def _reset(sessions: Sequence[Any], instruction: str, other: str) -> None:
    words = {"no words": "", "other words": other}
    for way, session in zip(WAYS, sessions, strict=True):
        session.reset(words.get(way, instruction))


def _asked(
    sessions: Sequence[Any], seen: Seen, other: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """The next action [d], each way."""
    grey = {name: np.full_like(image, GREY) for name, image in seen.images.items()}
    changed = None if seen.executed is None else -seen.executed
    shown = {
        "no pictures": seen._replace(images=grey),
        "other pictures": seen._replace(images=dict(other)),
        "other action": seen._replace(executed=changed),
    }
    cameras = sessions[0].cameras
    frames = [of_cameras(shown.get(way, seen), cameras) for way in WAYS]
    chunks = sessions[0].act_together(sessions, frames)
    return [np.asarray(chunk)[0] for chunk in chunks]


def _equal(images: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> bool:
    return images.keys() == before.keys() and all(
        np.array_equal(image, before[name]) for name, image in images.items()
    )
