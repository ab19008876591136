"""An artefact's folder: its files, their hashes, and the policy in it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from . import contents, signature
from .network import Network
from .policy import Policy
from .quantise import to_8_bits
from .spec import Spec, image_sizes, sensors_of
from .token_heads import TokenHead
from .tokenizer import Tokenizer

# 2 since a window may grow and images have filters: code of before would read neither.
SCHEMA, READ = 2, (1, 2)
SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.minisig"
BYTECODE = "; remove __pycache__, which `python -B` does not write"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    path: Path | str,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    compile: bool = False,
    quantise: str | None = None,
    require_signature: str | None = None,
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
        require_signature: the public key, or its file, by whose owner SHA256SUMS must be signed:
            see signature.py.

    Raises ValueError for a file that is damaged, missing or not the exporter's, another schema,
    weights that do not fit, a wrong signature, and int8 compiled in bfloat16 for a CPU.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if compile and (quantise, dtype, torch.device(device).type) == ("int8", "bfloat16", "cpu"):
        raise ValueError(
            "compile: int8 in bfloat16 on a CPU kills the process (seen with torch 2.13, torchao"
            " 0.18); use dtype float32, or int8_dynamic"
        )
    verify(path, require_signature)
    file, weights = path / "config.json", path / "model.safetensors"
    config = contents.read_json(file)
    if config.get("schema") not in READ:
        raise ValueError(
            f"{path}: expected artefact schema {' or '.join(map(str, READ))}, got"
            f" {config.get('schema')}; export it again"
        )
    shapes = contents.shapes(weights)
    contents.made(file, lambda: contents.check_sizes(file, config, shapes))
    with torch.device("meta"):
        network = contents.made(
            file, lambda: Network(config["network"], tuple(image_sizes(config).values()))
        )
    contents.made(file, lambda: _check_sensors(config))
    contents.check_fit(weights, network, shapes)
    arrays = contents.arrays(weights, str(device), DTYPES[dtype])
    network.load_state_dict(arrays, strict=True, assign=True)
    network.requires_grad_(False).eval()
    network.head.widen()
    if quantise is not None:
        to_8_bits(network, quantise)
    if compile:
        _compile(network)
    stats = contents.read_json(path / "norm_stats.json")
    contents.made(path / "norm_stats.json", lambda: _check_specs(config, stats))
    words = path / "tokenizer.json"
    tokenizer = contents.made(words, lambda: Tokenizer.open(words, config["prompt"]))
    return Policy(network, config, stats, tokenizer)


def _check_sensors(config: dict[str, Any]) -> None:
    """Raises something where the readings that are taken are not the network's."""
    wanted = {
        each["name"]: each["shape"] for each in config["network"]["sequence"].get("sensors", ())
    }
    if wanted != {sensor.name: list(sensor.shape) for sensor in sensors_of(config)}:
        raise ValueError(f"sensors: expected those of the network, {wanted}")


def _check_specs(config: dict[str, Any], stats: dict[str, Any]) -> None:
    """Raises something where what is said of a dataset's numbers is not of this network's."""
    network = config["network"]
    wanted = {"action": network["head"]["action_dim"]}
    if network["sequence"]["state"]:
        wanted["state"] = network["sequence"]["state"]["dims"]
    if stats["datasets"] == {}:
        raise ValueError("expected a dataset, got none")
    numbers_of_sample = {sensor.name: sensor.shape[-1] for sensor in sensors_of(config)}
    for name, body in stats["datasets"].items():
        for kind, width in wanted.items():
            if kind == "state" and config.get("state_names") and not body["state"]:
                continue  # it has none, and the policy knows the numbers by their names
            spec = Spec({**body[kind], "relative": []})
            made = spec.unnormalise(spec.normalise(np.zeros(len(spec.names))))
            if made.shape != (len(spec.names),):
                raise ValueError(f"{name}: {kind}: expected {made.size} numbers, got {spec.names}")
            names = config.get(f"{kind}_names", spec.names)
            if len(names) != width or not set(spec.names) <= set(names):
                raise ValueError(
                    f"{name}: {kind}: expected dims of {width} by the names {names}, got"
                    f" {spec.names}"
                )
        _check_relative(name, body)
        for each, numbers in body.get("sensors", {}).items():
            Spec(numbers).normalise(np.zeros(numbers_of_sample[each]))
        if network["sequence"].get("embodiments") and name not in config["embodiments"]:
            raise ValueError(f"embodiments: expected {name}, got {config['embodiments']}")


