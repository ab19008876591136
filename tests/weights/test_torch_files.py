"""PyTorch and DeepSpeed checkpoints: what is read, and what is refused without being executed."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from vla_jax.weights import pretrained, torch_files


def tensors() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5, generator=rng),
        "a.bias": torch.randn(3, generator=rng),
        "half": torch.randn(4, generator=rng).to(torch.bfloat16),
        "turned": torch.randn(2, 6, generator=rng).T,
        "scalar": torch.tensor(2.5),
    }


def assert_same(arrays: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert arrays.keys() == expected.keys()
    for name, tensor in expected.items():
        assert arrays[name].dtype == (
            ml_dtypes.bfloat16 if tensor.dtype == torch.bfloat16 else np.float32
        )
        np.testing.assert_array_equal(
            arrays[name].astype(np.float32), tensor.float().numpy(), err_msg=name
        )


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "module"])
def test_state_dicts_under_every_key(key: str | None, tmp_path: Path) -> None:
    others = {"epoch": 3, "best": np.float32(1), "args": argparse.Namespace(lr=1)}
    body: Any = tensors() if key is None else {key: tensors(), **others}
    torch.save(body, tmp_path / "w.pt")
    assert_same(torch_files.open_torch(tmp_path / "w.pt"), tensors())


def test_a_file_that_was_zipped_anew_is_read(tmp_path: Path) -> None:
    """Compressed entries cannot be mapped, but are whole."""
    torch.save({"state_dict": tensors()}, tmp_path / "w.pt")
    packed = zipfile.ZIP_DEFLATED
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as old,
        zipfile.ZipFile(tmp_path / "z.pt", "w", packed) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same(torch_files.open_torch(tmp_path / "z.pt"), tensors())


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "_forward_module.module."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {prefix + name: tensor for name, tensor in tensors().items()}},
        tmp_path / "w.ckpt",
    )
    files = pretrained.open_weights(tmp_path / "w.ckpt")
    assert files.kind == "torch"
    assert_same(files.arrays, tensors())


def test_the_same_name_with_and_without_a_prefix_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "module.a": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="two models in one file"):
        torch_files.open_torch(tmp_path / "w.pt")


def test_a_file_before_torch_1_6_is_read(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert_same(torch_files.open_torch(tmp_path / "w.pt"), tensors())


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("way", ["zip", "legacy", "pickle", "DeepSpeed"])
def test_what_is_no_plain_state_dict_is_not_executed(way: str, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    body = {"state_dict": tensors(), "hyper_parameters": Evil(trace)}
    file = path = tmp_path / "w.pt"
    if way == "pickle":
        path.write_bytes(pickle.dumps(body))
    elif way == "DeepSpeed":
        write_deepspeed(tmp_path / "ds", [tensors()], world=1)
        path = tmp_path / "ds"
        file = next(path.rglob("*_optim_states.pt"))
        torch.save(body, file)
    else:
        torch.save(body, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(ValueError, match="nothing of the file was executed") as error:
        torch_files.open_torch(path)
    assert str(file) in str(error.value)
    assert not trace.exists()
    torch.load(file, weights_only=False) if way != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()  # it would have been


@pytest.mark.parametrize("keep", [0.95, 0.5, 0.01])
def test_a_truncated_file_is_named(keep: float, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save({"state_dict": {"a": torch.randn(100, 100)}}, file)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(ValueError, match=r"w\.pt: its end is missing .*truncated"):
        pretrained.open_weights(file)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([1, 2], "expected a state dict or a dict with one of"),
        ({"weights": {"a": torch.zeros(1)}, "epoch": 1}, r"got the keys \['epoch', 'weights'\]"),
        ({"state_dict": {"a": torch.zeros(1), "steps": 3}}, "steps: expected a tensor, got int"),
        ({"state_dict": {"a": torch.eye(2).to_sparse()}}, "a: expected a dense tensor"),
        (
            {"state_dict": {"a": torch.zeros(1).to(torch.float8_e4m3fn)}},
            "a: numpy has no torch.float8",
        ),
    ],
)
def test_other_contents_are_refused_by_name(body: Any, message: str, tmp_path: Path) -> None:
    torch.save(body, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message):
        torch_files.open_torch(tmp_path / "w.pt")


# ---------------------------------------------------------------------------------------- DeepSpeed


class LossScaler:
    """Stands for DeepSpeed's, which its files hold an instance of."""

    def __init__(self) -> None:
        self.cur_scale = 65536.0


