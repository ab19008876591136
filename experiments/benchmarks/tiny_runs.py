"""Runs of experiments.pretrain in processes of their own, small enough to be run many times."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_pipelines.builders.blocks import write_blocks

# Of metrics.jsonl: what a machine's speed and memory say, and not the run.
MEASURED = ("windows_per_s", "input_wait", "tflops", "mfu", "memory_gib")


def start(
    data: Path,
    workdir: Path,
    log: Path,
    numbers: Mapping[str, int],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """A run of the demo's config with an MLP head and 8 windows a step, on one CPU device; its
    words go to `log`.

    `numbers` are fields of the config, `environment` is set beside this process's own.
    """
    command = [
        sys.executable, "-m", "experiments.pretrain", "--config=oxe_paligemma.py:tiny",
        "--config.model.head=mlp", "--config.batch_size=8", "--config.eval_batches=1",
        "--config.optim.warmup_steps=2", f"--config.data.root={data}", f"--workdir={workdir}",
    ]  # fmt: skip
    command += [f"--config.{name}={number}" for name, number in numbers.items()]
    one_cpu = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            env={**os.environ, **one_cpu, **environment},
            cwd=Path(__file__).parents[2],
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def write_data(root: Path) -> Path:
    """The data of these runs under `root`, which is returned."""
    write_blocks(root, train=40, val=4)
    return root


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for a run. Raises RuntimeError with its last words if it failed."""
    if process.wait():
        words = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"pretrain: expected it to end well, got {process.returncode}:\n{words}")


def rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a run without what only measures the machine; not a last one that is cut off."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    measured = {f"train/{name}" for name in MEASURED}
    return [
        {key: value for key, value in json.loads(line).items() if key not in measured}
        for line in lines
    ]
