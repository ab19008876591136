"""The wire of a server: what it answers, in which order, and what it survives."""

import asyncio

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.robot.serving.fake_policy import CHUNK, DATASETS, NAMES, Log, actions
from tests.robot.serving.serving import (
    MAX_BYTES,
    images,
    observation,
    page,
    refused_with,
    robot,
    run,
    serving,
)
from vla_jax.robot.client import PROTOCOL, pack
from vla_jax.robot.serving import inference
from vla_jax.robot.serving.messages import Names


@run
async def test_an_episode_over_the_wire():
    log = Log()
    async with serving(log) as served, robot(served) as bot:
        told = bot.handshake
        assert told.pop("session")
        assert told == {
            "server": "vla_jax", "protocol": PROTOCOL, "limits": None, "artefact": "ab" * 32,
            "cameras": ["primary", "wrist"], "image": {"size": 8}, "chunk": CHUNK,
            "control_hz": 10.0,
            "datasets": {key: {"action": NAMES, "state": None,
            "control_hz": 10.0} for key in DATASETS},
        }  # fmt: skip
        await bot.begin("push the block", dataset="bridge", seed=3)
        assert log.resets == [("push the block", "bridge", 3)]
        for frame in (1, 2):
            reply = await bot.ask(bot.act(number=frame, shade=7, observed_at=frame / 3))
            assert (reply["type"], reply["id"], reply["observed_at"]) == (
                "actions",
                frame,
                frame / 3,
            )
            wanted = actions(images(7)["primary"], frame)
            assert reply["actions"].dtype == np.float32
            np.testing.assert_array_equal(reply["actions"], wanted)
            np.testing.assert_array_equal(reply["arm"], wanted[:, :6])
            np.testing.assert_array_equal(reply["gripper"], wanted[:, 6:])
            assert reply["confidence"] == {"gripper": 0.9, "agreement": None, "token": None}
            assert reply["safety"] is None
            assert {"vision", "backbone", "queue", "total"} <= set(reply["timing"])
        await bot.begin("push the block")
        assert log.resets[-1] == ("push the block", "blocks", 0)  # the server's dataset
        reply = await bot.ask(bot.act(shade=7, observed_at=1))
        np.testing.assert_array_equal(reply["actions"], actions(images(7)["primary"], 1))


@run
async def test_readings_of_sensors_reach_the_policy():
    log = Log()
    async with serving(log) as served, robot(served) as bot:
        await bot.begin()
        given = {"imu": np.ones((2, 6), np.float32), "command": [np.zeros(9, np.int16), 16000]}
        assert (await bot.ask(bot.act(sensors=given)))["type"] == "actions"
        assert (await bot.ask(bot.act()))["type"] == "actions"
        seen, none = log.sensors
        np.testing.assert_array_equal(seen["imu"], given["imu"])
        assert (seen["command"][0].dtype, seen["command"][1]) == (np.int16, 16000)
        assert none is None
        refused = await bot.ask(bot.act(sensors=[1]))
        assert (refused["code"], "act.sensors: expected dict" in refused["message"]) == (
            "bad_request",
            True,
        )


def test_the_handshake_has_a_rate_where_all_datasets_have_the_same():
    config = {"cameras": ["a"], "image": {"size": 8}, "network": {"head": {"chunk": 2}}}
    for first, second, told in (
        (5.0, 5.0, 5.0),
        (5.0, 10.0, None),
        (None, None, None),
        (5.0, None, None),
    ):
        body = {"action": {"names": ["x"]}, "state": {"names": ["y"]}}
        stats = {
            "datasets": {
                "one": {**body, "control_hz": first},
                "two": {**body, "control_hz": second},
            }
        }
        about = inference.describe(config, stats, "ab")
        assert about["control_hz"] == told
        assert about["datasets"]["two"] == {"action": ["x"], "state": ["y"], "control_hz": second}


@run
async def test_every_session_has_its_own_episode():
    log = Log()
    async with serving(log) as served, robot(served) as a, robot(served) as b:
        await a.begin("a")
        await b.begin("b")
        for bot, frame in ((a, 1), (a, 2), (b, 1), (a, 3), (b, 2)):
            reply = await bot.ask(bot.act(shade=9))
            np.testing.assert_array_equal(reply["actions"], actions(images(9)["primary"], frame))


