"""One process with one device, one with eight, two with one each: the same run, and each continues
the others'.
"""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from tests.processes import Hosts
from tests.training import tiny_run
from vla_jax import sharding
from vla_jax.training import train
from vla_jax.training.checkpoint import complete_steps, find

pytestmark = pytest.mark.slow


def start(workdir, count, *flags, **options):
    """Starts `count` tiny runs as one."""
    return Hosts(count, "tests.training.tiny_run", [f"--workdir={workdir}", *flags], **options)


def finish(hosts, code=0):
    codes, _ = hosts.finish()
    said = [hosts.said(index) for index in range(hosts.count)]
    assert codes == [code] * hosts.count, "\n".join(said)
    return said


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows] + [row["val/loss"] for row in rows if "val/loss" in row]


def rows(workdir):
    """How many steps were logged so far."""
    log = workdir / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_three_ways(tmp_path):
    one = tiny_run.Setup(sharding.make_mesh(1, 1, 1, jax.devices()[:1]), tiny_run.config())
    eight = tiny_run.Setup(sharding.make_mesh(2, 2, 2), tiny_run.config())
    runs = {
        "one": lambda workdir, steps: one.fit(workdir, steps=steps),
        "eight": lambda workdir, steps: eight.fit(workdir, steps=steps),
        "two": lambda workdir, steps: finish(start(workdir, 2, "--mesh=1,2,1", f"--steps={steps}")),
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


def test_killed_on_four_hosts_continues_on_two_bit_for_bit(tmp_path):
    """The same mesh on other processes: the run that two begin and end has the same losses."""
    finish(start(tmp_path / "whole", 2, "--mesh=2,2,1", devices=2))
    cut = start(tmp_path / "cut", 4, "--mesh=2,2,1", "--slow", "--silent=10")
    cut.wait_for(lambda: rows(tmp_path / "cut") >= 4)
    cut.processes[2].kill()
    codes, _ = cut.finish()
    assert codes == [75, 75, -signal.SIGKILL, 75], cut.said(0)
    finish(start(tmp_path / "cut", 2, "--mesh=2,2,1", devices=2))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_sigterm_on_one_host_stops_both(tmp_path):
    hosts = start(tmp_path, 2, "--mesh=2,1,1", "--steps=1000", "--save_every=1000", "--slow")
    hosts.wait_for(lambda: rows(tmp_path) >= 3)
    hosts.processes[1].send_signal(signal.SIGTERM)
    said = finish(hosts, train.SIGTERM_EXIT)
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert f"step {saved[0]} is saved" in said[0]
    assert len(losses(tmp_path)) == saved[0] + saved[0] // 3


def test_two_hosts_stop_early_at_the_same_step(tmp_path):
    flags = ("--steps=20", "--save_every=100", "--worse", "--patience=2", "--mesh=2,1,1")
    finish(start(tmp_path, 2, *flags))
    assert complete_steps(tmp_path / "checkpoints") == [3, 9]
    assert find(tmp_path / "checkpoints", None).name == "3"
    again = start(tmp_path, 2, *flags)
    finish(again)
    assert "already at step 9 of 20" in again.said(0)
