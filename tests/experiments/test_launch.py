"""What the launch scripts run and when they run it again; the schedulers' commands are fakes."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "experiments" / "launch"
ARGS = ["--config=oxe_paligemma.py:tiny", "--workdir=runs/a b"]


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Makes commands that note how they were called; `body` is shell."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name, body=""):
        path = tmp_path / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{tmp_path}/calls"\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)

    return make


def launch(script, *args, **env):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(tmp_path):
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_vm.sh", "gke_xpk.sh"])
def test_without_arguments_they_say_which(script):
    names = ("TPU", "ZONE", "CLUSTER", "TPU_TYPE", "NAME", "IMAGE")
    done = launch(script, **dict.fromkeys(names, "x"))
    assert done.returncode == 2
    assert "--config=FILE.py --workdir=DIR" in done.stderr


@pytest.mark.parametrize(
    ("code", "before", "again"),
    [(0, 0, False), (143, 0, True), (75, 3, True), (137, 0, True), (1, 0, False), (75, 20, False)],
)
def test_slurm_queues_again_what_can_go_on(code, before, again, fakes, tmp_path):
    fakes("srun", f"exit {code}")
    fakes("scontrol")
    done = launch("slurm.sh", *ARGS, SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(before))
    assert done.returncode == code
    assert calls(tmp_path)[0].endswith("-m experiments.pretrain " + " ".join(ARGS))
    assert (calls(tmp_path)[1:] == ["scontrol requeue 7"]) == again


@pytest.mark.parametrize(
    ("codes", "runs", "code"),
    [
        (["0 0"], 1, 0),
        (["143 143", "0 0"], 2, 0),
        (["75 137", "", "0 0"], 3, 0),
        (["75 1"], 1, 1),
        (["75", "75", "75"], 3, 75),
    ],
)
def test_a_tpu_vm_starts_again_after_a_preemption(codes, runs, code, fakes, tmp_path):
    for number, each in enumerate(codes, 1):
        said = "".join(f"vla_jax_exit={one}\n" for one in each.split())
        (tmp_path / f"run{number}").write_text(said)
    fakes(
        "gcloud",
        f'[[ $4 == describe ]] && echo READY && exit\ncat "{tmp_path}/run$(grep -c " ssh "'
        f' "{tmp_path}/calls")"',
    )
    done = launch("tpu_vm.sh", *ARGS, TPU="slice", ZONE="zone", RESTARTS="2")
    assert done.returncode == code, done.stderr
    ssh = [call for call in calls(tmp_path) if " ssh " in call]
    assert len(ssh) == runs
    assert r"-m experiments.pretrain --config=oxe_paligemma.py:tiny --workdir=runs/a\ b;" in ssh[0]


def test_xpk_restarts_when_a_host_is_lost(fakes, tmp_path):
    fakes("xpk")
    env = {"CLUSTER": "c", "TPU_TYPE": "v5litepod-8", "NAME": "n", "IMAGE": "i", "ZONE": "z"}
    done = launch("gke_xpk.sh", *ARGS, **env)
    assert done.returncode == 0, done.stderr
    (call,) = calls(tmp_path)
    assert "--restart-on-exit-codes 75" in call
    assert "--zone z" in call
    assert r"JAX_COORDINATOR_ADDRESS=auto exec python" in call
    assert r"--workdir=runs/a\ b" in call
