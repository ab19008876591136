"""An artefact's folder: its files, their hashes, and the policy in it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._pytree import tree_map

from .heads import DiscreteHead
from .network import Network
from .policy import Policy
from .quantise import to_8_bits
from .tokenizer import Tokenizer

SCHEMA = 1
SUMS = "SHA256SUMS"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    path: Path | str,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    compile: bool = False,
    quantise: str | None = None,
) -> Policy:
    """The policy of an artefact's folder.

    Args:
        path: the folder that experiments.export wrote.
        device: of torch.
        dtype: "float32" or "bfloat16": what the backbone computes in. The head always computes in
            float32.
        compile: with torch.compile; the first frames are then slow. On a GPU as CUDA graphs.
        quantise: "int8", "int8_dynamic" or "float8": the backbone's weights in 8 bits, see
            quantise.py; needs torchao. The artefact's proof does not hold for it:
            experiments.quantise says what it costs.

    Raises ValueError for a file that is damaged, missing or not the exporter's, another schema,
    weights that do not fit, and int8 compiled in bfloat16 for a CPU.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if compile and (quantise, dtype, torch.device(device).type) == ("int8", "bfloat16", "cpu"):
        raise ValueError(
            "compile: int8 in bfloat16 on a CPU kills the process (seen with torch 2.13, torchao"
            " 0.18); use dtype float32, or int8_dynamic"
        )
    verify(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("schema") != SCHEMA:
        raise ValueError(
            f"{path}: expected artefact schema {SCHEMA}, got {config.get('schema')}; export it"
            " again"
        )
    with torch.device("meta"):
        network = Network(config["network"])
    with safe_open(path / "model.safetensors", "pt", device=str(device)) as file:
        names = list(file.keys())
        arrays = {name.replace("/", "."): file.get_tensor(name).to(DTYPES[dtype]) for name in names}
    _check_fit(path, network, arrays)
    network.load_state_dict(arrays, strict=True, assign=True)
    network.requires_grad_(False).eval()
    network.head.float()
    if quantise is not None:
        to_8_bits(network, quantise)
    if compile:
        _compile(network)
    stats = json.loads((path / "norm_stats.json").read_text(encoding="utf-8"))
    return Policy(network, config, stats, Tokenizer.open(path / "tokenizer.json", config["prompt"]))


def _compile(network: Network) -> None:
    """Compiles what has the same shapes at each frame; of the head discrete the pass over one
    token.
    """
    graphs = network.readout_embedding.device.type == "cuda"
    second = "_encode_token" if isinstance(network.head, DiscreteHead) else "step"
    for name in ("vision", second):
        compiled = torch.compile(
            getattr(network, name), mode="reduce-overhead" if graphs else "default"
        )
        setattr(network, name, _copying(compiled) if graphs else compiled)


def _copying(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` with copies of what it returns: a CUDA graph writes its outputs over those of its last
    call, and the state of an episode, or a stage that is looked at, must outlive it.
    """
    return lambda *args: tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, run(*args))


def verify(path: Path) -> None:
    """Raises ValueError unless the folder holds exactly the files of SHA256SUMS, each with its
    hash.
    """
    listed = path / SUMS
    if not listed.is_file():
        raise ValueError(f"{path}: expected an artefact with {SUMS}; experiments.export writes one")
    sums = dict(line.split("  ", 1)[::-1] for line in listed.read_text().splitlines())
    there = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    there = {name for name in there if name != SUMS and "__pycache__" not in name}
    wrong = [f"{name}: missing" for name in sorted(sums.keys() - there)]
    wrong += [f"{name}: not among the exported files" for name in sorted(there - sums.keys())]
    for name in sorted(sums.keys() & there):
        got = digest(path / name)
        if got != sums[name]:
            wrong.append(f"{name}: expected sha256 {sums[name]}, got {got}")
    if wrong:
        raise ValueError(
            f"{path}: not as it was exported:\n  "
            + "\n  ".join(wrong)
            + "\ncopy or export it again"
        )


def digest(file: Path) -> str:
    """sha256 of a file."""
    sha = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


def _check_fit(path: Path, network: Network, arrays: dict[str, torch.Tensor]) -> None:
    wanted = network.state_dict()
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - arrays.keys())]
    wrong += [f"{name} is not wanted" for name in sorted(arrays.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & arrays.keys()):
        if wanted[name].shape != arrays[name].shape:
            wrong.append(
                f"{name}: expected {tuple(wanted[name].shape)}, got {tuple(arrays[name].shape)}"
            )
    if wrong:
        raise ValueError(
            f"{path}: model.safetensors does not fit config.json:\n  " + "\n  ".join(wrong)
        )
