"""Figures worked by hand from what CALVIN and SimplerEnv say of their actions, and that the
datasets' own conventions are undone.
"""

import ast
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from vla_jax.robot import conventions, resize
from vla_jax.robot.conventions import Calvin, GoogleRobot, Libero, WidowX, axis_angle


def said(gripper: float, arm: tuple[float, ...] = (0.0,) * 6) -> np.ndarray:
    return np.array([*arm, gripper], np.float32)


def grippers(robot: Any, absolute: list[int]) -> list[float]:
    return [float(robot.act(said(each))[6]) for each in absolute]


def test_calvin_takes_minus_one_for_closed_and_the_arm_as_it_is() -> None:
    arm = (0.5, -1.0, 0.25, 0.1, 0.0, -0.2)  # m / 0.02, rad / 0.05
    acted = Calvin().act(said(0, arm))
    np.testing.assert_allclose(acted, [*arm, -1], atol=1e-7)
    assert Calvin().act(said(1, arm))[6] == 1
    given = np.array(said(1, arm), np.float64)
    Calvin().act(given)[:] = 7  # as its robot scales what it was given, in place
    assert given[0] == 0.5


def test_calvin_gives_back_what_its_dataset_was_made_of() -> None:
    """The recorded actions and states through the dataset's recipe and back."""
    rng = np.random.default_rng(0)
    recorded = rng.uniform(-1, 1, (6, 7))
    recorded[:, 6] = [1, 1, -1, -1, 1, -1]
    states = rng.uniform(-1, 1, (6, 15))
    states[:, 14] = [1, 1, 1, -1, -1, 1]
    episode = DATASETS["calvin"].standardise({"action": recorded, "observation/state": states})
    robot = Calvin()
    for action, raw in zip(episode.actions, recorded, strict=True):
        np.testing.assert_allclose(robot.act(action), raw, atol=1e-7)
    pictures = {"rgb_static": np.zeros((200, 200, 3)), "rgb_gripper": np.ones((84, 84, 3))}
    for state, raw in zip(episode.state, states, strict=True):
        cameras, seen = robot.observe({"rgb_obs": pictures, "robot_obs": raw})
        np.testing.assert_array_equal(seen, state)
        assert cameras["primary"].shape == (200, 200, 3)
        assert cameras["wrist"].shape == (84, 84, 3)


def test_libero_gives_back_what_its_dataset_was_made_of() -> None:
    """The recorded actions through the dataset's recipe and back, and a state as it is recorded."""
    rng = np.random.default_rng(0)
    recorded = rng.uniform(-1, 1, (6, 7))
    recorded[:, 6] = [-1, -1, 1, 1, -1, 1]  # 1 closes
    states = rng.uniform(-1, 1, (6, 8))
    raw = {"action": recorded, "observation/state": states}
    episode = DATASETS["libero_object_no_noops"].standardise(raw)
    assert list(episode.actions[:, 6]) == [1, 1, 0, 0, 1, 0]  # 1 = open
    robot = Libero()
    robot.reset()
    for action, given in zip(episode.actions, recorded, strict=True):
        np.testing.assert_allclose(robot.act(action), given, atol=1e-7)
        np.testing.assert_allclose(Libero.recorded(robot.act(action)), action, atol=1e-7)
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    images, state = robot.observe(
        {
            "agentview_image": picture,
            "robot0_eye_in_hand_image": picture,
            "robot0_eef_pos": np.array([0.1, 0.2, 0.3]),
            "robot0_eef_quat": np.array([0.0, 0.0, np.sin(0.4), np.cos(0.4)]),
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
        }
    )
    np.testing.assert_array_equal(images["primary"], np.rot90(picture, 2))
    np.testing.assert_array_equal(images["wrist"], np.rot90(picture, 2))
    np.testing.assert_allclose(state, [0.1, 0.2, 0.3, 0, 0, 0.8, 0.04, -0.04], atol=1e-6)
    assert state.dtype == np.float32


@pytest.mark.parametrize(
    ("rpy", "expected"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((0.3, 0, 0), (0.3, 0, 0)),
        ((0, 0, -1.2), (0, 0, -1.2)),
        # A quarter about x, then z: x to y, y to z, z to x, a third of a turn about (1, 1, 1).
        ((np.pi / 2, 0, np.pi / 2), np.full(3, 2 * np.pi / 3 / np.sqrt(3))),
        # About x, then y: x to -z, y to x, z to -y, a third about (1, 1, -1).
        ((np.pi / 2, np.pi / 2, 0), 2 * np.pi / 3 / np.sqrt(3) * np.array([1, 1, -1])),
        # More than half a turn is less than half the other way round.
        ((0, 1.5 * np.pi, 0), (0, -np.pi / 2, 0)),
    ],
)
def test_turns_about_three_axes_are_one(rpy: Any, expected: Any) -> None:
    np.testing.assert_allclose(axis_angle(*map(float, rpy)), expected, atol=1e-12)


