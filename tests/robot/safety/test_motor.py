"""No limit is broken at the motors, whatever client, clock, wire and policy do; and whoever judges
that would see it.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.robot.safety import simulated
from tests.robot.safety.limits_of_tests import HZ, base_limits, bimanual_limits, make_limits
from tests.robot.safety.motor import Motor, violations

P = 1 / HZ


def judged(*commands: tuple[float, float]) -> dict[str, int]:
    """What is wrong with commands (time in periods, delta of x) to an arm of make_limits: per step
    0.02, changed by 0.01, that by 0.008.
    """
    motor = Motor(make_limits(), np.array([0, 0, 0.1, 0, 0, 0]), 1.0)
    for at, x in commands:
        motor.move(at * P, np.array([x, 0, 0, 0, 0, 0, 1]))
    return dict(violations(make_limits(), motor))


def test_the_judge_sees_what_is_wrong() -> None:
    up = [(0, 0.008), (1, 0.016), (2, 0.02)]
    assert judged(*up) == {}
    assert judged(*up, (3, 0.021)) == {"velocity": 1}
    assert judged(*up, (2.5, 0.02))["velocity"] == 1  # the same in half of the time
    assert judged((0, 0.009)) == {"jerk": 1}
    assert judged((0, 0.008), (1, 0.0181)) == {"acceleration": 1}
    assert judged(*up, (3, 0.0), (4, 0.008)) == {}  # a stop, and on from rest
    assert judged(*up, (3, 0.0), (4, 0.02)) == {"acceleration": 1, "jerk": 1}
    # After a pause it may coast, or stand.
    assert judged(*up, (30, 0.02)) == {"acceleration": 1, "jerk": 1}
    assert judged(*up, (30, 0.004)) == {"acceleration": 1, "jerk": 1}
    assert judged(*up, (30, 0.0), (31, 0.008)) == {}
    assert judged(*[(t, 0.008) for t in range(13)])["box"] == 1
    motor = Motor(make_limits(), np.zeros(6), 0.5)
    for at, gripper in ((0, 0.7), (1, 0.9), (1.5, 1.0), (1.6, 0.9), (3, 1.1)):
        motor.move(at * P, np.array([0.0] * 6 + [gripper]))
    assert violations(make_limits(), motor) == {"gripper": 2}  # 2 strokes per second


def test_the_judge_sees_what_is_wrong_with_velocities() -> None:
    """Of linear_x up to 0.5 m/s, changed by 0.1 a step, that by 0.08."""

    def judged(*commands: tuple[float, float]) -> dict[str, int]:
        motor = Motor(base_limits(), np.zeros(3), [])
        for at, x in commands:
            motor.move(at * P, np.array([x, 0, 0]))
        return dict(violations(base_limits(), motor))

    up = [(0, 0.08), (1, 0.16), (2, 0.24), (3, 0.32), (4, 0.4), (5, 0.48), (6, 0.5)]
    assert judged(*up) == {}
    assert judged(*up, (6.5, 0.5), (6.7, 0.5)) == {}  # the same velocity, whenever it is said
    assert judged(*up, (7, 0.51)) == {"velocity": 1}
    assert judged((0, 0.09)) == {"jerk": 1}
    assert judged(*up[:2], (2, 0.27))["acceleration"] == 1
    assert judged(*up, (7, 0.0), (8, 0.08)) == {}
    assert judged(*up, (7, 0.0), (8, 0.2)) == {"acceleration": 1, "jerk": 1}


def test_the_judge_sees_what_is_wrong_with_positions() -> None:
    """Of a joint up to 0.1 a step, changed by 0.04, that by 0.03, and one that wraps."""
    limits = bimanual_limits()

    def judged(*commands: tuple[float, float], joint: int = 0, left: float = 1.0) -> dict[str, int]:
        motor = Motor(limits, np.zeros(12), [1.0, 1.0])
        for at, angle in commands:
            action = motor.start.copy()
            action[[joint, 6]] = angle, left
            motor.move(at * P, action)
        return dict(violations(limits, motor))

    up = [(0, 0.03), (1, 0.09), (2, 0.18)]
    assert judged(*up) == {}
    assert judged(*up, (3, 0.29)) == {"velocity": 1}
    assert judged(*up, (3, 0.18), (4, 0.18)) == {}  # a stop holds its place
    assert judged(*up, (3, 0.18), (4, 0.25)) == {"acceleration": 1, "jerk": 1}
    assert judged((0, 2 * np.pi + 0.02))["velocity"] == 1
    assert judged((0, 2 * np.pi + 0.02), joint=5) == {}
    assert judged((0, 1.6))["rotation"] == 1
    assert judged((0, 1.6), joint=5).get("rotation", 0) == 0
    assert judged((0, 0.0), left=0.79) == {"gripper": 1}  # 2 strokes per second
    assert judged((0, 0.0), left=0.81) == {}


@pytest.mark.slow
def test_no_limit_is_broken_at_the_motors() -> None:
    """MOTOR_STEPS=2000000 is for a night or a release. A process of its own: here shapes would be
    checked at every call, which takes four times as long.
    """
    steps = os.environ.get("MOTOR_STEPS", "70000")  # of each of three spaces
    command = [sys.executable, "-m", "tests.robot.safety.simulated", "--steps", steps]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


# Of the other spaces the server's rules and the filter's.
EPISODES = [
    *((name, "arm") for name in simulated.CLIENTS),
    *((name, space) for name in ("openpi", "Runtime") for space in ("base", "two arms")),
]


@pytest.mark.parametrize(("name", "space"), EPISODES)
def test_an_episode_of_each_robot(name: str, space: str) -> None:
    """The same for the fast lane."""
    # Of a robot that is about as fast as its limits.
    world = simulated.World({"base": 3}.get(space, 1), simulated.SPACES[space])
    simulated.CLIENTS[name][0](world)
    assert violations(world.limits, world.motor) == {}
    assert world.motor.moved > 0
