"""A host is killed, stopped, or fails: every other one ends soon and names it. Real processes; what
they conclude from what is in test_hosts.py.
"""

import os
import signal

import pytest

from tests.processes import Hosts
from tests.training.test_distributed import rows, start
from vla_jax.training.watch import LOST_EXIT

pytestmark = pytest.mark.slow

ENDLESS = ("--steps=1000", "--save_every=1000", "--slow", "--silent=10")
MINUTE = 60.0


@pytest.mark.parametrize(
    ("count", "victim", "sent", "named"),
    [
        (2, 1, signal.SIGSTOP, "lost host 1 ("),
        (4, 2, signal.SIGKILL, "lost host 2 ("),
        (2, 0, signal.SIGSTOP, "lost host 0, the coordinator at localhost:"),
        (4, 0, signal.SIGKILL, "host 0 is gone, the coordinator at localhost:"),
    ],
)
def test_a_lost_host_ends_the_others(count, victim, sent, named, tmp_path):
    hosts = start(tmp_path, count, f"--mesh={count},1,1", *ENDLESS)
    hosts.wait_for(lambda: rows(tmp_path) >= 3)
    hosts.processes[victim].send_signal(sent)
    codes, took = hosts.finish(without=(victim,))
    others = [index for index in range(count) if index != victim]
    for index in others:
        said = hosts.said(index)
        assert codes[index] == LOST_EXIT, said
        assert named in said
        assert "at step " in said
        assert "Start the same command again" in said
    assert took < MINUTE


@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_on_one_host_is_everyones_error(victim, tmp_path):
    """Files of that process may not grow beyond some bytes: the write fails, as on a full disk."""
    full = {victim: ["--file_size=3000"]}
    args = ["--mesh=2,1,1", "--steps=1000", "--save_every=4", "--slow"]
    hosts = start(tmp_path, 2, *args, own=full)
    codes, _ = hosts.finish()
    assert codes == [1, 1], hosts.said(0)
    for index in range(2):
        assert f"host {victim} (" in hosts.said(index)
        assert os.strerror(27) in hosts.said(index)  # EFBIG: File too large


def test_replicas_that_differ_end_both(tmp_path):
    """jax itself takes other values on one host for the same array without a word."""
    args = ["--mesh=2,1,1", "--steps=1000"]
    hosts = start(tmp_path, 2, *args, own={1: ["--drift"]})
    codes, _ = hosts.finish()
    assert codes == [1, 1], hosts.said(0)
    for index in range(2):
        assert "hosts (step 0): expected replicas of one run, got" in hosts.said(index)
        assert "on host 0; " in hosts.said(index)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_coordinator_that_is_not_there_is_named(tmp_path):
    nobody = {"JAX_COORDINATOR_ADDRESS": "localhost:9", "JAX_NUM_PROCESSES": "2",
              "JAX_PROCESS_ID": "1"}  # fmt: skip
    args = [f"--workdir={tmp_path}", "--join=3"]
    host = Hosts(1, "tests.training.tiny_run", args, environment=lambda *where: nobody)
    codes, _ = host.finish()
    assert codes == [LOST_EXIT], host.said(0)
    assert "host 1: expected all hosts at the coordinator localhost:9 within 3 s" in host.said(0)
    assert "ConnectionRefusedError" in host.said(0)
    assert "Check that host 0 runs" in host.said(0)
