"""What a run needs of machines that are not here: compiles its real step for them, ahead of time.

    python -m experiments.preflight --config=oxe_paligemma.py --topology=v5e:2x4
    [--config.batch_size=16 ...] [--utilisation=0.4] [--price=1.2]

Topologies are those of TPUs (v5e:2x4, v6e:2x4, v5p:2x2x2; the compiler is `pip install
"libtpu==0.0.42.*"`) and gpu:8xH100. Of GPUs it compiles for as many CPU devices: what is
communicated is right, temporaries are those of the CPU's compiler. Nothing is downloaded, no weight
is read. Ends with 1 when the step does not fit, or when an activation of the whole batch is sent.
"""

import argparse
import contextlib
import math
import os
import sys
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from experiments.composition import estimate, steps
from experiments.composition.collectives import Collective, read
from experiments.composition.config import parse_argv
from vla_jax import sharding
from vla_jax.training import metrics

GIB = 2**30


class Chip(NamedTuple):
    """The maker's figures of one chip."""

    flops: float  # a second, bfloat16
    memory: float  # bytes
    links: float  # bytes a second to its neighbours, all links together


# Google Cloud's and NVIDIA's data sheets; links inside a slice (ICI) or a node (NVLink, one
# direction).
CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 600e9),
    "v6e": Chip(918e12, 32 * GIB, 448e9),
    "H100": Chip(989e12, 80e9, 450e9),
}


class Step(NamedTuple):
    """A step compiled for machines that are not here."""

    memory: dict[str, int]  # bytes a chip by kind
    collectives: list[Collective]
    flops: float  # a chip, of its matrix products
    sizes: set[int]  # of the parameters, see parameter_sizes
    saved: int  # bytes of a checkpoint


def main(argv: list[str]) -> int:
    """Compiles, prints, and returns the exit status."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--topology", required=True, help="v5e:2x4, v5p:2x2x2, gpu:8xH100, ...")
    flags.add_argument("--utilisation", type=float, default=0.4, help="of the FLOPs it computes")
    flags.add_argument("--price", type=float, help="of a chip and hour")
    args = parse_argv(argv, flags)
    config: ConfigDict = args.config
    chip, devices = open_topology(args.topology)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    sharding.rows(mesh, config.batch_size)  # the same complaint as training's
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"{mesh.size} x {args.topology.split(':')[0]}, mesh {sizes}, batch {config.batch_size}")
    try:
        step = compiled(config, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error):
            raise
        print(f"does not fit: {str(error).splitlines()[0]}\n{ADVICE}")
        return 1
    fits = _print_memory(step, chip)
    batch_sent = _print_collectives(step, config.batch_size)
    _print_times(step, chip, config, mesh.size, args)
    return 0 if fits and not batch_sent else 1


ADVICE = (
    "  change one of: a smaller batch_size, or a larger accum at the same one; model.remat=full;"
    " more chips along mesh.fsdp; lora"
)


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
        raise ValueError(f"--topology: expected {tpus} or gpu:NxH100, got {name!r}")
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


def compiled(config: ConfigDict, mesh: jax.sharding.Mesh) -> Step:
    """The train step of the config, compiled for the mesh's devices."""
    plan = steps.plan(config, mesh)
    traced = steps.trace(config, plan)
    platform = mesh.devices.flat[0].platform
    program = traced.lower(lowering_platforms=(platform,)).compile()
    size: Any = program.memory_analysis()
    state = plan.abstract
    memory = {
        name: sharding.bytes_per_device(part)
        for name, part in (
            ("parameters", state.params),
            ("frozen", state.frozen),
            ("optimizer", state.opt_state),
            ("average", state.ema),
        )
    }
    memory["batch"] = size.argument_size_in_bytes - sum(memory.values())
    memory["temporaries"] = size.temp_size_in_bytes
    flops = metrics.count_flops(traced.jaxpr.jaxpr) / mesh.size
    saved = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))
    return Step(memory, read(program.as_text(), mesh), flops, parameter_sizes(plan), saved)


