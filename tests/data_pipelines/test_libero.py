"""LIBERO's world, who acts in it, and the demonstrations that are made there."""

import importlib.util

import numpy as np
import pytest

from data_pipelines import images
from data_pipelines.builders import libero, libero_expert, libero_world, mujoco_renderer
from data_pipelines.builders.libero import Plan, play, write_libero
from data_pipelines.builders.libero_expert import Expert
from data_pipelines.builders.libero_world import NOTHING, SETTLE, SIDE, World
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index
from vla_jax.robot.conventions import Libero

DRAWER = "pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate"


_kept = []  # robosuite's own renderers: what frees one takes EGL from all others


def opened(suite, pictures="official"):
    try:
        return World(suite, pictures)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def world():
    world = opened("libero_object")
    yield world
    world.close()


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    facts = libero_world.facts.__wrapped__
    with pytest.raises(ValueError, match=r'LIBERO: .*not installed; pip install "vla_jax\[libero'):
        facts()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(mujoco_renderer, "_probed", lambda name: ("", "is not there"))
    with pytest.raises(ValueError, match=r"LIBERO: .*osmesa: is not there.*libegl1"):
        facts()


def test_the_check_says_what_is_missing(monkeypatch):
    def missing():
        raise ValueError("LIBERO: is not installed")

    monkeypatch.setattr(libero_world, "facts", missing)
    assert libero_world.check() == (["LIBERO: is not installed"], False)


def test_unknown_suites_and_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"suite of libero_spatial.*got 'object'"):
        World("object")
    with pytest.raises(ValueError, match=r"pictures of official, fast, got 'quick'"):
        World("libero_object", "quick")
    with pytest.raises(ValueError, match=r"--suite=libero_goal: expected one that the expert"):
        write_libero(tmp_path, "libero_goal")


def test_a_turn_is_an_axis_times_an_angle():
    """Of quaternions x y z w; one that points down stays near itself when its sign flips at w 0."""
    half = np.sin(np.pi / 8), np.cos(np.pi / 8)
    np.testing.assert_allclose(
        libero_world.axis_angle(np.array([0.0, half[0], 0.0, half[1]])), [0, np.pi / 4, 0]
    )
    np.testing.assert_array_equal(libero_world.axis_angle(np.array([0.0, 0, 0, 1])), np.zeros(3))
    down = [libero_world.axis_angle(np.array([1.0, 0, 0, w])) for w in (-1e-3, 1e-3)]
    np.testing.assert_allclose(down, [[np.pi, 0, 0]] * 2, atol=3e-3)


@pytest.mark.parametrize("yaw", [-1.2, 0.0, 0.7])
def test_the_hand_is_turned_to_where_it_points_down(yaw):
    """What is computed, carried out after the turn, is the one that was wanted."""
    goal = np.array([np.cos(yaw / 2), np.sin(yaw / 2), 0.0, 0.0])
    np.testing.assert_allclose(libero_expert._turned(goal, yaw), 0.0, atol=1e-9)
    np.testing.assert_allclose(libero_expert._turned(-goal, yaw), 0.0, atol=1e-9)
    flat = np.array([1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(libero_expert._turned(flat, yaw), [0, 0, yaw], atol=1e-9)


@pytest.mark.slow
def test_steps_states_and_pictures_are_robosuites_own(world):
    """Beside LIBERO's own environment with all of its observations, as OpenVLA's evaluation has it;
    after another episode, whose gripper robosuite would remember.
    """
    task = next(iter(world.tasks))
    world.reset(task, 1, 3)
    from libero.libero.envs import OffScreenRenderEnv

    for _ in range(5):
        world.step(np.array([0.0] * 6 + [1.0]))
    world.reset(task, 0, 2)
    theirs = OffScreenRenderEnv(
        bddl_file_name=world.tasks[task].file, camera_heights=SIDE, camera_widths=SIDE
    )
    theirs.seed(0)
    theirs.reset()
    theirs.set_init_state(world.tasks[task].states[2])
    for _ in range(SETTLE):
        theirs.step(NOTHING)
    draw = np.random.default_rng(0)
    for number in range(12):
        action = np.append(draw.uniform(-1, 1, 6), 1.0 if number > 5 else -1.0)
        theirs.step(action)
        world.step(action)
    ours, others = (each.sim.get_state().flatten() for each in (world.environment, theirs))
    np.testing.assert_allclose(ours, others, atol=1e-12)
    # What `step` gives is one of a step's 25 moments old, so it is measured again.
    pictures, state = Libero().observe(theirs.env._get_observations(force_update=True))
    np.testing.assert_allclose(world.state(), state, atol=1e-6)
    for slot, picture in world.observe().items():
        np.testing.assert_array_equal(picture, pictures[slot])
    _kept.append(theirs)


@pytest.mark.slow
def test_an_episode_is_the_same_bits_after_another_one(world):
    task = next(iter(world.tasks))

    def bits(seed, state):
        world.reset(task, seed, state)
        expert = Expert(world)
        for _ in range(15):
            world.step(expert.act())
        pictures = world.observe()
        return [world.state().tobytes(), *(pictures[slot].tobytes() for slot in pictures)]

    first = bits(0, 1)
    assert bits(3, None) != first
    assert bits(0, 1) == first
    assert bits(3, None) != bits(4, None)
    with pytest.raises(ValueError, match=r"a state of 50 of .*--episodes 500 at most"):
        world.reset(task, 0, 50)
    with pytest.raises(ValueError, match=r"expected a task of pick_up_the_alphabet"):
        world.reset("pick_up_the_phone", 0, 0)


@pytest.mark.slow
def test_drawn_places_are_none_of_the_official_ones(world):
    task = next(iter(world.tasks))
    world.reset(task, 5, 3)
    model = world.environment.sim.model._model
    # Time, the arm's joints and fingers, then 7 numbers of each thing that begin with x and y.
    columns = np.add.outer(np.arange(10, 1 + model.nq, 7), [0, 1]).ravel()
    official = world.tasks[task].states[:, columns]

    def gaps():
        here = world.environment.sim.get_state().flatten()[columns]
        return np.abs(official - here).max(1)

    assert gaps().argmin() == 3
    assert gaps().min() < 0.002  # it settled
    world.reset(task, 5)
    assert gaps().min() > 0.005


@pytest.mark.slow
def test_fast_pictures_are_another_fact_and_nearly_the_same(world):
    fast = opened("libero_object", "fast")
    assert {key for key in fast.facts if fast.facts[key] != world.facts[key]} == {"pictures"}
    seen = []
    for each in (world, fast):
        each.reset(next(iter(each.tasks)), 0, 0)
        seen.append(each.observe())
    fast.close()
    for slot, picture in seen[0].items():
        gap = np.abs(picture.astype(int) - seen[1][slot])
        assert 0 < gap.mean() < 3  # edges alone


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "task"), [("libero_object", ""), ("libero_spatial", DRAWER)])
def test_the_expert_succeeds_and_who_does_nothing_runs_out_of_time(suite, task):
    world = opened(suite)
    task = task or list(world.tasks)[7]
    world.reset(task, 0, 5)
    expert = Expert(world)
    while not world.outcome:
        world.step(expert.act())
    assert (world.outcome, world.steps < 160) == ("success", True)
    world.reset(task, 0, 5)
    while not world.outcome:
        world.step(NOTHING)
    assert (world.outcome, world.steps) == ("out of time", libero_world.LIMITS[suite])
    world.close()


