"""A server with limits: nothing that a client sends moves a robot that its operator did not let
move, and no robot moves more than can be promised.
"""

import time

import numpy as np

from tests.robot.safety.limits_of_tests import make_limits
from tests.robot.serving.fake_policy import CHUNK, Log
from tests.robot.serving.serving import closed_with, observation, page, robot, run, serving
from vla_jax.robot.client import pack

OPERATOR = "a-token-of-operators"
LIMITS = make_limits(max_age=60.0, control_rate=50.0)
SMALL = np.array([1, 1, 0.5, 4, 4, 4]) / 50**2 / 2  # half of what acceleration allows in a step
SMALL = np.minimum(SMALL, np.array([8, 8, 4, 30, 30, 30]) / 50**3 / 4)
FILTERED = {"limits": LIMITS, "operator_token": OPERATOR.encode()}
BESIDE = {"limits": LIMITS.digest}  # what a robot with a filter says


def released(session=None, **changes):
    """An operator's word that a robot may move."""
    body = {
        "type": "safety_reset",
        "by": "ada",
        "gripper": 1.0,
        "pose": np.array([0, 0, 0.1, 0, 0, 0]),
    }
    return {**body, "session": session, "operator_token": OPERATOR, **changes}


@run
async def test_a_robot_waits_for_its_operator_and_gets_one_small_step():
    log = Log()
    log.scale = 50.0  # 0.05 m per step and more
    async with serving(log, **FILTERED) as served, robot(served) as bot:
        assert bot.handshake["limits"] == LIMITS.digest
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
        answer = {"type": "safety", "id": None, "session": me, "latched": None}
        assert await bot.ask(released()) == answer
        assert (await bot.ask(released()))["code"] == "bad_request"  # it moves

        begun = time.monotonic()
        reply = await bot.ask(bot.act())
        assert time.monotonic() - begun >= 1 / LIMITS.control_rate  # it stays for a period
        sent = reply["actions"]
        assert sent.dtype == np.float32
        np.testing.assert_allclose(sent[0, :6], SMALL, rtol=1e-5)
        assert not sent[1:, :6].any()
        assert (sent[:, 6] == 1).all()
        assert reply["safety"] == {"latched": None, "causes": {"unseen": 1}, "stopped": False}
        np.testing.assert_array_equal(reply["arm"], sent[:, :6])
        np.testing.assert_array_equal(reply["gripper"], sent[:, 6:])
        text = (await page(served, "/metrics"))[1]
        assert 'vla_safety_steps_total{cause="unseen"} 1' in text


@run
async def test_a_robot_with_a_filter_gets_the_chunk():
    log = Log()
    async with serving(log, **FILTERED) as served, robot(served) as bot:
        await bot.begin()
        await bot.ask(released())
        wrong = await bot.ask(bot.act(limits="other"))
        assert f"limits: expected the digest {LIMITS.digest}, got other" in wrong["message"]
        reply = await bot.ask(bot.act(**BESIDE))
        assert (reply["actions"][:, :6] > 0).all()
        assert reply["safety"] == {"latched": None, "causes": {}, "stopped": False}
        # Whether there is one is not said anew with each frame.
        assert "connect anew" in (await bot.ask(bot.act()))["message"]
        log.scale = np.nan
        reply = await bot.ask(bot.act(**BESIDE))
        assert not reply["actions"][:, :6].any()
        assert reply["safety"]["stopped"]


@run
async def test_a_stop_stays_until_an_operator_ends_it():
    log = Log()
    async with serving(log, **FILTERED) as served, robot(served) as bot:
        me = bot.handshake["session"]
        await bot.begin()
        await bot.ask(released())
        assert (await bot.ask(bot.act(**BESIDE)))["actions"][:, :6].any()
        # Pressed while the policy computes: what it computes is not sent.
        log.gate.clear()
        await bot.connection.send(pack(bot.act(**BESIDE)))
        assert await bot.ask({"type": "stop", "id": 5, "why": "smoke"}) == {
            "type": "safety",
            "id": 5,
            "session": me,
            "latched": "emergency",
        }
        log.gate.set()
        reply = await bot.hear()
        for _ in range(2):
            assert not reply["actions"][:, :6].any()
            assert len(reply["actions"]) == CHUNK
            assert reply["safety"]["latched"] == "emergency"
            assert reply["safety"]["causes"] == {"latched": 1}
            await bot.begin("another episode does not change that")
            reply = await bot.ask(bot.act(**BESIDE))
        await bot.ask(released())
        reply = await bot.ask(bot.act())
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
        np.testing.assert_allclose(sent[0, :6], SMALL, rtol=1e-5)
        assert not sent[1:, :6].any()
        # A pose at the wall, measured since; the step before may not be in it.
        wall = np.array([LIMITS.high[0], 0, 0.1, 0, 0, 0])
        sent = (await bot.ask(observation(**{"safety/pose": wall})))["actions"]
        assert sent[0, 0] == 0
        assert sent[0, 1] > 0
        wrong = await bot.ask(observation(**{"safety/pose": np.zeros(7)}))
        assert "pose: expected [6] (x y z roll pitch yaw), got (7,)" in wrong
        assert "safety.age: expected" in await bot.ask(observation(**{"safety/age": "old"}))
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
        first = await bot.ask(bot.act())
        await bot.ask(bot.act())
        np.testing.assert_array_equal(log.executed[-1], first["actions"][0])
        await bot.ask(bot.act(chunk=first["chunk"], row=2))
        np.testing.assert_array_equal(log.executed[-1], first["actions"][2])
        mine = np.arange(7.0)
        await bot.ask(bot.act(executed=mine))
        np.testing.assert_array_equal(log.executed[-1], mine)
        wrong = await bot.ask(bot.act(chunk=first["chunk"], row=CHUNK))
        assert wrong["message"].startswith("chunk, row: expected one of the chunks 1, 2, 3, 4 of")
        await bot.begin()
        await bot.ask(bot.act())
        assert log.executed[-1] is None