def test_simpler_takes_the_rotation_as_one_vector() -> None:
    quarter = (0.01, -0.02, 0.03, np.pi / 2, 0.0, np.pi / 2)
    third = 2 * np.pi / 3 / np.sqrt(3)
    for robot in (WidowX(), GoogleRobot()):
        acted = robot.act(said(1, quarter))
        np.testing.assert_allclose(acted[:6], [0.01, -0.02, 0.03, *[third] * 3], atol=1e-6)


def test_widowx_is_told_where_its_gripper_is() -> None:
    assert grippers(WidowX(), [1, 0, 0, 1]) == [1, -1, -1, 1]
    patient = WidowX(opens_after=2)  # RoboVLMs' evaluation
    assert grippers(patient, [1, 1, 1, 0, 1, 0, 1, 1]) == [-1, 1, 1, -1, -1, -1, -1, 1]
    patient.reset()
    assert grippers(patient, [1]) == [-1]


def test_the_google_robot_is_told_of_changes_for_fifteen_steps() -> None:
    """1 closes, -1 opens; nothing at first."""
    robot = GoogleRobot()
    commanded = grippers(robot, [1, 1, *[0] * 20, *[1] * 20])
    assert commanded == [0, 0, *[1] * 15, *[0] * 5, *[-1] * 15, *[0] * 5]
    # Another change within the fifteen is not carried out.
    robot.reset()
    assert grippers(robot, [1, 0, 0, *[1] * 20]) == [0, *[1] * 15, *[0] * 7]
    robot.reset()
    assert grippers(robot, [0, 0]) == [0, 0]
    assert grippers(GoogleRobot(repeats=2), [1, 0, 0, 0, 1, 1, 1]) == [0, 1, 1, 0, -1, -1, 0]


def test_the_google_robot_gives_back_what_its_dataset_was_made_of() -> None:
    commands = np.array([0, 0, 1, 0, 0, -1, 0, 1, 0], np.float32)[:, None]  # + closes
    columns = dict.fromkeys(DATASETS["fractal20220817_data"].standardise.columns)
    for key in columns:
        width = {"world_vector": 3, "rotation_delta": 3}.get(key.rpartition("/")[2], 1)
        columns[key] = np.zeros((9, 7 if "pose" in key else width), np.float32)
    columns["action/gripper_closedness_action"] = commands
    absolute = DATASETS["fractal20220817_data"].standardise(columns).actions[:, 6]
    assert absolute.tolist() == [1, 1, 0, 0, 0, 1, 1, 0, 0]
    assert grippers(GoogleRobot(repeats=1), absolute.tolist()) == commands[:, 0].tolist()


def test_what_is_no_action_is_refused() -> None:
    for robot in (Calvin(), WidowX(), GoogleRobot()):
        for wrong in (np.zeros((10, 7)), np.zeros(6), np.full(7, np.nan)):
            with pytest.raises(ValueError, match="expected 7 finite numbers"):
                robot.act(wrong)
    with pytest.raises(ValueError, match="robot_obs: expected 15 numbers"):
        Calvin().observe({"rgb_obs": {}, "robot_obs": np.zeros(8)})
    with pytest.raises(ValueError, match="repeats: expected 1 or more, got 0"):
        GoogleRobot(0)
    with pytest.raises(ValueError, match="opens_after: expected 1 or more, got 0"):
        WidowX(0)


@pytest.mark.parametrize("module", [conventions, resize])
def test_a_copied_file_is_python_3_8_and_numpy(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {
        node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.partition(".")[0] for name in imported} <= {"numpy", *sys.stdlib_module_names}
    assert "__future__" in imported  # what 3.8 cannot evaluate stands in annotations alone


def test_the_readmes_loop_drives_calvin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the README beside a simulator that only notes what it is given."""
    text = (Path(__file__).parents[2] / "vla_jax/robot/README.md").read_text(encoding="utf-8")
    (code,) = re.findall(
        r"```python\n(from client import Client\nfrom conv.*?)```", text, re.DOTALL
    )
    seen: list[Any] = []

    class Client:
        def __init__(self, url: str) -> None:
            image = {"size": 16, "resize": "bicubic"}
            self.handshake = {"image": image, "cameras": ["primary"]}
            self.reset = seen.append

        def act(self, images: Any, state: Any) -> dict[str, np.ndarray]:
            seen.append((images["primary"].shape, state.shape))
            return {"actions": np.tile(said(0), (3, 1))}

    pictures = {
        "rgb_static": np.zeros((200, 200, 3), np.uint8),
        "rgb_gripper": np.zeros((84, 84, 3), np.uint8),
    }
    obs = {"rgb_obs": pictures, "robot_obs": np.zeros(15)}
    acted: list[np.ndarray] = []

    def step(action: np.ndarray) -> tuple[Any, ...]:
        acted.append(action)
        return obs, 0, False, {}

    monkeypatch.setitem(sys.modules, "client", SimpleNamespace(Client=Client))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "conventions", conventions)
    monkeypatch.setitem(sys.modules, "resize", resize)
    exec(code, {"url": "", "instruction": "go", "obs": obs, "env": SimpleNamespace(step=step)})
    assert seen[:2] == ["go", ((16, 16, 3), (8,))]
    assert len(acted) == 360
    assert acted[0].tolist() == [0, 0, 0, 0, 0, 0, -1]
