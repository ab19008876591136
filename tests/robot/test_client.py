"""The client against a small server on loopback that misbehaves as the test wants."""

from __future__ import annotations

import ast
import contextlib
import os
import runpy
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.server import ServerProtocol
from websockets.sync.server import ServerConnection, serve

from tests.robot.fake_server import (
    HANDSHAKE,
    IMAGES,
    QUICK,
    K,
    Server,
    refuse,
    reply,
    silent,
    vanish,
)
from vla_jax.robot import client as module
from vla_jax.robot.client import Client, Report, ServerError, Waits, pack
from vla_jax.robot.safety.filter import Reading


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server()) as server:
        yield server


def test_a_request_and_its_answer(server: Server) -> None:
    with Client(server.url, "secret", "a" * 64, QUICK) as client:
        assert client.handshake["session"] == "1"
        client.reset("push the block", seed=3)
        image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        out = client.act({"primary": image}, np.zeros(3), 7.5, Report(distance=1))
        np.testing.assert_array_equal(out["actions"], np.full((K, 2), 2))
    assert server.headers == ["Bearer secret"]
    reset, act = server.received
    body = {"type": "reset", "instruction": "push the block", "dataset": None, "seed": 3}
    assert reset == {**body, "id": 1}
    np.testing.assert_array_equal(act.pop("images")["primary"], image)
    np.testing.assert_array_equal(act.pop("proprio"), np.zeros(3))
    rest = dict.fromkeys(("executed", "chunk", "row", "pose", "gripper", "limits"))
    assert act.pop("age") == pytest.approx(time.monotonic() - 7.5, abs=5)
    assert act == {"type": "act", "id": 2, "observed_at": 7.5, "distance": 1.0, **rest}
    assert type(act["distance"]) is float


def test_the_clock_is_the_default_time_of_a_frame(server: Server) -> None:
    with Client(server.url, waits=QUICK._replace(clock=lambda: 12.25)) as client:
        client.reset("go")
        assert client.act(IMAGES)["observed_at"] == 12.25


def test_frames_before_a_reset_are_refused(server: Server) -> None:
    with (
        Client(server.url, waits=QUICK) as client,
        pytest.raises(ValueError, match="expected reset"),
    ):
        client.act(IMAGES)


@pytest.mark.parametrize("number", [True, False])
@pytest.mark.parametrize("code", ["bad_request", "bad_image", "not_ready", "internal"])
def test_what_the_server_refuses_is_raised_and_not_sent_again(
    server: Server, code: str, number: bool
) -> None:
    server.script = [refuse(code, number)]
    with Client(server.url, waits=QUICK) as client:
        client.reset("go")
        with pytest.raises(ServerError, match=f"{code}: because") as raised:
            client.act(IMAGES)
        assert raised.value.code == code
        assert client.act(IMAGES)["id"] == 3
        assert client.reconnects == 0
    assert server.types() == ["reset", "act", "act"]


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.script = [refuse("busy"), refuse("busy")]
    with Client(server.url, waits=QUICK) as client:
        client.reset("go")
        assert client.act(IMAGES)["id"] == 4
    assert server.types() == ["reset", "act", "act", "act"]


@pytest.mark.parametrize("lose", [vanish, silent])
def test_a_lost_connection_comes_back_with_the_episode(server: Server, lose: Any) -> None:
    server.script = [lose]
    with Client(server.url, waits=QUICK._replace(reply=0.2)) as client:
        client.reset("go", "blocks")
        out = client.act(IMAGES, report=Report(chunk=7, row=2))
        assert out["id"] == 4
        assert client.reconnects == 1
        assert client.handshake["session"] == "2"
        assert client.trouble == ""
    assert server.types() == ["reset", "act", "reset", "act"]
    assert server.received[2] == {**server.received[0], "id": 3}
    # The new session sent no chunk.
    assert [server.received[i]["chunk"] for i in (1, 3)] == [7, None]


def test_without_resend_a_lost_connection_is_raised_at_once(server: Server) -> None:
    server.script = [vanish]
    with Client(server.url, waits=QUICK) as client:
        client.reset("go")
        with pytest.raises(ConnectionError, match="expected an answer, got Connection"):
            client.act(IMAGES, resend=False)
        client.connect()
        assert client.act(IMAGES, resend=False)["id"] == 4
        assert client.reconnects == 1


def test_answers_to_earlier_requests_and_to_stops_are_passed_over(server: Server) -> None:
    def late(connection: ServerConnection, message: dict[str, Any]) -> None:
        connection.send(reply({**message, "id": message["id"] - 1}))
        connection.send(pack({"type": "error", "id": 99, "code": "busy", "message": "of another"}))
        connection.send(reply(message))

    server.script = [late]
    with Client(server.url, waits=QUICK) as client:
        client.reset("go")
        client.stop("button")
        assert client.act(IMAGES)["actions"][0, 0] == 3
    assert server.types() == ["reset", "stop", "act"]
    assert server.received[1] == {"type": "stop", "id": 2, "why": "button"}


