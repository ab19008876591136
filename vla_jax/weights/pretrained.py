"""Pretrained files -> sharded arrays, strictly: every array fits, or the load is refused.

A file is opened as a dict of memory-mapped arrays, a backbone's name table turns them into views in
our layout, and each device reads its own piece of a view. The whole model is never in one host
copy, nor on one device. Every missing, unexpected or mis-shaped array is named before the first
byte is copied; one with a NaN or an infinity is named when its pieces have been read.
"""

import fnmatch
import json
import math
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from vla_jax import params, sharding
from vla_jax.params import Params
from vla_jax.weights import torch_files
from vla_jax.weights.transforms import Transform

Specs = dict[str, jax.ShapeDtypeStruct]

SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}

# A Hugging Face folder has the first or the second, or its shards and FILE.index.json.
HF_FILES = ("model.safetensors", "pytorch_model.bin")

# Present in some releases, without meaning for us: buffers, SigLIP's pooling head, and output
# layers that are tied.
IGNORED = (
    "*.position_ids",
    "*.rotary_emb.inv_freq",
    "*.embed_positions.weights",
    "vision_tower.head.*",
    "lm_head.weight",
    "text_model.lm_head.weight",
)


class Entry(NamedTuple):
    """Where one of our parameters comes from.

    `source` holds {} where the layer number goes when `layers` > 0: those arrays are stacked on a
    new leading axis.
    """

    source: str
    transform: Transform
    layers: int = 0


class Plan(NamedTuple):
    """How a checkpoint fits the parameters that are wanted."""

    views: dict[str, list[np.ndarray]]  # our name -> one view per layer of a stack, in our layout
    sources: dict[str, str]  # our name -> the name in the file, with {} for the layer
    missing: list[str]  # of our names, those that may stay random
    ignored: list[str]  # of the file's names
    problems: list[str]


class WeightFiles(NamedTuple):
    """An opened checkpoint: its arrays by (normalised) name, without their bytes."""

    path: Path
    kind: str  # "hf", "npz" or "torch"
    arrays: dict[str, np.ndarray]

    def config(self) -> dict[str, Any]:
        """config.json of a Hugging Face folder. Raises ValueError without one."""
        file = self.path / "config.json"
        if not file.is_file():
            raise ValueError(
                f"{self.path}: expected config.json beside the weights; download the whole folder"
            )
        return json.loads(file.read_text())


# ------------------------------------------------------------------------------------------ reading


def open_weights(path: Path | str) -> WeightFiles:
    """Opens a Hugging Face folder (safetensors, else pytorch_model.bin; whole or in shards with
    their index), a big_vision .npz, or what torch_files reads.

    Raises ValueError when it is not there, incomplete, or its header is damaged.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.suffix == ".npz":
        arrays = _open_npz(path)
        return WeightFiles(
            path, "npz", {name.removeprefix("params/"): array for name, array in arrays.items()}
        )
    if torch_files.is_torch(path):
        return WeightFiles(path, "torch", _normalised(torch_files.open_torch(path)))
    return WeightFiles(path, "hf", _normalised(_open_folder(path)))


def _open_folder(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a Hugging Face folder by name."""
    names = [n for n in HF_FILES if (path / n).is_file() or (path / f"{n}.index.json").is_file()]
    whole = path / (names or HF_FILES)[0]
    index = whole.with_name(f"{whole.name}.index.json")
    listed = _read_index(index) if index.is_file() else {}
    shards = [path / name for name in sorted(set(listed.values()))] or [whole]
    absent = [str(file) for file in shards if not file.is_file()]
    if absent:
        raise ValueError(
            "weights: expected a big_vision .npz, a .pt or a Hugging Face folder with safetensors"
            f" or pytorch_model.bin at {path.absolute()}, not found: {', '.join(absent)}; get one"
            " by `hf download google/paligemma-3b-pt-224 --local-dir DIR`"
        )
    read = _open_safetensors if whole.suffix == ".safetensors" else _open_bin
    arrays = {name: array for file in shards for name, array in read(file).items()}
    lost = sorted(listed.keys() - arrays.keys())
    if lost:
        raise ValueError(
            f"{index}: lists {len(lost)} arrays that no shard holds, such as {lost[0]} in"
            f" {listed[lost[0]]}; the shards are not of one release, download the folder again"
        )
    return arrays