def carried(collective: Collective, parameters: set[int], batch: int) -> str:
    """What a collective carries, by its shapes: "parameters" (and their gradients), "batch" for
    activations of all windows, "numbers" for the rest.

    `parameters` are `parameter_sizes`; `batch` is the windows of all devices. XLA cuts and folds
    parameters as it likes, so they are known by their number of elements.
    """
    shapes = [shape for dtype, shape in collective.arrays if not dtype.startswith(("s", "u", "p"))]
    if not shapes:
        return "ids and masks"
    if collective.axes == ("tensor",):
        return "activations"
    other = [shape for shape in shapes if math.prod(shape) not in parameters]
    if collective.kind in ("all-to-all", "collective-permute"):
        return "own activations" if other else "parameters"  # nothing gathers or adds up there
    if any(size and size % batch == 0 for shape in other for size in shape):
        return "batch"
    return "numbers" if len(other) == len(shapes) else "parameters"


def parameter_sizes(plan: steps.Plan) -> set[int]:
    """How many elements a parameter has: whole and one device's, all layers and one. Not 1, which
    is a sum's.
    """
    mesh = plan.abstract.step.sharding.mesh
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    wholes = {math.prod(leaf.shape[i:]) for leaf in plan.shapes.values() for i in (0, 1)}
    parts = {1, fsdp, tensor, fsdp * tensor}
    return {whole // part for whole in wholes for part in parts if whole % part == 0} - {1}


def _print_memory(step: Step, chip: Chip) -> bool:
    total = sum(step.memory.values())
    kinds = "  ".join(f"{kind} {size / GIB:.2f}" for kind, size in step.memory.items())
    fits = total <= chip.memory
    verdict = "fits" if fits else f"does not fit\n{ADVICE}"
    print(f"GiB a chip: {kinds}\n  {total / GIB:.2f} of {chip.memory / GIB:.0f}: {verdict}")
    return fits


def _print_collectives(step: Step, batch: int) -> bool:
    """Prints what is sent; True when an activation of the whole batch is."""
    sent: Counter[tuple[str, str, str, str]] = Counter()
    wrong = []
    for each in step.collectives:
        what = carried(each, step.sizes, batch)
        sent[each.kind, " x ".join(each.axes), each.arrays[0][0], what] += int(each.sent)
        if what == "batch":
            wrong.append(each)
    print("GB a chip sends in a step:")
    for (kind, axes, dtype, what), size in sent.most_common():
        print(f"  {size / 1e9:10.4f}  {kind:18s} over {axes:12s} {dtype:5s} {what}")
    for each in wrong:
        print(
            f"activations of the whole batch are sent: {each.kind} of {each.arrays}: {each.source}"
        )
    return bool(wrong)


def _print_times(
    step: Step, chip: Chip, config: ConfigDict, chips: int, args: argparse.Namespace
) -> None:
    compute = step.flops / chip.flops
    links = sum(each.sent for each in step.collectives) / chip.links
    expected = max(compute / args.utilisation, links)
    binds = "the links" if expected == links else "arithmetic"
    print(
        f"{step.flops / 1e12:.2f} TFLOP a chip: {compute:.3f} s at the maker's peak,"
        f" {compute / args.utilisation:.3f} s at {args.utilisation:.0%} of it; links {links:.3f} s;"
        f" {binds} bind"
    )
    rate = config.batch_size / expected
    hours = config.steps * expected / 3600
    cost = f", {hours * chips * args.price:,.0f} at {args.price} each" if args.price else ""
    print(
        f"{rate:.2f} windows/s expected; {config.steps:,} steps: {hours:,.1f} h,"
        f" {hours * chips:,.0f} chip-hours{cost}"
    )
    window = sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(estimate.batch(config, 1))
    )
    every = config.save_every * expected
    writing = step.saved / every / 1e6
    print(
        f"data: {rate * window / 1e6:,.1f} MB/s of decoded windows; checkpoint:"
        f" {step.saved / 1e9:.1f} GB every {every / 60:.1f} min, {writing:,.1f} MB/s"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