BAD = {
    "no such type": ({"type": "act!"}, "bad_request", "type: expected one of reset, act"),
    "type is no text": ({"type": np.zeros(3)}, "bad_request", "type: expected one of"),
    "no id": ({"type": "act"}, "bad_request", "act.id: expected int, got NoneType"),
    "id is no number": ({"id": True}, "bad_request", "act.id: expected int, got bool"),
    "unknown field": ({"propio": None}, "bad_request", "got propio too"),
    "clock backwards": (
        {"observed_at": 0.05},
        "bad_request",
        "observed_at: expected at least the last one",
    ),
    "clock is NaN": (
        {"observed_at": float("nan")},
        "bad_request",
        "observed_at: expected at least",
    ),
    "images are a list": ({"images": []}, "bad_request", "act.images: expected dict, got list"),
    "a camera too few": (
        {"images": {"primary": images()["primary"]}},
        "bad_image",
        "images: expected",
    ),
    "another size": (
        {"images": {**images(), "wrist": np.zeros((9, 9, 3), np.uint8)}},
        "bad_image",
        "images['wrist']",
    ),
    "floats": (
        {"images": {**images(), "wrist": np.zeros((8, 8, 3))}},
        "bad_image",
        "images['wrist']",
    ),
    "an image is text": ({"images": {**images(), "wrist": "me"}}, "bad_image", "images['wrist']"),
    "proprio is text": (
        {"proprio": "home"},
        "bad_request",
        "act.proprio: expected ndarray or NoneType, got str",
    ),
    "NaN proprio": (
        {"proprio": np.full(7, np.nan)},
        "bad_request",
        "proprio: expected 7 finite numbers, got [nan",
    ),
    "a chunk that was not sent": (
        {"chunk": 999, "row": 0},
        "bad_request",
        "chunk, row: expected one of the chunks",
    ),
    "too long": (
        {"type": "reset", "instruction": "a " * 9},
        "bad_request",
        "instruction: expected at most 8",
    ),
    "far too long": (
        {"type": "reset", "instruction": "a" * 5000},
        "bad_request",
        "at most 4096 characters, got 5000",
    ),
    "no dataset": (
        {"type": "reset", "instruction": "a", "dataset": "?"},
        "bad_request",
        "dataset: expected",
    ),
    "no filter to stop": ({"type": "stop", "why": "smoke"}, "bad_request", "stop at the robot"),
}


@run
async def test_a_bad_request_has_a_code_and_the_next_good_one_an_answer():
    async with serving(Log()) as served, robot(served) as bot:
        assert (await bot.ask(bot.act(4)))["code"] == "not_ready"
        await bot.begin()
        good = 0
        for name, (changes, code, words) in BAD.items():
            plain = {"type", "instruction", "dataset", "why"} & changes.keys()
            reply = await bot.ask(changes if plain else bot.act(5, **changes))
            assert (reply["type"], reply["code"]) == ("error", code), name
            assert words in reply["message"], name
            assert "\n" not in reply["message"]
            if (
                "instruction" in changes
            ):  # an episode that could not begin does not go on as the last one
                assert (await bot.ask(bot.act()))["code"] == "not_ready"
                await bot.begin()
                good = 0
            good += 1
            reply = await bot.ask(bot.act(shade=3))
            np.testing.assert_array_equal(
                reply["actions"], actions(images(3)["primary"], good), err_msg=name
            )


MALFORMED = {
    "text": ("hello", 1003, "got text"),
    "no msgpack": (b"\xc1", 1007, "expected one msgpack message"),
    "truncated": (pack(images())[:-9], 1007, "expected one msgpack message"),
    "two": (pack({}) * 2, 1007, "expected one msgpack message"),
    "no map": (pack([1, 2]), 1007, "expected a map, got list"),
    "huge shape": (
        pack({"a": {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [1 << 30] * 3}}),
        1007, "shape",
    ),
    "object array": (
        pack({"a": {b"__ndarray__": True, b"data": b"cos", b"dtype": "|O8", b"shape": [1]}}), 1007,
        "no plain number",
    ),
    "too large": (b"\x00" * (MAX_BYTES + 1), 1009, 
                  f"expected at most {MAX_BYTES} bytes, got {MAX_BYTES + 1}"),
}  # fmt: skip


@run
async def test_what_is_no_message_gets_an_error_and_is_closed():
    async with serving(Log()) as served, robot(served) as good:
        await good.begin()
        for name, (data, code, words) in MALFORMED.items():
            async with robot(served) as bot:
                reply = await bot.ask(data)
                assert reply["code"] == ("too_large" if code == 1009 else "bad_request"), name
                assert words in reply["message"], name
                with pytest.raises(ConnectionClosed) as closed:
                    await bot.hear()
                assert closed.value.rcvd.code == code, name
        async with robot(served) as bot:  # so large that it is not even read
            await bot.connection.send(b"\x00" * (2 * MAX_BYTES + 1))
            with pytest.raises(ConnectionClosed) as closed:
                await bot.hear()
            assert closed.value.rcvd.code == 1009
        assert (await good.ask(good.act()))["type"] == "actions"


