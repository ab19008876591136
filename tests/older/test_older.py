"""What an older commit trained, imported and exported opens and says what it said: README.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vla_jax
from tests.older.unpack import HERE, unpack
from vla_jax.robot import torch_policy
from vla_jax.robot.torch_policy import golden

REPO = HERE.parents[1]
INSTRUCTION = "push the red block left"
# The flags of the run in README.md, all but the data's place.
FLAGS = [
    "--config=oxe_paligemma.py:tiny", "--config.steps=8", "--config.batch_size=8",
    "--config.log_every=1", "--config.eval_every=8", "--config.eval_batches=1",
    "--config.save_every=4", "--config.optim.warmup_steps=2", "--config.model.dtype=bfloat16",
    "--config.optim.freeze_backbone=True", "--config.model.head_hidden=16",
    "--config.model.head_mlp=16",
]  # fmt: skip


def act(policy, cameras: tuple[str, ...], steps: int) -> np.ndarray:
    """The chunks [t k d] on the frames of README.md."""
    rng = np.random.default_rng(5)
    policy.reset(INSTRUCTION)
    return np.stack(
        [
            policy.act({name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in cameras})
            for _ in range(steps)
        ]
    )


def command(module: str, *args: str) -> str:
    """What a command printed; alone on one device, as the run was."""
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=REPO,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


@pytest.mark.parametrize(
    ("name", "cameras"), [("run", ("primary",)), ("import", ("primary", "wrist"))]
)
def test_a_run_and_an_import_act_as_they_did(name, cameras, tmp_path):
    expected = np.load(HERE / "actions.npz")[name]
    policy = vla_jax.load_policy(unpack(name, tmp_path))
    np.testing.assert_allclose(act(policy, cameras, len(expected)), expected, rtol=0, atol=1e-5)


def test_an_artefact_acts_and_replays_its_proof(tmp_path):
    folder = unpack("artefact", tmp_path)
    chunks = act(vla_jax.load_policy(folder), ("primary",), 3)
    assert chunks.shape == (3, 4, 7)
    assert chunks.dtype == np.float32
    for dtype in ("float32", "bfloat16"):
        rows = golden.replay(torch_policy.load(folder, dtype=dtype), folder / "golden.npz", dtype)
        assert [row.stage for row in rows] == ["vision", "readout", "action", "units"]
        assert not any(row.exceeds for row in rows), golden.table(rows)


@pytest.mark.slow
def test_an_artefact_replays_its_proof_with_its_own_code(tmp_path):
    folder = unpack("artefact", tmp_path)
    for dtype in ("float32", "bfloat16"):
        done = subprocess.run(
            [sys.executable, "-m", "policy_torch", "--dtype", dtype],
            cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1].startswith("units")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The data the run was trained on."""
    return unpack("data", tmp_path_factory.mktemp("older"))


@pytest.fixture(scope="module")
def continued(data, tmp_path_factory) -> Path:
    """The run, unpacked at step 4 and trained on to step 8."""
    workdir = unpack("run", tmp_path_factory.mktemp("older"))
    out = command(
        "experiments.pretrain", *FLAGS, f"--config.data.root={data}", f"--workdir={workdir}"
    )
    assert "continuing from the checkpoint of step 4" in out
    return workdir


@pytest.mark.slow
def test_the_run_goes_on_to_the_losses_it_had(continued, tmp_path):
    expected = losses(unpack("run", tmp_path))
    assert list(losses(continued)) == list(range(1, 9))
    for step, loss in losses(continued).items():
        # In bfloat16, on whatever CPU this is; on the one that made it they are equal.
        assert loss == pytest.approx(expected[step], rel=2e-3), step


@pytest.mark.slow
def test_the_run_evaluates_to_what_the_artefact_of_then_does(continued, data, tmp_path):
    """On the same episodes, in bfloat16's weights."""
    command(
        "experiments.replay", "--artefact", str(unpack("artefact", tmp_path)), "--data", str(data),
        "--out", str(tmp_path / "report"),
    )  # fmt: skip
    command("experiments.evaluate", f"--workdir={continued}")
    was = json.loads((tmp_path / "report" / "replay.json").read_text())
    result = json.loads((continued / "evaluation.json").read_text())
    assert result["step"] == 8
    now = result["datasets"]["blocks"]
    assert now["windows"] == was["frames"]
    assert now["arm_loss"] == pytest.approx(was["arm_loss"], rel=5e-3)
    for name, row in was["dims"].items():
        assert now["l1"][name] == pytest.approx(row["every_step"]["mae"], rel=5e-3)


@pytest.mark.slow
def test_the_run_exports_to_the_artefact_that_was_exported(continued, tmp_path):
    old, new = unpack("artefact", tmp_path), tmp_path / "new"
    out = command(
        "experiments.export", "--checkpoint", f"{continued}/checkpoints", "--out", str(new),
        "--dtype", "bfloat16",
    )  # fmt: skip
    assert "EXCEEDED" not in out
    stats, tokens = (
        [json.loads((folder / name).read_text()) for folder in (old, new)]
        for name in ("norm_stats.json", "tokenizer.json")
    )
    for body in stats[1]["datasets"].values():  # said since 2026-11-29
        assert (body.pop("targets"), body.pop("sensors"), body.pop("motion")) == (
            "",
            {},
            [0, 1, 2, 3, 4, 5],
        )
        assert [body[kind].pop("relative") for kind in ("action", "state")] == [[], []]
    assert stats[0] == stats[1]
    assert tokens[0] == tokens[1]
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (old, new))
    assert was.pop("origin").keys() == now.pop("origin").keys()
    # Said since 2026-11-28 of what all were before, in the config's words.
    assert was["image"]["resize"] == "Lanczos"
    was["image"]["resize"] = "lanczos"
    # Since 2026-11-29.
    was |= {"embodiments": [], "sensors": [], "state_names": []}
    was["action_names"] = stats[0]["datasets"]["blocks"]["action"]["names"]
    was["network"]["head"]["masked"] = False
    was["network"]["sequence"] |= {
        "history_start": "repeat", "embodiments": 0, "sensors": [], "mutual": False
    }  # fmt: skip
    was["network"]["sequence"]["state_words"] = None  # since 2026-11-30
    assert (was.pop("schema"), now.pop("schema")) == (1, 2)
    backbone = was["network"]["backbone"]
    for body in (backbone, *backbone.values()):
        if isinstance(body, dict) and "block" in body:
            body["block"] |= {"adaptive": False, "head_norm": False, "rope_sections": []}
    assert now == was
    one, two = (act(vla_jax.load_policy(folder), ("primary",), 3) for folder in (old, new))
    np.testing.assert_allclose(one[..., :6], two[..., :6], rtol=0, atol=2e-3)
