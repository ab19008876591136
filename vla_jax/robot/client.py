"""The robot's side of a server: one file to copy, Python 3.8, numpy + msgpack + websockets; for
cameras of another size than the policy's, resize.py beside it, which makes of their frames what
training made of its own.

    safety = SafetyFilter(limits.load("limits.yaml"), gripper=1.0)  # vla_jax/robot/safety
    client = Client("ws://gpu-box:8000", token, filter=safety)
    client.reset("put the red block on the plate")
    safety.reset("Ada", gripper=1.0, pose=pose)  # a person's word: nothing moves before it
    while True:
        client.act({"primary": image}, proprio, observed_at)  # waits
        for index in range(4):  # of the chunk's actions, one per period
            robot.move(client.command(index, pose))

or, in a control loop that must not wait,

    broker = ChunkBroker(client)
    broker.reset("put the red block on the plate")
    while True:  # once per period
        broker.observe({"primary": image}, proprio, observed_at, Report(pose=pose))
        step = broker.next()
        if step.action is not None:  # else the call came too early
            robot.move(step.action)

The filter is the last thing before the motors, and what keeps the limits: a server does not see
when an action is carried out. A server with limits gives a client without a filter one small step
at a time, and no more than one per period.

The wire. A message is one binary websocket frame that holds one msgpack map. An array is the map
{b"__ndarray__": True, b"data": its bytes in C order, b"dtype": as numpy spells it ("<f4"),
b"shape": [...]}, as openpi's client has it. Only bool, integers and floats cross: nothing is ever
unpickled.

Axes: k chunk step, d action dim, n overlapping steps or chunks.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgpack
import numpy as np
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect
from websockets.version import version as websockets_version

if int(websockets_version.split(".")[0]) < 13:
    raise ImportError(
        f"client.py: expected websockets 13 or newer, got {websockets_version}; pip install"
        " 'websockets>=13'"
    )


def _beside() -> Any:
    """`resize` of resize.py; None where this file was copied alone."""
    try:
        return importlib.import_module(f"{__package__}.resize" if __package__ else "resize").resize
    except ImportError:
        return None


_resize = _beside()
PROTOCOL = 2
DTYPE_KINDS = "biuf"
MAX_PARTS = 1000
MAX_REPLY = 1 << 24  # bytes
RETRIED = ("busy",)  # error codes after which the same request is tried again
ANEW = ("internal", "not_ready")  # error codes after which the episode has to begin again
SLACK = 0.25  # of a period: how long before a control step its frame may have been taken
PAUSE = 1.5  # periods of a filter from one step to the next, after which it commands rest
EARLY = 0.75  # of a period: how long before its time a control step may be carried out
PATIENCE = 3  # replies in a row that come too late as a whole, until that is an error
BLENDS = ("freeze", "ensemble", "newest", "realtime")


class ServerError(RuntimeError):
    """The server did not carry out a request: `code` is the wire's, `message` one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class TooSlow(RuntimeError):
    """Replies take longer than a chunk lasts, so that none of their actions can ever be executed in
    time.
    """


class Waits(NamedTuple):
    """How long to wait, in seconds, and where time comes from."""

    open: float = 5.0  # for a connection, and for the server's first message
    reply: float = 5.0  # for an answer
    total: float = 30.0  # for a call with all its attempts
    first: float = 0.1  # before the second attempt; then twice as long each time, but at most
    longest: float = 2.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    # The waits are multiplied by 0.5 to 1, so that many robots do not come back at once.
    random: Callable[[], float] = random.random


class Report(NamedTuple):
    """What the robot says of itself beside its state; the server's limits and models of past
    actions ask for it. A client with a filter knows by itself which action was the last.
    """

    executed: np.ndarray | None = None  # [d], the last action carried out; or which one it was:
    chunk: int | None = None  # the number of its chunk, as the reply said, and
    row: int | None = None  # its place in it, from 0
    pose: np.ndarray | None = None  # [n] of the limits' axes, m and rad, of the frame's time
    gripper: Any = None  # measured, 1 = open; of several grippers a map by name
    distance: float | None = None  # to the nearest obstacle, m
    # What it carries out from the frame's control step on [n d], for a policy that flows: the next
    # chunk keeps to it (real-time chunking); and how many steps of it until that chunk is there.
    plan: np.ndarray | None = None
    delay: int | None = None


WAITS, SILENT = Waits(), Report()


