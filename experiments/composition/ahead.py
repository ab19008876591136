"""A config's step compiled for machines that are not here, and remembered.

A program of billions of parameters takes the compiler minutes, so what is asked of it is kept under
~/.cache/vla_jax/preflight ($XDG_CACHE_HOME) by a digest of the program, of the devices and of the
versions of jax and libtpu: a change of code or config is another program. A damaged file is
compiled anew. Unless asked for in full, the compiler makes less effort than for a run: a quarter of
the minutes, the same arithmetic and collectives, and bounds from above for temporaries and for what
memory moves (experiments/README.md, "What preflight said"). That a step does not fit is only said
of one compiled in full.
"""

import contextlib
import gzip
import hashlib
import importlib.metadata
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from experiments.composition import estimate, steps, traffic
from experiments.composition.collectives import Collective, read
from vla_jax import sharding
from vla_jax.training import metrics

GIB = 2**30


class Chip(NamedTuple):
    """The maker's figures of one chip."""

    flops: float  # a second, bfloat16
    memory: float  # bytes
    bandwidth: float  # bytes a second between it and its memory
    links: float  # bytes a second to its neighbours, all links together


# Google Cloud's and NVIDIA's data sheets; links inside a slice (ICI) or a node (NVLink, one
# direction).
CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 448e9),
    "H100": Chip(989e12, 80e9, 3350e9, 450e9),
}
# Slices that exist, smallest to largest; v5p is named by its cores on the price list, two a chip.
SLICES = {
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}


class Machines(NamedTuple):
    """What is compiled for, and how hard."""

    topology: str
    chip: Chip
    mesh: jax.sharding.Mesh  # of its devices
    full: bool  # with a run's own effort


class ParameterSizes(NamedTuple):
    """What parameters are known by in a compiled program, which cuts and folds them as it likes:
    whole and one device's, all layers and one.
    """

    counts: set[int]  # of elements; not 1, which is a sum's
    axes: set[int]  # sizes of single axes


class DoesNotFit(Exception):
    """The compiler found no way to place the program in a chip's memory; its words."""


class Step(NamedTuple):
    """A step compiled for machines that are not here."""

    memory: dict[str, int]  # bytes a chip by kind
    collectives: list[Collective]
    flops: float  # a chip, of its matrix products
    moved: float | None  # bytes between a chip and its memory; None: of another machine's compiler
    sizes: ParameterSizes
    batch_axes: set[int]  # sizes of the axes that have all windows, or what they are made of
    saved: int  # bytes of a checkpoint
    example: int  # bytes of one of its batch


class Program(NamedTuple):
    """A program, compiled for machines that are not here."""

    arguments: int  # bytes a chip
    temporaries: int  # the same
    collectives: list[Collective]
    flops: float  # of all chips, of its matrix products
    moved: float | None  # as of Step


def listed() -> str:
    """The names of topologies, a line for each chip."""
    lines = [f"{chip}: {', '.join(f'{chip}:{name}' for name in SLICES[chip])}" for chip in SLICES]
    return "\n".join([*lines, "H100: gpu:1xH100, gpu:8xH100, ... gpu:NxH100"])


def open_topology(name: str) -> tuple[Chip, list[Any]]:
    """The chip and the devices to compile for. Raises ValueError for a name that is none, and
    without the compiler.
    """
    kind, _, layout = name.partition(":")
    number, _, card = layout.partition("x")
    if kind == "gpu" and number.isdigit() and card in CHIPS:
        jax.config.update("jax_platforms", "cpu")
        with contextlib.suppress(RuntimeError):  # jax has started: it may have enough of them
            jax.config.update("jax_num_cpu_devices", int(number))
        if len(jax.devices()) < int(number):
            raise ValueError(
                f"--topology={name}: expected to set {number} devices before jax starts, got"
                f" {len(jax.devices())}; run the command in a process of its own, without XLA_FLAGS"
            )
        return CHIPS[card], list(jax.devices()[: int(number)])
    if kind not in CHIPS or not layout or not all(n.isdigit() for n in layout.split("x")):
        tpus = ", ".join(f"{chip}:AxB" for chip in CHIPS if chip != "H100")
        raise ValueError(
            f"--topology: expected {tpus} or gpu:NxH100 (list shows them), got {name!r}"
        )
    jax.config.update("jax_platforms", "cpu")
    # Else the compiler looks for a TPU around it, on the network too, and lets one process in.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=name,
            chip_config_name="megacore" if kind == "v5p" else "default",
        )
    except Exception as error:
        raise ValueError(
            f"--topology={name}: expected a topology that libtpu knows, got {error}; is it"
            ' installed (pip install "libtpu==0.0.42.*"), and does this slice exist?'
        ) from error
    return CHIPS[kind], list(described.devices)


