"""A websocket server round a policy: who may connect, what goes over the wire, and how it begins
and ends.

On connecting a client gets the handshake (`Server.handshake`), one map; messages.py says what
messages follow. Every connection is a session with an episode of its own and, with limits, a safety
filter of its own, which no message but an operator's safety_reset lets move. /healthz answers 200
once the policy is warm and 503 before, /metrics in Prometheus' text, both while the policy loads,
compiles and computes.

What is promised, with limits. Beside the motors, by a SafetyFilter that every command passes last:
all limits, whatever this server, the network, the policy and the loop's timing do, on a clock whose
jumps show (backwards, or forward by more than 1.5 periods). By this server alone, to a client that
does not say that it has such a filter: the same, as long as an answer's actions are carried out in
order, each once or never, before the next request is sent; the robot creeps, see
safety/unseen.py. Nothing is promised for a client that says it has a filter and has none.

stop and safety_reset act on the sender's session, or on the one they name, which takes the
operator's token; stop on "*" concerns all. A stop is in every chunk that is sent after its answer;
actions that were sent before are in the robot's hands, so a stop button belongs at the robot, and
this is a second one. The pose and the distance that a client sends are believed: it is the robot's
own computer.

Authorization is "Bearer TOKEN", or "Api-Key TOKEN" as openpi's client has it. With the operator's
token one gets in when the sessions are used up, too. Browsers do not: a page from elsewhere could
reach a robot on loopback.
"""

import asyncio
import errno
import hmac
import http
import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla_jax.robot.client import PROTOCOL, pack, unpack
from vla_jax.robot.serving.inference import Inference, Model
from vla_jax.robot.serving.messages import Refusal, checked
from vla_jax.robot.serving.metrics import Metrics
from vla_jax.robot.serving.sessions import Session, Settings

log = logging.getLogger("vla_jax.serve")

HANDSHAKE_TIMEOUT = 10.0  # s for TLS and the opening of a websocket
PING = 20.0  # s between pings, and until a silent client is gone
CLOSE_TIMEOUT = 2.0  # s for a client to say goodbye
WRONG_TOKEN = 0.2  # s until a wrong token is answered
WRONG_TOKENS = 5  # of an operator, after which a session ends
BACKLOG = 16  # connections that wait for being taken; asyncio tries as many without a pause
DRAIN_TIMEOUT = 30.0  # s for requests in flight at the end
ALL = "*"