class Client:
    """A connection to a server, which comes back by itself.

    A new connection is a new session: the episode is begun again with the last `reset`, but the
    policy has forgotten the frames before, and a server with limits holds the new session still
    until an operator resets it. `reconnects` counts them, and `handshake` is the last one's. One
    thread at a time, except for `stop`.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        expect_artefact: str | None = None,
        waits: Waits = WAITS,
        tls: ssl.SSLContext | None = None,
        filter: Any = None,
    ) -> None:
        """Connects.

        Args:
            url: ws://host:port, or wss:// with TLS. Proxies that the environment names are not
                used.
            token: what the server was started with.
            expect_artefact: the hash of the policy that is wanted, see `handshake`. A later
                connection must find the same policy, rate and limits as the first in any case: they
                do not change under a moving robot.
            waits: timeouts.
            tls: to trust a certificate of one's own: ssl.create_default_context(cafile=...).
            filter: a SafetyFilter, through which `command` and ChunkBroker send every action. Its
                clock must be that of `waits`. It is used from one thread.

        Raises ConnectionError after `waits.total`, ServerError for a wrong token, ValueError for
        another artefact, protocol or kind of server, and for a filter of other limits than the
        server's.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"url: expected ws://host:port or wss://host:port, got {url!r}")
        self.url, self.waits = url, waits
        self.handshake: dict[str, Any] = {}
        self.reconnects = -1  # the first connection is none
        self.trouble = ""  # what went wrong at the last attempt
        self._address = parts.hostname, parts.port or (443 if parts.scheme == "wss" else 80)
        self._token, self._artefact, self._tls = token, expect_artefact, tls
        self._episode: dict[str, Any] | None = None
        self._connection: Any = None
        self._closing = contextlib.ExitStack()
        self._closed, self._numbers = False, itertools.count(1)
        self.filter = filter
        self._reply: dict[str, Any] | None = None  # the last chunk's
        self._last = SILENT  # what `command` sent last
        self.connect()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connects if there is no connection; `act` and `reset` do so by themselves. Raises as the
        constructor.
        """
        self._call(None, "")

    def close(self) -> None:
        """Ends the session. A call that waits in another thread raises ConnectionError."""
        self._closed = True
        self._drop()

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        """Begins an episode; arguments as of the policy's `reset`. Raises ServerError if the server
        refuses them, ValueError if the policy's actions are not the numbers of the filter's limits.
        """
        episode = {"type": "reset", "instruction": instruction, "dataset": dataset, "seed": seed}
        # A connection that comes back meanwhile is not to begin the old one.
        self._episode = self._reply = None
        self._last = SILENT
        self._check_names(dataset)
        self._call(episode, "ready")
        self._episode = episode

    def _check_names(self, dataset: str | None) -> None:
        # A filter from before dims had names is of seven, and stops at any other number of them.
        expected = getattr(self.filter.limits, "names", None) if self.filter is not None else None
        sets = self.handshake["datasets"]
        names = {tuple(body["action"]) for name, body in sets.items() if dataset in (None, name)}
        # Of an unknown dataset there are none: the server refuses that.
        if expected is not None and names - {expected}:
            got = "; ".join(", ".join(each) for each in sorted(names))
            raise ValueError(
                f"{self.url}: expected a policy with the actions of the filter's limits,"
                f" {', '.join(expected)}, got {got}; write limits with the policy's dims in their"
                " order, or name the dataset"
            )

    def act(
        self,
        images: dict[str, np.ndarray],
        proprio: np.ndarray | None = None,
        observed_at: float | None = None,
        report: Report = SILENT,
        resend: bool = True,
        sensors: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The server's answer to a frame: "actions" float32 [k d] in the robot's units,
        "confidence", "timing" ...

        Args:
            images: uint8 RGB [h, w, 3] of the handshake's cameras; those that are not of the
                handshake's size are resized here.
            proprio: the state [p].
            observed_at: when the frame was taken, on the clock of `waits` (time.monotonic); by
                default now.
            report: of the robot.
            resend: whether to try again, with the same frame, when the connection is lost.
            sensors: readings of the handshake's sensors by name: arrays, of speech (samples, how
                many a second), which stands until the next comes, or the episode begins again: say
                it again after a lost connection.

        Raises ServerError when the server refuses, ConnectionError after `waits.total`, ValueError
        before the first `reset` and for an answer that is not finite or not of the chunk's length.
        """
        if self._episode is None:
            raise ValueError("Client.act: expected reset(instruction) before the first frame")
        seen = self.waits.clock() if observed_at is None else float(observed_at)
        if report.executed is None and report.chunk is None:
            last = self._last
            report = report._replace(executed=last.executed, chunk=last.chunk, row=last.row)
        report = report._replace(
            gripper=_numbers(report.gripper), distance=_number(report.distance)
        )
        with_filter = self.filter is not None and self.handshake["limits"]
        request = {
            "type": "act",
            "observed_at": seen,
            "images": {name: self._fitted(name, image) for name, image in images.items()},
            "proprio": proprio,
            # A server of before there were sensors knows no such field.
            **({} if sensors is None else {"sensors": dict(sensors)}),
            "limits": self.filter.limits.digest if with_filter else None,
        }
        said = report._asdict()
        if report.plan is None:  # nor such fields
            del said["plan"], said["delay"]
        else:
            self.check_realtime()
        reply = self._call({**request, **said}, "actions", resend)
        actions: Any = reply.get("actions")
        k = self.handshake["chunk"]
        fits = (
            isinstance(actions, np.ndarray)
            and actions.dtype.kind == "f"
            and actions.ndim == 2
            and len(actions) == k
        )
        if not fits or not np.isfinite(actions).all() or reply.get("observed_at") != seen:
            raise ValueError(
                f"{self.url}: reply: expected {k} finite actions of the frame of {seen}, got"
                f" {reply}"
            )
        self._reply = reply
        return reply

    def check_realtime(self) -> None:
        """Raises ValueError where the server does not say that its policy keeps to plans."""
        if not self.handshake.get("realtime"):
            raise ValueError(
                f"{self.url}: realtime: expected a server whose policy flows (heads flow, expert)"
                " and that knows of plans, got another; update it, or blend with freeze"
            )

    def _fitted(self, name: str, image: Any) -> Any:
        """A frame at the policy's size. What is no frame at all is for the server to refuse."""
        about = self.handshake["image"]
        size = about.get("sizes", {}).get(name, about["size"])  # sizes: of cameras that differ
        frame = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
        if not frame or image.shape[2] != 3 or image.shape == (size, size, 3):
            return image
        how = about.get("resize")
        if how is None or _resize is None:
            raise ValueError(
                f"images[{name!r}]: expected {size} x {size} pixels, got {image.shape}; copy"
                f" resize.py of this server's version beside client.py, or resize with {how} as"
                " in training"
            )
        return _resize(image, size, how.lower())  # artefacts of before say Lanczos

    def command(
        self,
        index: int,
        pose: np.ndarray | None = None,
        distance: float | None = None,
        measured_at: float | None = None,
    ) -> np.ndarray:
        """Action `index` of the last chunk as the filter lets it through, float64 [d]: send it to
        the motors at once. Call it once per control step, of the filter's limits.

        Args:
            pose, distance: of the robot, see Report.
            measured_at: when the pose was, on the clock of `waits`; by default now.

        Raises ValueError without a filter, before the first chunk, and for an index that it does
        not have.
        """
        reply, k = self._reply, self.handshake["chunk"]
        if self.filter is None or reply is None or not 0 <= index < k:
            raise ValueError(
                f"Client.command: expected a client with a filter, a chunk from `act`, and one of"
                f" its actions 0 to {k - 1}, got {index}"
            )
        now = self.waits.clock()
        due = reply["observed_at"] + index / self.filter.limits.control_rate
        if (reply.get("safety") or {}).get("stopped"):
            sent = self.filter.rest()
        else:
            measured = now if measured_at is None else measured_at
            reading = self.filter.new_reading(min(due, now), pose, distance, measured)
            sent = self.filter.step(reply["actions"][index], reading)
        self._last = Report(executed=sent.astype(np.float32))
        return sent

    def stop(self, why: str) -> None:
        """Latches the stop of this session's limits at the server. From any thread; does not wait
        for an answer.

        Raises ConnectionError when it cannot be sent, ValueError for a server without limits. What
        was received before is not taken back: the robot needs a stop of its own anyway.
        """
        if not self.handshake["limits"]:
            raise ValueError(
                f"{self.url}: stop: this server has no limits to latch; stop the robot itself"
            )
        try:
            self._connection.send(pack({"type": "stop", "id": next(self._numbers), "why": why}))
        except (AttributeError, OSError, WebSocketException) as error:
            raise ConnectionError(
                f"{self.url}: the stop was not sent: {error}; stop the robot itself"
            ) from error

    def ask(self, message: dict[str, Any], answer: str) -> dict[str, Any]:
        """Any message of the wire, sent once, and the answer of that type to it. Raises as
        `act`.
        """
        return self._call(message, answer, resend=False)

    def _call(
        self, request: dict[str, Any] | None, answer: str, resend: bool = True
    ) -> dict[str, Any]:
        """One request (None: only a connection) with as many attempts as `waits.total` has room
        for.
        """
        waits, pause = self.waits, self.waits.first
        end = waits.clock() + waits.total
        while True:
            try:
                if self._connection is None:
                    self._open()
                done = (
                    self.handshake
                    if request is None
                    else self._exchange(self._connection, request, answer)
                )
                self.trouble = ""
                return done
            except ssl.SSLCertVerificationError:
                raise
            except ServerError as error:
                if error.code not in RETRIED or not resend:
                    raise
                last: Exception = error
            except (OSError, WebSocketException) as error:
                self._drop()
                last = error
                if request and "chunk" in request:
                    # A new session knows nothing of it.
                    request = {**request, "chunk": None, "row": None}
            self.trouble = f"{type(last).__name__}: {last}"
            wait = pause * (0.5 + 0.5 * waits.random())
            if self._closed or not resend or waits.clock() + wait > end:
                wanted = "an answer" if not resend else f"an answer within {waits.total} s"
                raise ConnectionError(
                    f"{self.url}: expected {wanted}, got {self.trouble}; is the server up?"
                ) from last
            waits.sleep(wait)
            pause = min(2 * pause, waits.longest)

    def _open(self) -> None:
        if self._closed:
            raise ConnectionError("this client was closed")
        waits = self.waits
        raw = socket.create_connection(self._address, waits.open)
        raw.settimeout(None)
        # What is received has timeouts of its own; what is sent to a server that no longer reads
        # must end as well.
        limit = struct.pack("@ll", int(waits.reply), int(waits.reply % 1 * 1e6))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token is not None else {}
        with contextlib.ExitStack() as stack:
            try:
                opened = connect(
                    self.url, sock=raw, ssl=self._tls, additional_headers=headers, compression=None,
                    open_timeout=waits.open, close_timeout=0.5, max_size=MAX_REPLY,
                )  # fmt: skip
            except InvalidStatus as error:
                if error.response.status_code in (401, 403):
                    raise ServerError(
                        "unauthorised", f"{self.url}: {error}; check the token"
                    ) from None
                raise
            connection = stack.enter_context(opened)
            self._check(self._receive(connection, waits.open))
            if self._episode is not None:
                self._exchange(connection, self._episode, "ready")
            self._closing, self._connection = stack.pop_all(), connection
        self.reconnects += 1

    def _check(self, handshake: dict[str, Any]) -> None:
        if handshake.get("server") != "vla_jax" or handshake.get("protocol") != PROTOCOL:
            got = {name: handshake.get(name) for name in ("server", "protocol")}
            raise ValueError(
                f"{self.url}: expected a vla_jax server of protocol {PROTOCOL}, got {got};"
                " update one"
            )
        needed = {"artefact", "cameras", "chunk", "datasets", "image", "limits", "session"}
        missing = needed - handshake.keys()
        if missing:
            raise ValueError(
                f"{self.url}: handshake: {', '.join(sorted(missing))} missing; update the server"
            )
        artefact = self._artefact or handshake["artefact"]
        wanted = {**handshake, "artefact": artefact, **self.handshake}
        for name in sorted(handshake.keys() | self.handshake.keys()):
            if name != "session" and handshake.get(name) != wanted[name]:
                fix = (
                    "another server than this client wants or began with; stop, and make a new"
                    " client to accept it"
                )
                raise ValueError(
                    f"{self.url}: {name}: expected {wanted[name]}, got {handshake.get(name)}: {fix}"
                )
        mine = None if self.filter is None else self.filter.limits.digest
        if mine is not None and handshake["limits"] not in (None, mine):
            raise ValueError(
                f"{self.url}: limits: expected those of this robot's filter, {mine}, got"
                f" {handshake['limits']}; give both the same file"
            )
        self.handshake = handshake

    def _exchange(self, connection: Any, request: dict[str, Any], answer: str) -> dict[str, Any]:
        """Sends, and waits for the answer; those to an earlier request, or to a `stop`, are
        skipped.
        """
        number = next(self._numbers)
        request = {**request, "id": number}
        if "observed_at" in request and self.handshake["limits"]:
            request["age"] = self.waits.clock() - request["observed_at"]
        connection.send(pack(request))
        end = self.waits.clock() + self.waits.reply
        while True:
            reply = self._receive(connection, end - self.waits.clock())
            if reply.get("type") == "error" and reply.get("id") in (None, number):
                raise ServerError(str(reply.get("code")), str(reply.get("message")))
            if reply.get("type") == answer and reply.get("id") == number:
                return reply

    def _receive(self, connection: Any, timeout: float) -> dict[str, Any]:
        data = connection.recv(max(timeout, 0.0))
        message = data if isinstance(data, str) else unpack(data)
        if not isinstance(message, dict):
            raise ValueError(f"{self.url}: expected a msgpack map, got {message!r:.200}")
        return message

    def _drop(self) -> None:
        self._connection = None
        self._closing.close()


