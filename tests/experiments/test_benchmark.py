"""The benchmarks of inference and input run whole; what the first compares is the same
policy.
"""

import json
import shutil
import subprocess
import sys

import pytest


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
