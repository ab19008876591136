"""Each cause of failure is planted and found, and none is claimed of a healthy policy."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from data_pipelines.builders import navigation, navigation_expert
from experiments.rolling.diagnosing import Subject, findings, table
from experiments.rolling.probing import probe
from experiments.rolling.worlds import Local
from experiments.sims.navigation import Navigation
from vla_jax.actions import ActionSpec
from vla_jax.robot.navigation import SCENARIOS
from vla_jax.robot.safety import cameras
from vla_jax.types import Seen

NAMES = ("linear_x", "linear_y", "angular_z")
EPISODES = 6
SIDES = {
    words: 1 if scenario.endswith("left") else -1
    for scenario in SCENARIOS
    for held_out in (False, True)
    for words in navigation.sentences(scenario, held_out)
}


class Camera(Navigation):
    """A world that remembers from where each of its pictures was taken."""

    delay = 0

    def __init__(self) -> None:
        self.poses: dict[bytes, Any] = {}
        self._shown: list[np.ndarray] = []

    def reset(self, task: str, wording: str, seed: tuple[int, int]) -> None:
        super().reset(task, wording, seed)
        self._shown = []

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        images, state = super().observe()
        for colours in (images["primary"], images["primary"] // 3):
            self.poses[colours.tobytes()] = self._world.pose
        self._shown.append(images["primary"])
        return {"primary": self.picture()}, state

    def picture(self) -> np.ndarray:
        return self._shown[max(0, len(self._shown) - 1 - self.delay)]


class Late(Camera):
    delay = 1


class Frozen(Camera):
    delay = 10**6


class Dark(Camera):
    def picture(self) -> np.ndarray:
        return self._shown[-1] // 3


class Able:
    """Does what the expert does from where its picture was taken, on the side that it is told."""

    def __init__(self, world: Camera) -> None:
        self._world = world

    def sessions(self, n: int) -> "list[Able]":
        return [type(self)(self._world) for _ in range(n)]

    def reset(self, instruction: str) -> None:
        self._side = SIDES.get(instruction, 1)

    @staticmethod
    def act_together(policies: "Sequence[Able]", seen: Sequence[Seen]) -> list[np.ndarray]:
        return [
            np.tile(policy.act(each), (4, 1)) for policy, each in zip(policies, seen, strict=True)
        ]

    def pose(self, seen: Seen) -> Any:
        picture = seen.images["primary"]
        here = self._world._world.pose
        # Grey, or colours that it does not know: as if it stood elsewhere.
        return self._world.poses.get(picture.tobytes(), (here[0], here[1] + 1.0, here[2] + 0.5))

    def act(self, seen: Seen) -> np.ndarray:
        layout = self._world._world.layout
        first = layout.sides[0]
        sides = layout.sides if self._side == first else tuple(-side for side in layout.sides)
        return np.array(navigation_expert.act(layout._replace(sides=sides), self.pose(seen)))


class Deaf(Able):
    def reset(self, instruction: str) -> None:
        self._side = 1


class Blind(Able):
    def pose(self, seen: Seen) -> Any:
        return self._world._world.pose


class Copying(Able):
    def act(self, seen: Seen) -> np.ndarray:
        return np.array([0.5, 0.0, 0.0]) if seen.executed is None else seen.executed


class Small(Able):
    def act(self, seen: Seen) -> np.ndarray:
        return super().act(seen) * (1.0, 0.3, 1.0)


class Shifted(Able):
    def act(self, seen: Seen) -> np.ndarray:
        return super().act(seen) + np.array([0.0, 0.2, 0.0])


class Still(Able):
    def act(self, seen: Seen) -> np.ndarray:
        return super().act(seen) * (1.0, 0.0, 1.0)


class Pinned(Able):
    def act(self, seen: Seen) -> np.ndarray:
        action = super().act(seen)
        action[1] = 0.5 * np.sign(action[1])
        return action


def spec(scale: float, names: tuple[str, ...] = NAMES) -> ActionSpec:
    size = np.full(len(names), scale)
    stats = {"mean": 0 * size, "std": size, "min": -size, "max": size, "q01": -size, "q99": size}
    return ActionSpec.fit(names, (), stats, ("q99",))


@functools.cache
def recorded() -> dict[str, Any]:
    """How the frames of other episodes look."""
    frames, world = [], Navigation()
    for number in range(2 * len(world.tasks)):
        world.reset(world.tasks[number % len(world.tasks)], "seen", (9, number))
        while not world.outcome:
            frames.append(world.observe()[0]["primary"])
            world.step(world.expert())
    return cameras.statistics(frames)


def claimed(
    policy: type[Able] = Able, camera: type[Camera] = Camera, **other: Any
) -> tuple[set[str], str]:
    world = Local("navigation")
    world._sim = sim = camera()
    of = Subject(policy(sim), spec(0.6), None, 5.0, {"primary": recorded()})
    of = of._replace(**other)
    evidence = probe(world, of.policy, EPISODES, 0, of.cameras)
    found = findings(evidence, of, world.about)
    return {each.cause for each in found if each.claimed}, table(found)


def test_nothing_is_claimed_of_a_healthy_policy() -> None:
    causes, said = claimed()
    assert causes == set(), said
    assert "0 of 12 causes" in said
    assert said.count("?") == 1  # it sees no state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cause", "planted"),
    [
        ("ignores language", {"policy": Deaf}),
        ("ignores pictures", {"policy": Blind}),
        ("copies the last action", {"policy": Copying}),
        ("mis-scaled dims", {"policy": Small}),
        ("mis-scaled dims", {"policy": Shifted}),
        ("dims that stand still", {"policy": Still}),
        ("saturated dims", {"policy": Pinned}),
        ("another control rate", {"control_hz": 10.0}),
        ("other statistics, actions", {"action": spec(0.1)}),
        ("other statistics, actions", {"action": spec(20.0)}),
        ("other statistics, state", {"state": spec(0.3, ("x", "y", "yaw"))}),
        ("pictures come late", {"camera": Late}),
        ("pictures stand still", {"camera": Frozen}),
        ("pictures unlike the data's", {"camera": Dark}),
    ],
)
def test_what_is_planted_is_found(cause: str, planted: dict[str, Any]) -> None:
    causes, said = claimed(**planted)
    assert cause in causes, said
    # What follows from it is claimed as well: who copies looks at nothing.
    follows = {
        "copies the last action": {"ignores language", "ignores pictures"},
        "saturated dims": {"mis-scaled dims"},
        "pictures stand still": {"mis-scaled dims", "dims that stand still", "pictures come late"},
    }
    assert causes - {cause} <= follows.get(cause, set()), said