def freeze(
    present: np.ndarray, new: np.ndarray, delay: int, keep: Sequence[int] = ()
) -> np.ndarray:
    """A new chunk that begins as the present plan goes on.

    The present plan's weight at step i is 1 for i < delay, then c (e^c - 1) / (e - 1), c = (n - i)
    / (n - delay + 1), and 0 from n on: the soft mask of real-time chunking (arXiv 2506.07339, eq.
    5). There it guides the sampler of a flow, which inpaints; here finished chunks are averaged, so
    it is continuous, and no sample of the policy.

    Args:
        present: the plan from the new chunk's step 0 on, [n d], n <= k.
        new: [k d].
        delay: steps that were carried out, or are due, before the new chunk was there.
        keep: dims that are not averaged: the present plan's before `delay`, the new one's after.
    """
    n, step = len(present), np.arange(len(present))
    c = np.clip((n - step) / (max(n - delay, 0) + 1), 0, 1)
    weight = np.where(step < delay, 1.0, c * np.expm1(c) / np.expm1(1))[:, None]
    weight = np.repeat(weight, new.shape[1], 1)
    weight[:, list(keep)] = (step < delay)[:, None]
    blended = np.array(new, np.float64)
    blended[:n] = weight * present + (1 - weight) * new[:n]
    return blended