def test_a_reset_of_safety_does_not_take_the_answer_to_a_stop(server: Server) -> None:
    with Client(server.url, waits=QUICK) as client:
        client.stop("button")
        message = {"type": "safety_reset", "session": "1"}
        assert client.ask(message, "safety")["latched"] is None


class FakeFilter:
    """Halves actions at 10 Hz, and writes down what it is told."""

    limits = SimpleNamespace(control_rate=10.0, digest="d")
    new_reading = Reading

    def __init__(self) -> None:
        self.told: list[Any] = []

    def step(self, action: Any, reading: Any) -> np.ndarray:
        self.told.append(reading)
        return np.asarray(action, np.float64) / 2

    def rest(self) -> np.ndarray:
        self.told.append("rest")
        return np.zeros(2)


def test_a_filter_is_the_last_and_says_so() -> None:
    safety, pose = FakeFilter(), np.ones(6)
    with contextlib.closing(Server(limits="d")) as server:
        now = [20.0]
        waits = QUICK._replace(clock=lambda: now[0])
        with Client(server.url, waits=waits, filter=safety) as client:
            client.reset("go")
            with pytest.raises(ValueError, match=r"Client.command: expected .* a chunk"):
                client.command(0)
            client.act(IMAGES)
            now[0] = 20.4
            np.testing.assert_array_equal(client.command(3, pose, 0.5), [1.0, 1.0])
            # The action is for 0.3 s after its frame; the pose is of now.
            observed_at, measured, distance, measured_at, *_ = safety.told[0]
            assert (observed_at, distance, measured_at) == (pytest.approx(20.3), 0.5, 20.4)
            assert measured is pose
            assert client.command(4 - 1) is not None
            with pytest.raises(ValueError, match=r"one of its actions 0 to 3, got 4"):
                client.command(4)
            stopped = {"latched": None, "causes": {"stale": 4}, "stopped": True}
            server.script = [
                lambda connection, message: connection.send(reply(message, safety=stopped))
            ]
            client.act(IMAGES)
            assert not client.command(0).any()
            assert safety.told[-1] == "rest"
        acts = [message for message in server.received if message["type"] == "act"]
        assert [message["limits"] for message in acts] == ["d", "d"]
        np.testing.assert_array_equal(acts[1]["executed"], [1.0, 1.0])


def test_a_filter_of_other_limits_is_refused(server: Server) -> None:
    with pytest.raises(ValueError, match="limits: expected those of this robot's filter, d, got"):
        Client(server.url, waits=QUICK, filter=FakeFilter())


def test_a_stop_that_goes_nowhere_is_raised(server: Server) -> None:
    client = Client(server.url, waits=QUICK)
    client.close()
    with pytest.raises(ConnectionError, match="the stop was not sent"):
        client.stop("button")
    client.handshake["limits"] = False
    with pytest.raises(
        ValueError, match="this server has no limits to latch; stop the robot itself"
    ):
        client.stop("button")


@pytest.mark.parametrize(
    "actions",
    [
        np.full((K, 2), np.nan, np.float32),
        np.zeros((K + 1, 2), np.float32),
        np.zeros(K, np.float32),
        None,
        [[0.0] * 2] * K,
    ],
)
def test_actions_that_are_none_are_refused(server: Server, actions: Any) -> None:
    server.script = [lambda connection, message: connection.send(reply(message, actions=actions))]
    with Client(server.url, waits=QUICK) as client:
        client.reset("go")
        with pytest.raises(ValueError, match="reply: expected 4 finite actions"):
            client.act(IMAGES)


def test_actions_of_another_frame_are_refused(server: Server) -> None:
    server.script = [
        lambda connection, message: connection.send(reply({**message, "observed_at": 1.0}))
    ]
    with Client(server.url, waits=QUICK) as client:
        client.reset("go")
        with pytest.raises(
            ValueError,
            match=r"expected 4 finite actions of the frame of 2.0, got .*'observed_at': 1.0",
        ):
            client.act(IMAGES, observed_at=2.0)


@pytest.mark.parametrize("data", ["text", b"\xc1", pack([1])])
def test_what_is_no_message_is_refused(server: Server, data: Any) -> None:
    server.script = [lambda connection, message: connection.send(data)]
    with Client(server.url, waits=QUICK) as client:
        client.reset("go")
        with pytest.raises(ValueError, match=r"expected .* message|expected a msgpack map"):
            client.act(IMAGES)


