"""experiments.serve with a real artefact, in a process of its own."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from experiments import export
from experiments.benchmarks.server import measure_overhead, served
from tests.export.test_export import checkpoint
from vla_jax.robot import torch_policy
from vla_jax.robot.client import pack, unpack
from vla_jax.robot.torch_policy.folder import digest

REPO = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow

# What serving must not need: everything that is not numpy, torch, safetensors, msgpack, websockets
# or the library.
BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {
            "jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "transformers", "tokenizers",
            "sentencepiece",
            "ml_collections", "jaxtyping", "beartype", "PIL", "fsspec", "data_pipelines",
        }:
            raise ImportError(f"refused: {name}")

sys.meta_path.insert(0, Refuse())
from experiments import serve
serve.main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Two threads of torch wait for each other longer than they compute, where others use the
    machine.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("served")
    where = checkpoint(root, cameras=("primary", "wrist"), window=3, proprio=True)
    export.main(["--checkpoint", str(where), "--out", str(root / "artefact")])
    return root / "artefact"


@contextlib.contextmanager
def ending(process):
    """A test that fails does not wait for its server."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


def frames(n):
    rng = np.random.default_rng(0)
    return [
        {name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in ("primary", "wrist")}
        for _ in range(n)
    ]


class Robot:
    """A client that sends what it is told, by connections that it makes anew when they are
    closed.
    """

    def __init__(self, port):
        self.port, self.connection, self.number, self._open = port, None, 0, contextlib.ExitStack()

    def ask(self, message):
        self.send(pack(message))
        return unpack(self.connection.recv(30))

    def send(self, data):
        """Sends, on a new connection where the server has closed the last one."""
        try:
            if self.connection is not None:
                self.connection.send(data)
                return
        except ConnectionClosed:
            self.close()
        self.connect()
        self.connection.send(data)

    def connect(self):
        if self.connection is None:
            address = f"ws://127.0.0.1:{self.port}"
            self.connection = self._open.enter_context(
                connect(address, compression=None, proxy=None, close_timeout=1)
            )
            self.connection.recv(30)

    def act(self, frame):
        self.number += 1
        body = {
            "id": self.number,
            "observed_at": time.monotonic(),
            "images": frame,
            "proprio": np.zeros(7),
        }
        return self.ask({"type": "act", **body})

    def episode(self):
        """The actions of three frames."""
        self.ask({"type": "reset", "instruction": "push the red block"})
        return np.stack([self.act(frame)["actions"] for frame in frames(3)])

    def close(self):
        self.connection = None
        self._open.close()


def directly(artefact):
    policy = torch_policy.load(artefact)
    policy.reset("push the red block")
    return np.stack([policy.act(frame, np.zeros(7))["actions"] for frame in frames(3)])


def test_it_serves_the_artefact_without_jax_and_ends_cleanly(artefact, tmp_path):
    (tmp_path / "blocked.py").write_text(BLOCKED)
    command = [
        sys.executable,
        str(tmp_path / "blocked.py"),
        "--artefact",
        str(artefact),
        "--port",
        "0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process,
        ending(process),
    ):
        port = int(re.search(r":(\d+), warming", process.stderr.readline())[1])
        assert " ready: artefact " in (line := process.stderr.readline()), line
        robot = Robot(port)
        np.testing.assert_allclose(robot.episode(), directly(artefact), atol=1e-5)
        sums = digest(artefact / "SHA256SUMS")
        with connect(f"ws://127.0.0.1:{port}", proxy=None) as other:
            assert unpack(other.recv())["artefact"] == sums
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            robot.connection.recv(10)
        assert closed.value.rcvd.code == 1001
        assert process.wait(20) == 0
        robot.close()