@pytest.mark.slow
def test_the_expert_takes_up_what_it_lost(world):
    """The gripper is opened against its will while it carries."""
    world.reset(next(iter(world.tasks)), 0, 0)
    expert, opened_ = Expert(world), 0
    while not world.outcome:
        action = expert.act()
        if expert._lifted and opened_ < 8:
            action[6] = -1.0
            opened_ += 1
        world.step(action)
    assert (world.outcome, expert.tries, opened_) == ("success", 1, 8)


@pytest.mark.slow
def test_the_expert_refuses_what_it_does_not_know():
    world = opened("libero_goal")
    world.reset(next(iter(world.tasks)), 0, 0)
    with pytest.raises(ValueError, match=r"libero_object or libero_spatial, got libero_goal's"):
        Expert(world)
    world.close()


@pytest.mark.slow
def test_demonstrations_are_read_as_they_were_played(world, tmp_path, monkeypatch):
    """One task: what is read is what was played, nothing is idle by OpenVLA's rule, and recorded
    actions that were carried out succeed again.
    """
    monkeypatch.setattr(libero, "TASKS", 1)
    monkeypatch.setattr(libero, "_worlds", {("libero_object", "official"): world})
    write_libero(tmp_path, train=2, val=1)
    name = "libero_object_no_noops"
    index = open_index(tmp_path, DATASETS[name])
    plan = Plan("libero_object", "official", 2, 1, 0)
    for number, split in enumerate(libero.SPLITS):
        found = index.splits[split]
        assert len(found.length) == (2, 1)[number]
        episode = play(world, plan, number, 0)
        rows = slice(found.first[0], found.first[0] + found.length[0])
        np.testing.assert_array_equal(found.actions[rows][:, :6], episode.actions[:, :6])
        np.testing.assert_array_equal(found.actions[rows][:, 6], episode.actions[:, 6] < 0)
        np.testing.assert_array_equal(found.state[rows], episode.states)
        assert found.words(0) == episode.instruction == world.tasks[episode.task].sentence
        for slot in DATASETS[name].cameras:
            stored = next(found.pictures(slot, np.array([found.first[0]])))
            gap = images.decode(stored, SIDE).astype(int) - episode.pictures[0][slot]
            assert np.abs(gap).mean() < 3  # of a JPEG
        arm, grip = episode.actions[:, :6], episode.actions[:, 6]
        idle = (np.linalg.norm(arm[1:], axis=1) < 1e-4) & (grip[1:] == grip[:-1])
        assert not idle.any()
    world.reset(episode.task, episode.place)
    for action in episode.actions:
        world.step(action)
    assert world.outcome == "success"
