"""A server and our client for robots that are no arm of seven dims: a base that is driven by
velocities, two arms of joint positions with a gripper each.
"""

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.robot.safety.limits_of_tests import base_limits, bimanual_limits
from tests.robot.serving.fake_policy import CHUNK, Log, actions
from tests.robot.serving.serving import images, robot, run, serving
from tests.robot.serving.test_server_safety import OPERATOR, released
from vla_jax.robot.client import Client, Report, Waits
from vla_jax.robot.safety.bounds import Limits
from vla_jax.robot.safety.filter import SafetyFilter
from vla_jax.robot.serving.server import Server

CALM = {"max_age": 60.0, "control_rate": 50.0}
BASE, TWO_ARMS = base_limits(**CALM), bimanual_limits(**CALM)
GRIPPERS = {"left_gripper": 1.0, "right_gripper": 0.0}
JOINTS = np.linspace(-0.5, 0.5, 12)


def settings(limits: Limits) -> dict[str, Any]:
    return {"limits": limits, "operator_token": OPERATOR.encode()}


def wire(server: Server) -> str:
    return f"ws://127.0.0.1:{server.port}"


@run
async def test_a_base_without_a_filter_gets_one_small_velocity_and_then_rest() -> None:
    log = Log(list(BASE.names))
    log.scale = 100.0
    async with serving(log, **settings(BASE)) as served, robot(served) as bot:
        await bot.begin()
        await bot.ask(released(gripper=None, pose=None))
        sent = (await bot.ask(bot.act()))["actions"]
        assert sent.shape == (CHUNK, 3)
        # A quarter of what jerk allows in a step of 1 / 50 s.
        np.testing.assert_allclose(sent[0], np.array([8, 8, 30]) / 50**2 / 4, rtol=1e-5)
        assert not sent[1:].any()
        assert "pose: expected [3]" in (await bot.ask(bot.act(pose=np.zeros(6))))["message"]
        wrong = await bot.ask(bot.act(gripper=1.0))
        assert "gripper: expected a map of no gripper, got 1.0" in wrong["message"]


@run
async def test_two_arms_without_a_filter_get_one_small_motion_from_where_they_are() -> None:
    log = Log(list(TWO_ARMS.names))
    log.scale = 1000.0  # 1 rad and more
    async with serving(log, **settings(TWO_ARMS)) as served, robot(served) as bot:
        await bot.begin()
        for wrong, says in (
            ({"gripper": 1.0}, "expected 0 (closed) to 1 (open) for left_gripper, right_gripper"),
            ({"gripper": {"left_gripper": 1.0}}, "for left_gripper, right_gripper, got"),
            ({"gripper": {**GRIPPERS, "tail": 1.0}}, "for left_gripper, right_gripper, got"),
            ({"gripper": GRIPPERS, "pose": None}, "expected a pose, of left_waist"),
            ({"gripper": GRIPPERS, "pose": np.zeros(6)}, "expected a pose of 12 finite numbers"),
        ):
            assert says in (await bot.ask(released(**{"pose": JOINTS, **wrong})))["message"]
        await bot.ask(released(gripper=GRIPPERS, pose=JOINTS))
        sent = (await bot.ask(bot.act()))["actions"]
        most = 30 / 50**3 / 4
        axes, grips = TWO_ARMS.at_axes, TWO_ARMS.at_grippers
        for row in sent:  # all of a chunk is one place
            np.testing.assert_allclose(row[axes], JOINTS + most, atol=2e-7)
        np.testing.assert_allclose(sent[0, grips], [1, 1 / 50], atol=1e-6)
        # Whether it was carried out is not known: no further, and not while it may not have been.
        again = (await bot.ask(bot.act()))["actions"]
        np.testing.assert_array_equal(again, sent)
        # Measured there, it goes on.
        told = {"pose": sent[0, axes].astype(np.float64), "gripper": GRIPPERS}
        third = (await bot.ask(bot.act(**told)))["actions"]
        assert (abs(third[0, axes] - sent[0, axes]) > 0.9 * most).all()
        wrong = await bot.ask(bot.act(gripper={"tail": 1.0}))
        assert (
            "gripper: expected a map of left_gripper, right_gripper, got tail" in wrong["message"]
        )
        await bot.ask({"type": "stop", "why": "smoke"})
        stopped = (await bot.ask(bot.act()))["actions"]
        np.testing.assert_array_equal(stopped, np.tile(third[0], (CHUNK, 1)))


