"""The tasks of Meta-World to act in: a Sawyer arm over a table, simulated and drawn by MuJoCo.

Needs `pip install "vla_jax[metaworld]"`, and EGL or OSMesa to draw without a screen: MUJOCO_GL says
which, by default the first that works.

An action is x, y, z, how far the hand's set point moves in a step (m), and the gripper: 1 opens, 0
closes with all force, 0.5 does neither. The hand never turns. The state is the hand's place (m) and
how open the gripper is, 1 = open: what a robot measures. Where objects are, pictures say alone; the
expert is told.
"""

import atexit
import functools
import importlib.util
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from data_pipelines.builders import mujoco_renderer
from data_pipelines.builders.metaworld_words import MT10, WORDINGS

CONTROL_HZ = 80.0
REACH = 0.01  # m: how far the set point moves in a step along an axis, at most
LIMIT = 500  # steps of an episode, Meta-World's own
SIZES = {"primary": 96, "wrist": 64}  # pixels of a side of each camera's pictures
DRAWN = 192  # they are drawn so large, and means are taken: edges without steps
# Where the corner camera looks (m), from how far (m), in which direction and how far down
# (degrees), and how wide it sees (degrees). Meta-World's own corner cameras are further away.
LOOK, FAR, TURN, DOWN, FIELD = (0.0, 0.66, 0.12), 1.1, 142.0, -33.0, 45.0
WRIST = "gripperPOV"
KEPT = 10  # tasks that are ready

INSTALL = 'pip install "vla_jax[metaworld]"'


class World:
    """One episode at a time; the same task and seed give the same one on a machine.

    Attributes:
        steps: how many were carried out.
        outcome: "" while the episode goes on, then "success" or "out of time".
    """

    _environment: Any
    _expert: Any

    def __init__(self) -> None:
        """Raises ValueError, saying what to install, where something is missing."""
        self.facts = facts()
        self.task, self.steps, self.outcome = "", 0, ""

    def reset(self, task: str, seed: int) -> None:
        """Begins an episode of a task: where things are follows from the seed. Raises ValueError
        for an unknown task.
        """
        if task not in WORDINGS:
            raise ValueError(f"Meta-World: expected a task of {', '.join(WORDINGS)}, got {task!r}")
        if task != self.task:
            if self.task:
                _spare.append((self.task, self._environment, self._expert))
                del _spare[:-KEPT]
            self._environment, self._expert = _taken(task)
        self.task, self.steps, self.outcome = task, 0, ""
        self._environment.seed(seed)
        self._seen = self._environment.reset()[0]

    def step(self, action: np.ndarray) -> None:
        """x, y, z (m) and gripper for one control step, no further than REACH."""
        told = np.empty(4, np.float32)
        told[:3] = np.clip(np.asarray(action[:3], np.float64) / REACH, -1.0, 1.0)
        told[3] = np.clip(1.0 - 2.0 * action[3], -1.0, 1.0)  # Meta-World's is an effort: 1 closes
        self._seen, *_, info = self._environment.step(told)
        self.steps += 1
        if info["success"]:
            self.outcome = "success"
        elif self.steps >= LIMIT and not self.outcome:
            self.outcome = "out of time"

    def state(self) -> np.ndarray:  # float32 [4]
        """x, y, z of the hand, and how open the gripper is."""
        return self._seen[:4].astype(np.float32)

    def expert(self) -> np.ndarray:  # float32 [4]
        """What Meta-World's own scripted policy of the task does here; it knows where all is."""
        with warnings.catch_warnings():
            # It says of itself that it asks for more than the arm does.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high")
            told = self._expert.get_action(self._seen)
        moved = np.clip(told[:3], -1.0, 1.0) * REACH
        return np.array([*moved, (1.0 - np.clip(told[3], -1.0, 1.0)) / 2.0], np.float32)

    def observe(self) -> dict[str, np.ndarray]:
        """Pictures uint8 RGB [h w 3] by camera, drawn now."""
        import mujoco

        renderer, pictures = _renderer(self.task, self._environment.model), {}
        model, data, scene = self._environment.model, self._environment.data, renderer.scene
        for slot, size in SIZES.items():
            camera = _camera(slot, model)
            everything = mujoco.mjtCatBit.mjCAT_ALL.value
            mujoco.mjv_updateScene(model, data, *_looks(), camera, everything, scene)
            scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            times = DRAWN // size
            fine = renderer.render().reshape(size, times, size, times, 3)
            pictures[slot] = np.round(fine.mean((1, 3))).astype(np.uint8)
        return pictures


