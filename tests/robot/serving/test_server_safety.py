"""A server with limits: nothing that a client sends moves a robot that its operator did not let
move.
"""

import numpy as np

from tests.robot.safety.limits_of_tests import make_limits, violations
from tests.robot.serving.fake_policy import Log
from tests.robot.serving.serving import observation, page, robot, run, serving
from vla_jax.robot.client import pack

OPERATOR = "a-token-of-operators"
LIMITS = make_limits(max_age=60.0)
FILTERED = {"limits": LIMITS, "operator_token": OPERATOR.encode()}


def released(session=None, **changes):
    """An operator's word that a robot may move."""
    body = {
        "type": "safety_reset",
        "by": "ada",
        "gripper": 0.25,
        "pose": np.array([0, 0, 0.1, 0, 0, 0]),
    }
    return {**body, "session": session, "operator_token": OPERATOR, **changes}


@run
async def test_a_robot_waits_for_its_operator_and_keeps_the_limits():
    log = Log()
    log.scale = 50.0  # 0.05 m per step and more
    async with serving(log, **FILTERED) as served, robot(served) as bot:
        assert bot.handshake["limits"] is True
        assert bot.handshake["control_hz"] == LIMITS.control_rate
        me = bot.handshake["session"]
        await bot.begin()
        refused = await bot.ask(bot.act())
        assert (refused["code"], log.batches) == (
            "not_ready",
            [],
        )  # where the gripper is, nobody knows yet
        for token in ("", "wrong", OPERATOR[:-1]):
            assert (await bot.ask(released(operator_token=token)))["code"] == "unauthorised"
        assert (await bot.ask(released(operator_token=None)))["code"] == "bad_request"
        assert (await bot.ask(released(gripper=2.0)))["code"] == "bad_request"
        assert (await bot.ask(bot.act()))["code"] == "not_ready"
        assert await bot.ask(released()) == {"type": "safety", "session": me, "latched": None}
        assert (await bot.ask(released()))["code"] == "bad_request"  # it moves

        reply = await bot.ask(bot.act())
        sent = reply["actions"]
        assert sent.dtype == np.float32
        assert violations(LIMITS, sent / (1 + 1e-6), [False] * len(sent), 0.25) == []
        assert sent[:, :6].any()
        assert reply["safety"]["latched"] is None
        assert reply["safety"]["causes"]["acceleration"] > 0
        np.testing.assert_array_equal(reply["arm"], sent[:, :6])
        np.testing.assert_array_equal(reply["gripper"], sent[:, 6:])
        text = (await page(served, "/metrics"))[1]
        assert (
            'vla_safety_steps_total{cause="acceleration"}'
            f" {reply['safety']['causes']['acceleration']}" in text
        )


@run
async def test_a_stop_stays_until_an_operator_ends_it():
    log = Log()
    async with serving(log, **FILTERED) as served, robot(served) as bot:
        me = bot.handshake["session"]
        await bot.begin()
        await bot.ask(released())
        assert (await bot.ask(bot.act()))["actions"][:, :6].any()
        # Pressed while the policy computes: what it computes is not sent.
        log.gate.clear()
        await bot.connection.send(pack(bot.act()))
        assert await bot.ask({"type": "stop", "why": "smoke"}) == {
            "type": "safety",
            "session": me,
            "latched": "emergency",
        }
        log.gate.set()
        reply = await bot.hear()
        for _ in range(2):
            assert not reply["actions"][:, :6].any()
            assert reply["safety"]["latched"] == "emergency"
            assert reply["safety"]["causes"] == {"latched": len(reply["actions"])}
            await bot.begin("another episode does not change that")
            reply = await bot.ask(bot.act())
        await bot.ask(released())
        reply = await bot.ask(bot.act(steps=3))  # of a chunk before the reset
        assert reply["actions"][:, :6].any()


@run
async def test_openpis_messages_pass_the_same_filter():
    log = Log()
    log.scale = 50.0
    async with serving(log, **FILTERED) as served, robot(served) as bot, robot(served) as other:
        me = bot.handshake["session"]
        assert (await bot.ask(observation())).startswith(
            "not_ready: the robot stands still until an operator"
        )
        for message in (
            released(me, operator_token="no"),
            {"type": "stop", "why": "x", "session": me},
        ):
            assert (await other.ask(message))["code"] == "unauthorised"
        assert (await other.ask(released("no such session")))["code"] == "bad_request"
        assert (await other.ask(released(me)))["latched"] is None
        sent = (await bot.ask(observation()))["actions"]
        assert violations(LIMITS, sent / (1 + 1e-6), [False] * len(sent), 0.25) == []
        assert sent[:, :6].any()
        everyone = {"type": "stop", "why": "fire", "session": "*"}
        assert (await other.ask(everyone))["code"] == "unauthorised"
        assert (await other.ask({**everyone, "operator_token": OPERATOR}))["latched"] == "emergency"
        assert not (await bot.ask(observation()))["actions"][:, :6].any()
    async with (
        serving(log, **FILTERED) as served,
        robot(served) as bot,
    ):  # a new connection begins stopped
        assert (await bot.ask(observation())).startswith("not_ready")


@run
async def test_the_policy_is_told_what_was_sent_not_what_it_asked_for():
    log = Log()
    log.scale = 50.0
    async with serving(log, **FILTERED) as served, robot(served) as bot:
        await bot.begin()
        await bot.ask(released())
        sent = (await bot.ask(bot.act()))["actions"]
        await bot.ask(bot.act(steps=2))
        np.testing.assert_array_equal(log.executed[-1], sent[1])
        mine = np.arange(7.0)
        await bot.ask(bot.act(executed=mine))
        np.testing.assert_array_equal(log.executed[-1], mine)
        await bot.begin()
        await bot.ask(bot.act())
        assert log.executed[-1] is None


@run
async def test_a_stale_observation_is_a_stop(caplog):
    log = Log()
    caplog.set_level("INFO")
    stop_at_once = {**make_limits().latch_after, "stale": 2}
    settings = {**FILTERED, "limits": make_limits(max_age=1e-6, latch_after=stop_at_once)}
    async with serving(log, **settings) as served, robot(served) as bot:
        await bot.begin()
        await bot.ask(released())
        reply = await bot.ask(bot.act())
        assert not reply["actions"][:, :6].any()
        assert reply["safety"] == {"latched": "stale", "causes": {"stale": 2, "latched": 2}}
        assert "stopped by its filter: stale" in caplog.text
        me = bot.handshake["session"]
    assert (
        f"session {me}: ends (closed with 1000): 2 answered; safety: latched 2, stale 2"
        in caplog.text
    )