LossScaler.__module__, LossScaler.__qualname__ = "deepspeed.runtime.fp16.loss_scaler", "LossScaler"


def write_deepspeed(
    folder: Path, groups: list[dict[str, torch.Tensor]], world: int, stage: int = 2
) -> Path:
    """What DeepSpeed's ZeRO-2 writes: 16-bit weights, and of each group the float32 vector in
    `world` pieces.
    """
    tag = folder / "checkpoint"
    tag.mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    names = {name: tensor for group in groups for name, tensor in group.items()}
    model = {
        "module": (
            {name: tensor.to(torch.float16) for name, tensor in names.items()}
            | {
                "buffer": torch.arange(3.0),
                "frozen": torch.full((2, 2), 7.0),
                "alias": torch.zeros(1),
            }
        ),
        "buffer_names": ["buffer"],
        "param_shapes": [
            {name: tensor.shape for name, tensor in group.items()} for group in groups
        ],
        "shared_params": {"alias": "a.bias"},
        "frozen_param_shapes": {"frozen": torch.Size([2, 2])},
        "frozen_param_fragments": {"frozen": torch.full((2, 2), 7.0)},
    }
    torch.save(model, tag / "mp_rank_00_model_states.pt")
    pieces = []
    for group in groups:
        flat = torch.cat([tensor.float().reshape(-1) for tensor in group.values()])
        flat = torch.cat([flat, torch.zeros(-len(flat) % (2 * world))])
        pieces.append(flat.chunk(world))
    for rank in range(world):
        state = {
            "loss_scaler": LossScaler(),
            "zero_stage": stage,
            "partition_count": [world] * len(groups),
            "single_partition_of_fp32_groups": [piece[rank].clone() for piece in pieces],
        }
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state}, tag / name)
    return folder


@pytest.fixture(autouse=True)
def deepspeed_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save looks an object's class up by name; reading must not."""
    import sys
    import types

    module: Any = types.ModuleType("deepspeed.runtime.fp16.loss_scaler")
    module.LossScaler = LossScaler
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.fp16"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("world", [1, 2, 3, 11])
def test_deepspeed_partitions_are_put_together(world: int, tmp_path: Path) -> None:
    whole = {name: tensor.float() for name, tensor in tensors().items()}
    groups = [{k: v for k, v in whole.items() if k != "turned"}, {"turned": whole["turned"]}]
    write_deepspeed(tmp_path, groups, world)
    kept = {
        "buffer": torch.arange(3.0),
        "frozen": torch.full((2, 2), 7.0),
        "alias": whole["a.bias"],
    }
    for path in (tmp_path, tmp_path / "checkpoint"):
        assert_same(pretrained.open_weights(path).arrays, whole | kept)


def test_deepspeed_directories_that_lack_something_are_named(tmp_path: Path) -> None:
    group = {"a.bias": torch.randn(40)}
    tag = write_deepspeed(tmp_path / "one", [group], world=3) / "checkpoint"
    (tag / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(ValueError, match=r"files of ranks 0 to 2, missing: \[1\]"):
        torch_files.open_torch(tmp_path / "one")
    for file in tag.glob("*optim_states.pt"):
        file.unlink()
    with pytest.raises(ValueError, match="which hold the weights"):
        torch_files.open_torch(tmp_path / "one")
    (tmp_path / "one" / "latest").write_text("global_step9")
    with pytest.raises(ValueError, match="global_step9"):
        torch_files.open_torch(tmp_path / "one")
    write_deepspeed(tmp_path / "two", [group], world=2, stage=3)
    with pytest.raises(ValueError, match=r"got stage 3.*zero_to_fp32\.py"):
        torch_files.open_torch(tmp_path / "two")
    tag = write_deepspeed(tmp_path / "three", [group], world=2) / "checkpoint"
    model = torch.load(tag / "mp_rank_00_model_states.pt")
    model["param_shapes"] = [{"a.bias": torch.Size([400])}]
    torch.save(model, tag / "mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match="partitions hold 40 numbers, the parameters 400"):
        torch_files.open_torch(tmp_path / "three")
