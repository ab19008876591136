"""ONNX and torch.export: the written programs compute what JAX recorded, the state carried outside
of them.
"""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import load as load_graph

from experiments import export
from tests.export import programs
from tests.export.test_export import TWO, checkpoint
from vla_jax.export import artefact, derived, hf, onnx, pt2
from vla_jax.models.backbones import flamingo
from vla_jax.robot import torch_policy

# Of torch's own exporters and compiler, about calls of their own.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]


def made(root: Path, **model) -> Path:
    """An artefact of a jittered tiny policy."""
    artefact.write(export.source(checkpoint(root, **model)), root / "artefact", "float32")
    return root / "artefact"


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """An artefact with a state, an action before, a window of readouts and cameras of two sizes."""
    root = tmp_path_factory.mktemp("derived")
    return made(root, window=3, cameras=TWO, image_sizes=(32, 16), proprio=True, past_action=True)


@pytest.fixture(scope="module")
def growing(tmp_path_factory) -> Path:
    """An artefact whose window grows."""
    root = tmp_path_factory.mktemp("growing")
    return made(root, window=3, history_start="grow")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """An artefact with what the other has not: frames as state, media beside the sequence, a loop,
    noise.
    """
    root, shallow = (
        tmp_path_factory.mktemp("drawn"),
        dataclasses.replace(flamingo.CONFIGS["tiny"], depth=1, every=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(flamingo.CONFIGS, "tiny", shallow)
        sizes = {
            "backbone": "flamingo",
            "head": "discrete",
            "bins": 64,
            "chunk": 1,
            "temperature": 0.5,
        }
        return made(root, history="interleaved", window=2, **sizes)


def by_the_readme() -> dict:
    """What the code in README.md defines, here."""
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1], names)
    return names


def exact(printed: str) -> None:
    """The printed table of a proof has small differences of numbers that are not small."""
    for stage in ("vision", "readout", "action"):
        row = re.search(rf"{stage} +(\S+) +(\S+) +\S+ ok", printed)
        assert float(row[2]) <= 1e-5 * max(1, float(row[1]))
        assert float(row[1]) > 0.05


@pytest.mark.slow
def test_cameras_of_another_size_are_none_of_transformers(policy, tmp_path):
    with pytest.raises(ValueError, match=r"--hf: expected images of 32 px .* got some of 16"):
        hf.write(policy, tmp_path, tmp_path / "hf")
    assert "- Images of wrist: uint8 RGB [16, 16, 3]" in (policy / "README.md").read_text()


