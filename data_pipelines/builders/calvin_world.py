"""CALVIN's simulator in this process: scene D as its evaluation has it, its oracle, its cameras.

CALVIN_RENDERER  tiny: Bullet's own on the CPU, by default; egl: OpenGL (a graphics card, or Mesa)

Pictures of the one are not those of the other (egl's are brighter: 21 of 255 grey levels apart at
the same state), so a policy is to be evaluated with the renderer that its data was made with.
"""

import os
import re
import weakref
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from data_pipelines.builders import calvin_clones
from data_pipelines.builders.calvin_chains import BLOCKS, FINGERS, FIRST_BLOCK, OF_A_BLOCK
from data_pipelines.builders.calvin_clones import Clones

RENDERERS = ("tiny", "egl")
CAMERAS = ("static", "gripper")
CONTROL_HZ = 30.0
METRES, RADIANS = 0.02, 0.05  # what 1 is in an action of the environment
SLIDER, DRAWER = 0, 1  # columns of scene_obs
SEEN_PARTS = [0, 1, 3, 4, 5]  # of its columns: not how far the button is down
GRASPED = 0.02  # m: closed on nothing they are nearer, and the smallest block is 0.04

SHOWN = 4, 8  # rows and columns of `shown`

Info = dict[str, Any]  # of the robot and the scene, as CALVIN's oracle wants it


class Scene(NamedTuple):
    """What a person who knows the simulator sees.

    Attributes:
        slider, drawer: how far they are open, m.
        position, angles: of each block, [3] m and [3] rad.
        tool, tool_angles: where the point between the fingers is, [3] m, and how it is turned, [3]
            rad.
        fingers: how far they are apart, m.
        held: the blocks between them.
    """

    slider: float
    drawer: float
    position: dict[str, np.ndarray]
    angles: dict[str, np.ndarray]
    tool: np.ndarray
    tool_angles: np.ndarray
    fingers: float
    held: tuple[str, ...]


@runtime_checkable
class Simulator(Protocol):
    """What a chain of tasks needs of World."""

    facts: Mapping[str, str]

    def reset(self, robot: np.ndarray, scene: np.ndarray) -> None: ...
    def put(self, robot: np.ndarray, scene: np.ndarray) -> None: ...
    def step(self, action: np.ndarray) -> Info: ...
    def info(self) -> Info: ...
    def state(self) -> tuple[np.ndarray, np.ndarray]: ...
    def solved(self, task: str, start: Info, now: Info) -> bool: ...
    def observe(self) -> dict[str, Any]: ...
    def drawn(self, robot: np.ndarray, scene: np.ndarray) -> dict[str, np.ndarray]: ...
    def scene(self) -> Scene: ...
    def close(self) -> None: ...