def test_a_stop_while_it_loads_ends_it_at_once(artefact):
    command = [
        sys.executable,
        "-m",
        "experiments.serve",
        "--artefact",
        str(artefact),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, ending(process):
        assert "warming up" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert " ready: " not in process.stderr.read()
        assert process.wait(20) == 0


def test_it_refuses_an_artefact_that_this_machine_does_not_reproduce(artefact, tmp_path):
    copy = tmp_path / "artefact"
    shutil.copytree(artefact, copy)
    with np.load(copy / "golden.npz") as golden:
        arrays = dict(golden)
    np.savez(copy / "golden.npz", **{**arrays, "action": arrays["action"] + 0.01})
    with pytest.raises(RuntimeError, match=r"golden\.npz: expected sha256"), served(copy):
        pass
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    fixed = [f"{digest(copy / line[66:])}  {line[66:]}\n" for line in lines]
    (copy / "SHA256SUMS").write_text("".join(fixed))
    with (
        pytest.raises(
            RuntimeError, match=r"does not reproduce golden\.npz(.|\n)*action .*EXCEEDED"
        ),
        served(copy),
    ):
        pass


def test_the_overhead_is_measured(artefact):
    overhead = measure_overhead(artefact, 30)
    assert 0 < overhead.policy[0] < overhead.round_trip[0]
    assert 0 < overhead.added[0] <= overhead.added[1]


def hostile(rng, valid):
    """A frame that no good client sends: bytes, or text."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.randbytes(rng.randrange(2000))
    if kind == 1:
        return valid[: rng.randrange(len(valid))]
    if kind in (2, 3):
        changed = bytearray(valid)
        for _ in range(rng.randrange(1, 9)):  # the first bytes are the ones that mean something
            changed[rng.randrange(min(len(changed), 200) if kind == 2 else len(changed))] = (
                rng.randrange(256)
            )
        return bytes(changed)
    if kind == 4:
        shape = [
            rng.choice((0, 1, 7, 1 << 20, 1 << 31, 1 << 62, -1, 1.5, True, "a"))
            for _ in range(rng.randrange(12))
        ]
        body = {b"__ndarray__": True, b"data": rng.randbytes(rng.randrange(64)), b"shape": shape}
        return pack(
            {
                "type": "act",
                "images": {**body, b"dtype": rng.choice(("<f4", "|O8", "<U9", "|u1", "<f99", "?"))},
            }
        )
    if kind == 5:
        depth = rng.choice((10, 600, 5000))
        return rng.choice((b"\x91", b"\x81\xa1a")) * depth + b"\xc0"
    if kind == 6:
        return "text " * rng.randrange(99)
    odd = (
        None,
        True,
        -1,
        1 << 63,
        1e308,
        float("nan"),
        "",
        "x" * 5000,
        b"\xff",
        [],
        {},
        np.zeros((3, 3)),
        [[1]] * 9,
    )
    names = (
        "type", "id", "observed_at", "images", "proprio", "executed", "chunk", "row", "pose",
        "distance", "age", "limits", "gripper",
        "prompt", "by",
        "why", "observation/image", "observation/state", "instruction", "seed", "dataset",
        "session",
    )  # fmt: skip
    body = (
        unpack(valid)
        if kind == 7
        else {"type": rng.choice(("act", "reset", "stop", "safety_reset", "?"))}
    )
    for _ in range(rng.randrange(1, 4)):
        body[rng.choice(names)] = rng.choice(odd)
    return pack(body)


def raw(rng, port):
    """Bytes that are no websocket at all, or stop being one."""
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.settimeout(5)
        opening = (
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection:"
            b" Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key:"
            b" dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        with contextlib.suppress(OSError):  # the server may have had enough after the first part
            wire.sendall(opening if rng.random() < 0.7 else rng.randbytes(80))
            wire.sendall(rng.randbytes(rng.randrange(1, 300)))


def resident(process):
    """MiB of memory that a process has."""
    return (
        int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024
    )


def fuzz(port, process, n):
    """n hostile frames that arrive. Returns MiB after the first tenth and at the end, and the page
    of metrics.
    """
    rng, hostile_one, good = random.Random(0), Robot(port), Robot(port)
    frame, state = frames(1)[0], np.zeros(7)
    act = {"type": "act", "id": 1, "observed_at": 1.0, "images": frame, "proprio": state}
    openpi = {
        "observation/image": frame["primary"],
        "observation/wrist_image": frame["wrist"],
        "prompt": "push",
    }
    valid = pack(act), pack({**openpi, "observation/state": state})
    wanted, before, i = good.episode(), 0.0, 0
    while i < n:
        if i == n // 10:
            before = resident(process)
        if i % max(n // 50, 1) == 0:
            np.testing.assert_allclose(good.episode(), wanted, atol=1e-5)
        try:
            if i % 20 == 0:
                raw(rng, port)
            elif i % 50 == 1:  # begins an episode, so that the next frames get further
                hostile_one.ask({"type": "reset", "instruction": "push"})
            elif i % 100 == 2:  # goes without waiting
                hostile_one.send(valid[0])
                hostile_one.connection.socket.shutdown(socket.SHUT_RDWR)
                hostile_one.close()
            else:
                hostile_one.send(hostile(rng, rng.choice(valid)))
                hostile_one.connection.recv(30)  # every frame has an answer
            i += 1
        except ConnectionClosed:  # for the frame before, so that this one was not read
            hostile_one.close()
    hostile_one.close()
    np.testing.assert_allclose(good.episode(), wanted, atol=1e-5)
    good.close()
    return before, resident(process), page(port, "/metrics")


def page(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
        return response.read().decode()


def test_hostile_frames_change_nothing(artefact):
    n = int(os.environ.get("SERVER_FUZZ", "2000"))
    with served(artefact) as (port, process):
        before, after, metrics = fuzz(port, process, n)
        print(json.dumps({"frames": n, "MiB": [before, after]}), metrics)
        assert process.poll() is None
        assert "vla_failures_total" not in re.sub("# .*", "", metrics)  # no internal error
        assert after < before + 30
        assert "bad_image" in metrics  # frames that got as far as the policy
    with pytest.raises(urllib.error.URLError):
        page(port, "/healthz")