@run
async def test_messages_of_openpis_client():
    log = Log()
    async with serving(log) as served, robot(served) as bot:
        assert isinstance(bot.handshake, dict)
        for frame in (1, 2):
            reply = await bot.ask(observation(5))
            assert set(reply) == {"actions", "server_timing", "policy_timing"}
            np.testing.assert_array_equal(reply["actions"], actions(images(5)["primary"], frame))
            assert reply["server_timing"]["infer_ms"] > 0
        reply = await bot.ask(observation(5, prompt="pull"))  # another prompt is another episode
        np.testing.assert_array_equal(reply["actions"], actions(images(5)["primary"], 1))
        assert [words for words, _, _ in log.resets] == ["push", "pull"]
        planes = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
        reply = await bot.ask(observation(prompt="pull", **{"observation/image": planes}))
        np.testing.assert_array_equal(reply["actions"], actions(planes.transpose(1, 2, 0), 2))
        for changes, words in (
            ({"prompt": 3}, "bad_request: observation: expected text in 'prompt'"),
            (
                {"observation/image": np.zeros((9, 9, 3), np.uint8)},
                "bad_image: images['primary']: expected uint8",
            ),
            ({"observation/state": [1.0]}, "bad_request: observation: expected"),
        ):
            reply = await bot.ask(observation(**changes))
            assert isinstance(reply, str)
            assert reply.startswith(words)
            assert "\n" not in reply
        gone = observation()
        del gone["observation/wrist_image"]
        assert (await bot.ask(gone)).startswith(
            "bad_image: images: expected camera wrist under 'observation/wrist_im"
        )


@run
async def test_openpis_keys_are_the_servers_to_name():
    async with serving(Log(), names=Names({"primary": "cam_high"})) as served, robot(served) as bot:
        reply = await bot.ask(observation(cam_high=images(6)["primary"]))
        np.testing.assert_array_equal(reply["actions"], actions(images(6)["primary"], 1))


ROBOTS = {
    "droid": (
        Names(
            {
                "primary": "observation/exterior_image_1_left",
                "wrist": "observation/wrist_image_left",
            },
            ("observation/joint_position", "observation/gripper_position"),
        ),
        {
            "observation/exterior_image_1_left": images(6)["primary"],
            "observation/wrist_image_left": images()["wrist"],
            "observation/joint_position": np.arange(6.0),
            "observation/gripper_position": np.float32(0.5),
            "prompt": "push",
        },
    ),
    "aloha": (
        Names({"primary": "images/cam_high", "wrist": "images/cam_left_wrist"}, ("state",), "task"),
        {
            "images": {
                "cam_high": images(6)["primary"].transpose(2, 0, 1),
                "cam_left_wrist": images()["wrist"].transpose(2, 0, 1),
            },
            "state": np.array([0, 1, 2, 3, 4, 5, 0.5]),
            "task": "push",
        },
    ),
}


@pytest.mark.parametrize("name", ROBOTS)
@run
async def test_robots_with_other_keys(name):
    names, message = ROBOTS[name]
    log = Log()
    async with serving(log, names=names) as served, robot(served) as bot:
        reply = await bot.ask(message)
        np.testing.assert_array_equal(reply["actions"], actions(images(6)["primary"], 1))
        np.testing.assert_array_equal(log.states[-1], [0, 1, 2, 3, 4, 5, 0.5])
        camera = next(iter(message)) if name == "droid" else "images"
        wrong = {**message, camera: "an image"}
        assert "bad_image" in await bot.ask(wrong)
        first = names.state[0]
        refused = await bot.ask({**message, first: np.zeros((2, 7))})
        assert f"expected an array of numbers in '{first}', got ndarray (2, 7)" in refused
        del wrong[camera]
        assert f"expected camera primary under '{names.cameras['primary']}'" in await bot.ask(wrong)
        reply = await bot.ask({k: v for k, v in message.items() if k not in names.state})
        assert log.states[-1] is None


@run
async def test_an_image_of_numbers_from_0_to_1_is_refused():
    async with serving(Log()) as served, robot(served) as bot:
        floats = np.zeros((8, 8, 3), np.float32)
        refused = await bot.ask(observation(**{"observation/image": floats}))
        assert refused.startswith("bad_image: images: camera primary: expected bytes (uint8), got")


