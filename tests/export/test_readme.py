"""An artefact's README.md: its code runs as it is, for every kind of policy, with an instruction of
the data it learnt from where that is known.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments import export
from tests.export.test_export import BLOCKED, checkpoint
from vla_jax.robot import torch_policy

POLICIES = {
    "proprio, two cameras": {"head": "mlp", "proprio": True, "cameras": ("primary", "wrist")},
    "past action": {"head": "gpt", "past_action": True, "readouts": 2},
    "one step, flow": {"head": "flow", "history": "one_step", "window": 1},
    "interleaved, kosmos2": {"backbone": "kosmos2", "history": "interleaved", "window": 2},
    "discrete, llava": {"backbone": "llava", "head": "discrete", "bins": 64, "chunk": 2},
    "a prompt of four tokens": {"head": "mlp", "prompt_length": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_its_code_runs_as_it_is(tmp_path: Path, name: str) -> None:
    where = checkpoint(tmp_path, **POLICIES[name])
    export.main(["--checkpoint", str(where), "--out", str(tmp_path / "artefact")])
    run_readme(tmp_path / "artefact")


@pytest.mark.slow
def test_with_data_it_says_what_its_recordings_say(tmp_path: Path) -> None:
    """Frames and instruction are of the recordings; of a drawn golden frame the second command is a
    stop then, since it looks like none of theirs.
    """
    write_blocks(tmp_path / "rlds", train=6, val=4)
    two = ("primary", "wrist")
    where = checkpoint(tmp_path, mixture="blocks", head="mlp", proprio=True, cameras=two)
    place = tmp_path / "artefact"
    data = ["--data", str(tmp_path / "rlds")]
    export.main(["--checkpoint", str(where), "--out", str(place), *data])
    body = json.loads((place / "norm_stats.json").read_text())["datasets"]["blocks"]
    assert set(body["cameras"]) == {"primary", "wrist"}
    assert body["cameras"]["primary"]["low"][0] > 0
    assert f"policy.reset({body['instruction']!r}, 'blocks')" in (place / "README.md").read_text()
    run_readme(place)
    policy = torch_policy.load(place)
    policy.reset(body["instruction"])
    assert policy.camera_statistics == body["cameras"]
    with pytest.raises(ValueError, match=r"--data: data: 1 of 1 datasets"):
        export.main(["--checkpoint", str(where), "--out", str(tmp_path / "b"), "--data", "none"])


def run_readme(place: Path) -> None:
    """All of its Python, in one process that has no JAX."""
    blocks = (place / "README.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 2
    code = "\n".join(block.split("```")[0] for block in blocks)
    code += "\nassert command.error is None and out['actions'].ndim == 2, command"
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED + code.replace("this folder", ".")],
        cwd=place, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
