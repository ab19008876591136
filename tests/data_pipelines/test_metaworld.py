"""Meta-World's sentences, its world, and the demonstrations that are made in it."""

import importlib.util
import os
import sys

import numpy as np
import pytest

from data_pipelines import images
from data_pipelines.builders import metaworld, metaworld_world, mujoco_renderer
from data_pipelines.builders.made import drawn
from data_pipelines.builders.metaworld import chosen, place, play, write_metaworld
from data_pipelines.builders.metaworld_words import MT10, WORDINGS
from data_pipelines.builders.metaworld_world import LIMIT, REACH, SIZES, World
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index

SMALL = {"tasks": "drawer-close,reach", "train": 2, "val": 1}


@pytest.fixture(scope="module")
def world():
    try:
        return World()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def asked(monkeypatch):
    """The names that `facts` tries; none draws. Meta-World is there, MUJOCO_GL is not."""
    names = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(
        mujoco_renderer, "_probed", lambda name: names.append(name) or ("", "is not there")
    )
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    return names


def test_held_out_sentences_are_new_and_their_words_are_not():
    assert set(MT10) < set(WORDINGS)
    every = [words for said in WORDINGS.values() for words in (*said.seen, *said.held_out)]
    assert len(set(every)) == len(every) == 6 * 50
    for task, said in WORDINGS.items():
        assert len(said.seen) == 4
        known = {word for sentence in said.seen for word in sentence.split()}
        for sentence in said.held_out:
            assert set(sentence.split()) <= known, task


def test_tasks_are_chosen_by_name():
    assert chosen("") == MT10
    assert chosen("door-open, drawer-open") == ("door-open", "drawer-open")
    for wrong in ("door-opn", "reach,reach", "reach-v3"):
        with pytest.raises(ValueError, match=rf"expected different ones of assembly.*'{wrong}'"):
            chosen(wrong)


def test_no_episode_of_a_rollout_is_one_of_a_data_set():
    """Whatever the seeds and numbers: three numbers are not four with a zero behind."""
    data = {
        place(drawn(split, seed, number, attempt))
        for split in range(2)
        for seed in range(4)
        for number in range(4)
        for attempt in range(4)
    }
    rollouts = {place(drawn(2, seed, number)) for seed in range(8) for number in range(8)}
    assert (len(data), len(rollouts)) == (128, 64)
    assert not data & rollouts