def ensemble(actions: np.ndarray, decay: float, keep: Sequence[int] = ()) -> np.ndarray:
    """One action [d] from what n chunks say of the same step, oldest first, [n d].

    Weights exp(-decay * i), i = 0 the oldest: temporal ensembling of ACT (arXiv 2304.13705). Dims
    of `keep` are the newest chunk's.
    """
    weight = np.exp(-decay * np.arange(len(actions)))
    action = weight @ actions / weight.sum()
    action[list(keep)] = actions[-1, list(keep)]
    return action


class Step(NamedTuple):
    """What to do in this period: `action` [d] in the robot's units, or None and why, which means:
    stop the robot. With a filter the stop is an action too, and None is a call that came too early.

    There is also a `why` where the action is not the policy's: while the server's limits hold the
    robot still, and in a stop.

    Attributes:
        observed_at: of the newest frame in it. due: the time it is for, on the same clock.
        chunk, row: the number of that frame's chunk, and its place there, from 0.
    """

    action: np.ndarray | None
    why: str = ""
    observed_at: float | None = None
    due: float | None = None
    chunk: int | None = None
    row: int | None = None


class _Chunk(NamedTuple):
    slot: int  # the control step its frame belongs to, and its first action
    observed_at: float
    actions: np.ndarray  # [k d]
    number: int | None = None  # of the reply


