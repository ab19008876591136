"""What sims.Sim promises, of the worlds that need no simulator."""

from typing import Any

import numpy as np
import pytest

from data_pipelines.builders import blocks
from data_pipelines.builders.blocks_world import TASKS
from data_pipelines.datasets import DATASETS
from experiments import sims

EMBEDDED = ("blocks", "navigation")


def ended(sim: sims.Sim) -> dict[str, Any]:
    """What becomes of the expert."""
    steps = 0
    while not sim.outcome:
        sim.step(sim.expert())
        steps += 1
    return {"outcome": sim.outcome, "steps": steps, **sim.report()}


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_world_is_its_data_sets_robot(name: str) -> None:
    sim = sims.opened(name)
    (name,) = sim.datasets
    dataset = DATASETS[name]
    d = len(dataset.action_names)
    assert sim.low.shape == sim.high.shape == (d,)
    assert (sim.low < sim.high).all()
    assert sim.control_hz == dataset.control_hz
    sim.reset(sim.tasks[0], sim.wordings[0], (0, 0))
    images, state = sim.observe()
    assert set(images) <= set(dataset.cameras)
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images.values())
    assert state is not None
    assert state.shape == (len(dataset.state_names),)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_episode_follows_from_task_wording_and_seed(name: str) -> None:
    sims_ = [sims.opened(name), sims.opened(name)]
    sims_[1].reset(sims_[1].tasks[-1], sims_[1].wordings[-1], (5, 6))
    ended(sims_[1])  # nothing is left of an episode
    for sim in sims_:
        sim.reset(sim.tasks[1], sim.wordings[1], (3, 4))
        assert (sim.outcome, sim.stage) == ("", 0)
    one, two = (sim.observe() for sim in sims_)
    np.testing.assert_array_equal(one[0]["primary"], two[0]["primary"])
    assert sims_[0].instruction == sims_[1].instruction
    assert ended(sims_[0]) == ended(sims_[1])
    sims_[1].reset(sims_[1].tasks[1], sims_[1].wordings[1], (3, 5))
    assert not np.array_equal(sims_[1].observe()[0]["primary"], one[0]["primary"])


def test_blocks_keeps_words_and_colours_from_training() -> None:
    sim = sims.opened("blocks")
    seen = {tuple(shade) for shades in blocks.SHADES.values() for shade in shades.seen}
    for number in range(12):
        for wording in sim.wordings:
            task = sim.tasks[number]
            sim.reset(task, wording, (0, number))
            phrases = [
                {words.format(*TASKS[task]) for words in kept}
                for kept in (blocks.PHRASES.seen, blocks.PHRASES.held_out)
            ]
            assert sim.instruction in phrases[wording == "held out words"]
            pixels = {tuple(pixel) for pixel in sim.observe()[0]["primary"].reshape(-1, 3).tolist()}
            # Pixels that are one block's alone.
            assert len(pixels & seen) == (0 if wording == "held out colours" else 3)


def test_blocks_says_how_far_the_block_was_pushed() -> None:
    sim = sims.opened("blocks")
    sim.reset("green up", "seen", (0, 0))
    assert sim.report() == {"pushed": 0.0}
    assert ended(sim)["pushed"] >= 0.12
