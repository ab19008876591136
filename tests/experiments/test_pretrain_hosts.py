"""Pretraining as two processes that find each other as Slurm's tasks do."""

import json
import shutil

import pytest

from data_pipelines.builders.blocks import write_blocks
from tests.experiments.composition.test_replicas import member, rot
from tests.processes import Hosts, slurm

pytestmark = pytest.mark.slow

SHORT = [
    "--config=oxe_paligemma.py:tiny", "--config.steps=4", "--config.batch_size=8",
    "--config.log_every=1", "--config.eval_every=4", "--config.eval_batches=1",
    "--config.save_every=2", "--config.optim.warmup_steps=2",
]  # fmt: skip


def start(data, workdir, own=None):
    args = [*SHORT, f"--config.data.root={data}", f"--workdir={workdir}"]
    return Hosts(2, "experiments.pretrain", args, own=own, environment=slurm)


def test_two_hosts_train_as_one_and_index_once(tmp_path):
    write_blocks(tmp_path / "data", train=8, val=4)
    hosts = start(tmp_path / "data", tmp_path / "run")
    codes, _ = hosts.finish()
    assert codes == [0, 0], hosts.said(0) + hosts.said(1)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert "blocks: indexed split train" in hosts.said(0)
    assert "indexed" not in hosts.said(1)


def test_a_host_with_another_copy_of_the_data_is_named(tmp_path):
    write_blocks(tmp_path / "data", train=8, val=4)
    member(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "rotten")
    rot(tmp_path / "rotten")
    own = {1: [f"--config.data.root={tmp_path / 'rotten'}"]}
    hosts = start(tmp_path / "data", tmp_path / "run", own)
    codes, _ = hosts.finish()
    assert codes == [1, 1], hosts.said(0) + hosts.said(1)
    for index in range(2):
        assert "rows of blocks drawn for step 0: " in hosts.said(index)
        assert "on host 0; " in hosts.said(index)


def test_a_host_with_another_config_is_named(tmp_path):
    write_blocks(tmp_path / "data", train=4, val=2)
    own = {1: ["--config.optim.lr=0.5"]}
    hosts = start(tmp_path / "data", tmp_path / "run", own)
    codes, _ = hosts.finish()
    assert codes == [1, 1], hosts.said(0) + hosts.said(1)
    for index in range(2):
        assert "config.optim.lr: 0.001 on host 0; 0.5 on host 1" in hosts.said(index)
    assert not (tmp_path / "run").exists()  # nothing was written
