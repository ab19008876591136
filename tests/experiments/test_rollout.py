"""The command experiments.rollout: kills, other settings, and policies of both kinds."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.builders.navigation import write_navigation
from experiments import rollout
from experiments.rolling import results

from .test_pretrain import REPO, environment, run


def options(policy: str, out: Path, episodes: int) -> list[str]:
    return [f"--policy={policy}", "--sim=navigation", f"--episodes={episodes}", f"--out={out}"]


def episodes(out: Path) -> list[dict[str, Any]]:
    """Without what is another each time."""
    rows = json.loads((out / "results.json").read_text())["episodes"]
    return [{key: value for key, value in row.items() if key != "milliseconds"} for row in rows]


def test_an_interrupted_run_goes_on_and_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout.main(options("random", tmp_path / "whole", 6))
    add = results.Kept.add

    def until_the_third(kept: results.Kept, row: dict[str, Any]) -> None:
        if row["episode"] == 3:
            raise KeyboardInterrupt
        add(kept, row)

    monkeypatch.setattr(results.Kept, "add", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        rollout.main(options("random", tmp_path / "cut", 6))
    assert not (tmp_path / "cut" / "results.json").exists()
    monkeypatch.setattr(results.Kept, "add", add)
    rollout.main(options("random", tmp_path / "cut", 6))
    assert "3 episodes were done before" in capsys.readouterr().out
    assert episodes(tmp_path / "cut") == episodes(tmp_path / "whole")
    assert len(episodes(tmp_path / "cut")) == 6
    assert (tmp_path / "cut" / "film.png").read_bytes()[:4] == b"\x89PNG"
    rollout.main(options("random", tmp_path / "cut", 8))  # more of the same
    assert episodes(tmp_path / "cut")[:6] == episodes(tmp_path / "whole")


def test_the_expert_succeeds_and_other_settings_are_refused(tmp_path: Path) -> None:
    rollout.main(options("expert", tmp_path, 16))
    body = json.loads((tmp_path / "results.json").read_text())
    assert body["success"]["successes"] == 16
    assert body["settings"]["policy"]["kind"] == "expert"
    with pytest.raises(ValueError, match=r"policy\.kind: \"expert\", now \"random\""):
        rollout.main(options("random", tmp_path, 16))
    with pytest.raises(ValueError, match="seed: 0, now 1"):
        rollout.main([*options("expert", tmp_path, 16), "--seed=1"])


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        rollout.main([*options("expert", tmp_path, 1), "--blank"])
    with pytest.raises(ValueError, match="complete checkpoint"):
        rollout.main(options(str(tmp_path / "nothing"), tmp_path / "out", 1))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.rollout", *options("random", tmp_path, 400)]
    process = subprocess.Popen(command, cwd=REPO, env=environment(), stdout=subprocess.DEVNULL)
    kept = tmp_path / "episodes.jsonl"
    until = time.monotonic() + 120
    while not kept.exists() or kept.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = kept.read_bytes().split(b"\n")[:-1]
    done = len(lines)
    assert done < 400
    rollout.main(options("random", tmp_path, done + 2))
    assert kept.read_bytes().split(b"\n")[:done] == lines
    assert [row["episode"] for row in episodes(tmp_path)] == list(range(done + 2))


@pytest.mark.slow
def test_a_checkpoint_and_its_artefact_act_alike(tmp_path: Path) -> None:
    """Trained for three steps: what it does makes little sense, but it is the same in torch."""
    write_navigation(tmp_path / "data", train=8, val=8)
    done = run(
        "--config=navigation.py", f"--config.data.root={tmp_path / 'data'}", "--config.steps=3",
        "--config.batch_size=4", "--config.eval_every=0", "--config.save_every=3",
        "--config.optim.warmup_steps=1", f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    export = (
        "--checkpoint",
        str(tmp_path / "run" / "checkpoints"),
        "--out",
        str(tmp_path / "artefact"),
    )
    done = run(*export, module="experiments.export")
    assert done.returncode == 0, done.stderr
    for policy in ("run", "artefact"):
        out = tmp_path / f"of {policy}"
        rollout.main(options(str(tmp_path / policy), out, 2))
        body = json.loads((out / "results.json").read_text())
        assert body["plans"] == sum(-(-row["steps"] // 4) for row in body["episodes"])
        assert body["settings"]["policy"]["kind"] == {"run": "checkpoint"}.get(policy, policy)
        assert len(body["settings"]["policy"]["files"]) == 64
    assert episodes(tmp_path / "of run") == episodes(tmp_path / "of artefact")
    with pytest.raises(ValueError, match=r'policy\.kind: "checkpoint", now "artefact"'):
        rollout.main(options(str(tmp_path / "artefact"), tmp_path / "of run", 2))
