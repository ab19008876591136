"""What a server adds to a policy's own time: a server process of an artefact, and one client on
loopback.
"""

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from websockets.sync.client import connect

from vla_jax.robot.client import pack, unpack


class Overhead(NamedTuple):
    """Milliseconds per request, (p50, p95) of each.

    round_trip: from a client's frame to its actions. policy: of that, in the policy's call. queue:
    of the rest, from the message's arrival to that call. added: round_trip - policy of the same
    request.
    """

    round_trip: tuple[float, float]
    policy: tuple[float, float]
    queue: tuple[float, float]
    added: tuple[float, float]


@contextlib.contextmanager
def served(artefact: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A warm `experiments.serve` of an artefact: its port and process. Raises RuntimeError when it
    does not start.
    """
    command = [
        sys.executable,
        "-m",
        "experiments.serve",
        "--artefact",
        str(artefact),
        "--port",
        "0",
        *options,
    ]
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(command, stderr=log) as process,
    ):  # a pipe could fill up
        try:
            while b" ready: " not in (printed := Path(log.name).read_bytes()):
                if process.poll() is not None:
                    raise RuntimeError(
                        f"{' '.join(command)}: expected it to get ready, got\n{printed.decode()}"
                    )
                time.sleep(0.05)
            listening = re.search(rb"listening on \S+:(\d+),", printed)
            assert listening is not None
            yield int(listening[1]), process
        finally:
            process.terminate()


def measure_overhead(artefact: Path, n: int, *options: str) -> Overhead:
    """n requests one after the other, after 20 that are not counted. `options` are
    experiments.serve's.
    """
    rng = np.random.default_rng(0)
    with (
        served(artefact, *options) as (port, _),
        connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection,
    ):
        about = unpack(connection.recv())  # type: ignore[arg-type]
        image, states = about["image"], [body["state"] for body in about["datasets"].values()]
        sizes = image.get("sizes") or dict.fromkeys(about["cameras"], image["size"])
        images = {
            name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            for name, size in sizes.items()
        }
        proprio = None if states[0] is None else np.zeros(len(states[0]), np.float32)
        connection.send(
            pack({"type": "reset", "instruction": "push", "dataset": next(iter(about["datasets"]))})
        )
        connection.recv()
        rows = []
        for i in range(n + 20):
            begun = time.perf_counter()
            request = {
                "type": "act",
                "id": i,
                "observed_at": begun,
                "images": images,
                "proprio": proprio,
            }
            connection.send(pack(request))
            reply = unpack(connection.recv())  # type: ignore[arg-type]
            took = 1e3 * (time.perf_counter() - begun)
            rows.append(
                (
                    took,
                    reply["timing"]["act"],
                    reply["timing"]["queue"],
                    took - reply["timing"]["act"],
                )
            )
    p50, p95 = np.percentile(np.array(rows[20:]), [50, 95], axis=0).tolist()
    return Overhead(*zip(p50, p95, strict=True))