@run
async def test_a_stop_of_two_arms_with_a_filter_holds_where_they_were_measured() -> None:
    log = Log(list(TWO_ARMS.names))
    async with serving(log, **settings(TWO_ARMS)) as served, robot(served) as bot:
        await bot.begin()
        await bot.ask(released(gripper=GRIPPERS, pose=JOINTS))
        beside = {"limits": TWO_ARMS.digest}
        chunk = (await bot.ask(bot.act(**beside)))["actions"]
        np.testing.assert_array_equal(chunk, actions(images()["primary"], 1, names=TWO_ARMS.names))
        log.scale = np.nan
        reply = await bot.ask(bot.act(**beside))
        assert reply["safety"]["stopped"]
        np.testing.assert_array_equal(reply["actions"], np.tile(chunk[0], (CHUNK, 1)))
        reply = await bot.ask(bot.act(**beside, pose=JOINTS))
        axes = TWO_ARMS.at_axes
        np.testing.assert_allclose(reply["actions"][:, axes], np.tile(JOINTS, (CHUNK, 1)))


@pytest.mark.parametrize("limits", [BASE, TWO_ARMS], ids=["base", "two arms"])
def test_there_and_back_with_our_client_and_a_filter(limits: Limits) -> None:
    """What the policy says reaches the motors, and what it is told came back from there."""
    grippers = GRIPPERS if limits is TWO_ARMS else None
    pose = np.zeros(len(limits.axes))
    now = [100.0]

    def drive(url: str) -> list[np.ndarray]:
        safety = SafetyFilter(limits, grippers, lambda: now[0], pose=pose)
        safety.reset("Ada")
        safety.rest()
        sent = []
        waits = Waits(clock=lambda: now[0])
        with Client(url, filter=safety, waits=waits) as client:
            client.ask({"operator_token": OPERATOR, "session": client.handshake["session"],
                "type": "safety_reset", "by": "Ada", "gripper": grippers, "pose": pose},
                "safety")  # fmt: skip
            client.reset("push", "blocks")
            for _ in range(2):
                client.act(images(), report=Report(pose=pose, gripper=grippers))
                for index in range(2):
                    now[0] += 1 / limits.control_rate
                    sent.append(client.command(index))
        return sent

    log = Log(list(limits.names))
    log.scale = 0.05  # 50 um or urad, from which braking takes one step

    @run
    async def served() -> list[np.ndarray]:
        async with serving(log, **settings(limits)) as server:
            sent.extend(await asyncio.to_thread(drive, wire(server)))
        return sent

    sent: list[np.ndarray] = []
    served()
    wanted = actions(images()["primary"], 1, 0.05, limits.names)[:2]
    axes = limits.at_axes
    np.testing.assert_allclose(np.array(sent)[:2, axes], wanted[:, axes], rtol=1e-6)
    np.testing.assert_array_equal(log.executed[1], sent[1].astype(np.float32))
    if limits is TWO_ARMS:  # each gripper at its own rate of 2 and 1 strokes per second
        np.testing.assert_allclose(np.array(sent)[:2, limits.at_grippers], [[1, 0.02], [1, 0.04]])


@run
async def test_limits_of_other_dims_are_refused_by_name_before_anything_moves() -> None:
    log = Log()
    expected = (
        "--limits: expected actions of linear_x, linear_y, angular_z, as the limits have, got"
    )
    with pytest.raises(ValueError, match=expected + " x, y, z, roll, pitch, yaw, gripper; write"):
        async with serving(log, **settings(BASE)):
            pass
    assert log.batches == []


@run
async def test_an_episode_of_another_robot_than_the_limits_is_refused() -> None:
    """A policy of several robots: `bridge` is of another one than the limits are."""
    log = Log(list(BASE.names))
    model = log.model()
    model.about["datasets"]["bridge"]["action"] = ["x", "y", "turn"]
    async with serving(log, open_model=lambda: model, **settings(BASE)) as served:
        while served.state != "ok":
            await asyncio.sleep(0)
        async with robot(served) as bot:
            await bot.begin()
            await bot.ask(released(gripper=None, pose=None))
            assert (await bot.ask(bot.act()))["type"] == "actions"
            log.names = ["x", "y", "turn"]
            async with robot(served) as other:
                refused = await other.ask({"type": "reset", "instruction": "push"})
                wanted = "limits: expected actions of linear_x, linear_y, angular_z"
                assert refused["message"].startswith(wanted)
                assert (await other.ask(other.act()))["code"] == "not_ready"
        with pytest.raises(ValueError, match=r"of the filter's limits, .* got x, y, turn; write"):
            await asyncio.to_thread(begin_bridge, wire(served))


def begin_bridge(url: str) -> None:
    with Client(url, filter=SafetyFilter(BASE)) as client:
        client.reset("push", "bridge")
