"""A policy's actions in the words of CALVIN's, LIBERO's and SimplerEnv's simulators, and what it
looks at in theirs: one file to copy beside client.py, Python 3.8, numpy.

    robot = GoogleRobot()  # or WidowX(), Calvin(), Libero()
    robot.reset()  # at each episode's, and in CALVIN each sub-task's, beginning
    observation, *_ = env.step(robot.act(chunk[0]))  # one action per control step

A policy's action is x y z roll pitch yaw gripper, gripper 1 = open, 0 = closed. What they want:

| | position | rotation | gripper |
|---|---|---|---|
| Calvin (`rel_actions`) | m / 0.02, as its data | roll pitch yaw, rad / 0.05 | -1 closed, 1 open |
| Libero | m / 0.05, as its data | axis times angle, rad / 0.5, as its data | 1 closes, -1 opens |
| WidowX (SimplerEnv, Bridge) | m | axis times angle, rad | -1 closed, 1 open |
| GoogleRobot (SimplerEnv, fractal) | m | axis times angle, rad | 1 closes, -1 opens, 0 neither |

A change of the last one's gripper is commanded for several steps, for one does not close it (the
sticky gripper of SimplerEnv's own policies): 15 with them, 2 in RoboVLMs' evaluation. Another
change within them is not carried out, as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

POSE = ("x", "y", "z", "roll", "pitch", "yaw")
NAMES = (*POSE, "gripper")  # of a policy's action
GRIPPER, ROLL = NAMES.index("gripper"), NAMES.index("roll")
# CALVIN's robot_obs: where the tool is, how far the gripper is open, the arm's joints, and the last
# command of the gripper.
CALVIN = (*POSE, "width", *(f"joint_{i + 1}" for i in range(7)), "command")
WIDTH, COMMAND = CALVIN.index("width"), CALVIN.index("command")


class Calvin:
    """CALVIN's PlayTableSimEnv, and policies trained on the datasets calvin and calvin_play."""

    def reset(self) -> None:
        """Nothing is kept from step to step."""

    def act(self, action: np.ndarray) -> np.ndarray:
        """An action [d] as `env.step` takes it; it is its own, for the environment writes into
        it.
        """
        return np.append(_checked(action)[:GRIPPER], _sign(action))

    def observe(self, observation: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The images by camera, and the state float32 [p] (pose, gripper width, last gripper
        command with 1 = open), from what `env.step` gives.
        """
        images, state = observation["rgb_obs"], np.asarray(observation["robot_obs"], np.float32)
        if state.shape != (len(CALVIN),):
            raise ValueError(f"robot_obs: expected {len(CALVIN)} numbers, got shape {state.shape}")
        cameras = {"primary": images["rgb_static"], "wrist": images["rgb_gripper"]}
        return cameras, np.append(state[: WIDTH + 1], np.clip(state[COMMAND], 0, 1)).astype(
            np.float32
        )


class Libero:
    """LIBERO's environments, and policies trained on the datasets libero_..._no_noops."""

    def reset(self) -> None:
        """Nothing is kept from step to step."""

    def act(self, action: np.ndarray) -> np.ndarray:
        """An action [d] as `env.step` takes it."""
        return np.append(_checked(action)[:GRIPPER], -_sign(action))

    @staticmethod
    def recorded(action: np.ndarray) -> np.ndarray:
        """What `act` makes of an action, and back: an action of `env.step` as a policy's."""
        return np.append(action[:GRIPPER], 1.0 if action[GRIPPER] < 0 else 0.0)

    def observe(self, observation: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The images by camera, turned by 180 degrees as in the data, and the state float32 [p]
        (place, turn as axis times angle, both fingers), from what `env.step` gives.
        """
        cameras = {"primary": "agentview_image", "wrist": "robot0_eye_in_hand_image"}
        images = {
            slot: np.ascontiguousarray(observation[key][::-1, ::-1])
            for slot, key in cameras.items()
        }
        x, y, z, w = observation["robot0_eef_quat"]
        w = np.clip(w, -1.0, 1.0)
        # robosuite's own: the angle is in [0, 2 pi], and does not jump where the hand points down.
        length = float(np.sqrt(1.0 - w * w))
        turn = np.array([x, y, z]) * (2.0 * np.arccos(w) / length if length > 1e-9 else 0.0)
        parts = (observation["robot0_eef_pos"], turn, observation["robot0_gripper_qpos"])
        return images, np.concatenate(parts).astype(np.float32)


class WidowX:
    """SimplerEnv's WidowX, and policies trained on the dataset bridge."""

    def __init__(self, opens_after: int = 1) -> None:
        """The gripper opens when so many actions in a row say so: 1 as SimplerEnv's own policies, 2
        as RoboVLMs' evaluation.
        """
        self._opens_after = _at_least_one("opens_after", opens_after)
        self.reset()

    def reset(self) -> None:
        """Begins an episode."""
        self._opened = 0

    def act(self, action: np.ndarray) -> np.ndarray:
        """An action [d] as `env.step` takes it."""
        arm = _posed(action)
        self._opened = self._opened + 1 if _sign(action) > 0 else 0
        return np.append(arm, 1.0 if self._opened >= self._opens_after else -1.0)


class GoogleRobot:
    """SimplerEnv's Google robot, and policies trained on the dataset fractal20220817_data."""

    def __init__(self, repeats: int = 15) -> None:
        """`repeats`: control steps for which a change of the gripper is commanded."""
        self._repeats = _at_least_one("repeats", repeats)
        self.reset()

    def reset(self) -> None:
        """Begins an episode: its first action changes nothing."""
        self._last, self._command, self._left = 0.0, 0.0, 0

    def act(self, action: np.ndarray) -> np.ndarray:
        """An action [d] as `env.step` takes it."""
        arm, said = _posed(action), _sign(action)
        if self._last and said != self._last and not self._left:
            self._command, self._left = -said, self._repeats
        self._last = said
        commanded = self._command if self._left else 0.0
        self._left = max(0, self._left - 1)
        return np.append(arm, commanded)


def axis_angle(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Turns about the fixed axes x, then y, then z (rad) as one: its axis times its angle, [3].

    The quaternion of yaw * pitch * roll; the angle is at most pi.
    """
    (cx, cy, cz), (sx, sy, sz) = (f(np.array([roll, pitch, yaw]) / 2) for f in (np.cos, np.sin))
    real = cx * cy * cz + sx * sy * sz
    imaginary = np.array(
        [
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
        ]
    )
    length = float(np.linalg.norm(imaginary))
    if length == 0.0:
        return np.zeros(3)
    sign = 1.0 if real >= 0 else -1.0
    return imaginary * (sign * 2 * np.arctan2(length, abs(real)) / length)


def _checked(action: np.ndarray) -> np.ndarray:
    numbers = np.asarray(action, np.float64)
    if numbers.shape != (len(NAMES),) or not np.isfinite(numbers).all():
        raise ValueError(
            f"action: expected {len(NAMES)} finite numbers, {' '.join(NAMES)}, got"
            f" {np.array2string(numbers, threshold=8)}; give one action of a chunk"
        )
    return numbers


def _posed(action: np.ndarray) -> np.ndarray:
    """The arm, a number of POSE each, with its rotation as axis times angle."""
    numbers = _checked(action)
    return np.append(numbers[:ROLL], axis_angle(*numbers[ROLL:GRIPPER]))


def _sign(action: np.ndarray) -> float:
    """The gripper: 1 open, -1 closed."""
    return 1.0 if action[GRIPPER] > 0.5 else -1.0


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value}")
    return value
