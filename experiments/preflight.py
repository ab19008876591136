"""What a run needs of machines that are not here: compiles its real step for them, ahead of time.

    python -m experiments.preflight --config=oxe_paligemma.py --topology=v5e:2x4[,v6e:2x4,...]
    [--config.batch_size=16 ...] [--utilisation=0.4] [--price=1.2] [--largest] [--full]

Topologies are those of TPUs (v5e:2x4, v6e:2x4, v5p:2x2x2; the compiler is `pip install
"libtpu==0.0.42.*"`) and gpu:8xH100; --topology=list shows them. Of GPUs it compiles for as many CPU
devices: what is communicated is right, temporaries are those of the CPU's compiler. Nothing is
downloaded, no weight is read. The compiler makes less effort than for a run, so that temporaries
and what memory moves are at most those that are told; --full compiles as a run does, which takes
four times as long. --largest compiles a second batch size and tells the largest that fits. Programs
are remembered: the same question is answered in seconds (composition/ahead.py). Of a config that
learns by trial it compiles what a round computes beside the step too: how all worlds are answered
at once, and how decisions are judged (learning/programs.py).
Ends with 1 when the step does not fit, or when an activation of the whole batch is sent.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from ml_collections import ConfigDict

from experiments.composition import ahead, spaces, steps
from experiments.composition.ahead import GIB, Chip, Machines, ParameterSizes, Step
from experiments.composition.collectives import Collective
from experiments.composition.config import parse_argv
from experiments.learning import programs
from vla_jax import command, sharding
from vla_jax.progress import Progress

# Of a chip's memory: what the runtime keeps for itself a compiler does not count (15.75 of 16 GiB).
USABLE = 0.98
STATE = ("parameters", "frozen", "optimizer", "average")  # of a Step's memory, what always stays


def main(argv: list[str]) -> int:
    """Compiles, prints, and returns the exit status."""
    if "--topology=list" in argv:
        print(ahead.listed())
        return 0
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--topology", required=True, help="v5e:2x4, v5p:2x2x2, gpu:8xH100, ...")
    flags.add_argument("--utilisation", type=float, default=0.4, help="of the FLOPs it computes")
    flags.add_argument("--price", type=float, help="of a chip and hour")
    flags.add_argument("--largest", action="store_true", help="tell the largest batch that fits")
    flags.add_argument("--full", action="store_true", help="compile as a run does, in 4 x the time")
    args = parse_argv(argv, flags)
    config = spaces.resolve(args.config)
    return max(answer(config, name, args) for name in args.topology.split(","))


def answer(config: ConfigDict, topology: str, args: argparse.Namespace) -> int:
    """Prints what a config needs of one topology; 1 when it does not fit or sends the batch."""
    chip, devices = ahead.open_topology(topology)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    sharding.rows(mesh, config.batch_size)  # the same complaint as training's
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    machines = Machines(topology, chip, mesh, args.full)
    print(f"{topology}: {mesh.size} chips, mesh {sizes}, batch {config.batch_size}", flush=True)
    try:
        with Progress("compiling the train step"):
            step = ahead.compiled(config, machines)
    except ahead.DoesNotFit as error:
        print(f"does not fit: {error}\n{ADVICE}")
        return 1
    fits = _print_memory(step, chip)
    if args.largest:
        _print_largest(config, machines, step)
    batch_sent = _print_collectives(step.collectives, partial(_carried, "step", step))
    _print_times(step, config, machines, args)
    if config.rl.algorithm:
        fits = _print_round(config, machines, step) and fits
    return 0 if fits and not batch_sent else 1


ADVICE = (
    "  change one of: a smaller batch_size, or a larger accum at the same one; model.remat=full;"
    " more chips along mesh.fsdp; lora"
)


def carried(collective: Collective, parameters: ParameterSizes, batch: set[int]) -> str:
    """What a collective carries, by its shapes: "parameters" (and their gradients), "batch" for
    activations of all windows, "numbers" for the rest. `batch` are the sizes of axes that have the
    windows of all devices.

    A guess where sizes coincide: an axis of activations that is as long as one of a parameter does
    not tell them. tests/experiments/composition/test_collectives.py is exact: its batch is a prime.
    """
    shapes = [shape for dtype, shape in collective.arrays if not dtype.startswith(("s", "u", "p"))]
    if not shapes:
        return "ids and masks"
    if collective.axes == ("tensor",):
        return "activations"
    other = [shape for shape in shapes if math.prod(shape) not in parameters.counts]
    if collective.kind in ("all-to-all", "collective-permute"):
        return "own activations" if other else "parameters"  # nothing gathers or adds up there
    axes = {size for shape in other for size in shape} - parameters.axes
    if axes & batch:
        return "batch"
    pieces = all(parameters.axes & set(shape) for shape in other)
    return "parameters" if pieces or len(other) < len(shapes) else "numbers"


def _print_memory(step: Step, chip: Chip) -> bool:
    total = sum(step.memory.values())
    kinds = "  ".join(f"{kind} {size / GIB:.2f}" for kind, size in step.memory.items())
    fits = total <= chip.memory
    verdict = "fits" if fits else f"does not fit\n{ADVICE}"
    print(f"GiB a chip: {kinds}\n  {total / GIB:.2f} of {chip.memory / GIB:.0f}: {verdict}")
    return fits


def _print_largest(config: ConfigDict, machines: Machines, step: Step) -> None:
    """Compiles another batch size and prints the largest that a line through both lets in."""
    parts = machines.mesh.shape["data"] * machines.mesh.shape["fsdp"] * config.accum
    windows = config.batch_size // parts  # of a device at once
    other = max(1, windows // 2) if windows > 1 else 2
    changed = config.copy_and_resolve_references()
    changed.batch_size = other * parts
    try:
        with Progress(f"compiling the train step of {changed.batch_size} windows"):
            second = ahead.compiled(changed, machines)
    except ahead.DoesNotFit:
        print(f"largest batch that fits: {config.batch_size}; {changed.batch_size} does not")
        return
    ours, theirs = (sum(each.memory.values()) for each in (step, second))
    slope = (ours - theirs) / (windows - other)
    most = math.floor(windows + (USABLE * machines.chip.memory - ours) / slope)
    print(
        f"  {slope / GIB:.3f} GiB a window: the largest batch that fits is about {most * parts}"
        f" ({most} windows a chip at once), by the line through {changed.batch_size} and"
        f" {config.batch_size}; compile that one before you rent"
    )


def _print_round(config: ConfigDict, machines: Machines, step: Step) -> bool:
    """Compiles and prints what a round of learning by trial computes beside the step; whether all
    of it fits.
    """
    chip, plan = machines.chip, steps.plan(config, machines.mesh)
    copies = programs.kept(plan)
    state = sum(size for kind, size in step.memory.items() if kind in STATE)
    fits = sum(step.memory.values()) + copies <= chip.memory
    print(
        f"a round: {programs.worlds(config)} worlds at once, decisions in batches of"
        f" {config.batch_size}; beside the state stay the parameters of who acts and of the start,"
        f" {copies / GIB:.2f} GiB a chip, with which the step {'fits' if fits else 'does not fit'}"
    )
    for name, asked in programs.of_round(config, plan).items():
        try:
            with Progress(f"compiling what {name}"):
                one = ahead.program(asked.traced, machines)
        except ahead.DoesNotFit as error:
            print(f"{name}: does not fit: {error}")
            return False
        most = "" if asked.parts > 1 else " at most"
        total = state + copies + asked.inputs + one.temporaries
        fits = fits and total <= chip.memory
        moved = "" if one.moved is None else f", {one.moved / 1e9:,.4f} GB moved"
        print(
            f"{name}: {total / GIB:.2f} GiB of {chip.memory / GIB:.0f}, of it temporaries"
            f" {one.temporaries / GIB:.4f}: {'fits' if total <= chip.memory else 'does not fit'};"
            f" {one.flops / asked.parts / 1e9:,.3f} GFLOP a chip{most}{moved}"
        )
        fits = not _print_collectives(one.collectives, partial(_carried, name, step)) and fits
    return fits


def _carried(program: str, step: Step, each: Collective) -> str:
    """`carried` of the step, and of what a round computes beside it, where all chips see all worlds
    and all that is judged goes to the host.
    """
    if program == "acts":
        whole = all(math.prod(shape) in step.sizes.counts for _, shape in each.arrays)
        return "parameters" if whole else "activations"
    what = carried(each, step.sizes, step.batch_axes)
    return "what is judged" if (program, what) == ("judges", "batch") else what


def _print_collectives(
    collectives: Sequence[Collective], carries: Callable[[Collective], str]
) -> bool:
    """Prints what is sent; True when an activation of the whole batch is."""
    sent: Counter[tuple[str, str, str, str]] = Counter()
    wrong = []
    for each in collectives:
        what = carries(each)
        sent[each.kind, " x ".join(each.axes), each.arrays[0][0], what] += int(each.sent)
        if what == "batch":
            wrong.append(each)
    print("GB a chip sends:" if sent else "nothing is sent")
    for (kind, axes, dtype, what), size in sent.most_common():
        print(f"  {size / 1e9:10.4f}  {kind:18s} over {axes:12s} {dtype:5s} {what}")
    for each in wrong:
        print(
            f"activations of the whole batch are sent: {each.kind} of {each.arrays}: {each.source}"
        )
    return bool(wrong)


def _print_times(
    step: Step, config: ConfigDict, machines: Machines, args: argparse.Namespace
) -> None:
    chip, chips = machines.chip, machines.mesh.size
    compute = step.flops / chip.flops
    terms = {
        "arithmetic": compute / args.utilisation,
        "memory": (step.moved or 0.0) / chip.bandwidth,
        "links": sum(each.sent for each in step.collectives) / chip.links,
    }
    binds = max(terms, key=lambda name: terms[name])
    expected = terms[binds]
    most = "" if args.full else "at most "
    moved = "not known" if step.moved is None else f"{most}{terms['memory']:.3f} s"
    print(
        f"{step.flops / 1e12:.2f} TFLOP a chip: {compute:.3f} s at the maker's peak,"
        f" {terms['arithmetic']:.3f} s at {args.utilisation:.0%} of it; memory {moved}"
        + (f" ({step.moved / 1e9:,.0f} GB)" if step.moved else "")
        + f"; links {terms['links']:.3f} s; what binds: {binds}"
    )
    rate = config.batch_size / expected
    if config.rl.algorithm:
        print(
            f"{rate:.2f} decisions/s expected in learning, {step.example / 1e3:,.0f} kB each;"
            f" checkpoint: {step.saved / 1e9:.1f} GB"
        )
        return
    hours = config.steps * expected / 3600
    cost = f", {hours * chips * args.price:,.0f} at {args.price} each" if args.price else ""
    print(
        f"{rate:.2f} windows/s expected; {config.steps:,} steps: {hours:,.1f} h,"
        f" {hours * chips:,.0f} chip-hours{cost}"
    )
    every = config.save_every * expected
    writing = step.saved / every / 1e6
    print(
        f"data: {rate * step.example / 1e6:,.1f} MB/s of decoded windows; checkpoint:"
        f" {step.saved / 1e9:.1f} GB every {every / 60:.1f} min, {writing:,.1f} MB/s"
    )


if __name__ == "__main__":
    command.run(main)
