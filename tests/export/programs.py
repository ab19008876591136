"""ONNX of an artefact, written in a process of its own: under the tests' type checks torch cannot
trace the body of a loop.
"""

import re
import subprocess
import sys
from pathlib import Path

from vla_jax.robot.torch_policy import golden


def proven(origin: Path, out: Path) -> dict[str, tuple[float, float]]:
    """Writes it and returns what its proof says of each stage: the largest value, and by how much
    it differs.
    """
    command = [sys.executable, "-m", "experiments.export", "--artefact", str(origin)]
    run = subprocess.run(
        [*command, "--onnx", str(out)], capture_output=True, text=True, timeout=300
    )
    assert not run.returncode, run.stderr[-3_000:]
    rows = {name: re.search(rf"{name} +(\S+) +(\S+) +\S+ ok", run.stdout) for name in golden.STAGES}
    assert all(rows.values()), run.stdout
    return {name: (float(row[1]), float(row[2])) for name, row in rows.items() if row}