@pytest.mark.slow
def test_onnxruntime_computes_the_same_and_the_readme_says_how(
    policy, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "onnx"
    export.main(["--artefact", str(policy), "--onnx", str(out)])
    exact(capsys.readouterr().out)
    torch_policy.verify(out)
    monkeypatch.chdir(out)
    names = by_the_readme()
    with np.load("golden.npz") as file:
        golden, state = dict(file), names["state"]
    reference = torch_policy.load(policy)
    for i, inputs in enumerate(derived.frames(reference, policy / "golden.npz")):
        given = {
            name: x.numpy() for name, x in inputs._asdict().items() if isinstance(x, torch.Tensor)
        }
        action, state = names["step"](given, state)
        np.testing.assert_allclose(action, golden["action"][i], atol=1e-5)
        units = names["robot_units"](golden["action"][i], str(golden["dataset"]))
        np.testing.assert_allclose(units, golden["robot"][i], rtol=1e-6)
    weights = bytearray((out / "model.onnx.data").read_bytes())
    weights[len(weights) // 2] ^= 1
    (out / "model.onnx.data").write_bytes(weights)
    with pytest.raises(ValueError, match=r"model.onnx.data: not as it was exported"):
        by_the_readme()


@pytest.mark.slow
def test_onnx_of_frames_as_state_and_of_a_loop_that_draws_tokens(drawn, tmp_path):
    """In a process of its own: under the tests' type checks torch cannot trace the body of
    a loop.
    """
    command = [
        sys.executable,
        "-m",
        "experiments.export",
        "--artefact",
        drawn,
        "--onnx",
        tmp_path / "onnx",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    exact(run.stdout)
    graph = load_graph(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    assert [node.op_type for node in graph.node].count(
        "Loop"
    ) == 1  # of 7 tokens, and as large for 70
    io = json.loads((tmp_path / "onnx" / "io.json").read_text())
    state = ["state_tokens", "state_valid", "state_media", "state_media_valid"]
    assert [*io["inputs"]] == ["images", "prompt", "prompt_mask", "first", "noise", *state]
    assert io["outputs"]["probability"]["shape"] == [1, 7]
    for name in state:
        assert io["outputs"][f"next_{name}"] == io["inputs"][name]


@pytest.mark.slow
def test_torch_loads_both_programs_again(policy, tmp_path, monkeypatch):
    proof = pt2.write(policy, tmp_path / "pt2")
    assert set(proof) == {"step.pt2", "compiled.pt2"}
    for row in (*proof["step.pt2"], *proof["compiled.pt2"]):
        assert row.difference <= 1e-5 * max(1, row.largest), row
    torch_policy.verify(tmp_path / "pt2")
    weights = (policy / "model.safetensors").stat().st_size
    for name in proof:  # none is there twice
        assert weights < (tmp_path / "pt2" / name).stat().st_size < 1.5 * weights + 2**21
    monkeypatch.chdir(tmp_path / "pt2")
    names = by_the_readme()
    with np.load("golden.npz") as file, torch.no_grad():
        golden, state = dict(file), names["state"]
        for i, inputs in enumerate(
            derived.frames(torch_policy.load(policy), policy / "golden.npz")
        ):
            given = {name: x for name, x in inputs._asdict().items() if isinstance(x, torch.Tensor)}
            action, state = names["step"](given, state)
            np.testing.assert_allclose(action, golden["action"][i], atol=1e-5)


@pytest.mark.slow
def test_a_window_that_grows_is_carried_in_both(growing, tmp_path):
    """Without `present` in the state the first steps would be read as if they were not."""
    for rows in (
        onnx.write(growing, tmp_path / "onnx"),
        *pt2.write(growing, tmp_path / "p").values(),
    ):
        for row in rows:
            assert row.difference <= 1e-5 * max(1, row.largest), row
    for folder in ("onnx", "p"):
        io = json.loads((tmp_path / folder / "io.json").read_text())
        assert io["inputs"]["state_present"] == {"dtype": "bool", "shape": [1, 3]}
        assert io["outputs"]["next_state_readouts"] == io["inputs"]["state_readouts"]


@pytest.mark.slow
def test_bins_are_read_in_both(tmp_path):
    """The head oft with its discrete readout: the likeliest bin is the same, so numbers are."""
    origin = made(
        tmp_path, head="oft", history="one_step", window=1, bins=64,
        head_options="readout='discrete'",
    )  # fmt: skip
    assert "bins" in json.loads((origin / "config.json").read_text())["network"]["head"]
    policy = torch_policy.load(origin)
    given = derived.example(policy)
    step = pt2.on_arrays(derived.OneStep(policy.network), given)
    exported = derived.replay(step, policy, given, origin / "golden.npz", "float32")
    for row in (*onnx.write(origin, tmp_path / "onnx"), *exported):
        assert row.difference <= 1e-5 * max(1, row.largest), row
        assert row.largest > 0.05, row


@pytest.mark.slow
def test_a_state_in_bfloat16_is_carried(drawn):
    policy = torch_policy.load(drawn, dtype="bfloat16")
    given = derived.example(policy)
    assert given["state_tokens"].dtype == torch.bfloat16
    step = pt2.on_arrays(derived.OneStep(policy.network), given)
    vision, readout, _ = derived.replay(step, policy, given, drawn / "golden.npz", "float32")
    for row in (vision, readout):
        assert 1e-4 < row.difference < 0.05 * row.largest, row


@pytest.mark.slow
def test_a_difference_leaves_no_folder(policy, tmp_path, monkeypatch):
    """The program's actions are off by a hundredth."""
    step = derived.OneStep(torch_policy.load(policy).network)

    def session(part):
        right = pt2.on_arrays(step, derived.example(torch_policy.load(policy)))
        return lambda given: (out := right(given)) | {"action": out["action"] + 0.01}

    empty = SimpleNamespace(save=lambda file, external_data: file.write_bytes(b""))
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: empty)
    monkeypatch.setattr(onnx, "session", session)
    with pytest.raises(
        ValueError, match="--onnx: onnxruntime and JAX differ at action; no folder is written"
    ):
        onnx.write(policy, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=r"--pt2: .* is there already"),
        derived.whole(tmp_path, "--pt2"),
    ):
        pass


@pytest.mark.slow
def test_without_a_compiler_aotinductor_is_refused(tmp_path, monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(
        ValueError,
        match=r"--pt2: AOTInductor needs a C\+\+ compiler, and none is here .*: install g",
    ):
        pt2.write(tmp_path, tmp_path / "pt2")


def test_a_folder_is_whole_or_not_there(tmp_path):
    with derived.whole(tmp_path / "good", "--onnx") as part:
        (part / "file").write_text("x")
        assert not (tmp_path / "good").exists()
    torch_policy.verify(tmp_path / "good")
    with pytest.raises(KeyError), derived.whole(tmp_path / "bad", "--onnx"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


@pytest.mark.slow
def test_onnx_of_the_expert_behind_the_backbones_keys(tmp_path):
    """It is proved equal to JAX where it is written; the state goes to the head."""
    origin = made(
        tmp_path, head="expert", window=1, chunk=2, proprio=True,
        head_options="state='expert',time='adaptive',padded=8,bound=0.0",
    )  # fmt: skip
    for largest, difference in programs.proven(origin, tmp_path / "onnx").values():
        assert difference <= 1e-5 * max(1, largest)
    io = json.loads((tmp_path / "onnx" / "io.json").read_text())
    assert io["inputs"]["proprio"]["shape"] == [1, 7]
    assert io["inputs"]["noise"]["shape"] == [1, 2, 8]
