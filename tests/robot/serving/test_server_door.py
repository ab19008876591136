"""Who gets into a server, when, and what it says of itself over HTTP."""

import asyncio
import contextlib
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from experiments import serve as command
from tests.robot.safety.limits_of_tests import make_limits
from tests.robot.serving.fake_policy import Log
from tests.robot.serving.serving import MAX_BYTES, page, refused_with, robot, run, serving, token
from vla_jax.robot.serving.messages import Names
from vla_jax.robot.serving.server import Server
from vla_jax.robot.serving.sessions import Settings

SECRET, OPERATOR = "a-token-of-robots", "a-token-of-operators"


@run
async def test_who_may_connect():
    async with serving(Log(), token=SECRET.encode(), operator_token=OPERATOR.encode()) as served:
        for options in (
            {}, token("wrong"), token(SECRET[:-1]), token(SECRET, "Basic"), token(""), token("ä"),
        ):  # fmt: skip
            with pytest.raises(InvalidStatus) as refused:
                async with robot(served, **options):
                    pass
            assert refused.value.response.status_code == 401
        for options in (token(SECRET), token(SECRET, "Api-Key"), token(OPERATOR)):
            async with robot(served, **options) as bot:
                await bot.begin()
        with pytest.raises(InvalidStatus) as refused:  # a page in a browser
            async with robot(served, origin="http://elsewhere", **token(SECRET)):
                pass
        assert refused.value.response.status_code == 403
        assert await page(served, "/healthz") == (200, "ok\n")
        assert (await page(served, "/metrics"))[0] == 401
        status, text = await page(served, "/metrics", f"Authorization: Bearer {SECRET}")
        assert status == 200
        assert 'vla_refused_total{reason="unauthorized"} 7' in text
        assert (await page(served, "/etc/passwd", f"Authorization: Bearer {SECRET}"))[0] == 404


@run
async def test_health_answers_while_the_policy_warms_up():
    log, gate = Log(), threading.Event()

    def slowly():
        assert gate.wait(5)
        return log.model()

    async with serving(log, slowly) as served:
        assert await page(served, "/healthz") == (503, "warming\n")
        assert "vla_ready 0" in (await page(served, "/metrics"))[1]
        with pytest.raises(InvalidStatus) as refused:
            async with robot(served):
                pass
        assert refused.value.response.status_code == 503
        gate.set()
        while served.state == "warming":
            await asyncio.sleep(0.001)
        assert await page(served, "/healthz") == (200, "ok\n")
        async with robot(served) as bot:
            await bot.begin()


@run
async def test_a_policy_that_does_not_load_ends_the_server():
    def broken():
        raise ValueError("does not reproduce golden.npz")

    with pytest.raises(ValueError, match="golden"):
        await Server(Settings(port=0), MAX_BYTES, broken).run()
    for settings, words in (
        ({"dataset": "?"}, "--dataset"),
        ({"names": Names({"left": "a"})}, "--camera: expected primary"),
    ):
        with pytest.raises(ValueError, match=words):
            await Server(Settings(port=0, **settings), MAX_BYTES, Log().model).run()


@run
async def test_operators_get_in_when_robots_do_not_and_idle_ones_leave():
    async with (
        serving(Log(), sessions=1, operator_token=OPERATOR.encode(), idle=0.2) as served,
        robot(served) as bot,
    ):
        assert await refused_with(served) == 1013
        async with robot(served, **token(OPERATOR)) as operator:
            await operator.begin()
        with pytest.raises(ConnectionClosed) as closed:
            await bot.hear()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "idle")


@run
async def test_the_page_of_metrics():
    async with serving(Log()) as served, robot(served) as bot:
        await bot.ask(bot.act())
        await bot.begin()
        await bot.ask(bot.act())
        text = (await page(served, "/metrics"))[1]
        for line in (
            'vla_requests_total{outcome="error"} 1', 'vla_requests_total{outcome="ok"} 2',
            'vla_errors_total{code="not_ready"} 1', "vla_sessions_total 1", "vla_sessions 1",
            "vla_ready 1",
            'vla_latency_seconds_bucket{stage="vision",le="0.001"} 1',
            'vla_latency_seconds_count{stage="total"} 1',
            'vla_latency_seconds_bucket{stage="backbone",le="+Inf"} 1',
            "vla_batch_size_sum 1.000000",
        ):  # fmt: skip
            assert line in text.splitlines()


@run
async def test_without_descriptors_sessions_go_on_and_the_log_stays_short(caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(Log()) as served, robot(served) as bot:
        await bot.begin()
        flood = []
        with socket.socket() as next_one:
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_one.fileno() + 12, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    flood.append(socket.create_connection(("127.0.0.1", served.port)))
            for _ in range(20):
                assert (await bot.ask(bot.act()))["type"] == "actions"
            assert served.metrics.count("refused_total", "no_files", 0) > 0
        finally:
            for each in flood:
                each.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await page(served, "/healthz") == (200, "ok\n")
    told = [record for record in caplog.records if "descriptor" in record.message]
    assert len(told) == 1
    assert not [record for record in caplog.records if record.exc_info]


def test_unsafe_settings_are_refused(tmp_path):
    for words, settings in (
        ("--host 0.0.0.0: expected --token_file", {"host": "0.0.0.0"}),
        ("--limits: expected --operator_token_file", {"limits": make_limits()}),
        ("expected two tokens, got one", {"token": b"t" * 16, "operator_token": b"t" * 16}),
        ("--max_sessions, --idle_timeout: expected", {"sessions": 0}),
    ):
        with pytest.raises(ValueError, match=words):
            Server(Settings(**settings), MAX_BYTES, Log().model)
    (tmp_path / "short").write_text("abc\n")
    for words, arguments in (
        ("config.json: expected the config of an artefact", []),
        (
            "expected a token of at least 16 characters, got 3",
            ["--token_file", str(tmp_path / "short")],
        ),
        ("--camera: expected NAME=KEY", ["--camera", "primary"]),
        ("--tls_cert, --tls_key: expected both", ["--tls_cert", "a.pem"]),
    ):
        with pytest.raises(ValueError, match=words):
            command.main(["--artefact", str(tmp_path), *arguments])


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    nothing = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=nothing, __version__="2.13"))
    with pytest.raises(ValueError, match=r"--device cuda:0: expected a GPU that torch can use"):
        command.main(["--artefact", "none", "--device", "cuda:0"])


def test_tls(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate and is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
        "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(cert), "-subj", "/CN=robot", "-addext",
         "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(cert, key)

    async def talk():
        async with serving(Log(), tls=ours) as served:
            async with robot(served, ssl=ssl.create_default_context(cafile=cert)) as bot:
                await bot.begin()
                assert (await bot.ask(bot.act(7)))["id"] == 7
            with pytest.raises(ssl.SSLCertVerificationError):
                async with robot(served, ssl=ssl.create_default_context()):
                    pass

    asyncio.run(talk())
