"""Weights in 8 bits: what is quantised, how far the policy moves, and the table that says so."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import export, quantise
from experiments.replaying.recorded import Episode
from tests.export.test_export import SPEC, checkpoint
from vla_jax.actions import ActionSpec
from vla_jax.export import artefact
from vla_jax.robot import torch_policy
from vla_jax.robot.torch_policy import golden
from vla_jax.robot.torch_policy.layers import Linear
from vla_jax.robot.torch_policy.network import Network
from vla_jax.robot.torch_policy.quantise import KINDS, Transposed, to_8_bits

EIGHT = {"int8": torch.int8, "int8_dynamic": torch.int8, "float8": torch.float8_e4m3fn}


@pytest.mark.slow
def test_the_backbones_layers_alone_are_in_8_bits_and_the_policy_moves_little(tmp_path):
    where = checkpoint(
        tmp_path, backbone="llava", head="discrete", bins=64, chunk=1, resampler=True
    )
    artefact.write(export.source(where), tmp_path / "artefact", "float32")
    whole = torch_policy.load(tmp_path / "artefact", dtype="bfloat16")
    layers = {
        name: layer for name, layer in whole.network.named_modules() if isinstance(layer, Linear)
    }
    for kind in KINDS:
        policy = torch_policy.load(tmp_path / "artefact", dtype="bfloat16", quantise=kind)
        for name, layer in layers.items():
            quantised = policy.network.get_submodule(name)
            if name == "backbone.lm_head" or not name.startswith(("backbone.", "resampler.")):
                assert torch.equal(quantised.kernel, layer.kernel), name
                continue
            assert isinstance(quantised, Transposed), name
            assert quantised.weight.qdata.dtype == EIGHT[kind], name
        assert torch.equal(
            policy.network.backbone.embed.embedding, whole.network.backbone.embed.embedding
        )
        inner = [
            layer.kernel
            for name, layer in layers.items()
            if isinstance(policy.network.get_submodule(name), Transposed)
        ]
        scales = sum(
            5 * kernel.shape[1] for kernel in inner
        )  # at most: float32, and an int8 zero point
        saved, bytes = (
            quantise.stored(whole) - quantise.stored(policy),
            sum(kernel.numel() for kernel in inner),
        )
        assert bytes - scales <= saved < bytes
        vision, readout, _, _ = golden.replay(
            policy, tmp_path / "artefact" / "golden.npz", "float32"
        )
        for row in (vision, readout):
            assert 1e-4 < row.difference < 0.2 * row.largest, (kind, row)


@pytest.mark.slow
def test_the_command_runs_every_row_on_the_same_frames(tmp_path, monkeypatch, capsys):
    artefact.write(
        export.source(checkpoint(tmp_path, head="mlp")), tmp_path / "artefact", "float32"
    )
    rng = np.random.default_rng(0)
    frames = [{"primary": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)} for _ in range(3)]
    episode = Episode(
        0, "made up", "push the red block", frames, np.zeros((3, 0)), np.zeros((3, 7), np.float32)
    )
    recording = SimpleNamespace(
        episodes=lambda most: [0, 1],
        episode=lambda number: episode,
        spec=ActionSpec.from_json(SPEC),
    )
    monkeypatch.setattr(quantise, "open_recording", lambda artefact, where: recording)
    quantise.main(["--artefact", str(tmp_path / "artefact"), "--data", "nowhere"])
    lines = capsys.readouterr().out.splitlines()
    names = ["float32", "bfloat16", "bfloat16 int8", "bfloat16 int8_dynamic", "bfloat16 float8"]
    assert lines[:5] == [f"{name}: 6 frames" for name in names]
    sizes = {line[:22].strip(): float(line[22:31]) for line in lines[7:12]}
    assert list(sizes) == names
    assert sizes["float32"] > sizes["bfloat16"] > sizes["bfloat16 int8"]
    assert [line[:22].strip() for line in lines[15:]] == names[1:]


def test_the_table_says_what_changed():
    spec = ActionSpec(("x", "yaw", "gripper"), binary=(2,))
    true = np.array([[0.0, 0.1, 1.0], [0.2, 0.0, 0.0]], np.float32)
    moved = true + np.array([[0.02, 0.0, 0.0], [0.0, -0.1, 1.0]], np.float32)
    measured = [
        quantise.Measured("float32", 2_000_000, np.array([3.0, 1.0, 2.0]), true),
        quantise.Measured("bfloat16 int8", 500_000, np.array([1.0]), moved),
    ]
    lines = quantise.table(measured, true, np.zeros((len(true), 0)), spec).splitlines()
    assert lines[1].split() == ["float32", "2.00", "2.00", "0.00000", "1.0000", "0"]
    loss = 0.5 * (0.02**2 + 0.1**2) / 4
    assert lines[2].split() == ["bfloat16", "int8", "0.50", "1.00", f"{loss:.5f}", "0.5000", "1"]
    assert lines[-1].split() == ["bfloat16", "int8", "1.00e-02", "2.00e-02", "5.00e-02", "1.00e-01"]


def test_what_cannot_run_here_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="compile: int8 in bfloat16 on a CPU kills the process"):
        torch_policy.load(tmp_path, dtype="bfloat16", compile=True, quantise="int8")
    network = Network.__new__(Network)  # which is not looked at
    with pytest.raises(
        ValueError, match="quantise: expected one of int8, int8_dynamic, float8, got 'int4'"
    ):
        to_8_bits(network, "int4")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(
        ValueError, match=r"int8 needs torchao, which is not here .*: pip install torchao"
    ):
        to_8_bits(network, "int8")
