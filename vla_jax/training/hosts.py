"""Several hosts as one run: they join, check that they are replicas, wait for each other, and end
together. A host is one process of jax's.

jax notices by itself when a process is gone, and then aborts the others; it does not say which
machine it was, where it stood or what to do, and it cannot tell a host that ended with an error of
its own from one that was killed. So every host says each second what it does (`Beat`), in the
key-value store of jax's coordination service; host 0 looks at all of them (`Watch`), and what it
concludes every host reads, prints and ends with. Where the coordinator itself is gone, jax aborts
within a second: the process's last words are said from the handler of SIGABRT.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # the client of the coordination service; orbax takes it there too

from vla_jax.training.watch import AGAIN, LOST_EXIT, Beat, Times, Verdict, Watch, differences

SMALL = 2**16  # bytes of an array's part
POLL = 10_000  # milliseconds that one question for an answer waits; then it is asked again
PREFIX = "vla_jax/"
BEATS, VERDICT = f"{PREFIX}beat/", f"{PREFIX}verdict/"


def replicas(state: Any) -> dict[str, str]:
    """A fact for `same`: one crc over this host's parts of all arrays with parts of up to SMALL
    bytes, named after which parts these are. Hosts with the same parts have the same crc.

    Replicas that drift apart do so in all arrays: the small ones tell, and cost nothing.
    """
    parts, contents = 0, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        own = {str(shard.index): shard.data for shard in leaf.addressable_shards}
        if next(iter(own.values())).nbytes <= SMALL:
            for index in sorted(own):
                parts = zlib.crc32(f"{path}{index}".encode(), parts)
                contents = zlib.crc32(np.asarray(own[index]).tobytes(), contents)
    return {f"state, of the parts {parts:08x}": f"{contents:08x}"}


class Hosts:
    """This host among the others. Alone (`count` 1, no client) nothing below does anything."""

    def __init__(
        self,
        client: Any = None,
        index: int = 0,
        count: int = 1,
        times: Times | None = None,
        moved: Callable[[], int] = lambda: 0,
    ) -> None:
        """Starts to give signs and to listen.

        Args:
            client: of jax's coordination service.
            index, count: jax.process_index() and jax.process_count().
            moved: a number that grows while something gets done that is neither a step nor
                announced with `at`, such as bytes read.
        """
        self.index, self.count = index, count
        self._client, self._times, self._moved = client, times or Times(), moved
        self._name = f"{socket.gethostname()}, process {os.getpid()}"
        self._step, self._doing, self._waiting, self._error = 0, "starting", False, ""
        self._meetings = 0  # had so far; alike on all hosts
        self._answered = time.monotonic()
        self._closed = threading.Event()
        if count > 1:
            for loop in (self._give_signs, self._listen)[: 1 if index == 0 else 2]:
                threading.Thread(target=loop, name=f"hosts{loop.__name__}", daemon=True).start()

    def at(self, step: int, doing: str = "training") -> None:
        """Says what this host is about, for the others to name should it be lost there."""
        self._step, self._doing = step, doing

    def wait(self, name: str) -> None:
        """Returns when every host has called it with this name. However long the others take: it
        ends only when one of them is lost, or stalled.
        """
        if self.count > 1:
            self._meet(name, "", lambda said: "")

    def same(self, where: str, facts: Mapping[str, Any]) -> None:
        """Compares facts (JSON-able) over the hosts. What is true of some hosts alone carries that
        in its name.

        Raises ValueError, on every host, naming the hosts that differ and what in.
        """
        if self.count == 1:
            return

        def compare(said: dict[int, str]) -> str:
            return "\n  ".join(differences({host: json.loads(text) for host, text in said.items()}))

        different = self._meet(f"comparing {where}", json.dumps(dict(facts)), compare)
        if different:
            raise ValueError(
                f"hosts ({where}): expected replicas of one run, got\n  {different}\ngive every"
                " host the same config, code, libraries and data; a host whose numbers alone differ"
                " may have faulty memory or a faulty chip"
            )

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """An exception within ends the run on every host, which then all name it.

        The exit that SIGTERM asks for is none: every host takes it at the same step.
        """
        try:
            yield
        except BaseException as error:
            if self.count == 1 or (isinstance(error, SystemExit) and isinstance(error.code, int)):
                raise
            self._failed(error)

    def report(self, error: BaseException) -> None:
        """Says, from any thread, that this host cannot go on. Host 0's verdict on it, a second or
        two later, ends this process with the others.
        """
        text = str(error).strip() or repr(error)
        self._error = f"{type(error).__name__}: {text[:2000]}"

    def close(self) -> None:
        """Leaves, when all are ready to: from here on nobody watches."""
        if self.count > 1 and not self._closed.is_set():
            self.wait("the end")
            self._closed.set()
            signal.signal(signal.SIGABRT, signal.SIG_DFL)

    def last_words(self) -> str:
        """Why jax aborts this process, as far as that is known here."""
        return (
            f"jax ends host {self.index} ({self._name}) at step {self._step}, {self._doing}; its"
            " lines above say why. Where they name no task, host 0 is gone, the coordinator at"
            f" {distributed.global_state.coordinator_address}: look at its log and at the"
            f" scheduler. {AGAIN}"
        )

    def _meet(self, name: str, said: str, decide: Callable[[dict[int, str]], str]) -> str:
        """What host 0 decides once everyone has said something. The keys go, for a run is long."""
        self._meetings += 1
        here, answers = f"{PREFIX}{self._meetings}/{name}/", f"{PREFIX}answer/"
        doing, self._doing = self._doing, f"waiting: {name}"
        self._waiting = True
        self._client.key_value_set(f"{here}{self.index}", said)
        if self.index == 0:
            everyone: dict[int, str] = {}
            while len(everyone) < self.count:
                everyone = self._read(here)
                if len(everyone) < self.count:
                    time.sleep(min(0.05, self._times.beat))
            if self._meetings > 1:  # who is here has read the last answer
                self._client.key_value_delete(f"{answers}{self._meetings - 1}")
            answer = decide(everyone)
            self._client.key_value_delete(here)
            self._client.key_value_set(f"{answers}{self._meetings}", f"={answer}")
        else:
            answer = self._get(f"{answers}{self._meetings}").removeprefix("=")
        self._waiting, self._doing = False, doing
        return answer

    def _get(self, key: str) -> str:
        while True:
            try:
                return self._client.blocking_key_value_get(key, POLL)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def _read(self, prefix: str) -> dict[int, str]:
        pairs = self._client.key_value_dir_get(prefix)
        return {int(key.rsplit("/", 1)[-1]): value for key, value in pairs}

    def _give_signs(self) -> None:
        """Says each `beat` how this host is, and does what host 0 concludes."""
        watch = Watch(self.count, self._times, time.monotonic()) if self.index == 0 else None
        number, told = 0, False
        while not self._closed.wait(self._times.beat):
            number += 1
            try:
                self._client.key_value_set(f"{BEATS}{self.index}", self._beat(number), True)
                if watch is None:
                    verdict = self._concluded()
                else:
                    said = {host: Beat(*json.loads(b)) for host, b in self._read(BEATS).items()}
                    verdict = watch.look(said, time.monotonic(), time.time())
                    if verdict is not None:
                        self._client.key_value_set(f"{VERDICT}0", json.dumps(verdict))
            except jax.errors.JaxRuntimeError:
                continue  # `_listen` counts the time
            self._answered = time.monotonic()
            if watch is not None and not told and (clocks := watch.clocks()):
                told = True
                _say(
                    f"clocks differ from that of host 0: {clocks}. Training reads none, but logs"
                    " will not line up, and storage refuses requests of a clock that is minutes off"
                )
            if verdict is not None:
                if self.index == 0:  # the service ends with this process: all must have read it
                    time.sleep(3 * self._times.beat)
                self._end(verdict)

    def _listen(self) -> None:
        """Ends this process when the coordinator does not answer. A thread of its own: the other
        one may hang in that very call.
        """
        while not self._closed.wait(self._times.beat):
            silence = time.monotonic() - self._answered
            if silence > self._times.silent:
                why = (
                    f"lost host 0, the coordinator at"
                    f" {distributed.global_state.coordinator_address}: no answer for"
                    f" {silence:.0f} s, at step {self._step}, {self._doing}. It was stopped or cut"
                    f" off: look at its log, at the scheduler and at the network. {AGAIN}"
                )
                self._end(Verdict(why, LOST_EXIT))

    def _concluded(self) -> Verdict | None:
        for _, text in self._client.key_value_dir_get(VERDICT):
            return Verdict(*json.loads(text))
        return None

    def _beat(self, number: int) -> str:
        return json.dumps(
            Beat(
                number=number,
                name=self._name,
                step=self._step,
                doing=self._doing,
                waiting=self._waiting,
                moved=self._moved(),
                at=time.time(),
                error=self._error,
            )
        )

    def _failed(self, error: BaseException) -> NoReturn:
        """Tells the others, and ends. What jax raises may only be the echo of another host's death:
        the time to find that passes first.
        """
        with contextlib.suppress(OSError):  # the log may lie on the disk that is full
            traceback.print_exception(error)
            sys.stderr.flush()
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(self._times.silent + 5 * self._times.beat)
        self.report(error)
        time.sleep(10 * self._times.beat)  # the verdict ends this process; should it not come:
        self._end(Verdict(f"host {self.index} ended: {self._error}", 1))

    def _end(self, verdict: Verdict) -> NoReturn:
        """Ends the process at once: its main thread may hang in a collective."""
        _say(f"host {self.index} ({self._name}) at step {self._step}: {verdict.why}")
        os._exit(verdict.code)


def join(times: Times | None = None, moved: Callable[[], int] = lambda: 0) -> Hosts:
    """Joins the other processes of the run, when the environment says that there are any.

    JAX_COORDINATOR_ADDRESS is host:port of process 0, with JAX_NUM_PROCESSES and JAX_PROCESS_ID
    beside it, or "auto" where jax finds all three itself (TPU pods, Slurm). A coordinator that
    cannot be reached within `times.join` seconds ends the process with LOST_EXIT. Raises ValueError
    when the environment does not say how to join.
    """
    times = times or Times()
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        return ALONE
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    place: dict[str, Any] = {}
    if address == "auto":
        del os.environ["JAX_COORDINATOR_ADDRESS"]  # jax would take it for the address
    else:
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        absent = [name for name in names if not os.environ.get(name, "").isdigit()]
        if ":" not in address or absent:
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS: expected host:port with numbers in {' and '.join(names)}"
                f" beside it, or auto, got {address!r} and no number in"
                f" {', '.join(absent) or 'none of them'}"
            )
        count, index = (int(os.environ[name]) for name in names)
        place = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
        }
    _on_abort(lambda: _unreachable(times.join))
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=times.join,
            heartbeat_timeout_seconds=times.heartbeat,
            shutdown_timeout_seconds=times.heartbeat,
        )
    except (ValueError, RuntimeError, OSError) as error:  # who is found unreachable aborts
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS={address}: expected a run of several hosts to join, got"
            f" {error}; with auto a TPU pod or a Slurm job is needed, else host:port of host 0"
        ) from error
    client = distributed.global_state.client
    hosts = Hosts(client, jax.process_index(), jax.process_count(), times, moved)
    _on_abort(hosts.last_words)
    logging.getLogger("absl").addHandler(_SaveErrors(hosts.report))
    return hosts


class _SaveErrors(logging.Handler):
    """Hears of an error of a checkpoint's writing in the background from orbax's log. It is raised
    too, but only after a barrier (20 minutes) that the other hosts do not reach: they wait for
    this write.
    """

    def __init__(self, report: Callable[[BaseException], None]) -> None:
        super().__init__(logging.ERROR)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Reports the error in the record, if it is one of a save and no echo of a lost host."""
        error = record.exc_info[1] if record.exc_info else None
        echo = (jax.errors.JaxRuntimeError, TimeoutError)
        if record.module == "async_checkpointer" and error and not isinstance(error, echo):
            self._report(error)


ALONE = Hosts()
_handlers: list[Any] = []  # ctypes does not keep what C will call


def _on_abort(words: Callable[[], str]) -> None:
    """Says `words` and ends with LOST_EXIT where the process would abort.

    jax takes no Python callback for this (it throws std::bad_cast), and Python's own handlers run
    after C's abort has returned, which it never does.
    """

    def handle(number: int) -> None:
        _say(words())
        os._exit(LOST_EXIT)

    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handle))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])


def _unreachable(seconds: int) -> str:
    """Last words of a host that did not get to join; with what the network says now."""
    state = distributed.global_state
    address = state.coordinator_address or "(unknown)"
    found = "something answers there"
    try:
        host, port = address.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
    proxies = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy")]
    return (
        f"host {state.process_id}: expected all hosts at the coordinator {address} within {seconds}"
        f" s, got none that answers or not all ({found}). Check that host 0 runs, that every host"
        " was started, with the same number of hosts, that the address is the one of host 0 as the"
        " others see it, and that no firewall"
        + (f" or proxy ({', '.join(proxies)}: unset it)" if proxies else "")
        + " is in between; then start all of them again"
    )


def _say(line: str) -> None:
    """Past Python's buffers, whose locks a stopped thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"vla_jax: {line}\n".encode())
