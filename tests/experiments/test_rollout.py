"""The command experiments.rollout: kills, other settings, and policies of both kinds."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipelines.builders.navigation import write_navigation
from experiments import rollout
from experiments.benchmarks.server import served
from experiments.rolling import results
from tests.processes import REPO, alone

from .test_pretrain import run


def options(policy: str, out: Path, episodes: int) -> list[str]:
    return [f"--policy={policy}", "--sim=navigation", f"--episodes={episodes}", f"--out={out}"]


def episodes(out: Path) -> list[dict[str, Any]]:
    """Without what is another each time."""
    rows = json.loads((out / "results.json").read_text())["episodes"]
    # Clocks, and the jerk, which multiplies how two programs round by the rate's third power.
    clocks = ("milliseconds", "seconds", "jerk")
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


def test_an_interrupted_run_goes_on_and_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout.main(options("random", tmp_path / "whole", 6))
    add = results.Kept.add

    def until_the_third(
        kept: results.Kept, row: dict[str, Any], actions: np.ndarray | None
    ) -> None:
        if row["episode"] == 3:
            raise KeyboardInterrupt
        add(kept, row, actions)

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
    with av.open(str(tmp_path / "cut" / "videos" / "0.mp4")) as video:
        assert video.streams.video[0].frames == episodes(tmp_path / "cut")[0]["steps"]
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
def test_a_full_disk_is_said_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(file: int) -> None:
        if (tmp_path / "episodes.jsonl").read_bytes().count(b"\n") == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(ValueError, match=r"--out=.*No space left .*the same command goes on"):
        rollout.main(options("random", tmp_path, 4))
    monkeypatch.setattr(results.os, "fsync", real)
    rollout.main(options("random", tmp_path, 4))
    assert [row["episode"] for row in episodes(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.slow
def test_shards_merge_to_what_one_process_gives(tmp_path: Path) -> None:
    rollout.main(options("random", tmp_path / "whole", 7))
    shards = [tmp_path / f"shard {i}" for i in range(3)]
    for i, shard in enumerate(shards):
        rollout.main([*options("random", shard, 7), f"--shard={i}/3"])
    merge = ["--merge", *map(str, shards), "--out"]
    assert rollout.main([*merge, str(tmp_path / "merged")]) == 0
    assert episodes(tmp_path / "merged") == episodes(tmp_path / "whole")
    for name in ("strips", "actions"):
        # Of a shard's own first episodes there are more.
        for file in (tmp_path / "whole" / name).iterdir():
            assert (tmp_path / "merged" / name / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(ValueError, match=r"each episode once, got 0 in .*shard 0 and in .*whole"):
        rollout.main(
            ["--merge", str(shards[0]), str(tmp_path / "whole"), "--out", str(tmp_path / "twice")]
        )
    rollout.main([*options("random", tmp_path / "other", 2), "--seed=5"])
    with pytest.raises(ValueError, match=r"results of one kind.*\n  seed: 0, 5"):
        rollout.main([*merge[:-1], str(tmp_path / "other"), "--out", str(tmp_path / "others")])
    with pytest.raises(ValueError, match="expected an empty folder"):
        rollout.main([*merge, str(tmp_path / "merged")])


@pytest.mark.slow
def test_what_was_carried_out_can_be_carried_out_again(tmp_path: Path) -> None:
    rollout.main(options("expert", tmp_path / "expert", 4))
    again = f"replay:{tmp_path / 'expert'}"
    rollout.main(options(again, tmp_path / "again", 4))
    assert episodes(tmp_path / "again") == episodes(tmp_path / "expert")
    with pytest.raises(ValueError, match="episodes of --seed=0, got 1"):
        rollout.main([*options(again, tmp_path / "seed", 4), "--seed=1"])
    with pytest.raises(ValueError, match=r"4\.npy: expected the actions of episode 4"):
        rollout.main(options(again, tmp_path / "longer", 8))
    file = tmp_path / "expert" / "actions" / "2.npy"
    np.save(file, np.load(file)[:-1])
    with pytest.raises(ValueError, match="episode 2 ends with its last action"):
        rollout.main(options(again, tmp_path / "shorter", 4))


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.rollout", *options("random", tmp_path, 400)]
    process = subprocess.Popen(command, cwd=REPO, env=alone(), stdout=subprocess.DEVNULL)
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
    for policy in ("run", "artefact"):  # three episodes at once
        out = tmp_path / f"of {policy}, together"
        rollout.main([*options(str(tmp_path / policy), out, 4), "--environments=3"])
        assert episodes(out)[:2] == episodes(tmp_path / f"of {policy}")
    with served(tmp_path / "artefact") as (port, _):
        url = f"ws://127.0.0.1:{port}"
        rollout.main([*options(url, tmp_path / "of server", 4), "--environments=2"])
    assert episodes(tmp_path / "of server")[:2] == episodes(tmp_path / "of artefact")
    settings = json.loads((tmp_path / "of server" / "settings.json").read_text())
    assert settings["policy"]["kind"] == "server"
    assert len(settings["policy"]["files"]) == 64