class Plan:
    """Which action is due when, of the chunks that came so far. Knows no clock, network or thread.

    Time is cut into control steps of one period, counted from the first time it hears of. Step 0 of
    a chunk is the action of its frame's own control step, as in training, so step i is carried out
    i steps after that: at observed_at + i * period, at most 1.25 periods late and 1.75 early,
    however the loop and the frames jitter. Nothing is carried out twice, and a step that was missed
    is skipped.
    """

    def __init__(
        self, period: float, blend: str = "freeze", decay: float = 0.01, keep: Sequence[int] = ()
    ) -> None:
        self.period, self.keep = period, keep
        self.counts: Counter[str] = Counter()
        self.delays: deque[int] = deque(maxlen=20)  # control steps from frames to their chunks
        self.chunks = 0  # that came in time
        self.too_late = 0  # replies in a row of which nothing was left
        self.end = -math.inf  # the control step at which the chunks are used up
        self._blend, self._decay, self._origin, self._last = blend, decay, math.nan, -math.inf
        self._chunks: list[_Chunk] = []
        self._newest = -math.inf

    def slot(self, at: float) -> int:
        """The control step that a frame belongs to: it may have been taken a little before it
        began.
        """
        return math.floor(self._phase(at) + SLACK)

    def due(self, now: float) -> int:
        """The control step to carry out: the one after the last, or that of now where there is a
        gap.
        """
        return int(max(math.floor(self._phase(now) + 1e-6), self._last + 1))

    def _phase(self, at: float) -> float:
        if math.isnan(self._origin):
            self._origin = at
        return (at - self._origin) / self.period

    def left(self, now: float) -> float:
        """Control steps that are still to come, this one included; not positive without any."""
        return float(self.end - self.due(now))

    def add(
        self,
        actions: np.ndarray,
        observed_at: float,
        now: float,
        whole: bool = False,
        number: int | None = None,
    ) -> None:
        """A chunk [k d] has come. Its actions whose time has passed are dropped, and all of it if a
        newer one is there.

        whole: it replaces the plan as it stands, and is not blended with it. number: of the reply.
        Raises ValueError for
        a frame after `now`.
        """
        if not observed_at <= now:
            raise ValueError(
                f"observed_at: expected at most {now}, which is now, got {observed_at}; one clock"
                " for both"
            )
        if observed_at <= self._newest:
            self.counts["dropped_order"] += 1
            return
        due, k = self.due(now), len(actions)
        slot = min(self.slot(observed_at), due)
        late = min(due - slot, k)
        self.delays.append(late)
        self._newest = observed_at
        self.counts["dropped_late"] += late
        self.too_late = self.too_late + 1 if late == k else 0
        if late == k:
            return
        chunk = _Chunk(slot, observed_at, np.array(actions, np.float64), number)
        if self._chunks and self._blend == "freeze" and not whole:
            before = self._chunks[-1]
            present = before.actions[slot - before.slot :]
            chunk = chunk._replace(actions=freeze(present, chunk.actions, late, self.keep))
        if self._blend != "ensemble" or whole:
            self._chunks.clear()
        self._chunks.append(chunk)
        self.end = slot + k
        self.chunks += 1

    def underway(self, at: float) -> tuple[np.ndarray | None, int | None]:
        """What is carried out from the control step of a frame of that time on [n d], and the steps
        of it that will have been when that frame's chunk is there, by `delay`. None without a plan.
        """
        newest = self._chunks[-1] if self._chunks else None
        left = None if newest is None else newest.actions[self.slot(at) - newest.slot :]
        if newest is None or left is None or not len(left):
            return None, None
        return left, min(self.delay, len(left), len(newest.actions) - 1)

    @property
    def delay(self) -> int:
        """Control steps from a frame to its chunk, of the last 20 the 95th percentile."""
        return math.ceil(np.quantile(self.delays, 0.95))

    def take(self, now: float) -> Step:
        """The action of this control step, and it counts as carried out. `why` is empty where
        nothing is left.
        """
        due = self.due(now)
        wait = self._origin + due * self.period - now
        if wait > EARLY * self.period:
            return Step(
                None, f"early: the next action is due in {1e3 * wait:.0f} ms; call once per period"
            )
        self._chunks = [chunk for chunk in self._chunks if chunk.slot + len(chunk.actions) > due]
        actions = [chunk.actions[due - chunk.slot] for chunk in self._chunks]
        if not actions:
            self.counts["starved"] += 1
            return Step(None)
        self.counts["used"] += 1
        self._last = due
        action, newest = ensemble(np.array(actions), self._decay, self.keep), self._chunks[-1]
        seen, row = newest.observed_at, due - newest.slot
        return Step(action, "", seen, seen + row * self.period, newest.number, row)


class Seen(NamedTuple):
    """What is sent of a frame."""

    observed_at: float
    images: dict[str, np.ndarray]
    proprio: np.ndarray | None
    report: Report
    sensors: dict[str, Any] | None


