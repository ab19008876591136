"""Replay as a robot's computer runs it, beside evaluation of the same policy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.builders.blocks import write_blocks
from tests.processes import REPO, alone

from .test_pretrain import run

# The next pose as the target, learnt relative to the state where the chunk starts.
OWN = """
import dataclasses
import numpy as np
from data_pipelines.datasets import DATASETS as OURS, Standardised

def reached(columns):
    whole = OURS["blocks"].standardise(columns)
    actions = np.concatenate([whole.state[1:, :6], whole.actions[:-1, 6:]], axis=1)
    return Standardised(actions, whole.state[:-1], whole.frames[:-1])

DATASETS = {"relative": dataclasses.replace(
    OURS["blocks"], name="relative", tfds_name="blocks", standardise=reached, targets="relative",
    rotations={"euler": ("roll", "pitch", "yaw")},
)}
"""


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["blocks", "relative"])
def test_replay_of_an_exported_policy_reports_what_evaluate_reports(
    tmp_path: Path, dataset: str
) -> None:
    root, own = tmp_path / "rlds", tmp_path / "own.py"
    write_blocks(root, train=6, val=4)
    own.write_text(OWN)
    work, out, place = tmp_path / "run", tmp_path / "out", tmp_path / "artefact"
    options = (
        "--config=oxe_paligemma.py:tiny", "--config.steps=2", "--config.batch_size=4",
        "--config.eval_every=2",
        "--config.eval_batches=1", "--config.save_every=2", "--config.optim.warmup_steps=1",
        "--config.model.window=2",
        "--config.model.dtype=bfloat16",  # of training: nothing is carried out in it
        "--config.model.head=mlp", "--config.model.proprio=True",
        f"--config.data.datasets={own}", f"--config.data.mixture={dataset}",
    )  # fmt: skip
    for module, args in (
        ("pretrain", (*options, f"--config.data.root={root}", f"--workdir={work}")),
        ("export", ("--checkpoint", str(work / "checkpoints"), "--out", str(place))),
        ("evaluate", (f"--workdir={work}",)),
    ):
        done = run(*args, module=f"experiments.{module}")
        assert done.returncode == 0, done.stderr
    # As on a robot's computer, which has no JAX.
    script = (
        "import sys; sys.modules['jax'] = None; from experiments import replay;"
        " replay.main(sys.argv[1:])"
    )
    options = (
        "--artefact",
        str(place),
        "--data",
        str(root),
        "--datasets",
        str(own),
        "--dataset",
        dataset,
        "--out",
        str(out),
        "--trigger",
        "--calibrate",
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, timeout=300,
        check=False, cwd=REPO, env=alone(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads((work / "evaluation.json").read_text())["datasets"][dataset]
    body = json.loads((out / "replay.json").read_text())
    assert body["arm_loss"] == pytest.approx(said["arm_loss"], abs=1e-5)
    assert body["arm_error"]["every_step"] == pytest.approx(said["arm_error"], abs=1e-5)
    assert body["gripper_accuracy"]["every_step"] == said["gripper_accuracy"]
    for name, row in body["dims"].items():
        assert row["every_step"]["mae"] == pytest.approx(said["l1"][name], abs=1e-5)
    assert body["frames"] == said["windows"]
    files = {
        "replay.json",
        "traces.png",
        "calibration.json",
        "reliability.png",
        "trigger.json",
        "trigger.png",
    }
    assert {file.name for file in out.iterdir()} == files
