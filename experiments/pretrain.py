"""Trains a policy.

    python -m experiments.pretrain --config=oxe_paligemma.py[:tiny] [--config.a.b=value ...]
    [--workdir=DIR] [--dry_run]

Run it again with the same arguments and it continues from the last complete checkpoint. On several
hosts start it on each with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set (on
TPU pods and under Slurm jax finds these itself: set JAX_COORDINATOR_ADDRESS=auto).
"""

import math
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from experiments.composition import cotraining, estimate, plots, sources, steps
from experiments.composition.config import check_same_run, parse_argv, save
from vla_jax import build, sharding
from vla_jax import params as flat
from vla_jax.models import lora
from vla_jax.training import state as training_state
from vla_jax.training import train
from vla_jax.training.checkpoint import Checkpointer, load_arrays
from vla_jax.training.metrics import Recorder


def main(argv: list[str]) -> None:
    """Parses the flags and runs."""
    args = parse_argv(argv)
    if args.dry_run:
        dry_run(args.config)
        return
    absent = sources.missing(args.config)
    if absent:
        raise SystemExit("This run cannot start; missing here:\n\n" + "\n\n".join(absent))
    _join_hosts()
    pretrain(args.config, args.workdir)


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains to config.steps, from the last complete checkpoint in workdir if there is one."""
    source = _open(config, workdir)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    rows = sharding.rows(mesh, config.batch_size)
    loader = sources.loader(config, source, source.train, shuffle=True, rows=rows)
    held_out = sources.loader(config, source, source.held_out, shuffle=True, rows=rows)
    texts, held_out_texts = (
        cotraining.reader(config, source.texts, split, rows) for split in ("train", "held_out")
    )
    _say(f"{loader.summary()}\n{held_out.windows} windows held out; mesh {dict(mesh.shape)}")
    _say_constant_dims(source)
    plan = steps.plan(config, mesh, loader.windows / config.batch_size, source.action_end)
    _say(sharding.table(plan.shapes, plan.shardings))
    if config.lora.rank:
        _say(str(lora.quantities(plan.shapes)))

    checkpointer = Checkpointer(
        workdir / "checkpoints",
        sources.meta(config, source),
        cotraining.identity(loader, texts),
        config.keep_checkpoints,
    )
    state = checkpointer.restore(plan.abstract)
    if state is None:
        params = _parameters(config, plan.make, plan.abstract)
        state = training_state.init_state(params, plan.abstract, plan.optimizer)
    else:
        _say(f"continuing from the checkpoint of step {state.step} in {checkpointer.directory}")
    units = sources.units(source)
    eval_step = steps.eval_step(plan, units)
    count = max(1, min(config.eval_batches, held_out.windows // config.batch_size))

    def evaluate(state: train.TrainState) -> dict[str, float]:
        batches = islice(_closing(cotraining.batches(held_out, held_out_texts)), count)
        whole = (sharding.global_batch(batch, mesh, config.batch_size) for batch in batches)
        return train.evaluate(eval_step, state, whole, units)

    start = int(state.step)
    recorder = Recorder(workdir, start, config.steps)
    step = steps.train_step(plan, units)
    batches = cotraining.batches(loader, texts, start)
    try:
        train.fit(state, step, batches, plan.run, train.Hooks(checkpointer, recorder, evaluate))
    finally:
        batches.close()
        recorder.close()
        checkpointer.close()
    if jax.process_index() == 0:
        plots.curves(workdir / "metrics.jsonl", workdir / "curves.png")
        files = f"{workdir / 'metrics.jsonl'}, {workdir / 'curves.png'}"
        _say(f"done: {files}, {checkpointer.directory}")


def dry_run(config: ConfigDict) -> None:
    """Builds everything abstractly and prints parameters, shardings and bytes per device; reads no
    data, no weights.

    mesh.fsdp=-1 takes this machine's devices; any other mesh is laid out whether or not its devices
    are here.
    """
    sizes = [config.mesh.data, config.mesh.fsdp, config.mesh.tensor]
    known = math.prod(size for size in sizes if size != -1)
    shape = tuple(max(1, jax.device_count() // known) if size == -1 else size for size in sizes)
    mesh = AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    plan = steps.plan(config, mesh)
    shapes, state = plan.shapes, plan.abstract
    print(sharding.table(shapes, plan.shardings))
    counts: dict[str, int] = {}
    for name, leaf in shapes.items():
        part = name.split("/")[0]
        counts[part] = counts.get(part, 0) + math.prod(leaf.shape)
    print("\nparameters: " + ", ".join(f"{part} {count:,}" for part, count in counts.items()))
    if config.lora.rank:
        print(lora.quantities(shapes))

    print(
        f"trainable: {len(state.params)} arrays, frozen: {len(state.frozen)}; mesh"
        f" {dict(mesh.shape)}; bytes per device:"
    )
    total = 0
    for field in ("params", "frozen", "opt_state", "ema"):
        size = sharding.bytes_per_device(getattr(state, field))
        total += size
        print(f"  {field:10s} {size:16,}  ({size / 2**30:.3f} GiB)")
    gradients = sharding.bytes_per_device(state.params)
    print(f"  gradients  {gradients:16,}  ({gradients / 2**30:.3f} GiB, float32)")
    print(
        f"  total      {total + gradients:16,}  ({(total + gradients) / 2**30:.3f} GiB, without"
        " activations)"
    )
    cost = estimate.per_window(config, plan.graphdef, state.params, state.frozen)
    print(
        f"one window: {cost.forward / 1e9:,.1f} GFLOP forward, {cost.training / 1e9:,.1f} in"
        f" training, {cost.activations / 2**20:,.1f} MiB of activations kept for the backward pass"
        f" (remat {config.model.remat})"
    )


def _parameters(config: ConfigDict, make: flat.Build, abstract: train.TrainState) -> flat.Params:
    """All parameters in their shardings: those of model.start, or the backbone's from the weights;
    the rest random.

    Neither knows adapters: these are always fresh.
    """
    specs = {**abstract.params, **abstract.frozen}
    where = {name: leaf.sharding for name, leaf in specs.items()}
    loaded: flat.Params = {}
    base, _ = lora.split_adapters(specs)
    if config.model.start:
        allowed = tuple(config.model.allow_missing)
        loaded = dict(load_arrays(Path(config.model.start).expanduser(), base, allowed))
    elif config.model.weights != "none":
        prefix = "backbone/"
        backbone = {
            name.removeprefix(prefix): leaf
            for name, leaf in base.items()
            if name.startswith(prefix)
        }
        loaded = build.load_backbone(config, backbone)
        loaded = {prefix + name: value for name, value in loaded.items()}
    fresh = flat.initialise(
        make, config.seed, {name: place for name, place in where.items() if name not in loaded}
    )
    return {name: loaded[name] if name in loaded else fresh[name] for name in specs}


def _open(config: ConfigDict, workdir: Path) -> sources.Data:
    """The data, after checking that workdir is this run's. Process 0 goes first: what it writes,
    the others find.
    """
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        check_same_run(workdir / "config.json", config)
        source = sources.data(config, workdir)
        save(config, workdir / "config.json")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("vla_jax.data")
    return source if jax.process_index() == 0 else sources.data(config, workdir)


def _join_hosts() -> None:
    """Joins the other processes of a multi-host job, when the environment says there are any."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        return
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if address == "auto":
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(
            address, int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        )


def _say_constant_dims(source: sources.Data) -> None:
    for member in source.train:
        constant = ", ".join(member.action_spec.names[i] for i in member.action_spec.constant)
        if constant:
            _say(
                f"{member.index.dataset.name}: action dims that hardly vary, held in the range of"
                f" the data: {constant}"
            )


def _closing(batches: Iterator[Any]) -> Iterator[Any]:
    """Stops the loader's thread when the reader stops early."""
    try:
        yield from batches
    finally:
        batches.close()  # type: ignore[attr-defined]


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
