"""What is inside an artefact's files, looked at before anything is made of it: whoever writes other
hashes too gets one error that names the file, and no memory.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from .network import Network

Made = TypeVar("Made")

LAYERS = ("depth", "layers")  # of config.json: so many modules are made
MAX_IMAGE, MAX_WINDOW, MAX_PROMPT = 4096, 4096, 65536  # pixels, frames, tokens
MAX_READING = 65536  # samples of a sensor


def read_json(file: Path) -> dict[str, Any]:
    """Raises ValueError for anything but a JSON object."""
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, got {error}; export it again") from None
    if not isinstance(body, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(body).__name__}")
    return body


def made(file: Path, make: Callable[[], Made]) -> Made:
    """What `make` makes of the contents of a file. Whatever it raises becomes a ValueError that
    names the file.
    """
    try:
        return make()
    except Exception as error:  # of anything that may stand there
        told = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(
            f"{file}: expected what experiments.export writes, got {told[:500]}; export it again"
        ) from error


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Of every array in a safetensors file, from its header; "." for "/" in the names."""

    def read() -> dict[str, tuple[int, ...]]:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            return {
                name.replace("/", "."): tuple(opened.get_slice(name).get_shape()) for name in names
            }

    return made(file, read)


def arrays(file: Path, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every array of a safetensors file, once its shapes are known to fit."""
    with safe_open(file, "pt", device=device) as opened:
        names = list(opened.keys())
        return {name.replace("/", "."): opened.get_tensor(name).to(dtype) for name in names}


def check_sizes(file: Path, config: dict[str, Any], found: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError for a size in config.json that arrays of these shapes cannot have, so that
    nothing is made by it. No size is above their longest axis, and no more layers than arrays.
    """
    longest = max((size for shape in found.values() for size in shape), default=0)

    def need(good: bool, name: str, wanted: str, got: object) -> None:
        if not good:
            raise ValueError(
                f"{file}: {name}: expected {wanted}, got {got!r:.100}; export it again"
            )

    for name, value in _whole(config["network"], "network"):
        last = name.rpartition(".")[2]
        # Of a row of samples, however long, few are left where the parameters are.
        most = len(found) if last in LAYERS else MAX_READING if last == "shape" else longest
        need(-1 <= value <= most, name, f"at most {most}, by model.safetensors", value)
    size, cameras, head = config["image"]["size"], config["cameras"], config["network"]["head"]
    length, window = config["prompt"]["length"], config["network"]["sequence"]["window"]
    for name, most, value in (
        ("image.size", MAX_IMAGE, size),
        ("prompt.length", MAX_PROMPT, length),
        ("network.sequence.window", MAX_WINDOW, window),
        ("network.head.chunk", MAX_WINDOW, head["chunk"]),
    ):
        need(type(value) is int and 0 < value <= most, name, f"1 to {most}", value)
    names = isinstance(cameras, list) and all(isinstance(name, str) for name in cameras)
    need(names and 0 < len(cameras) <= 64, "cameras", "1 to 64 names", cameras)
    sizes = config["image"].get("sizes", dict.fromkeys(cameras, size))
    each = isinstance(sizes, dict) and all(type(px) is int for px in sizes.values())
    fits = each and sizes.keys() == set(cameras) and all(0 < px <= size for px in sizes.values())
    need(fits, "image.sizes", f"1 to {size} for each of cameras", sizes)
    tokens = head["chunk"] * head["action_dim"] * head.get("bins", 1)
    elements = sum(math.prod(shape) for shape in found.values())
    need(tokens <= elements, "network.head", f"at most {elements} numbers a chunk", tokens)


def check_fit(file: Path, network: Network, found: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError where the arrays are not exactly those of the network."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    wrong += [f"{name} is not wanted" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name] != found[name]:
            wrong.append(f"{name}: expected {wanted[name]}, got {found[name]}")
    if wrong:
        raise ValueError(f"{file}: does not fit config.json:\n  " + "\n  ".join(wrong))


def _whole(body: Any, name: str) -> Iterator[tuple[str, int]]:
    """Every whole number in it."""
    if isinstance(body, dict):
        for key, value in body.items():
            yield from _whole(value, f"{name}.{key}")
    elif isinstance(body, list):
        for value in body:
            yield from _whole(value, name)
    elif type(body) is int:
        yield name, body