def _check_relative(name: str, body: dict[str, Any]) -> None:
    """Raises ValueError where the actions of a dataset are relative to dims that are not there."""
    own, there = len(body["action"]["names"]), len(body["state"]["names"]) if body["state"] else 0
    for part in Spec(body["action"]).relative:
        within = max(part.action) < own and max(part.state) < there
        if not within or len(part.action) != len(part.state):
            raise ValueError(f"{name}: action: expected dims of it and of the state, got {part}")


def _compile(network: Network) -> None:
    """Compiles what has the same shapes at each frame; of heads that write tokens the pass over
    one. A chunk that is led to a plan is differentiated, which is not compiled.
    """
    graphs = network.readout_embedding.device.type == "cuda"
    second = "_encode_token" if isinstance(network.head, TokenHead) else "step"
    for name in ("vision", second):
        plain = getattr(network, name)
        compiled = torch.compile(plain, mode="reduce-overhead" if graphs else "default")
        run = _copying(compiled) if graphs else compiled
        setattr(network, name, _unless_led(run, plain) if name == "step" else run)


def _unless_led(run: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: (run if args[2].plan is None else plain)(*args)


def _copying(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` with copies of what it returns: a CUDA graph writes its outputs over those of its last
    call, and the state of an episode, or a stage that is looked at, must outlive it.
    """
    return lambda *args: tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, run(*args))


def _is_bytecode(name: Path) -> bool:
    return name.parent.name == "__pycache__" and name.suffix == ".pyc"


def verify(path: Path, require_signature: str | None = None) -> None:
    """Raises ValueError unless the folder holds exactly the files of SHA256SUMS, each with its
    hash, and no link, and, with a key, SHA256SUMS is signed by its owner.

    Bytecode is not among them: Python would run it in the place of a file that is. The folder's own
    code passes it over, as it runs from it: who does not trust the folder imports nothing from it,
    as experiments.serve.
    """
    listed = path / SUMS
    if not listed.is_file():
        raise ValueError(f"{path}: expected an artefact with {SUMS}; experiments.export writes one")
    data, signed = listed.read_bytes(), path / SIGNATURE
    if require_signature is not None:
        key = signature.public_key(require_signature)
        if not signed.is_file():
            raise ValueError(
                f"{path}: expected {SIGNATURE}, by the owner of --require_signature, got none;"
                f" minisign -Sm {SUMS} writes it"
            )
        signature.check(
            data, signed.read_text(encoding="utf-8", errors="replace"), key, str(signed)
        )
    sums = contents.made(listed, lambda: dict(_sum(line) for line in data.decode().splitlines()))
    found = [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    inside = {file.relative_to(path) for file in found if file not in (listed, signed)}
    own = Path(__file__).resolve().is_relative_to(path.resolve())
    there = {str(name) for name in inside if not (own and _is_bytecode(name))}
    links = sorted(str(file.relative_to(path)) for file in found if file.is_symlink())
    wrong = [f"{name}: expected a file, got a link" for name in links]
    wrong += [f"{name}: missing" for name in sorted(sums.keys() - there)]
    wrong += [
        f"{name}: not among the exported files{BYTECODE * _is_bytecode(Path(name))}"
        for name in sorted(there - sums.keys())
    ]
    for name in sorted((sums.keys() & there) - set(links)):
        got = digest(path / name)
        if got != sums[name]:
            wrong.append(f"{name}: expected sha256 {sums[name]}, got {got}")
    if wrong:
        raise ValueError(
            f"{path}: not as it was exported:\n  "
            + "\n  ".join(wrong)
            + "\ncopy or export it again"
        )


def _sum(line: str) -> tuple[str, str]:
    """A line of SHA256SUMS: the file, and its hash."""
    found, name = line.split("  ", 1)
    return name, found


def digest(file: Path) -> str:
    """sha256 of a file."""
    sha = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()