@run
async def test_one_request_at_a_time():
    log = Log()
    async with serving(log) as served, robot(served) as bot:
        await bot.begin()
        log.gate.clear()
        await bot.connection.send(pack(bot.act(1)))
        reply = await bot.ask(bot.act(2))
        assert (reply["code"], reply["id"]) == ("busy", 2)
        assert (await bot.ask({"type": "reset", "instruction": "x"}))["code"] == "busy"
        assert await page(served, "/healthz") == (200, "ok\n")  # the loop is free
        log.gate.set()
        assert (await bot.hear())["id"] == 1
        assert (await bot.ask(bot.act(3)))["id"] == 3


@run
async def test_requests_of_several_sessions_go_together(monkeypatch):
    for name in ("WINDOW", "ACTIVE"):  # s: whoever waited in vain would exceed the test's time
        monkeypatch.setattr(inference, name, 60.0)
    log = Log()
    async with (
        serving(log) as served,
        robot(served) as a,
        robot(served) as b,
        robot(served) as idle,
    ):
        await idle.begin("idle")
        for bot, name in ((a, "a"), (b, "b")):
            await bot.begin(name)
            if name == "a":  # alone it does not wait
                await bot.ask(bot.act())
        log.gate.clear()
        await b.connection.send(pack(b.act(2)))
        await asyncio.sleep(0.02)
        assert not log.batches[1:]  # b waits for a, which asked a moment ago
        log.gate.set()
        reply = await a.ask(a.act(1))
        assert (reply["id"], (await b.hear())["id"]) == (1, 2)
        assert log.batches == [["a"], ["b", "a"]]
        np.testing.assert_array_equal(reply["actions"], actions(images()["primary"], 2))
        # A bad frame beside a good one is its sender's alone.
        await a.connection.send(pack(a.act(3, images={})))
        assert (await b.ask(b.act(4)))["id"] == 4
        assert (await a.hear())["code"] == "bad_image"
        text = (await page(served, "/metrics"))[1]
        assert 'vla_batch_size_bucket{le="1.0"} 1' in text
        assert 'vla_batch_size_bucket{le="2.0"} 3' in text


@run
async def test_who_asks_during_a_pass_is_in_the_next_one():
    log = Log()
    async with serving(log) as served, robot(served) as a, robot(served) as b, robot(served) as c:
        for bot in (a, b, c):
            await bot.begin()
        log.gate.clear()
        await a.connection.send(pack(a.act(1)))
        await asyncio.to_thread(log.begun.wait, 5)
        for bot in (b, c):
            await bot.connection.send(pack(bot.act(1)))
        await asyncio.sleep(0.02)
        log.gate.set()
        assert [(await bot.hear())["id"] for bot in (a, b, c)] == [1, 1, 1]
        assert [len(batch) for batch in log.batches] == [1, 2]


@run
async def test_a_client_that_vanishes_frees_its_place():
    log = Log()
    async with serving(log, sessions=1) as served:
        async with robot(served) as bot:
            await bot.begin()
            log.gate.clear()
            log.begun.clear()
            await bot.connection.send(pack(bot.act()))
            while not log.begun.is_set():
                await asyncio.sleep(0.001)
            bot.connection.transport.abort()
        assert (
            await refused_with(served) == 1013
        )  # its request still computes, so its place is taken
        log.gate.set()
        while served._sessions:
            await asyncio.sleep(0.001)
        async with robot(served) as bot:
            await bot.begin()
        text = (await page(served, "/metrics"))[1]
        assert 'vla_requests_total{outcome="vanished"} 1' in text
        assert 'vla_refused_total{reason="full"} 1' in text


@run
async def test_an_internal_error_tells_nothing_and_ends_the_episode(caplog):
    log = Log()
    async with serving(log) as served, robot(served) as bot:
        await bot.begin()
        log.broken = True
        reply = await bot.ask(bot.act(1))
        assert (reply["code"], reply["id"]) == ("internal", 1)
        assert "secret" not in str(reply)
        assert "secret of the server" in caplog.text  # with its traceback
        log.broken = False
        assert (await bot.ask(bot.act(2)))["code"] == "not_ready"
        await bot.begin()
        assert (await bot.ask(bot.act(3)))["id"] == 3


@run
async def test_a_stop_answers_what_is_in_flight():
    log = Log()
    async with serving(log) as served, robot(served) as bot:
        await bot.begin()
        log.gate.clear()
        log.begun.clear()
        await bot.connection.send(pack(bot.act(1)))
        while not log.begun.is_set():
            await asyncio.sleep(0.001)
        served.stop()
        while served.state == "ok":
            await asyncio.sleep(0.001)
        assert await page(served, "/healthz") == (503, "draining\n")
        with pytest.raises(InvalidStatus):
            async with robot(served):
                pass
        log.gate.set()
        assert (await bot.hear())["id"] == 1
        with pytest.raises(ConnectionClosed) as closed:
            await bot.hear()
        assert closed.value.rcvd.code == 1001