@pytest.mark.parametrize(
    ("handshake", "match"),
    [
        (
            {"server": "openpi"},
            "expected a vla_jax server of protocol 2, got {'server': 'openpi', 'protocol': 2}",
        ),
        ({"protocol": 1}, "expected a vla_jax server of protocol 2"),
        ({"artefact": "b" * 64}, "artefact: expected a+, got b+"),
    ],
)
def test_another_server_than_expected_is_refused(handshake: dict[str, Any], match: str) -> None:
    with contextlib.closing(Server(**handshake)) as server, pytest.raises(ValueError, match=match):
        Client(server.url, expect_artefact="a" * 64, waits=QUICK)


@pytest.mark.parametrize(
    ("name", "value"), [("artefact", "b" * 64), ("limits", False), ("control_hz", 5.0)]
)
def test_a_server_that_comes_back_as_another_is_refused(
    server: Server, name: str, value: Any
) -> None:
    with Client(server.url, waits=QUICK) as client:
        client.reset("go")
        server.script = [vanish]
        server.handshake[name] = value
        with pytest.raises(ValueError, match=f"{name}: expected .*, got {value}"):
            client.act(IMAGES)
        assert client.handshake[name] != value


def test_a_server_that_is_restarted_is_found_again() -> None:
    server = Server()
    with Client(server.url, waits=QUICK._replace(total=10.0)) as client:
        client.reset("go")
        client.act(IMAGES)
        server.close()
        with pytest.raises(ConnectionError, match="expected an answer, got"):
            client.act(IMAGES, resend=False)
        again: list[Server] = []
        timer = threading.Timer(0.1, lambda: again.append(Server(server.port)))
        timer.start()
        assert client.act(IMAGES)["id"] == 5
        timer.join()  # the server may answer before the timer's thread has kept it
        again[0].close()


def test_waits_grow_are_capped_and_spread() -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    spread = iter([1.0, 0.0, 1.0, 0.5] + [1.0] * 9)
    waits = Waits(0.1, 0.1, 10.0, 0.5, 3.0, lambda: now[0], sleep, lambda: next(spread))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(
            ConnectionError, match=r"expected an answer within 10.0 s, got ConnectionRefusedError"
        ):
            Client(f"ws://127.0.0.1:{port}", waits=waits)
    assert slept == [
        0.5,
        0.5,
        2.0,
        2.25,
        3.0,
    ]  # 0.5 1 2 4 8, at most 3, times 0.5 to 1; the next would be past 10 s


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:8000", "ws://"])
def test_urls_are_checked(url: str) -> None:
    with pytest.raises(ValueError, match=r"url: expected ws://host:port"):
        Client(url)