@run
async def test_a_stale_observation_is_a_stop(caplog):
    log = Log()
    caplog.set_level("INFO")
    stop_at_once = {**make_limits().latch_after, "stale": 2}
    settings = {**FILTERED, "limits": make_limits(max_age=1.0, latch_after=stop_at_once)}
    async with serving(log, **settings) as served, robot(served) as bot:
        await bot.begin()
        await bot.ask(released())
        assert "age: expected 0 s or more" in (await bot.ask(bot.act(age=-1.0)))["message"]
        for latched in (None, "stale"):
            reply = await bot.ask(bot.act(age=1.0))  # when it was sent
            assert not reply["actions"][:, :6].any()
            causes = {"stale": 1}
            assert reply["safety"] == {"latched": latched, "causes": causes, "stopped": True}
        assert "stopped by its filter: stale" in caplog.text
        me = bot.handshake["session"]
    assert (
        f"session {me}: ends (closed with 1000): 3 answered; errors: bad_request 1" in caplog.text
    )


@run
async def test_a_failed_camera_is_a_stop_and_shows(caplog):
    log = Log()
    noisy = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    limits = make_limits(
        max_age=60.0, control_rate=50.0, frozen_after=3, cameras={"frozen": None, "blank": 2}
    )
    beside = {"limits": limits.digest}
    async with serving(log, **FILTERED | {"limits": limits}) as served, robot(served) as bot:

        async def seen(primary, wrist):
            frame = {"primary": primary, "wrist": wrist}
            return (await bot.ask(bot.act(images=frame, **beside)))["safety"]

        await bot.begin()
        await bot.ask(released())
        good = {"latched": None, "causes": {}, "stopped": False}
        for image in noisy[[0, 1, 1]]:
            assert await seen(image, noisy[0] + image) == good
        stopped = {**good, "causes": {"frozen": 1}, "stopped": True}
        assert await seen(noisy[1], noisy[0]) == stopped
        assert await seen(noisy[2], noisy[0] + 1) == good
        black = noisy[0] // 128
        assert await seen(noisy[1], black) == {**good, "causes": {"blank": 1}, "stopped": True}
        assert (await seen(noisy[2], black))["latched"] == "blank"
        text = (await page(served, "/metrics"))[1]
        for line in (
            'safety_steps_total{cause="blank"} 2',
            'camera_frames_total{cause="frozen"} 1',
        ):
            assert line in text
    told = [line.partition("cameras: ")[2] for line in caplog.messages if "cameras" in line]
    assert told == ["frozen: primary", "good again", "blank: wrist"]


@run
async def test_one_wrong_time_is_refused_and_forgotten():
    log = Log()
    async with serving(log) as served, robot(served) as bot:
        await bot.begin()
        for wrong in (1e300, np.inf, np.nan):
            refused = await bot.ask(bot.act(observed_at=float(wrong)))
            assert "observed_at: expected at least the last one" in refused["message"]
        assert (await bot.ask(bot.act(observed_at=5.0)))["type"] == "actions"
        assert (await bot.ask(bot.act(observed_at=1e9)))["code"] == "bad_request"
        assert (await bot.ask(bot.act(observed_at=5.1)))["type"] == "actions"
        assert (await bot.ask(bot.act(observed_at=1.0)))["code"] == "bad_request"
        await bot.begin()
        assert (await bot.ask(bot.act(observed_at=1.0)))["type"] == "actions"


@run
async def test_wrong_tokens_are_logged_and_end_the_session(caplog):
    async with serving(Log(), **FILTERED) as served, robot(served) as bot:
        for _ in range(5):
            assert (await bot.ask(released(operator_token="guess")))["code"] == "unauthorised"
        assert await closed_with(bot) == 1008
    assert [line for line in caplog.messages if "wrong token" in line] == [
        "a wrong token, from a session"
    ]


@run
async def test_no_escape_reaches_the_log(caplog):
    async with serving(Log(), **FILTERED) as served, robot(served) as bot:
        await bot.ask(released(by="Ada\x1b[2J\n\u202e"))
        await bot.ask({"type": "stop", "why": "\x1b]0;fire\x07" + "w" * 900})
    assert "may move again, by Ada?[2J ?" in caplog.text
    assert "stopped: ?]0;fire?ww" in caplog.text
    assert all(len(line) < 300 for line in caplog.messages)
