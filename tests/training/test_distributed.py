"""One process with one device, one with eight, two with one each: the same run, and each continues
the others'.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.training import tiny_run
from vla_jax import sharding
from vla_jax.training import train

pytestmark = pytest.mark.slow


def two_processes(workdir, *flags):
    """Starts both; each has one CPU device."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tests.training.tiny_run",
        "--workdir",
        str(workdir),
        "--processes=2",
        f"--port={port}",
        *flags,
    ]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": env}
    return [subprocess.Popen([*command, f"--process={i}"], **pipes) for i in range(2)]


def finish(processes, code=0):
    said = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [code, code], "\n".join(said)
    return said


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows] + [row["val/loss"] for row in rows if "val/loss" in row]


def test_three_ways(tmp_path):
    one = tiny_run.Setup(sharding.make_mesh(1, 1, 1, jax.devices()[:1]), tiny_run.config())
    eight = tiny_run.Setup(sharding.make_mesh(2, 2, 2), tiny_run.config())
    runs = {
        "one": lambda workdir, steps: one.fit(workdir, steps=steps),
        "eight": lambda workdir, steps: eight.fit(workdir, steps=steps),
        "two": lambda workdir, steps: finish(
            two_processes(workdir, "--mesh=1,2,1", f"--steps={steps}")
        ),
    }
    whole = {}
    for name, run in runs.items():
        run(tmp_path / name, 3)
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-half")
        run(tmp_path / name, 6)
        whole[name] = losses(tmp_path / name)
        np.testing.assert_allclose(whole[name], whole["one"], rtol=1e-5, err_msg=name)
    print(
        "largest relative differences:",
        {n: np.max(np.abs(np.divide(v, whole["one"]) - 1)) for n, v in whole.items()},
    )
    for began, ended in (
        ("two", "one"),
        ("two", "eight"),
        ("one", "two"),
        ("eight", "two"),
        ("eight", "one"),
    ):
        workdir = shutil.copytree(tmp_path / f"{began}-half", tmp_path / f"{began}-{ended}")
        runs[ended](workdir, 6)
        np.testing.assert_allclose(
            losses(workdir), whole["one"], rtol=1e-5, err_msg=f"{began} then {ended}"
        )


def test_sigterm_on_one_host_stops_both(tmp_path):
    processes = two_processes(
        tmp_path, "--mesh=2,1,1", "--steps=1000", "--save_every=1000", "--slow"
    )
    log, end = tmp_path / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 3) and time.monotonic() < end:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes, train.SIGTERM_EXIT)
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert f"step {saved[0]} is saved" in said[0]
    assert len(losses(tmp_path)) == saved[0] + saved[0] // 3
