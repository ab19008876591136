"""Processes that tests start: several as the hosts of one run, each with its own CPU devices, or
one after the other.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
COMPILED = tempfile.TemporaryDirectory(prefix="compiled")


def alone() -> dict[str, str]:
    """The environment of a command on one device. The same steps are run by several commands and
    tests: each is compiled once, as conftest.py says.
    """
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


class Hosts:
    """The processes of one run: `args` for all of them, `own` for some of them by number. They
    compile as conftest.py says.
    """

    def __init__(self, count, module, args, own=None, devices=1, environment=None):
        self.count, self._lines = count, [[] for _ in range(count)]
        port = free_port()
        flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
        self.processes, self._readers = [], []
        for index in range(count):
            env = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": flags,
                "PYTHONUNBUFFERED": "1",
                **(environment or joining)(port, count, index),
            }
            command = [sys.executable, "-m", module, *args, *(own or {}).get(index, ())]
            process = subprocess.Popen(
                command,
                cwd=REPO,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.processes.append(process)
            self._readers.append(threading.Thread(target=self._read, args=(index,)))
            self._readers[-1].start()

    def _read(self, index):
        with self.processes[index].stdout as lines:
            self._lines[index].extend(lines)

    def said(self, index):
        return "".join(self._lines[index])

    def wait_for(self, true, seconds=240):
        """Until `true()`; fails when a process ends before."""
        end = time.monotonic() + seconds
        while not true():
            ended = any(process.poll() is not None for process in self.processes)
            if ended or time.monotonic() > end:
                self.stop()
                raise AssertionError("\n".join(map(self.said, range(self.count))))
            time.sleep(0.05)

    def finish(self, seconds=240, without=()):
        """The exit codes of all but `without`, and the seconds until the last of them ended."""
        began = time.monotonic()
        awaited = [process for i, process in enumerate(self.processes) if i not in without]
        while any(process.poll() is None for process in awaited):
            if time.monotonic() > began + seconds:
                self.stop()
                raise AssertionError("\n".join(map(self.said, range(self.count))))
            time.sleep(0.05)
        took = time.monotonic() - began
        self.stop()
        return [process.returncode for process in self.processes], took

    def stop(self):
        """Ends those that still run; all they said is there then."""
        for process in self.processes:
            process.kill()
            process.wait()
        for reader in self._readers:
            reader.join()


def joining(port, count, index):
    """The environment in which process `index` joins the others by an address."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }


def slurm(port, count, index):
    """What Slurm sets in a task; jax makes the port of the job's number."""
    return {
        "JAX_COORDINATOR_ADDRESS": "auto",
        "SLURM_JOB_ID": str(port % 4096),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "SLURM_STEP_NUM_NODES": "1",
    }


def free_port():
    """Among those that jax takes for Slurm jobs: the last 4096."""
    for port in range(65535 - os.getpid() % 2000, 61440, -7):
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