class World:
    """The simulator, one in a process: calvin_env draws a part of every robot into the first.

    Attributes:
        facts: what its pictures and its outcomes depend on.
    """

    _open: "weakref.ref[World] | None" = None

    def __init__(self, clones: Clones, renderer: str = "") -> None:
        """Raises ValueError for a renderer that is none, and for a second world."""
        name = renderer or os.environ.get("CALVIN_RENDERER") or RENDERERS[0]
        if name not in RENDERERS:
            raise ValueError(
                f"CALVIN_RENDERER: expected one of {', '.join(RENDERERS)}, got {name!r}"
            )
        if World._open is not None and World._open() is not None:
            raise ValueError(
                "CALVIN: expected one world in a process, got a second one; close the first, or"
                " start another process"
            )
        yaml = calvin_clones.imported(clones.env, "omegaconf").OmegaConf
        tools = calvin_clones.imported(clones.env, "hydra.utils")
        self._bullet = calvin_clones.imported(clones.env, "pybullet")
        module = calvin_clones.imported(clones.env, "calvin_env.envs.play_table_env")
        module.PlayTableSimEnv.__del__ = lambda env: None  # it writes to stdout when Python ends
        for other in ("calvin_env.camera.static_camera", "calvin_env.camera.gripper_camera"):
            calvin_clones.imported(clones.env, other)
        calvin_clones.imported(clones.env, "calvin_env.envs.tasks")
        with calvin_clones.quiet() as said:
            self._env = tools.instantiate(_config(yaml, clones, name == "egl"), show_gui=False)
            self._cameras, self._env.cameras = self._env.cameras, []  # drawn when asked for
            for camera in self._cameras:
                camera.render()  # egl's first picture has no shadows
            drawn_by = re.search(r"GL_RENDERER=(.*)", said())
        World._open = weakref.ref(self)
        self._end = weakref.finalize(self, _ended, self._env)  # also when Python ends
        tasks = clones.models / "conf/callbacks/rollout/tasks/new_playtable_tasks.yaml"
        self._oracle = tools.instantiate(yaml.load(tasks))
        self.facts: Mapping[str, str] = {
            "renderer": f"egl, {drawn_by[1].strip()}" if drawn_by else name,
            "pybullet": metadata.version("pybullet"),
            **clones.commits(),
        }

    def reset(self, robot: np.ndarray, scene: np.ndarray) -> None:
        """Begins at robot_obs [15] and scene_obs [24], whatever was before. Everything is loaded
        again (0.2 s): Bullet's contacts remember the last episode. Their environment asks for pairs
        in an order that does not depend on it, and loses that as it loads: it is asked again.
        """
        with calvin_clones.quiet():
            self._env.load()
        self._bullet.setPhysicsEngineParameter(
            deterministicOverlappingPairs=1, physicsClientId=self._env.cid
        )
        self._env.robot.gripper_action = int(robot[-1])  # they leave the last episode's
        self._env.reset(robot_obs=robot, scene_obs=scene)
        for button in self._env.scene.buttons:
            button.prev_is_pressed = button._is_pressed

    def put(self, robot: np.ndarray, scene: np.ndarray) -> None:
        """Into a state [15] and [24] and a step on, without loading anything anew."""
        self._env.robot.gripper_action = int(robot[-1])
        self._env.reset(robot_obs=robot, scene_obs=scene)

    def step(self, action: np.ndarray) -> Info:
        """Carries out an action [7] of theirs (the gripper -1 or 1); what the oracle wants of the
        state after it.
        """
        return self._env.step(action.copy())[3]  # they write into it

    def info(self) -> Info:
        """What the oracle wants of this state."""
        return self._env.get_info()

    def solved(self, task: str, start: Info, now: Info) -> bool:
        """Whether what changed since `start` is this task."""
        return bool(self._oracle.get_task_info_for_set(start, now, {task}))

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """robot_obs [15] and scene_obs [24]."""
        seen = self._env.get_state_obs()
        return seen["robot_obs"], seen["scene_obs"]

    def observe(self) -> dict[str, Any]:
        """As their environment gives it: both cameras' pictures, drawn now, and the states."""
        pictures = {f"rgb_{camera.name}": camera.render()[0] for camera in self._cameras}
        return {"rgb_obs": pictures, **self._env.get_state_obs()}

    def drawn(self, robot: np.ndarray, scene: np.ndarray) -> dict[str, np.ndarray]:
        """Both cameras' pictures [h w 3] of a state that was observed, by the names of `observe`.
        What was going on is over: reset before the next step.
        """
        self._env.scene.reset(scene)
        self._env.robot.reset(robot)
        return {f"rgb_{camera.name}": camera.render()[0] for camera in self._cameras}

    def scene(self) -> Scene:
        """What an expert goes by."""
        robot = self._env.robot
        touched = self._bullet.getContactPoints(
            bodyA=robot.robot_uid, physicsClientId=self._env.cid
        )
        bodies = {contact[2] for contact in touched}
        state = robot.get_observation()[0]
        fingers = float(state[FINGERS])
        columns = self._env.scene.get_obs()
        blocks = dict(zip(BLOCKS, columns[FIRST_BLOCK:].reshape(-1, OF_A_BLOCK), strict=True))
        movable = self._env.scene.movable_objects
        return Scene(
            float(columns[SLIDER]),
            float(columns[DRAWER]),
            {block: numbers[:3] for block, numbers in blocks.items()},
            {block: numbers[3:] for block, numbers in blocks.items()},
            np.array(state[:3]),
            np.array(state[3:6]),
            fingers,
            tuple(
                body.name.removeprefix("block_")
                for body in movable
                if body.uid in bodies and fingers > GRASPED
            ),
        )

    def close(self) -> None:
        """Ends the simulator."""
        self._end()
        World._open = None


def shown(robot: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """What pictures show of robot_obs [15] and scene_obs [24], as numbers to be learnt from them
    [SHOWN], a row for a thing. Red, blue and pink block: where it is, where seen from the tool (m),
    and twice its yaw as sine and cosine, as half a turn looks alike. Then sliding door, drawer and
    switch (m), bulb and green light, and where the tool is (m).
    """
    blocks = scene[FIRST_BLOCK:].reshape(-1, OF_A_BLOCK)
    turned = 2.0 * blocks[:, 5:]
    each = [blocks[:, :3], blocks[:, :3] - robot[:3], np.sin(turned), np.cos(turned)]
    parts = np.append(scene[SEEN_PARTS], robot[:3])
    return np.concatenate([np.concatenate(each, axis=1), parts[None]])


def _ended(env: Any) -> None:
    with calvin_clones.quiet():
        env.close()


def _config(yaml: Any, clones: Clones, egl: bool) -> Any:
    """What hydra composes for their conf/config_rendering.yaml, of scene D with two cameras."""
    conf = clones.env / "conf"
    robot = yaml.merge(
        yaml.load(conf / "robot/panda.yaml"), yaml.load(conf / "robot/panda_longer_finger.yaml")
    )
    del robot["defaults"]
    env = yaml.merge(
        yaml.load(conf / "env/play_table_env.yaml"), {"use_egl": egl, "use_scene_info": True}
    )
    whole = {
        "use_vr": False,
        "data_path": str(clones.env / "data"),
        "cameras": {name: yaml.load(conf / f"cameras/cameras/{name}.yaml") for name in CAMERAS},
        "env": env,
        "scene": yaml.load(conf / "scene/calvin_scene_D.yaml"),
        "robot": robot,
    }
    return yaml.create(whole).env
