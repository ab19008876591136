"""Meta-World as a world of the closed-loop runner."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.builders.metaworld_words import MT10, WORDINGS
from data_pipelines.datasets import DATASETS
from experiments import rollout
from experiments.sims.metaworld import Metaworld

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sim() -> Metaworld:
    try:
        return Metaworld("drawer-close,reach")
    except ValueError as error:
        pytest.skip(str(error))


def test_it_says_what_outcomes_depend_on(sim: Metaworld) -> None:
    assert sim.facts.keys() == {"renderer", "mujoco", "metaworld"}
    (name,) = sim.datasets
    dataset = DATASETS[name]
    assert len(sim.low) == len(sim.high) == len(dataset.action_names)
    assert (dataset.control_hz, sim.tasks) == (sim.control_hz, ("drawer-close", "reach"))
    assert Metaworld().tasks == MT10
    with pytest.raises(ValueError, match="tasks of Meta-World: expected"):
        Metaworld("drawer-closed")


def test_a_wording_changes_the_words_alone(sim: Metaworld) -> None:
    seen = []
    for wording in (*sim.wordings, sim.wordings[0]):
        sim.reset("reach", wording, (0, 3))
        seen.append((sim.instruction, sim.observe()))
    (said, images), (other, _), (again, _) = ((words, pictures) for words, (pictures, _) in seen)
    assert said == again
    assert said in WORDINGS["reach"].seen
    assert other in WORDINGS["reach"].held_out
    for _, (pictures, state) in seen:
        np.testing.assert_array_equal(state, seen[0][1][1])
        for slot, picture in pictures.items():
            np.testing.assert_array_equal(picture, images[slot])
    sim.reset("reach", "seen", (1, 3))
    assert (sim.observe()[0]["wrist"] != images["wrist"]).any()


def test_an_episode_ends_with_its_success(sim: Metaworld) -> None:
    sim.reset("drawer-close", "seen", (0, 0))
    steps = 0
    while not sim.outcome:
        sim.step(sim.expert())
        steps += 1
    assert (sim.outcome, steps < 200) == ("success", True)


def test_the_command_plays_it(sim: Metaworld, tmp_path: Path) -> None:
    names = f"metaworld:{','.join(sim.tasks)}"
    words = ["--policy=expert", f"--sim={names}", "--episodes=2", f"--out={tmp_path / 'out'}"]
    assert rollout.main(words) == 0
    body = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["task"] for row in body["episodes"]] == list(sim.tasks)
    assert body["success"]["successes"] == 2
    assert body["settings"]["facts"] == sim.facts