def test_what_is_missing_is_named(monkeypatch, asked):
    facts = metaworld_world.facts.__wrapped__
    with pytest.raises(ValueError, match=r"is not there.*libegl1 libgl1-mesa-dri or .*libosmesa6$"):
        facts()
    assert asked == ["egl", "osmesa"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "vla_jax\[metaworld\]"'):
        facts()


def test_a_renderer_that_somebody_chose_is_the_only_one_asked(monkeypatch, asked):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(ValueError, match=r"osmesa: is not there.*unset MUJOCO_GL=osmesa"):
        metaworld_world.facts.__wrapped__()
    assert asked == ["osmesa"]


def test_the_first_renderer_that_draws_is_taken(monkeypatch, asked):
    monkeypatch.setattr(
        mujoco_renderer, "_probed", lambda name: ("llvmpipe" * (name == "osmesa"), "")
    )
    monkeypatch.setattr(metaworld_world.metadata, "version", lambda name: "1")
    facts = metaworld_world.facts.__wrapped__()
    assert facts == {"renderer": "osmesa: llvmpipe", "mujoco": "1", "metaworld": "1"}
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_what_was_imported_too_early_is_said(monkeypatch, asked):
    monkeypatch.setitem(sys.modules, "mujoco", sys)
    with pytest.raises(ValueError, match=r"mujoco was imported before .*; set MUJOCO_GL"):
        metaworld_world.facts.__wrapped__()
    assert not asked


@pytest.mark.slow
def test_the_tasks_are_those_of_the_library(world):
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

    assert {f"{task}-v3" for task in WORDINGS} == set(ALL_V3_ENVIRONMENTS)
    assert [f"{task}-v3" for task in MT10] == list(MT10_V3)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pick-place", "drawer-close"])
def test_an_episode_is_the_same_bits_after_another_one(world, task):
    def bits(seed):
        world.reset(task, seed)
        for _ in range(25):
            world.step(world.expert())
        pictures = world.observe()
        return [world.state().tobytes(), *(pictures[slot].tobytes() for slot in SIZES)]

    first, other = bits(3), bits(4)
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert bits(3) == first


@pytest.mark.slow
def test_the_expert_succeeds_and_who_does_nothing_runs_out_of_time(world):
    world.reset("drawer-open", 0)
    while not world.outcome:
        world.step(world.expert())
    assert (world.outcome, world.steps < LIMIT) == ("success", True)
    world.step(world.expert())
    assert world.outcome == "success"  # once is for good
    world.reset("drawer-open", 0)
    while not world.outcome:
        world.step(np.array([0.0, 0.0, 0.0, 1.0]))
    assert (world.outcome, world.steps) == ("out of time", LIMIT)


@pytest.mark.slow
def test_actions_are_metres_and_one_opens(world):
    def after(action):
        """How far the state has moved when twenty steps are done and the hand has caught up."""
        world.reset("reach", 0)
        before = world.state()
        for wait in [False] * 20 + [True] * 40:
            world.step(np.array([0.0, 0.0, 0.0, action[3]] if wait else action))
        return world.state() - before

    np.testing.assert_allclose(after([REACH, 0, 0, 1.0])[:3], [0.2, 0, 0], atol=0.01)
    np.testing.assert_allclose(after([0, 0.5 * REACH, 0, 1.0])[:3], [0, 0.1, 0], atol=0.01)
    np.testing.assert_array_equal(after([9.0, 0, 0, 1.0]), after([REACH, 0, 0, 1.0]))
    opened, half, closed = (after([0, 0, 0, effort])[3] for effort in (1.0, 0.5, 0.0))
    assert min(opened, half) > -0.1 > -0.3 > closed  # half a gripper's force is none


@pytest.mark.slow
def test_pictures_show_what_happens(world):
    world.reset("reach", 0)
    before = world.observe()
    assert {slot: (p.shape, p.dtype) for slot, p in before.items()} == {
        slot: ((size, size, 3), np.uint8) for slot, size in SIZES.items()
    }
    for _ in range(20):
        world.step(world.expert())
    for slot, picture in world.observe().items():
        assert np.abs(picture.astype(int) - before[slot]).max() > 50
    # The goal of pick-place is blue and nothing else is: it moves with the seed.
    found = []
    for seed in range(3):
        world.reset("pick-place", seed)
        red, _, blue = np.moveaxis(world.observe()["primary"].astype(int), -1, 0)
        found.append(tuple(np.argwhere(blue > red + 60).mean(0)))
    assert len(set(found)) == 3


@pytest.mark.slow
def test_an_unknown_task_is_refused(world):
    with pytest.raises(ValueError, match=r"expected a task of assembly.*got 'reach-v3'"):
        world.reset("reach-v3", 0)


def test_the_check_says_what_is_missing(monkeypatch):
    def missing():
        raise ValueError("Meta-World: is not installed")

    monkeypatch.setattr(metaworld_world, "facts", missing)
    assert metaworld_world.check() == (["Meta-World: is not installed"], False)


@pytest.mark.slow
def test_the_check_says_what_works(world, monkeypatch):
    lines, works = metaworld_world.check()
    assert works
    assert lines[0].startswith("renderer: ")
    assert any("the hand moves" in line for line in lines)
    black = {slot: np.zeros((size, size, 3), np.uint8) for slot, size in SIZES.items()}
    monkeypatch.setattr(World, "observe", lambda self: black)
    lines, works = metaworld_world.check()
    assert not works
    assert sum("blank; try another MUJOCO_GL" in line for line in lines) == 2


@pytest.mark.slow
def test_demonstrations_are_read_as_they_were_played(world, tmp_path, monkeypatch):
    """An interrupted build is no data set, goes on with the same command, and comes out the same;
    so it does with several processes.
    """
    monkeypatch.setattr(metaworld, "SHARD", 2)
    folder = write_metaworld(tmp_path, **SMALL, processes=2)
    monkeypatch.setattr(metaworld, "_worlds", [world])
    write = metaworld._write

    def until_the_second(shard):
        if shard.first:
            raise KeyboardInterrupt
        write(shard)

    monkeypatch.setattr(metaworld, "_write", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_metaworld(tmp_path / "cut", **SMALL)
    monkeypatch.setattr(metaworld, "_write", write)
    cut = tmp_path / "cut" / "metaworld" / "1.0.0"
    assert sorted(file.name for file in cut.iterdir()) == [
        "metaworld-train.tfrecord-00000-of-00002", "settings.json"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"expected what these arguments began.*'train': 2"):
        write_metaworld(tmp_path / "cut", **SMALL | {"train": 3})
    write_metaworld(tmp_path / "cut", **SMALL)
    for file in sorted(folder.iterdir()):
        assert file.read_bytes() == (cut / file.name).read_bytes()
    index = open_index(tmp_path, DATASETS["metaworld"])
    plan = metaworld.Plan(chosen(SMALL["tasks"]), 2, 1, 0)
    for number, (name, episodes) in enumerate((("train", 4), ("val", 2))):
        split = index.splits[name]
        assert len(split.length) == episodes
        for e in range(0, episodes, 3):
            episode = play(world, plan, number, e)
            rows = slice(split.first[e], split.first[e] + split.length[e])
            np.testing.assert_array_equal(split.actions[rows], episode.actions)
            np.testing.assert_array_equal(split.state[rows], episode.states)
            assert split.words(e) == episode.instruction
            said = WORDINGS[episode.task]
            assert episode.instruction in (said.seen if name == "train" else said.held_out)
            for slot, size in SIZES.items():
                stored = next(split.pictures(slot, np.array([split.first[e]])))
                gap = images.decode(stored, size).astype(int) - episode.pictures[0][slot]
                assert np.abs(gap).mean() < 3  # of a JPEG


@pytest.mark.slow
def test_what_is_recorded_is_what_the_expert_wanted(world, monkeypatch):
    """Every other round of training it is pushed, a third of the time, and never its gripper."""
    plan, step = metaworld.Plan(("reach",), 2, 2, 0), world.step
    done = []

    def noted(action):
        done.append(action)
        step(action)

    monkeypatch.setattr(world, "step", noted)

    def pushes(split, episode):
        """Of each step what was carried out beside what is recorded; of the last attempt."""
        done.clear()
        actions = play(world, plan, split, episode).actions
        return np.stack(done[-len(actions) :]) - actions

    for split, episode in ((0, 0), (1, 0), (1, 1)):
        assert not pushes(split, episode).any()
    pushed = pushes(0, 1)
    hit = np.arange(len(pushed)) % metaworld.EVERY < metaworld.LASTS
    assert pushed[hit, :3].all()
    assert not pushed[~hit].any()
    assert not pushed[:, 3].any()
