"""What a run says where there is no terminal."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from vla_jax import progress
from vla_jax.training import metrics
from vla_jax.training.metrics import Recorder


def test_a_run_that_logs_seldom_still_tells_each_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    recorder = Recorder(tmp_path, 100, 1000)
    clock.now = 300.0  # compiling
    recorder.say("train step compiled in 299.0 s")
    for step in range(101, 111):
        clock.now += 20.0
        recorder.progress(step, 1 / step)
        if step == 105:
            recorder.write({"step": 105, "loss": 0.25})
    recorder.close()
    said = [line for line in capsys.readouterr().out.splitlines() if "tensorboard" not in line]
    assert said[-4:] == [
        "train step compiled in 299.0 s",
        "training: 103 of 1000 steps, 0.05 steps/s, 4:59:00 left, loss 0.009709",
        "step 105/1000  loss 0.25  0.05 steps/s  4:58:20 left",
        "training: 108 of 1000 steps, 0.05 steps/s, 4:57:20 left, loss 0.009259",
    ]
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [105]


def test_what_a_run_will_take_is_told_where_the_device_is_known() -> None:
    said = metrics.forecast(2e12, 1000, "NVIDIA H100 80GB HBM3", 2)
    assert said.startswith("1,000 steps of 2.0 TFLOP: about 3 s at 40% of the peak of 2 NVIDIA H")
    assert metrics.forecast(3.45e8, 20, "cpu", 1).startswith(
        "20 steps of 345.0 MFLOP: of cpu no peak is known"
    )
    assert metrics.forecast(2.08e16, 20, "cpu", 1).startswith("20 steps of 20.8 PFLOP")
