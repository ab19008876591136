"""One thread that owns the network: requests of several sessions go through it together.

Everything that touches torch runs on this thread, so that the event loop answers meanwhile and no
two passes overlap.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_jax.robot.realtime import Underway
from vla_jax.robot.serving.metrics import Metrics

SLACK = 1 << 20  # bytes of a message beside its images
READING = 4 << 20  # bytes of a sensor's: a depth map of 1280 x 720 float32, a minute of speech
WINDOW = 0.005  # s that the first waiting request waits for others
ACTIVE = 1.0  # s after its last request for which a session is waited for


class BadInput(ValueError):
    """Policy.prepared refused a frame; the episode stands where it stood."""


class Model(NamedTuple):
    """What a server serves.

    Attributes:
        policy: of torch_policy.policy; every session has `new_session()` of it.
        together: act_together of it: one pass for several (policy, inputs).
        about: what the handshake says of it, see `describe`.
    """

    policy: Any
    together: Callable[[list[Any], list[Any]], list[dict[str, Any]]]
    about: dict[str, Any]


class Given(NamedTuple):
    """What Policy.prepared is given of a frame."""

    images: dict[str, np.ndarray]
    proprio: np.ndarray | None
    executed: np.ndarray | None
    sensors: dict[str, Any] | None = None
    underway: Underway | None = None


class Job(NamedTuple):
    """One frame of one session. `arrived` is when it came (time.monotonic)."""

    policy: Any
    given: Given
    arrived: float
    answer: "asyncio.Future[dict[str, Any]]"


def open_model(
    artefact: Path,
    device: str,
    dtype: str,
    compile: bool,
    sessions: int,
    require_signature: str | None = None,
) -> Model:
    """Loads an artefact, proves it on this machine by its golden file, and runs the batches that
    `sessions` can make, so that nothing is left to be compiled later. Arguments as of
    torch_policy.load.

    Raises ValueError for an artefact that is not whole, and when a stage of the replay differs by
    more than its bound.
    """
    from vla_jax.robot.torch_policy import (  # here: the tests of the wire need no torch
        act_together,
        golden,
        load,
    )
    from vla_jax.robot.torch_policy.folder import SUMS, digest

    policy = load(artefact, device, dtype, compile, require_signature=require_signature)
    file = artefact / "golden.npz"
    rows = golden.replay(policy, file, dtype)
    if any(row.exceeds for row in rows):
        raise ValueError(
            f"{artefact}: this machine ({device}, {dtype}) does not reproduce"
            f" golden.npz\n{golden.table(rows)}\nserve in another dtype or without --compile, or on"
            " another device"
        )
    stats = json.loads((artefact / "norm_stats.json").read_text(encoding="utf-8"))
    about = describe(policy.config, stats, digest(artefact / SUMS))
    about["realtime"] = policy.network.head.inpaints
    model = Model(policy, act_together, about)
    with np.load(file, allow_pickle=False) as arrays:
        frame = {name: arrays[f"image/{name}"][0] for name in policy.config["cameras"]}
        proprio = arrays["proprio"][0] if "proprio" in arrays else None
        begin = str(arrays["instruction"]), str(arrays["dataset"])
    # The replay was a batch of one. Compiled programs are made for each size; without them the
    # largest batch is tried, to see that it fits into memory.
    for size in range(2 if compile else max(sessions, 2), sessions + 1):
        episodes = [policy.new_session() for _ in range(size)]
        for episode in episodes:
            episode.reset(*begin)
        # A first frame and a later one; CUDA graphs are recorded at the second of the later ones.
        for _ in range(2 + compile):
            act_together(episodes, [episode.prepared(frame, proprio) for episode in episodes])
    return model


def message_bytes(artefact: Path) -> int:
    """The largest message in bytes that a server of this artefact reads: frames of four times its
    pixels still get an answer that says what is wrong with them. Each sensor has room for READING.

    Read before the artefact is verified, so that a server can listen at once. Raises ValueError
    when there is no config of an artefact.
    """
    file = artefact / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        pixels = 4 * len(config["cameras"]) * 3 * config["image"]["size"] ** 2
        return int(pixels + READING * len(config.get("sensors", ())) + SLACK)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file}: expected the config of an artefact, got {error!r}; export it again"
        ) from None


def describe(config: dict[str, Any], stats: dict[str, Any], artefact: str) -> dict[str, Any]:
    """What a client must know of config.json and norm_stats.json; `artefact` is the hash of
    SHA256SUMS, which identifies all the files.
    """
    datasets = stats["datasets"]
    rates = {body.get("control_hz") for body in datasets.values()}
    return {
        "artefact": artefact,
        "cameras": list(config["cameras"]),
        "image": config["image"],
        "sensors": {each["name"]: each for each in config.get("sensors", ())},
        "chunk": config["network"]["head"]["chunk"],
        # None too where the datasets differ; each of them has its own.
        "control_hz": rates.pop() if len(rates) == 1 else None,
        "datasets": {
            name: {
                "action": body["action"]["names"],
                "state": body["state"]["names"] if body["state"] else None,
                "control_hz": body.get("control_hz"),
            }
            for name, body in datasets.items()
        },
    }


class Inference:
    """The thread. A session has at most one request here, so what waits is bounded by the number of
    sessions.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._thread = ThreadPoolExecutor(1, "inference")
        self._metrics = metrics
        self._waiting: list[Job] = []
        self._asked: dict[Any, float] = {}  # policy of an active session -> when it last asked
        self._busy = False
        self._together: Callable[[list[Any], list[Any]], list[dict[str, Any]]] | None = None

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs a function on the thread and returns or raises as it does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def serve(self, model: Model) -> None:
        """From now on `act` answers."""
        self._together = model.together

    def forget(self, policy: Any) -> None:
        """Nobody waits for this one any more."""
        self._asked.pop(policy, None)

    async def act(self, policy: Any, given: Given, arrived: float) -> dict[str, Any]:
        """What Policy.act returns, and in "timing" the milliseconds from arrival to the pass
        ("queue") and in `act`.

        Requests of other sessions that come within WINDOW of the first go through the network with
        it. Nobody waits for a session that has not asked for ACTIVE seconds, so a lone one never
        waits. Raises BadInput for a frame that Policy.prepared refuses; when the pass itself fails,
        every request in it raises that.
        """
        answer = asyncio.get_running_loop().create_future()
        self._asked[policy] = arrived
        self._waiting.append(Job(policy, given, arrived, answer))
        self._start()
        return await answer

    def _start(self) -> None:
        """Runs what waits, if the thread is free and no more is worth waiting for."""
        if self._busy or not self._waiting:
            return
        now = time.monotonic()
        self._asked = {
            policy: asked for policy, asked in self._asked.items() if now - asked < ACTIVE
        }
        left = self._waiting[0].arrived + WINDOW - now
        loop = asyncio.get_running_loop()
        if left > 0 and len(self._waiting) < len(self._asked):
            loop.call_later(left, self._start)
            return
        jobs, self._waiting, self._busy = self._waiting, [], True
        self._metrics.batch(len(jobs))
        run = loop.run_in_executor(self._thread, self._pass, jobs)
        run.add_done_callback(lambda done: self._finish(jobs, done.result()))

    def _finish(self, jobs: Sequence[Job], answers: Sequence[Any]) -> None:
        self._busy = False
        for job, answer in zip(jobs, answers, strict=True):
            if job.answer.done():  # whoever asked was cancelled
                continue
            if isinstance(answer, Exception):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)
        self._start()

    def _pass(self, jobs: Sequence[Job]) -> list[Any]:
        """On the thread: a dict, or the error, for each job."""
        assert self._together is not None
        begun = time.monotonic()
        answers: list[Any] = []
        for job in jobs:
            try:
                # A number too large for float32 becomes inf, and is refused as not finite.
                with np.errstate(over="ignore", invalid="ignore"):
                    images, proprio, executed, sensors, plan = job.given
                    seen = images, proprio, executed, None, sensors, plan
                    answers.append(job.policy.prepared(*seen))
            except ValueError as error:
                answers.append(BadInput(str(error)))
            except Exception as error:  # a bug, and this session's alone
                answers.append(error)
        good = [i for i, answer in enumerate(answers) if not isinstance(answer, Exception)]
        outs: Sequence[Any] = []
        try:
            if good:
                outs = self._together([jobs[i].policy for i in good], [answers[i] for i in good])
        except Exception as error:  # the thread goes on; the sessions learn of it
            outs = [error] * len(good)
        acted = 1e3 * (time.monotonic() - begun)
        for i, out in zip(good, outs, strict=True):
            answers[i] = out
            if not isinstance(out, Exception):
                out["timing"] = {
                    **out["timing"],
                    "queue": 1e3 * (begun - jobs[i].arrived),
                    "act": acted,
                }
        return answers
