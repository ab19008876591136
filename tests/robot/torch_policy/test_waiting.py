"""What OpenMP itself says of how torch's threads wait, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["experiments.replay", "vla_jax.robot.torch_policy"])
@pytest.mark.parametrize(
    ("given", "said"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")]
)
def test_threads_sleep_unless_told_otherwise(module: str, given: dict[str, str], said: str) -> None:
    others = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "GOMP", "KMP"))}
    run = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env={**others, **given, "OMP_DISPLAY_ENV": "true", "JAX_PLATFORMS": "cpu"},
        cwd=REPO, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    if "OMP_WAIT_POLICY" not in run.stderr:
        pytest.skip("this build of torch has no OpenMP that says how it was set")
    assert f"OMP_WAIT_POLICY = '{said}'" in run.stderr
