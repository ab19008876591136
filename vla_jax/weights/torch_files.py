"""PyTorch checkpoints as memory-mapped numpy arrays: `.pt` and `.ckpt` files, and DeepSpeed
ZeRO-1/2 directories.

Nothing in a file is executed: torch's restricted unpickler makes tensors and plain containers, a
few classes that DeepSpeed and Lightning are known to leave in their files become empty stand-ins of
ours, and any other class refuses the file. torch is imported only when such a file is opened.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
# Where trainers keep the state dict; a file without one of these is a state dict itself.
KEYS = ("state_dict", "model_state_dict", "module")
# What wrappers put before every name: DDP's and DeepSpeed's, and Lightning's around these.
WRAPPERS = re.compile(r"^(?:_forward_module\.|module\.)+")
# Classes of which checkpoints hold instances that nobody needs to read weights.
STAND_INS = (
    "argparse.Namespace",
    "pathlib.PosixPath",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)


class StandIn:
    """What is left of an object whose class is not wanted: the arguments it was made from."""

    def __new__(cls, *args: Any) -> "StandIn":
        made = super().__new__(cls)
        made.args = args
        return made

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        """Drops the state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drops an item: some of these classes are dicts."""


def is_torch(path: Path) -> bool:
    """Whether `open_torch` is what opens this path."""
    return (path.suffix in SUFFIXES and path.is_file()) or _tag_folder(path) is not None


def open_torch(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name, without wrappers' prefixes; bytes are read when an array
    is.

    Raises ValueError for a file that is truncated, or holds anything but tensors and plain
    containers.
    """
    folder = _tag_folder(path)
    if folder is not None:
        return _unwrapped(path, _open_deepspeed(folder))
    body = _load(path)
    return _unwrapped(
        path, {name: _array(path, name, value) for name, value in _state_dict(path, body).items()}
    )