def test_a_wrong_token_is_not_tried_again() -> None:
    def door(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(401, "no\n")

    with serve(lambda connection: None, "127.0.0.1", 0, process_request=door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ServerError, match=r"unauthorised: .*401.*; check the token"):
            Client(
                f"ws://127.0.0.1:{server.socket.getsockname()[1]}",
                "wrong",
                waits=QUICK._replace(total=60.0),
            )
        server.shutdown()


def test_a_server_that_stops_reading_ends_the_call() -> None:
    """A process that hangs: the kernel takes what fits, then nothing more."""
    protocol = ServerProtocol(max_size=None)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:

        def open_and_hang() -> None:
            connection = stack.enter_context(listener.accept()[0])
            protocol.receive_data(connection.recv(1 << 16))
            protocol.send_response(protocol.accept(protocol.events_received()[0]))
            protocol.send_binary(pack({**HANDSHAKE, "image": {"size": 2000}, "session": "1"}))
            protocol.send_binary(pack({"type": "ready", "id": 1}))
            connection.sendall(b"".join(protocol.data_to_send()))
            rescue = threading.Timer(5.0, connection.close)  # a hanging test helps nobody
            rescue.start()
            stack.callback(rescue.cancel)

        thread = threading.Thread(target=open_and_hang)
        thread.start()
        client = Client(
            f"ws://127.0.0.1:{listener.getsockname()[1]}", waits=QUICK._replace(reply=0.1)
        )
        thread.join()
        client.reset("go")
        began = time.monotonic()
        with pytest.raises(ConnectionError, match="expected an answer, got"):
            client.act({"primary": np.zeros((2000, 2000, 3), np.uint8)}, resend=False)
        client.close()
        assert time.monotonic() - began < 4


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_tls_trusts_what_it_is_told_to_trust(tmp_path: Path) -> None:
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    name = ["-subj", "/CN=robot", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *curve, *name, "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    # A full machine takes seconds for a handshake.
    patient = QUICK._replace(open=20.0, total=60.0)
    with contextlib.closing(Server(tls=tls)) as server:
        url = f"wss://127.0.0.1:{server.port}"
        with pytest.raises(ssl.SSLCertVerificationError):  # at once, though QUICK would try for 2 s
            Client(url, waits=QUICK._replace(sleep=lambda seconds: pytest.fail("tried again")))
        with Client(url, waits=patient, tls=ssl.create_default_context(cafile=cert)) as client:
            client.reset("go")
            assert client.act(IMAGES)["id"] == 2


def test_a_reset_of_safety_is_sent_once(server: Server) -> None:
    with Client(server.url, waits=QUICK) as client:
        server._connections[0].socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ConnectionError):
            client.ask({"type": "safety_reset"}, "safety")
    assert server.received == []


@pytest.mark.parametrize(
    ("said", "filter"),
    [("Lanczos", Image.Resampling.LANCZOS), ("bicubic", Image.Resampling.BICUBIC)],
)
def test_frames_of_any_size_arrive_as_training_made_its_own(
    server: Server, said: str, filter: Image.Resampling
) -> None:
    """Artefacts of before write the filter with a capital."""
    frame = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    server.handshake["image"] = {"size": 16, "resize": said}
    with Client(server.url, waits=QUICK) as client:
        client.reset("push")
        client.act({"primary": frame})
        small = Image.fromarray(frame).resize((16, 16), filter)
        np.testing.assert_array_equal(server.received[-1]["images"]["primary"], np.asarray(small))
        client.act({"primary": np.asarray(small)})
        np.testing.assert_array_equal(server.received[-1]["images"]["primary"], np.asarray(small))
        del client.handshake["image"]["resize"]
        with pytest.raises(ValueError, match=r"expected 16 x 16 pixels, got \(37, 53, 3\)"):
            client.act({"primary": frame})


def test_each_camera_arrives_at_its_own_size(server: Server) -> None:
    image = {"size": 16, "sizes": {"primary": 16, "wrist": 8}, "resize": "bicubic"}
    server.handshake |= {"image": image, "cameras": ["primary", "wrist"]}
    frame = np.zeros((37, 53, 3), np.uint8)
    with Client(server.url, waits=QUICK) as client:
        client.reset("push")
        client.act({"primary": frame, "wrist": frame})
    sent = server.received[-1]["images"]
    assert {name: x.shape for name, x in sent.items()} == {
        "primary": (16, 16, 3),
        "wrist": (8, 8, 3),
    }


def test_the_filter_is_a_file_beside_it(tmp_path: Path) -> None:
    """The client is copied, alone or with resize.py."""
    shutil.copy(module.__file__, tmp_path / "client.py")
    look = [sys.executable, "-c", "import client; print(client._resize is None)"]
    for expected in ("True", "False"):
        run = subprocess.run(look, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.stdout.strip() == expected, run.stderr
        shutil.copy(Path(module.__file__).with_name("resize.py"), tmp_path / "resize.py")


def test_the_file_is_python_3_8() -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    first = {
        (node.module or "").partition(".")[0] if isinstance(node,
        ast.ImportFrom) else alias.name.partition(".")[0]
        for node in ast.walk(tree) if isinstance(node, (ast.Import,
        ast.ImportFrom)) for alias in node.names
    }  # fmt: skip
    allowed = {"numpy", "msgpack", "websockets"}
    assert first <= allowed | sys.stdlib_module_names


SCRIPT = """
import sys, time
import numpy as np
from client import ChunkBroker, Client
assert sys.version_info[:2] == (3, 8)
client = Client(sys.argv[1], "secret")
client.reset("go")
images = {"primary": np.zeros((2, 2, 3), np.uint8)}
assert client.act(images, np.zeros(3))["actions"].shape == (4, 2)
with ChunkBroker(client, 0.02, blend="ensemble") as broker:
    broker.reset("go on")
    moved, end = 0, time.monotonic() + 20
    while moved < 20 and time.monotonic() < end:
        broker.observe(images)
        moved += broker.next().action is not None
        time.sleep(0.02)
print(moved, client.reconnects)
"""


@pytest.mark.slow
def test_one_copied_file_runs_on_python_3_8(server: Server, tmp_path: Path) -> None:
    python = os.environ.get("PYTHON38") or shutil.which("python3.8")
    packages = "import msgpack, numpy, websockets.sync.client"
    if python is None or subprocess.run([python, "-c", packages], capture_output=True).returncode:
        pytest.skip("needs a python3.8 with numpy, msgpack and websockets, on PATH or in $PYTHON38")
    shutil.copy(module.__file__, tmp_path / "client.py")
    server.script = [lambda connection, message: connection.send(reply(message))] * 5 + [vanish]
    done = subprocess.run(
        [python, "-c", SCRIPT, server.url], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "20 1\n"


def test_an_old_websockets_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("websockets.version.version", "12.0")
    with pytest.raises(ImportError, match=r"expected websockets 13 or newer, got 12\.0"):
        runpy.run_path(module.__file__)