class ChunkBroker:
    """Actions at a fixed rate from a policy that takes longer than a period: asks for the next
    chunk in time.

    `observe` and `next` are for the control loop and never wait. A thread of its own talks to the
    server: it sends the newest frame once no more than `share` of a chunk is left, or no more than
    the longest of the last 20 latencies needs. One request is under way at a time, so there are
    gaps where a reply takes more than half of a chunk. Where nothing valid is left, `next` gives no
    action and says why; an old one it never gives.

    With a filter, the client's, what `next` gives has passed it and is to be sent at once. On a
    server with limits there must be one: chunks overlap, and what is carried out of them, and when,
    the server does not see. A chunk that the server stopped replaces the plan, as a stop.
    """

    def __init__(
        self,
        client: Client,
        period: float | None = None,
        share: float = 0.5,
        blend: str = "freeze",
        decay: float = 0.01,
        keep: Sequence[int] | None = None,
    ) -> None:
        """Starts the thread; `reset` comes next.

        Args:
            client: nobody else is to use it, and `close` closes it.
            period: of the control loop, s; by default that of the filter, and without one that of
                the data the policy was trained on. A filter is for loops of its own rate: none
                faster, and none so slow that each step would come after a pause.
            share: of a chunk; when to ask.
            blend: where chunks overlap: "freeze", "ensemble" (see these functions; best with
                share=1), "newest", or "realtime": as newest, and the server is told what goes on
                meanwhile and for how long, by the delays so far, so that a policy that flows begins
                its chunk like that (see realtime.py).
            decay: of `ensemble`.
            keep: dims never averaged; by default those with "gripper" in their name, and by the
                filter's limits positions that wrap. Without a filter such angles belong there too.
        """
        self._filter = client.filter
        if client.handshake["limits"] and self._filter is None:
            raise ValueError(
                "ChunkBroker: expected a client with a filter, since the server has limits: only"
                " beside the motors can they be kept; Client(..., filter=SafetyFilter(limits, 1.0))"
            )
        self.period = _own_period(client) if period is None else float(period)
        if (
            not 0 < self.period < math.inf
            or not 0 <= share <= 1
            or blend not in BLENDS
            or not 0 <= decay < math.inf
        ):
            wanted = f"period > 0, 0 <= share <= 1, blend of {', '.join(BLENDS)}, decay >= 0"
            raise ValueError(
                f"ChunkBroker: expected {wanted}; got {self.period}, {share}, {blend!r}, {decay}"
            )
        if blend == "realtime":
            client.check_realtime()
        if self._filter is not None:
            least = 1 / self._filter.limits.control_rate
            if not least * (1 - 1e-6) <= self.period < PAUSE * least:
                raise ValueError(
                    f"period: expected {least} s, for which the filter's limits are, and less than"
                    f" {PAUSE} times that, got {self.period}; give the limits the loop's own"
                    " control_rate"
                )
        self._client, self._clock = client, client.waits.clock
        self._settings, self._keep, self._k = (
            (self.period, blend, decay),
            keep,
            client.handshake["chunk"],
        )
        self._threshold = share * self._k
        self._changed = threading.Condition(threading.RLock())
        self._latencies: deque[float] = deque(maxlen=20)
        self._plan = Plan(*self._settings)
        self._episode = 0  # counts resets: what answers an earlier one is dropped
        self._current: tuple[str, str | None, int] | None = None  # the arguments of the last reset
        self._begin: tuple[str, str | None, int] | None = None  # of one that is still to be sent
        # The newest frame, not yet sent.
        self._seen: Seen | None = None
        self._action: np.ndarray | None = None  # the last one carried out
        self._sensed: tuple[float, Report] | None = None  # the newest, with its time
        self._asked, self._replies = 0, 0
        self._waiting: float | None = None  # since when a reply is outstanding
        self._told = self._now = -math.inf
        self._trouble, self._held, self._stopped = "", "", "before the first reset"
        self._halted = False  # by the server, since the last reply
        self._fatal: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ChunkBroker", daemon=True)
        self._thread.start()

    def __enter__(self) -> ChunkBroker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        """Begins an episode, and motion after a `stop` or an error. Returns at once; a refusal
        comes out of `next`.

        Nothing of the last episode is executed any more: `next` gives no action until the first
        chunk of this one.
        """
        keep = self._unblended(dataset) if self._keep is None else self._keep
        with self._changed:
            before, self._plan = self._plan, Plan(*self._settings, keep)
            self._plan.counts, self._plan.delays = before.counts, before.delays
            self._episode += 1
            self._begin = self._current = (instruction, dataset, seed)
            self._seen = self._action = None
            self._told = -math.inf  # one wrong time is not for ever
            self._fatal, self._stopped, self._held, self._trouble = None, "", "", ""
            self._halted, self._waiting = False, None
            self._changed.notify()

    def _unblended(self, dataset: str | None) -> list[int]:
        """Grippers, and positions that wrap: between two numbers of an angle lies another place."""
        sets = self._client.handshake["datasets"]
        names = [body["action"] for name, body in sets.items() if dataset in (None, name)]
        keep = {i for each in names for i, name in enumerate(each) if "gripper" in name}
        dims = getattr(self._filter.limits, "dims", ()) if self._filter is not None else ()
        wraps = {i for i, dim in enumerate(dims) if dim.wraps and dim.command == "position"}
        return sorted(keep | wraps)

    def observe(
        self,
        images: dict[str, np.ndarray],
        proprio: np.ndarray | None = None,
        observed_at: float | None = None,
        report: Report = SILENT,
        sensors: Mapping[str, Any] | None = None,
    ) -> None:
        """The newest frame, copied; arguments as of `Client.act`. `report` needs `executed` only if
        the robot did not do what `next` said. Its pose is of the frame's time.

        Raises ValueError for a time before the last frame's or after now: times are of the clock in
        the client's waits (time.monotonic), and it does not go backwards.
        """
        now = self._clock()
        seen = now if observed_at is None else float(observed_at)
        with self._changed:
            if not self._told <= seen <= now:
                raise ValueError(
                    f"observed_at: expected {self._told} (the last) to {now} (now), got {seen}; one"
                    " clock"
                )
            self._told = seen
            self._sensed = seen, report._replace(pose=_copied(report.pose))
            if report.executed is None:
                report = report._replace(executed=self._action)
            self._seen = Seen(
                seen,
                {name: np.array(image) for name, image in images.items()},
                _copied(proprio),
                report,
                self._readings(sensors),
            )
            self._changed.notify()

    def _readings(self, sensors: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """A copy of them, with the speech of a frame that was not sent."""
        before = {} if self._seen is None else self._seen.sensors or {}
        said = {name: raw for name, raw in before.items() if isinstance(raw, tuple)}
        if sensors is None:
            return said or None
        copied = {
            name: (np.array(raw[0]), int(raw[1]))
            if isinstance(raw, (tuple, list))
            else _copied(raw)
            for name, raw in sensors.items()
        }
        return {**said, **copied}

    def next(self) -> Step:
        """The action of this control step. Call it once per period; it does not wait.

        Raises ServerError or ValueError where the server refused something for good, TooSlow when
        three replies in a row came after the end of their chunk, and ValueError when the clock went
        backwards. The robot is then to stop, as without an action.
        """
        now = self._clock()
        with self._changed:
            if now < self._now:
                raise ValueError(
                    f"clock: expected at least {self._now}, the last time, got {now}; use"
                    " time.monotonic"
                )
            self._now = now
            if self._fatal is not None:
                raise self._fatal
            if self._stopped:
                return self._still(f"stopped: {self._stopped}")
            step = self._plan.take(now)
            self._changed.notify()
            if step.action is None:
                return step if step.why else self._still(self._why(now))
            if self._filter is not None:
                if self._halted:
                    return self._still(self._held or "stopped by the server's limits")
                step = step._replace(action=self._filtered(step, now))
            self._action = step.action
            return step._replace(why=self._held)

    def _still(self, why: str) -> Step:
        """No action, and the filter's stop where there is a filter."""
        if self._filter is None:
            return Step(None, why)
        self._action = self._filter.rest()
        return Step(self._action, why)

    def _filtered(self, step: Step, now: float) -> np.ndarray:
        measured_at, report = self._sensed or (now, SILENT)
        reading = self._filter.new_reading(
            min(step.due or now, now), report.pose, report.distance, measured_at
        )
        sent: np.ndarray = self._filter.step(step.action, reading)
        return sent

    def stop(self, why: str) -> None:
        """No action any more until `reset`, from this very step on. Does not wait; the server is
        told as soon as the network lets it, where it has limits.
        """
        with self._changed:
            self._stopped = why or "without a reason"
        if self._client.handshake["limits"]:
            threading.Thread(target=self._tell, args=(why,), daemon=True).start()

    def close(self) -> None:
        """Ends the thread and closes the client."""
        with self._changed:
            self._closed, self._stopped = True, "closed"
            self._changed.notify()
        self._client.close()  # which ends what the thread waits for
        self._thread.join(10.0)
        self._client.close()

    @property
    def counters(self) -> dict[str, Any]:
        """Since the beginning: chunks requested, and replies to them; actions used, and
        dropped_late (their time had passed when they came); replies dropped_order (a newer one was
        there); steps starved. Of the last 20 replies, from request to arrival, s: latency_p50,
        latency_p95, latency_max; and delay_p95, control steps from the frame's own to its chunk.
        """
        with self._changed:
            names = ("used", "dropped_late", "dropped_order", "starved")
            counters: dict[str, Any] = {name: self._plan.counts[name] for name in names}
            counters.update(requested=self._asked, replies=self._replies)
            if self._latencies:
                p50, p95, top = np.quantile(self._latencies, [0.5, 0.95, 1.0]).tolist()
                counters.update(latency_p50=p50, latency_p95=p95, latency_max=top)
                counters.update(delay_p95=self._plan.delay)
            return counters

    def _why(self, now: float) -> str:
        """Why there is no action."""
        if self._told < now - 1e9:
            reasons = ["no frame yet"]
        elif self._waiting is not None:
            reasons = [f"a reply is outstanding for {1e3 * (now - self._waiting):.0f} ms"]
        else:
            reasons = [f"the newest frame is {1e3 * (now - self._told):.0f} ms old"]
        if not self._plan.chunks:
            reasons.insert(0, "no chunk has arrived yet")
        if math.isfinite(self._plan.end):
            reasons.append(f"the plan ended {-self._plan.left(now):.0f} steps ago")
        if self._latencies:
            reasons.append(f"replies take up to {1e3 * max(self._latencies):.0f} ms")
        chunk = f"a chunk lasts {1e3 * self._k * self.period:.0f} ms"
        return "; ".join([*reasons, chunk, *filter(None, [self._client.trouble or self._trouble])])

    def _due(self) -> bool:
        """Whether it is time to ask."""
        if self._fatal is not None or self._stopped:
            return False
        if self._begin is not None or self._seen is None:
            return self._begin is not None
        needed = max(self._latencies, default=0.0) / self.period + 1
        return self._plan.left(self._clock()) <= max(self._threshold, needed)

    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                episode = self._episode
            try:
                self._serve()
            except Exception as error:  # whatever it is, the control loop must hear of it
                self._failed(error, episode)

    def _serve(self) -> None:
        """Waits until something is to be asked, and asks it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._due())
            episode, begin = self._episode, self._begin
        if self._closed:
            return
        self._client.connect()  # first, so that what is sent then is the newest frame
        if begin is None:
            self._ask(episode)
            return
        self._client.reset(*begin)
        with self._changed:
            if self._begin is begin:
                self._begin = None

    def _ask(self, episode: int) -> None:
        asked = self._request(episode)
        if asked is None:
            return
        seen, images, proprio, report, sensors = asked
        reply = self._client.act(images, proprio, seen, report, resend=False, sensors=sensors)
        self._answered(reply, episode)

    def _request(self, episode: int) -> Seen | None:
        """The newest frame, which is sent now."""
        with self._changed:
            if self._seen is None or episode != self._episode:
                return None
            asked, self._seen = self._seen, None
            if self._settings[1] == "realtime":
                plan, delay = self._plan.underway(asked.observed_at)
                report = asked.report._replace(plan=plan, delay=delay)
                asked = asked._replace(report=report)
            self._asked += 1
            self._waiting = self._clock()
            return asked

    def _answered(self, reply: dict[str, Any], episode: int) -> None:
        with self._changed:
            if episode != self._episode:
                return
            now, seen = self._clock(), reply["observed_at"]
            self._trouble = ""
            self._latencies.append(now - (now if self._waiting is None else self._waiting))
            self._waiting = None
            self._replies += 1
            safety = reply.get("safety") or {}
            held = safety.get("latched")
            self._halted = bool(safety.get("stopped"))
            self._held = (
                f"held still by the server's limits: {held}; an operator resets them"
                if held
                else ""
            )
            self._plan.add(reply["actions"], seen, now, self._halted, reply.get("chunk"))
            if self._plan.too_late:
                lasts = f"{self._k} steps of {1e3 * self.period:.0f} ms"
                self._trouble = (
                    f"a reply came {1e3 * (now - seen):.0f} ms after its frame, and a chunk is"
                    f" {lasts}"
                )
            if self._plan.too_late >= PATIENCE:
                self._fatal = TooSlow(
                    f"{self._trouble}, {PATIENCE} times; a faster server or longer chunks are"
                    " needed"
                )

    def _tell(self, why: str) -> None:
        try:
            self._client.stop(why)
        except ConnectionError as error:
            with self._changed:
                self._trouble = str(error)

    def _failed(self, error: Exception, episode: int) -> None:
        code = getattr(error, "code", "") if isinstance(error, ServerError) else ""
        with self._changed:
            if self._closed or episode != self._episode:
                return
            self._trouble = f"{type(error).__name__}: {error}"
            self._waiting = None
            if code in ANEW:
                self._begin = self._begin or self._current
            elif code not in RETRIED and not isinstance(error, ConnectionError):
                self._fatal = error
        self._client.waits.sleep(self._client.waits.first)


def _own_period(client: Client) -> float:
    """Seconds per control step of the filter's limits, or else of the data the policy was trained
    on. Raises ValueError where neither is known.
    """
    if client.filter is not None:
        return float(1 / client.filter.limits.control_rate)
    hertz: Any = client.handshake.get("control_hz")
    if not hertz:
        raise ValueError(
            "period: expected seconds, got None; this policy does not know the rate of its data"
        )
    return float(1 / hertz)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _numbers(value: Any) -> Any:
    """Of grippers: a number, or numbers by name."""
    if isinstance(value, dict):
        return {str(name): float(each) for name, each in value.items()}
    return _number(value)


def _copied(values: Any) -> np.ndarray | None:
    return None if values is None else np.array(values)


def pack(message: Any) -> bytes:
    """A message as bytes. Raises ValueError for an array of another kind than bool, integer or
    float.
    """
    return msgpack.packb(message, default=_encode, use_bin_type=True)


def unpack(data: bytes, limit: int = 1 << 26) -> Any:
    """A message from bytes; arrays are views of them, not to be written to.

    Raises ValueError for bytes that are not exactly one message, larger than `limit` or of more
    than MAX_PARTS maps and lists, and for an array whose dtype, shape and bytes do not belong
    together.
    """
    if len(data) > limit:
        raise ValueError(f"message: expected at most {limit} bytes, got {len(data)}")
    parts = 0

    def counted(part: Any) -> Any:  # an empty map is one byte on the wire and a hundred here
        nonlocal parts
        parts += 1
        if parts > MAX_PARTS:
            raise ValueError(f"message: expected at most {MAX_PARTS} maps and lists, got more")
        return _decode(part) if isinstance(part, dict) else part

    try:
        return msgpack.unpackb(
            data, object_hook=counted, list_hook=counted, raw=False, strict_map_key=False
        )
    except Exception as error:  # msgpack has many kinds of errors, some without a message
        if str(error).startswith("message: "):
            raise
        raise ValueError(
            f"message: expected one msgpack message, got {type(error).__name__}: {error}"
        ) from None


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in DTYPE_KINDS:
            raise ValueError(f"message: expected arrays of bool, int or float, got {value.dtype}")
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": list(value.shape),
        }
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(
        f"message: expected numbers, text, lists, maps and arrays, got {type(value).__name__}"
    )


def _decode(part: dict[Any, Any]) -> Any:
    if b"__ndarray__" in part:
        return _array(part.get(b"dtype"), part.get(b"shape"), part.get(b"data"))
    if b"__npgeneric__" in part:  # openpi's client sends numpy scalars so
        data = part.get(b"data")
        if isinstance(data, (bool, int, float)):
            return data
        return _array(part.get(b"dtype"), [], data)
    return part


def _array(dtype: Any, shape: Any, data: Any) -> np.ndarray:
    wrong = (
        "message: array: expected dtype, shape and data that belong together, got"
        f" {str(dtype)[:40]!r}"
    )
    if (
        not isinstance(dtype, (str, bytes))
        or not isinstance(data, bytes)
        or not isinstance(shape, (list, tuple))
    ):
        raise ValueError(wrong)
    name = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype
    if (
        len(name) > 4
        or name[:1] not in "<>|="
        or name[1:2] not in DTYPE_KINDS
        or not name[2:].isdigit()
    ):
        raise ValueError(wrong + ", no plain number")
    if len(shape) > 8 or not all(type(size) is int and 0 <= size < 1 << 31 for size in shape):
        raise ValueError(wrong + f" {str(shape)[:80]}")
    try:
        kind = np.dtype(name)
    except TypeError:
        raise ValueError(wrong) from None
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(wrong + f" {list(shape)} and {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape)