def _load(file: Path) -> Any:
    """What torch.load makes of a file, restricted to data."""
    import pickle

    import torch

    with file.open("rb") as handle:
        head = handle.read(4)
    zipped = zipfile.is_zipfile(file)
    # Who zips a checkpoint anew compresses it: readable, but nothing to map.
    stored = zipped and all(
        entry.compress_type == zipfile.ZIP_STORED for entry in zipfile.ZipFile(file).infolist()
    )
    if head[:2] == b"PK" and not zipped:
        raise ValueError(
            f"{file}: its end is missing ({file.stat().st_size} bytes): truncated or half-written;"
            " copy it again"
        )
    stand_ins: list[Any] = [(StandIn, name) for name in STAND_INS]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            # What torch cannot read of that protocol, it refuses.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            # Files of torch < 1.6 are no zip archives and cannot be mapped either.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=stored)
    except pickle.UnpicklingError as error:
        wants = re.search(r"GLOBAL (\S+)", str(error))
        got = (
            f"the object {wants[1]}"
            if wants
            else f"something else ({str(error).strip().splitlines()[0]})"
        )
        raise ValueError(
            f"{file}: expected tensors in plain containers, got {got}; nothing of the file was"
            " executed. If you trust it, open it where it was made and save the weights alone:"
            ' torch.save({"state_dict": ...}, FILE)'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: damaged or half-written ({error}); copy it again") from error


def _state_dict(file: Path, body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise ValueError(
            f"{file}: expected a state dict or a dict with one of {KEYS}, got {type(body).__name__}"
        )
    for key in KEYS:
        if isinstance(body.get(key), Mapping):
            return body[key]
    if not body or any(isinstance(value, Mapping) for value in body.values()):
        raise ValueError(
            f"{file}: expected a state dict under one of {KEYS}, got the keys"
            f" {sorted(map(str, body))}"
        )
    return body


def _array(file: Path, name: str, tensor: Any) -> np.ndarray:
    """A view of the tensor's bytes."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{file}: {name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{file}: {name}: expected a dense tensor, got {tensor.layout}")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.numpy()
    except TypeError as error:
        raise ValueError(
            f"{file}: {name}: numpy has no {tensor.dtype}; save it as float32"
        ) from error


def _unwrapped(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without wrappers' prefixes."""
    out = {WRAPPERS.sub("", name): array for name, array in arrays.items()}
    if len(out) != len(arrays):
        raise ValueError(
            f"{path}: the same names with and without 'module.': two models in one file? Keep one"
        )
    return out


# ---------------------------------------------------------------------------------------- DeepSpeed


def _tag_folder(path: Path) -> Path | None:
    """The folder with the states: of a DeepSpeed directory, or `path` itself; else None."""
    if not path.is_dir():
        return None
    latest = path / "latest"
    folder = path / latest.read_text().strip() if latest.is_file() else path
    if latest.is_file() and not folder.is_dir():
        raise ValueError(
            f"{latest}: names the folder {folder.name!r}, which is not there; copy the whole"
            " checkpoint"
        )
    return folder if latest.is_file() or any(folder.glob("*_model_states.pt")) else None


def _open_deepspeed(folder: Path) -> dict[str, np.ndarray]:
    """The float32 parameters, from the partitions that the ranks hold of them; buffers and frozen
    ones as saved.

    Each group of parameters is one vector, in the order of `param_shapes`, cut into equal
    partitions (padded to a multiple of twice their number). A parameter within one partition stays
    a view of its file.
    """
    states = folder / "mp_rank_00_model_states.pt"
    if not states.is_file() or (folder / "mp_rank_01_model_states.pt").exists():
        raise ValueError(
            f"{folder}: expected mp_rank_00_model_states.pt alone (no tensor parallelism); copy all"
            " of it"
        )
    model = _load(states)
    for key in ("module", "param_shapes"):
        if key not in model:
            raise ValueError(
                f"{states}: expected {key!r} among {sorted(map(str, model))}; is it of DeepSpeed's"
                " ZeRO?"
            )
    groups = _partitions(folder)
    if len(groups) != len(model["param_shapes"]):
        raise ValueError(
            f"{states}: {len(model['param_shapes'])} groups of parameters, partitions of"
            f" {len(groups)}"
        )
    arrays = {}
    for parts, shapes in zip(groups, model["param_shapes"], strict=True):
        start, sizes = 0, [int(np.prod(tuple(shape), dtype=np.int64)) for shape in shapes.values()]
        total, align = sum(len(part) for part in parts), 2 * len(parts)
        if -(-sum(sizes) // align) != -(-total // align):
            raise ValueError(
                f"{folder}: partitions hold {total} numbers, the parameters {sum(sizes)}; ranks"
                " missing?"
            )
        for (name, shape), size in zip(shapes.items(), sizes, strict=True):
            arrays[name] = _cut(parts, start, start + size).reshape(tuple(shape))
            start += size
    kept = {name: model["module"].get(name) for name in model.get("buffer_names") or ()}
    kept |= model.get("frozen_param_fragments") or {}
    arrays |= {
        name: _array(states, name, value) for name, value in kept.items() if value is not None
    }
    shared = model.get("shared_params") or {}
    for alias, name in shared.items() if isinstance(shared, Mapping) else shared:
        if name in arrays:
            arrays[alias] = arrays[name]
    return arrays


def _partitions(folder: Path) -> list[list[np.ndarray]]:
    """Of each group of parameters the partitions of all ranks, in the order of ranks."""
    files = {}
    for file in folder.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt"):
        files[int(re.sub(r".*zero_pp_rank_(\d+)_.*", r"\1", file.name))] = file
    if not files:
        raise ValueError(
            f"{folder}: expected files *_zero_pp_rank_R_mp_rank_00_optim_states.pt, which hold the"
            " weights"
        )
    ranks = []
    for rank in sorted(files):
        state = _load(files[rank]).get("optimizer_state_dict")
        if not isinstance(state, Mapping) or "zero_stage" not in state:
            raise ValueError(
                f"{files[rank]}: expected optimizer_state_dict with zero_stage; is it of"
                " DeepSpeed's ZeRO?"
            )
        stage = state["zero_stage"]
        stage = stage.args[0] if isinstance(stage, StandIn) else stage
        if stage not in (1, 2) or "single_partition_of_fp32_groups" not in state:
            raise ValueError(
                f"{files[rank]}: expected ZeRO stage 1 or 2, got stage {stage}, which cuts each"
                " parameter on its own; run DeepSpeed's zero_to_fp32.py on the folder and import"
                " the .pt it writes"
            )
        count = state["partition_count"]
        world = max(count) if isinstance(count, Sequence) else int(count)
        absent = sorted(set(range(world)) - set(files))
        if absent or len(files) != world:
            raise ValueError(
                f"{folder}: expected the files of ranks 0 to {world - 1}, missing:"
                f" {absent or 'none'}"
            )
        groups = state["single_partition_of_fp32_groups"]
        ranks.append(
            [_array(files[rank], f"group {i}", part).reshape(-1) for i, part in enumerate(groups)]
        )
    return [list(parts) for parts in zip(*ranks, strict=True)]


def _cut(parts: list[np.ndarray], start: int, stop: int) -> np.ndarray:
    """Numbers start to stop of the partitions laid end to end: a view where one of them has all."""
    pieces: list[np.ndarray] = []
    at = 0
    for part in parts:
        low, high = max(start - at, 0), min(stop - at, len(part))
        if low < high or (start == stop and not pieces):
            pieces.append(part[low : max(low, high)])
        at += len(part)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