def _normalised(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {normalise(name): array for name, array in arrays.items()}


def _read_index(file: Path) -> dict[str, str]:
    """Array name -> shard."""
    try:
        return dict(json.loads(file.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: expected JSON with a weight_map ({error}); download it again"
        ) from error


def normalise(name: str) -> str:
    """One spelling for the four key layouts that transformers 4.41 to 5.23 write and hold for
    LLaVA-like models.
    """
    name = re.sub(r"^model\.(?=language_model|vision_tower|multi_modal_projector)", "", name)
    for old, new in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "language_model."),
        ("vision_tower.vision_model.", "vision_tower."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def expect(name: str, got: Any, wanted: tuple[Any, ...]) -> Any:
    """The value of a key of config.json. Raises ValueError if it is none of those we can build."""
    if got not in wanted:
        raise ValueError(
            f"config.json: {name}: expected {' or '.join(map(repr, wanted))}, got {got!r}"
        )
    return got


def load(
    files: WeightFiles,
    table: dict[str, Entry],
    specs: Specs,
    allow_missing: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> Params:
    """Arrays for `specs` ({our name: shape, dtype, sharding}) as `table` says; see the module's
    docstring.

    A parameter whose arrays are missing is left out where a pattern of `allow_missing` matches its
    name. Arrays of the names `ignored` may be in the files or not.
    """
    return place(files, plan(files, table, specs, allow_missing, ignored), specs)


def plan(
    files: WeightFiles,
    table: dict[str, Entry],
    specs: Specs,
    allow_missing: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> Plan:
    """How the files' arrays fit `specs`; copies nothing. See `load`."""
    fit = Plan({}, {}, [], [], [])
    used: set[str] = set()
    for name, spec in specs.items():
        if name not in table:
            fit.problems.append(f"missing: {name} has no entry in the name table")
            continue
        entry = table[name]
        sources = (
            [entry.source.format(i) for i in range(entry.layers)]
            if entry.layers
            else [entry.source]
        )
        absent = [source for source in sources if source not in files.arrays]
        used.update(sources)
        if absent:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in allow_missing):
                fit.missing.append(name)
            else:
                fit.problems.extend(f"missing: {source} (for {name})" for source in absent)
            continue
        fit.sources[name] = entry.source
        fit.views[name] = [entry.transform(files.arrays[source]) for source in sources]
        wanted = spec.shape[1:] if entry.layers else spec.shape
        fit.problems.extend(
            f"shape: {source} (for {name}): expected {tuple(wanted)}, got {view.shape}"
            for source, view in zip(sources, fit.views[name], strict=True)
            if view.shape != tuple(wanted)
        )
    for source in sorted(files.arrays.keys() - used):
        if source in ignored or any(fnmatch.fnmatchcase(source, pattern) for pattern in IGNORED):
            fit.ignored.append(source)
        else:
            fit.problems.append(f"unexpected: {source}")
    return fit


def place(files: WeightFiles, plan: Plan, specs: Specs) -> Params:
    """The arrays of a plan, each device's piece read straight to it. Raises ValueError naming all
    of the plan's problems, and all arrays of which a piece that was read here is not finite.
    """
    if plan.problems:
        raise ValueError(
            f"weights {files.path}: {len(plan.problems)} arrays do not fit:\n  "
            + "\n  ".join(plan.problems)
            + "\ncheck model.variant; a missing one can be left random by naming it in"
            " model.allow_missing"
        )
    counts: dict[str, int] = {}
    placed = {}
    for name, views in plan.views.items():
        source = plan.sources[name]
        placed[name], bad = _place(views, specs[name])
        labels = (source.replace("{}", str(layer)) for layer in range(len(views)))
        counts |= {f"{label} (for {name})": found for label, found in zip(labels, bad, strict=True)}
    params.refuse_not_finite(f"weights {files.path}", counts)
    return placed


def init_from_pretrained(
    build: params.Build, read: Callable[[Specs], Params], mesh: jax.sharding.Mesh | None, dtype: Any
) -> tuple[nnx.GraphDef, Params]:
    """(graphdef, parameters) of `build`: the arrays that `read(specs)` gives, and the others
    random; all of them in `dtype` and sharded over the mesh. Without a mesh everything is on the
    first device.
    """
    graphdef, shapes, logical = params.abstract(build)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1]) if mesh is None else mesh
    where = sharding.resolve(shapes, logical, mesh)
    loaded = read(
        {k: jax.ShapeDtypeStruct(v.shape, dtype, sharding=where[k]) for k, v in shapes.items()}
    )
    fresh = params.initialise(
        build, 0, {name: place for name, place in where.items() if name not in loaded}
    )
    return graphdef, {
        name: loaded[name] if name in loaded else fresh[name].astype(dtype) for name in shapes
    }


def _place(views: list[np.ndarray], spec: jax.ShapeDtypeStruct) -> tuple[jax.Array, list[int]]:
    """The array, and of each view how many numbers are not finite."""
    stacked = views[0].ndim < len(spec.shape)
    bad: list[dict[str, int]] = [{} for _ in views]  # by piece: devices may share one

    def read(layer: int, index: tuple[slice, ...]) -> np.ndarray:
        part = np.ascontiguousarray(views[layer][index]).astype(spec.dtype)
        bad[layer][str(index)] = params.not_finite(part)
        return part

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # jax asks only for pieces it has a place for
        if not stacked:
            return read(0, index)
        return np.stack([read(layer, index[1:]) for layer in range(len(views))[index[0]]])

    array = jax.make_array_from_callback(spec.shape, spec.sharding, piece)
    return array, [sum(pieces.values()) for pieces in bad]


def _open_bin(file: Path) -> dict[str, np.ndarray]:
    """A shard that torch saved."""
    try:
        return torch_files.open_torch(file)
    except ValueError as error:
        raise ValueError(
            f"{error}\nor have safetensors in its place: download them if the release has some, or"
            " where you trust the file: safetensors.torch.save_file({name: x.contiguous().clone()"
            ' for name, x in torch.load(FILE).items()}, "model.safetensors")'
        ) from error


def _open_safetensors(file: Path) -> dict[str, np.ndarray]:
    """Memory-mapped arrays. The format: 8 bytes of header length, a JSON header with byte ranges,
    the bytes.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length)) if 0 < length <= size - 8 else None
    if header is None:
        raise ValueError(
            f"{file}: not a safetensors file (header of {length} bytes in {size}); download it"
            " again"
        )
    body = (
        np.memmap(file, np.uint8, mode="r", offset=8 + length)
        if size > 8 + length
        else np.zeros(0, np.uint8)
    )
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise ValueError(
                f"{file}: {name}: expected one of {', '.join(SAFETENSORS_DTYPES)}, got"
                f" {entry['dtype']}"
            )
        dtype, (start, stop) = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]]), entry["data_offsets"]
        if stop > body.size or stop - start != math.prod(entry["shape"]) * dtype.itemsize:
            raise ValueError(
                f"{file}: {name}: its bytes are not all there; the file is truncated, download it"
                " again"
            )
        arrays[name] = body[start:stop].view(dtype).reshape(entry["shape"])
    return arrays


def _open_npz(file: Path) -> dict[str, np.ndarray]:
    """Memory-mapped arrays of an uncompressed .npz; compressed members are read whole."""
    arrays = {}
    with zipfile.ZipFile(file) as archive, file.open("rb") as handle:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                reader = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = reader(member)
                start = member.tell()
                stored = (
                    info.compress_type == zipfile.ZIP_STORED
                    and not fortran
                    and math.prod(shape) > 0
                )
                whole = None if stored else np.frombuffer(member.read(), dtype)
            if whole is None:
                # Where the local header of 30 bytes has the lengths of the name and extra field.
                handle.seek(info.header_offset + 26)
                extra = sum(int.from_bytes(handle.read(2), "little") for _ in range(2))
                whole = np.memmap(file, dtype, "r", info.header_offset + 30 + extra + start, shape)
            else:
                whole = whole.reshape(shape, order="F" if fortran else "C")
            # numpy has no bfloat16: files hold it as two untyped bytes.
            arrays[name] = (
                whole.view(ml_dtypes.bfloat16)
                if dtype in (np.dtype("V2"), np.dtype(np.uint16))
                else whole
            )
    return arrays
