"""A policy in the words of vla-eval's benchmarks, and over its own server and client."""

import re
from typing import Any

import numpy as np
import pytest

from data_pipelines.builders import libero_world
from data_pipelines.builders.libero_expert import Expert
from experiments import bridge
from experiments.bridge import ADAPTERS, Bridge
from vla_jax.robot.conventions import Libero, axis_angle

TURN = (0.1, -0.2, 0.3)
GRIPPERS = (1.0, 0.0)  # opens, then closes


class Policy:
    """Two actions a plan, numbered by the plans of its episode."""

    def __init__(self, cameras: tuple[str, ...], told: list[Any]) -> None:
        self.cameras, self.told, self.plans = cameras, told, 0

    def sessions(self, n: int) -> "list[Policy]":
        return [Policy(self.cameras, self.told) for _ in range(n)]

    def reset(self, instruction: str) -> None:
        self.told.append(instruction)

    def act(self, images: dict[str, np.ndarray], proprio: np.ndarray | None) -> np.ndarray:
        assert tuple(images) == self.cameras
        self.told.append(None if proprio is None else len(proprio))
        self.plans += 1
        x = float(self.plans)
        return np.array([[x, 0, 0, *TURN, gripper] for gripper in GRIPPERS], np.float32)


def seen(*cameras: str, **more: Any) -> dict[str, Any]:
    images = {name: np.zeros((4, 4, 3), np.uint8) for name in cameras}
    return {"images": images, "task_description": "push", **more}


def planned(name: str, *cameras: str, **more: Any) -> np.ndarray:
    """What a benchmark gets of one plan, and that its adapter finds all it asks for."""
    adapter = ADAPTERS[name]
    told: list[Any] = []
    found = Bridge(Policy(tuple(adapter.cameras), told), adapter).plan(
        seen(*cameras, **more), "a", True
    )
    assert told[0] == "push"
    return found


@pytest.mark.parametrize(
    ("name", "cameras", "turn", "grippers"),
    [
        ("libero", ("agentview", "wrist"), TURN, (-1, 1)),
        ("robocasa", ("robot0_agentview_left", "robot0_eye_in_hand"), TURN, (-1, 1)),
        ("simpler_widowx", ("primary",), axis_angle(*TURN), (1, -1)),
        ("simpler_google", ("primary",), axis_angle(*TURN), (1, 0)),
        ("vlabench", ("primary",), TURN, (1, -1)),
    ],
)
def test_actions_are_in_the_benchmarks_words(
    name: str, cameras: tuple[str, ...], turn: Any, grippers: tuple[float, float]
) -> None:
    chunk = planned(name, *cameras)
    assert chunk.dtype == np.float32
    np.testing.assert_allclose(chunk[:, 3:6], [turn] * 2, atol=1e-6)
    np.testing.assert_array_equal(chunk[:, 6], grippers)


def test_joints_of_two_arms_stay_what_they_are() -> None:
    cameras = ("head_camera", "left_camera", "right_camera")
    chunk = planned("robotwin", *cameras, joint_state=np.zeros(14))
    np.testing.assert_array_equal(chunk[:, 6], GRIPPERS)


def test_episodes_begin_anew_and_sessions_are_apart() -> None:
    told: list[Any] = []
    of = Bridge(Policy(("primary",), told), ADAPTERS["libero"], execute=1)
    frame = seen("agentview", states=np.zeros(8))

    def x(session: str, first: bool = False, **more: Any) -> float:
        chunk = of.plan(frame | more, session, first)
        assert len(chunk) == 1
        return float(chunk[0, 0])

    assert [x("a", True), x("b", True), x("a"), x("b"), x("a", True)] == [1, 1, 2, 2, 1]
    assert [x("b", episode_restart=True), x("b")] == [1, 2]
    of.end("b")
    assert x("b") == 1
    assert told[:2] == ["push", 8]