@functools.cache
def facts() -> Mapping[str, str]:
    """What pictures and episodes depend on: what draws, and versions. Chooses MUJOCO_GL where
    nobody did, before MuJoCo is imported. Raises ValueError, saying what to install, where
    something is missing.
    """
    if importlib.util.find_spec("metaworld") is None:
        raise ValueError(f"Meta-World: is not installed; {INSTALL}")
    renderer = mujoco_renderer.choose("Meta-World")
    versions = {each: metadata.version(each) for each in ("mujoco", "metaworld")}
    return {"renderer": renderer, **versions}


def check() -> tuple[list[str], bool]:
    """A line for each thing that works, or for the first that does not what to do, and whether all
    do.
    """
    lines: list[str] = []
    try:
        lines += [f"{name}: {fact}" for name, fact in facts().items()]
        world = World()
    except ValueError as error:
        return [*lines, str(error)], False
    world.reset(MT10[0], 0)
    before = world.state()
    world.step(world.expert())
    moved = bool((before != world.state()).any())
    lines.append(f"one step of {MT10[0]}: the hand {'moves' if moved else 'does not move'}")
    drawn = True
    for slot, picture in world.observe().items():
        shows = bool(picture.std() >= 10)
        lines.append(
            f"{slot} camera: {picture.shape[1]} x {picture.shape[0]} pixels,"
            f" {picture.min()} to {picture.max()}"
            + ("" if shows else f": blank; {mujoco_renderer.OTHER}")
        )
        drawn &= shows
    return lines, moved and drawn


# What takes half a second to make is shared by this process's worlds: environments that none acts
# in, with their tasks and experts; and by task what draws it, whose shapes and textures are the
# same in all. A task takes 90 MB, so the longest unused are forgotten.
_spare: list[tuple[str, Any, Any]] = []
_renderers: dict[str, Any] = {}


def _taken(task: str) -> tuple[Any, Any]:
    """An environment of the task, which tells the expert the goal, and the expert."""
    for i, (other, environment, expert) in enumerate(_spare):
        if other == task:
            del _spare[i]
            return environment, expert
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    from metaworld.policies import ENV_POLICY_MAP

    # Its annotations are of the classes that these derive from.
    environments: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    policies: Any = ENV_POLICY_MAP
    environment = environments[f"{task}-v3-goal-observable"](seed=0)
    # Each reset draws anew, from the seed.
    environment._freeze_rand_vec, environment.seeded_rand_vec = False, True
    looks = environment.model.vis
    looks.quality.offsamples = looks.quality.shadowsize = 0
    looks.global_.offwidth = looks.global_.offheight = DRAWN
    looks.global_.fovy = FIELD
    return environment, policies[f"{task}-v3"]()


def _renderer(task: str, model: Any) -> Any:
    import mujoco

    renderer = _renderers.pop(task, None)
    if renderer is None:
        renderer = mujoco.Renderer(model, DRAWN, DRAWN)
        if not _renderers:  # to be closed before what MuJoCo's module closes, so registered after
            atexit.register(_close)
    _renderers[task] = renderer
    for unused in list(_renderers)[:-KEPT]:
        _renderers.pop(unused).close()
    return renderer


def _close() -> None:
    while _renderers:
        _renderers.popitem()[1].close()


@functools.cache
def _looks() -> tuple[Any, Any]:
    import mujoco

    return mujoco.MjvOption(), mujoco.MjvPerturb()


def _camera(slot: str, model: Any) -> Any:
    import mujoco

    camera = mujoco.MjvCamera()
    if slot == "primary":
        camera.lookat[:], camera.distance = LOOK, FAR
        camera.azimuth, camera.elevation = TURN, DOWN
    else:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(WRIST).id
    return camera
