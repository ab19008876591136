"""Hosts of a run that find no index: each reads its share, or says why it has to read all."""

import re
import socket
import subprocess
from pathlib import Path

import pytest

from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index
from tests.data_pipelines.blocks_files import edit
from tests.experiments.test_pretrain import SHORT, command, run
from tests.processes import REPO, alone

pytestmark = pytest.mark.slow

BLOCKS = DATASETS["blocks"]


def two_hosts(root: Path, workdir: Path, caches: tuple[Path, Path]) -> list[str]:
    """What both say, one device each; one step of training."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = [*SHORT, "--config.steps=3", "--config.eval_every=0", "--config.mesh.data=2"]
    hosts = []
    for number, cache in enumerate(caches):
        own = {"VLA_JAX_CACHE": str(cache), "JAX_COORDINATOR_ADDRESS": address}
        own |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
        words = command(*flags, f"--config.data.root={root}", f"--workdir={workdir}")
        hosts.append(
            subprocess.Popen(
                words, cwd=REPO, env=alone() | own, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    said = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(said)
    return said


def read(said: str) -> list[str]:
    """What a host read, in its own words."""
    return re.findall(
        r"blocks: (?:job \d of 2: indexing \d|read split \w+|indexed split \w+)", said
    )


def test_hosts_share_the_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_blocks(tmp_path, train=12, val=4)
    first, second = two_hosts(tmp_path, tmp_path / "run", (tmp_path / "cache", tmp_path / "cache"))
    assert read(first)[:1] == ["blocks: job 0 of 2: indexing 2"]
    assert "blocks: indexed split train" in read(first)
    assert read(second) == ["blocks: job 1 of 2: indexing 1"]
    assert "do not share" not in first + second
    write_blocks(tmp_path / "alone", train=12, val=4)
    alone = open_index(tmp_path / "alone", BLOCKS)
    assert "blocks: indexed split train" in read(capsys.readouterr().out)
    assert open_index(tmp_path, BLOCKS).digest == alone.digest


def test_hosts_that_share_no_disk_say_so(tmp_path: Path) -> None:
    folder = write_blocks(tmp_path / "data", train=12, val=4)
    folder.chmod(0o555)  # the index goes to the cache, as for data at a URL
    try:
        caches = (tmp_path / "one", tmp_path / "two")
        said = two_hosts(tmp_path / "data", tmp_path / "run", caches)
    finally:
        folder.chmod(0o755)
    for number, (words, others) in enumerate(zip(said, (1, 2), strict=True)):
        assert f"host {number}: blocks: {others} of 3 files were read by other hosts" in words
        assert "blocks: indexed split train" in read(words)
        assert len(list(caches[number].rglob("blocks.index"))) == 1


def test_one_episode_trains_without_evaluation(tmp_path: Path) -> None:
    """And with it is told what to do."""
    folder = write_blocks(tmp_path, train=1, val=1)
    edit(folder / "dataset_info.json", lambda info: info["splits"].pop())
    words = [*SHORT, "--config.steps=3", f"--config.data.root={tmp_path}"]
    refused = run(*words, f"--workdir={tmp_path / 'a'}")
    assert refused.returncode == 2
    assert "blocks: nothing is held out (data.held_out=0.05, of 1 episodes in train)" in (
        refused.stderr
    )
    assert "eval_every=0" in refused.stderr
    done = run(*words, "--config.eval_every=0", f"--workdir={tmp_path / 'b'}")
    assert done.returncode == 0, done.stderr
    assert "nothing is held out" in done.stdout
    assert (tmp_path / "b" / "curves.png").is_file()
    evaluated = run(f"--workdir={tmp_path / 'b'}", module="experiments.evaluate")
    assert evaluated.returncode == 2
    assert "expected held-out episodes to evaluate on, got none" in evaluated.stderr