def test_cameras_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"of the cameras primary, wrist, got one that wants left"):
        Bridge(Policy(("primary", "left"), []), ADAPTERS["libero"])
    of = Bridge(Policy(("primary", "wrist"), []), ADAPTERS["libero"])
    with pytest.raises(ValueError, match=r"expected wrist, got agentview; .*send_wrist_image"):
        of.plan(seen("agentview"), "a", True)


def test_the_table_names_every_adapter() -> None:
    assert bridge.__doc__ is not None
    rows = re.findall(r"^\| (\w+) \| .*?(?:not )?run by us \|$", bridge.__doc__, re.MULTILINE)
    assert rows == list(ADAPTERS)


def test_vla_eval_reads_what_is_served() -> None:
    """Its own server and client, its own comparison of both sides: three steps of one episode are
    two plans.
    """
    anyio = pytest.importorskip("anyio")
    pytest.importorskip("vla_eval", reason="pip install vla-eval")
    from vla_eval.api import serve_background
    from vla_eval.connection import Connection
    from vla_eval.specs import GRIPPER_CLOSE_POS, check_specs

    adapter = ADAPTERS["libero"]
    serving = bridge.server(Bridge(Policy(("primary", "wrist"), []), adapter), adapter)
    assert not check_specs(serving.get_action_spec(), serving.get_action_spec(), {}, {})
    assert serving.get_action_spec()["gripper"] == GRIPPER_CLOSE_POS

    async def steps(url: str) -> list[list[float]]:
        client = Connection(url)
        await client.connect()
        assert client.server_info["observation_params"] == dict(adapter.params)
        got = []
        for _ in range(2):
            await client.start_episode({"task": {"name": "push"}})
            for _ in range(3):
                answer = await client.act(seen("agentview", "wrist", states=np.zeros(8)))
                got.append([float(answer["actions"][0]), float(answer["actions"][6])])
            await client.end_episode({"success": False})
        await client.close()
        return got

    with serve_background(serving) as handle:
        assert anyio.run(steps, handle.url) == [[1, -1], [1, 1], [2, -1]] * 2


@pytest.mark.slow
def test_vla_evals_libero_is_ours() -> None:
    """What our expert does in our world, served in our words, succeeds in vla-eval's."""
    pytest.importorskip("vla_eval", reason="pip install vla-eval")
    try:
        world = libero_world.World("libero_object")
    except ValueError as error:
        pytest.skip(str(error))
    world.reset(next(iter(world.tasks)), 0, 0)
    expert, actions = Expert(world), []
    while not world.outcome:
        action = expert.act()
        world.step(action)
        actions.append(Libero.recorded(action))
    assert world.outcome == "success"
    world.close()
    from vla_eval import api

    class Replay(Policy):
        def sessions(self, n: int) -> "list[Policy]":
            return [Replay(self.cameras, self.told)]

        def act(self, images: dict[str, np.ndarray], proprio: np.ndarray | None) -> np.ndarray:
            self.told.append(({name: each.shape for name, each in images.items()}, proprio))
            return np.array(actions)

    adapter, told = ADAPTERS["libero"], list[Any]()
    serving = bridge.server(Bridge(Replay(("primary", "wrist"), told), adapter), adapter)
    params = {"suite": "libero_object", "seed": 0, "max_steps": len(actions)}
    benchmark = {
        "benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark",
        "episodes_per_task": 1,
        "max_tasks": 1,
        "params": params,
    }
    with api.serve_background(serving) as handle:
        [found] = api.run(
            {"benchmarks": [benchmark]}, server_url=handle.url, no_save=True, docker=False
        )
    assert told[0] == "pick up the alphabet soup and place it in the basket"
    shapes, state = told[1]
    assert shapes == {"primary": (256, 256, 3), "wrist": (256, 256, 3)}
    assert state is not None
    assert len(state) == 8
    assert found["mean_success"] == 1.0