def compiled(config: ConfigDict, machines: Machines) -> Step:
    """The train step of the config, compiled for the machines. Raises DoesNotFit."""
    plan = steps.plan(config, machines.mesh)
    traced = steps.trace(config, plan)
    step, state = program(traced, machines), plan.abstract
    memory = {
        name: sharding.bytes_per_device(part)
        for name, part in (
            ("parameters", state.params),
            ("frozen", state.frozen),
            ("optimizer", state.opt_state),
            ("average", state.ema),
        )
    }
    memory["batch"] = step.arguments - sum(memory.values())
    memory["temporaries"] = step.temporaries
    saved = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))
    batch_axes = _batch_axes(traced, config, plan)
    one = estimate.of_step(config, plan.graphdef, plan.shapes, 1)
    example = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(one))
    sizes, flops = parameter_sizes(plan), step.flops / machines.mesh.size
    return Step(memory, step.collectives, flops, step.moved, sizes, batch_axes, saved, example)


def program(traced: jax.stages.Traced, machines: Machines) -> Program:
    """A traced program, compiled for the machines. Raises DoesNotFit."""
    size, text = _known(traced, machines)
    moved = traffic.read(text) if machines.mesh.devices.flat[0].platform == "tpu" else None
    flops = metrics.count_flops(traced.jaxpr.jaxpr)
    return Program(size["arguments"], size["temporaries"], read(text, machines.mesh), flops, moved)


def _known(traced: jax.stages.Traced, machines: Machines) -> tuple[dict[str, int], str]:
    """Bytes of arguments and temporaries, and the program's text; from the cache if they are
    there.
    """
    lowered = traced.lower(lowering_platforms=(machines.mesh.devices.flat[0].platform,))
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    versions = jax.__version__, _version("libtpu")
    effort = [] if machines.full else ["O1"]
    made_of = lowered.as_text(), machines.topology, *versions, *flags, *effort
    file = cache_folder() / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.json.gz"
    known = _cached(file)
    if known is None:
        room = machines.chip.memory
        known = _compile(lowered) if machines.full else _with_less_effort(lowered, room)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        part.write_bytes(gzip.compress(json.dumps(known).encode(), 3))
        os.replace(part, file)
    if not known["fits"]:
        raise DoesNotFit(known["words"])
    return known, known["text"]


def _with_less_effort(lowered: jax.stages.Lowered, room: float) -> dict[str, Any]:
    """What `_compile` says, in less time; in full where it does not fit so, or not in `room`, the
    bytes of a chip.
    """
    before = jax.config.values["jax_optimization_level"]
    jax.config.update("jax_optimization_level", "O1")
    try:
        known = _compile(lowered)
    finally:
        jax.config.update("jax_optimization_level", before)
    fits = known["fits"] and known["arguments"] + known["temporaries"] <= room
    return known if fits else _compile(lowered)


def _compile(lowered: jax.stages.Lowered) -> dict[str, Any]:
    """Whether it fits; its sizes and text, or the compiler's words."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error):
            raise
        return {"fits": False, "words": str(error).splitlines()[0]}
    size: Any = program.memory_analysis()
    return {
        "fits": True,
        "arguments": size.argument_size_in_bytes,
        "temporaries": size.temp_size_in_bytes,
        "text": program.as_text(),
    }


def cache_folder() -> Path:
    """Where compiled programs are remembered."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vla_jax/preflight"


def _cached(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        known: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        print(f"{file} is damaged ({error}): compiling anew", flush=True)
        return None
    return known


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _batch_axes(traced: jax.stages.Traced, config: ConfigDict, plan: steps.Plan) -> set[int]:
    """The sizes of axes that the program has at this batch size and not at eleven times of it."""
    more = config.copy_and_resolve_references()
    more.batch_size *= 11
    return _axes(traced.jaxpr.jaxpr) - _axes(steps.trace(more, plan).jaxpr.jaxpr)


def _axes(jaxpr: Any) -> set[int]:
    sizes = {
        size for eqn in jaxpr.eqns for var in eqn.outvars for size in getattr(var.aval, "shape", ())
    }
    return sizes.union(*(_axes(part) for eqn in jaxpr.eqns for part in metrics.inner(eqn.params)))


def parameter_sizes(plan: steps.Plan) -> ParameterSizes:
    """Of a plan on its mesh."""
    mesh = plan.abstract.step.sharding.mesh
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    parts = {1, fsdp, tensor, fsdp * tensor}

    def cut(wholes: set[int]) -> set[int]:
        return {whole // part for whole in wholes for part in parts if whole % part == 0} - {1}

    shapes = [leaf.shape for leaf in plan.shapes.values()]
    counts = {math.prod(shape[i:]) for shape in shapes for i in (0, 1)}
    return ParameterSizes(cut(counts), cut({size for shape in shapes for size in shape}))