class Server:
    """One process, one policy, many sessions."""

    def __init__(self, settings: Settings, max_bytes: int, open_model: Callable[[], Model]) -> None:
        """`open_model` runs on the inference thread once the socket listens; a message has at most
        `max_bytes`.

        Raises ValueError for unsafe settings.
        """
        if settings.token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(
                f"--host {settings.host}: expected --token_file with it: it is reached from"
                " elsewhere"
            )
        if settings.limits is not None and settings.operator_token is None:
            raise ValueError(
                "--limits: expected --operator_token_file with it: without one no robot could ever"
                " move"
            )
        if settings.token is not None and settings.token == settings.operator_token:
            raise ValueError(
                "--token_file, --operator_token_file: expected two tokens, got one: a robot could"
                " reset its own safety"
            )
        if settings.sessions < 1 or not settings.idle > 0:
            raise ValueError(
                "--max_sessions, --idle_timeout: expected one session and a time or more, got"
                f" {settings.sessions}, {settings.idle}"
            )
        self.settings, self.max_bytes, self.metrics = settings, max_bytes, Metrics()
        self.port: int | None = None  # where it listens, once it does
        self.state = "warming"  # then "ok", then "draining"
        self.inference = Inference(self.metrics)
        self._open_model, self._stop = open_model, asyncio.Event()
        self._model: Model | None = None
        self._sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wrong_at = -math.inf  # when a wrong token was last logged
        self._full_at = -math.inf  # when it was, that there were no more descriptors

    def stop(self) -> None:
        """Ends `run`: requests in flight are answered first. For handlers of SIGTERM; call it in
        the event loop.
        """
        self._stop.set()

    async def run(self) -> bool:
        """Serves until `stop`; returns whether the inference thread is done with everything.

        Raises what `open_model` raises, and OSError when the port is taken.
        """
        asyncio.get_running_loop().set_exception_handler(self._no_files)
        quiet = logging.getLogger("vla_jax.serve.wire")
        quiet.setLevel(logging.CRITICAL)  # strangers' failed handshakes would flood the log
        async with serve(
            self._session, self.settings.host, self.settings.port, ssl=self.settings.tls,
            logger=quiet,
            process_request=self._authorize, origins=[None], compression=None,
            max_size=2 * self.max_bytes, max_queue=2,
            open_timeout=HANDSHAKE_TIMEOUT, ping_interval=PING, ping_timeout=PING,
            close_timeout=CLOSE_TIMEOUT, backlog=BACKLOG,
        ) as wire:  # fmt: skip
            self.port = wire.sockets[0].getsockname()[1]
            log.info("listening on %s:%d, warming up", self.settings.host, self.port)
            stopped = asyncio.ensure_future(self._stop.wait())
            opened = asyncio.ensure_future(self.inference.call(self._open_model))
            await asyncio.wait({stopped, opened}, return_when=asyncio.FIRST_COMPLETED)
            if opened.done():
                self._ready(opened.result())
                await stopped
            self.state = "draining"
            log.info("draining: %d requests in flight", len(self._tasks))
            _, left = await asyncio.wait(
                {*self._tasks, opened}, timeout=DRAIN_TIMEOUT if opened.done() else 0
            )
            for task in left:
                task.cancel()
        log.info("stopped")
        return not left

    def _ready(self, model: Model) -> None:
        about, dataset = model.about, self.settings.dataset
        if dataset is not None and dataset not in about["datasets"]:
            raise ValueError(
                f"--dataset: expected one of {', '.join(about['datasets'])}, got {dataset!r}"
            )
        if unknown := self.settings.names.cameras.keys() - set(about["cameras"]):
            raise ValueError(
                f"--camera: expected {', '.join(about['cameras'])}, got"
                f" {', '.join(sorted(unknown))}"
            )
        # Episodes of another dataset's robot are refused when they begin.
        names = [
            body["action"] for name, body in about["datasets"].items() if dataset in (None, name)
        ]
        limits = self.settings.limits
        if limits is not None and not any(tuple(each) == limits.names for each in names):
            limits.check_names(names[0], "--limits")
        self._model, self.state = model, "ok"
        self.inference.serve(model)
        if limits is not None:
            log.info(
                "limits: for %g steps per second; the policy learnt at %s",
                limits.control_rate,
                about["control_hz"],
            )
        log.info(
            "ready: artefact %s, cameras %s", about["artefact"][:12], ", ".join(about["cameras"])
        )

    def handshake(self, session: str) -> dict[str, Any]:
        """What a client is told first. With limits `control_hz` is their rate, for which actions
        are filtered, and "limits" their digest.
        """
        assert self._model is not None
        limits = self.settings.limits
        rate = {} if limits is None else {"control_hz": limits.control_rate}
        fixed = {
            "server": "vla_jax",
            "protocol": PROTOCOL,
            "limits": None if limits is None else limits.digest,
            "session": session,
        }
        return {**fixed, **self._model.about, **rate}

    async def _authorize(self, connection: ServerConnection, request: Request) -> Response | None:
        """An HTTP answer instead of a websocket, or None to let a client in."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            good = self.state == "ok"
            status = http.HTTPStatus.OK if good else http.HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, f"{self.state}\n")
        if self.settings.token is not None and not (
            _carries(request, self.settings.token) or self._is_operator(request)
        ):
            self._wrong((connection.remote_address or ("?",))[0])
            await asyncio.sleep(WRONG_TOKEN)
            return self._refused(
                connection,
                http.HTTPStatus.UNAUTHORIZED,
                "unauthorised: expected a token in Authorization",
            )
        if path == "/metrics":
            page = connection.respond(
                http.HTTPStatus.OK, self.metrics.text(len(self._sessions), self.state == "ok")
            )
            del page.headers["Content-Type"]
            page.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
            return page
        if path != "/":
            return self._refused(
                connection, http.HTTPStatus.NOT_FOUND, "expected /, /healthz or /metrics"
            )
        if self.state != "ok":
            return self._refused(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, self.state)
        return None

    def _refused(self, connection: ServerConnection, status: http.HTTPStatus, why: str) -> Response:
        self.metrics.count("refused_total", status.name.lower())
        return connection.respond(status, why + "\n")

    def _no_files(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Of what asyncio has to say, a connection that cannot be taken is counted, and logged once
        a second at most: it says so hundreds of times, each with a traceback.
        """
        if getattr(context.get("exception"), "errno", None) not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
            return
        self.metrics.count("refused_total", "no_files")
        now = time.monotonic()
        if now - self._full_at > 1:
            self._full_at = now
            log.warning("no more file descriptors: connections wait; see ulimit -n")

    def _wrong(self, who: str) -> None:
        """Logs a wrong token, once a second at most."""
        now = time.monotonic()
        if now - self._wrong_at > 1:
            self._wrong_at = now
            log.warning("a wrong token, from %s", who)

    def _is_operator(self, request: Request) -> bool:
        token = self.settings.operator_token
        return token is not None and _carries(request, token)

    async def _session(self, connection: ServerConnection) -> None:
        assert self._model is not None
        assert connection.request is not None
        if len(self._sessions) >= self.settings.sessions and not self._is_operator(
            connection.request
        ):
            self.metrics.count("refused_total", "full")
            await connection.close(
                1013, f"{self.settings.sessions} sessions are the most; try again later"
            )
            return
        name = secrets.token_hex(8)
        session = Session(name, self._model, self.inference, self.settings, self.metrics)
        self._sessions[name] = session
        self.metrics.count("sessions_total")
        log.info("session %s: begins, from %s", name, (connection.remote_address or ("?",))[0])
        why = "gone"
        try:
            await connection.send(pack(self.handshake(name)))
            why = await self._talk(connection, session)
        except ConnectionClosed as closed:
            close = closed.rcvd or closed.sent
            why = f"closed with {close.code if close else 1006}"
        except Exception:  # a bug, and this session's alone
            why = "internal error"
            session.failed()
            await connection.close(1011, why)
        finally:
            # The session keeps its place until its request is done: otherwise clients that vanish
            # could fill the queue.
            if session.task is not None:
                await asyncio.wait({session.task})
            del self._sessions[name]
            log.info("session %s: ends (%s): %s", name, why, session.close())

    async def _talk(self, connection: ServerConnection, session: Session) -> str:
        """Answers until there is a reason to close; returns it.

        Each request is a task of its own, so that a stop is heard while one computes.
        """
        while True:
            try:
                async with asyncio.timeout(self.settings.idle):
                    data = await connection.recv()
            except TimeoutError:
                await connection.close(1000, "idle")
                return "idle"
            arrived = time.monotonic()
            message, broken, code = self._read(data)
            if broken is not None:  # whoever sends this does not speak the protocol
                await connection.send(
                    session.error("too_large" if code == 1009 else "bad_request", broken)
                )
                await connection.close(code, "malformed message")
                return broken
            kind = message.get("type")
            if isinstance(kind, str) and kind in ("stop", "safety_reset"):
                await connection.send(self._command(session, message))
                if session.errors["unauthorised"] < WRONG_TOKENS:
                    continue
                await connection.close(1008, "wrong tokens")
                return f"{WRONG_TOKENS} wrong tokens of an operator"
            session.openpi = "type" not in message
            if session.task is not None and not session.task.done():
                await connection.send(
                    session.error("busy", "one request at a time: wait for its answer", message)
                )
            elif self.state != "ok":
                await connection.send(
                    session.error("not_ready", "the server is going down", message)
                )
            else:
                session.task = asyncio.create_task(
                    self._answer(connection, session, message, arrived)
                )
                self._tasks.add(session.task)
                session.task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, connection: ServerConnection, session: Session, message: Any, arrived: float
    ) -> None:
        reply = await session.answer(message, arrived)
        try:
            await connection.send(reply)
        except ConnectionClosed:
            self.metrics.count("requests_total", "vanished")

    def _read(self, data: bytes | str) -> tuple[dict[Any, Any], str | None, int]:
        """A message, or what is wrong with it and the websocket code to close with."""
        if isinstance(data, str):
            return {}, "message: expected a binary frame, got text", 1003
        if len(data) > self.max_bytes:
            wanted = f"expected at most {self.max_bytes} bytes, got {len(data)}"
            return {}, f"message: {wanted}; resize images before", 1009
        try:
            message = unpack(data, self.max_bytes)
        except ValueError as error:
            return {}, str(error), 1007
        if not isinstance(message, dict):
            return {}, f"message: expected a map, got {type(message).__name__}", 1007
        return message, None, 0

    def _command(self, sender: Session, message: dict[Any, Any]) -> bytes | str:
        """Answers stop and safety_reset."""
        try:
            fields = checked(message)
            name = fields["session"] or sender.name
            if message["type"] == "safety_reset" or name != sender.name:
                self._check_operator(fields["operator_token"])
            if message["type"] == "stop" and name == ALL:
                for session in self._sessions.values():
                    session.stop(fields["why"])
                return _told(fields, ALL, "emergency")
            target = self._sessions.get(name)
            if target is None:
                raise Refusal(
                    "bad_request",
                    f"session: expected the name of one that is connected, got {name[:40]!r}",
                )
            if message["type"] == "stop":
                target.stop(fields["why"])
            else:
                target.safety_reset(fields["by"], fields["gripper"], fields["pose"])
        except Refusal as error:
            return sender.error(error.code, error, message)
        return _told(fields, name, target.latched)

    def _check_operator(self, token: str | None) -> None:
        if not _equal(token or "", self.settings.operator_token):
            self._wrong("a session")
            raise Refusal(
                "unauthorised", "operator_token: expected the one of --operator_token_file"
            )


def _told(fields: dict[str, Any], session: str, latched: str | None) -> bytes:
    """The answer to a stop or a safety_reset."""
    body = {"type": "safety", "id": fields["id"], "session": session, "latched": latched}
    return pack(body)


def _carries(request: Request, token: bytes) -> bool:
    """Whether a request's Authorization holds the token."""
    values = [value.partition(" ") for value in request.headers.get_all("Authorization")]
    return any(
        scheme.lower() in ("bearer", "api-key") and _equal(given, token)
        for scheme, _, given in values
    )


def _equal(given: str, token: bytes | None) -> bool:
    return token is not None and hmac.compare_digest(
        given.strip().encode("utf-8", "surrogateescape"), token
    )
