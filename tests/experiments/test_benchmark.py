"""The benchmarks of inference and input run whole; what the first compares is the same
policy.
"""

import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments.benchmarks import fast, inference, policies
from vla_jax import params
from vla_jax.policy import JaxPolicy


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_all_lines_compute_the_same(tmp_path):
    """In a process of its own, as torch.compile does not take what checks types here."""
    command = [
        sys.executable,
        "-m",
        "experiments.benchmark",
        "inference",
        "--frames",
        "4",
        f"--json={tmp_path}/table",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads((tmp_path / "table").read_text())
    assert list(table) == ["JAX", "torch eager", "torch.compile", "onnxruntime (CPU)", "server"]
    lines = [table[name] for name in table if name != "server"]
    assert all(line["difference"] < 2e-5 for line in lines)
    assert all(0 < line["action"][0] < line["frame"][0] <= line["frame"][1] for line in lines)
    assert all(len(pair) == 2 for pair in table["server"].values())


@pytest.mark.slow
def test_what_was_trained_is_measured_as_it_is(tmp_path):
    """A policy that is told the robot's state, and draws nothing: all lines say the same."""
    write_blocks(tmp_path / "data", train=6, val=6)
    module = [sys.executable, "-m"]
    trained = [*module, "experiments.pretrain", "--config=blocks.py", "--config.steps=2"]
    trained += [f"--config.data.root={tmp_path}/data", f"--workdir={tmp_path}/run"]
    trained += ["--config.model.prompt_length=32", "--config.batch_size=8"]
    trained += ["--config.optim.warmup_steps=1", "--config.eval_batches=1"]
    measured = [*module, "experiments.benchmark", "inference", f"--policy={tmp_path}/run"]
    measured += ["--frames=4", "--lines=jax,eager,onnx", f"--json={tmp_path}/table"]
    for command in (trained, measured):
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
    assert "head mlp, window 1, chunk 4, 32 px" in done.stdout
    table = json.loads((tmp_path / "table").read_text())
    for name in ("JAX", "torch eager", "onnxruntime (CPU)"):
        assert table[name]["difference"] < 2e-5


def test_a_run_has_a_size_and_a_head_of_its_own(tmp_path):
    for option in ("--size=tiny", "--head=fast"):
        with pytest.raises(ValueError, match="--policy: expected it alone"):
            inference.main([f"--policy={tmp_path}", option])


@pytest.mark.slow
def test_a_string_of_fast_is_measured_beside_the_steps_of_its_tokens(tmp_path):
    config = policies.configuration("tiny", "fast")
    config.model.cameras = ("primary",)
    known = fast.vocabulary(config)
    tokens = fast.string(config, known)
    source = inference.made(config, tmp_path)
    measured = fast.measure(source, "float32", rounds=2)
    assert measured.tokens == len(tokens) > 4
    assert min(measured) > 0
    # What is measured is a plan: that of the string, whatever the policy sees.
    weights = {name: jnp.asarray(value) for name, value in source.params.items()}
    policy = JaxPolicy(params.abstract(source.build)[0], weights, source.io("random"))
    expected = known.decode(tokens)
    expected[:, -1] = expected[:, -1] > 0
    for level in (0, 200):
        policy.reset("push the red block to the left")
        chunk = policy.act({"primary": np.full((32, 32, 3), level, np.uint8)})
        np.testing.assert_allclose(chunk, expected, atol=1e-5)
    assert policy.held == 0


@pytest.mark.slow
def test_every_line_of_the_input_benchmark_runs_the_same_step(tmp_path):
    """In a process of its own, as its data flows unchecked there."""
    command = [sys.executable, "-m", "experiments.benchmark", "input", "--size=tiny"]
    command += ["--repeats=2", "--steps=3", f"--root={tmp_path}/data", f"--json={tmp_path}/table"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads((tmp_path / "table").read_text())
    assert list(table) == ["synthetic", "in turn", "1 ahead", "2 ahead", "4 ahead"]
    assert table["synthetic"]["ratios"] == [1, 1]
    assert table["synthetic"]["input_share"] == 0
    assert all(line["seconds"] > 0 and 0 <= line["input_share"] < 1 for line in table.values())


@pytest.mark.slow
def test_the_formats_are_read_in_turns(tmp_path):
    """In a process of its own, as its data flows unchecked there."""
    command = [sys.executable, "-m", "experiments.benchmark", "formats", "--rounds=1"]
    command += [f"--root={tmp_path}/data", f"--json={tmp_path}/table"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads((tmp_path / "table").read_text())
    assert list(table) == ["JPEG in RLDS", "JPEG in parquet", "h264 video"]
    assert all(row["windows_per_s"] > 0 for row in table.values())
