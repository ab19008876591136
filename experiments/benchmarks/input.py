"""Measures what a train step takes with real batches beside the same step with a batch that is
already on the device, in one run.

    python -m experiments.benchmark input [--size 100m|tiny] [--repeats 5] [--steps 4] [--json=FILE]

100m is a PaliGemma of 105 M parameters with an LSTM head, 8 windows of one frame a step, on the
Bridge-like episodes of the benchmark `data` (256 px JPEG, decoded and resized to 224 px while it
trains); tiny is the demo's config and data. All lines run the same compiled step, one after the
other in every repeat. "in turn" takes each batch from the loader and puts it on the device between
two steps, as training did before it had a thread for that; "N ahead" is the thread of
vla_jax/training/feed.py with N batches on the device. What counts is the middle one of the ratios
of the repeats. "input" is the share of the time in which the device stood still for want of a
batch, CPU-s what all threads of this process computed for a step: on a machine that is busy with
other things the better figure.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.builders.blocks import write_blocks
from experiments.benchmarks import data, policies
from experiments.composition import cotraining, sources, spaces, steps
from experiments.composition.config import load_config
from experiments.composition.json_files import write_json
from vla_jax import params as flat
from vla_jax import sharding
from vla_jax.training import feed, train
from vla_jax.training import state as training_state
from vla_jax.training.clock import Clock
from vla_jax.types import Batch

AHEAD = (1, 2, 4)  # batches on the device
# Batches that are read before the clock runs: the loader's start decodes much more than its course.
SKIPPED = 100

# What the last step returns -> the next batch.
Next = Callable[[Any], Batch]


class Block(NamedTuple):
    """A few steps in a row, per step."""

    seconds: float
    cpu_seconds: float
    input_share: float


class Trainer(NamedTuple):
    """A compiled step and what it trains."""

    step: Any
    state: train.TrainState
    mesh: jax.sharding.Mesh
    batch_size: int


def main(argv: list[str]) -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(
        prog="experiments.benchmark input", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--size", choices=("100m", "tiny"), default="100m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a line in one repeat")
    parser.add_argument("--root", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--json", type=Path, default=None, help="write the table here too")
    args = parser.parse_args(argv)
    config = configuration(args.size, args.root)
    with tempfile.TemporaryDirectory() as folder:
        table = measure(config, Path(folder), args.repeats, args.steps)
    if args.json:
        write_json(args.json, table)


def configuration(size: str, root: Path) -> ConfigDict:
    """The config, whose data is written to `root` if it is not there."""
    if size == "tiny":
        write_blocks(root)
        tiny = load_config("oxe_paligemma.py:tiny", [f"--config.data.root={root}"])
        return spaces.resolve(tiny)
    data.write_files(root)
    config = policies.configuration("100m")
    config.model.tokenizer, config.model.prompt_length, config.model.window = "train", 32, 1
    config.batch_size, config.data.mixture, config.data.root = 8, "bridge", str(root)
    # 64 visits are open at a time: the loader is past its start after 100 batches.
    config.data.ram_budget = 450 * 2**20
    return config


def measure(config: ConfigDict, workdir: Path, repeats: int, count: int) -> dict[str, Any]:
    """The table, printed; `count` steps of each line in every repeat."""
    trainer, batches = prepared(config, workdir)
    blocks: dict[str, list[Block]] = {}
    print(
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores before the start;"
        f" {repeats} repeats of {count} steps",
        flush=True,
    )
    with contextlib.closing(batches):
        first = sharding.global_batch(next(batches), trainer.mesh, trainer.batch_size)
        trainer, _ = run(trainer, lambda report: first, 2, Clock(None))  # warm-up
        for _ in range(SKIPPED):
            next(batches)
        for repeat in range(repeats):
            for name, ahead in lines().items():
                clock = Clock(None)
                with taking(trainer, batches, first, ahead, clock) as take:
                    trainer, block = run(trainer, take, count, clock)
                blocks.setdefault(name, []).append(block)
                print(f"repeat {repeat + 1}: {name:10s} {block.seconds:8.4f} s a step", flush=True)
    return summarised(blocks)


def lines() -> dict[str, int | None]:
    """Name -> batches ahead; 0 is in turn, None the batch that is there."""
    return {"synthetic": None, "in turn": 0, **{f"{ahead} ahead": ahead for ahead in AHEAD}}


def prepared(config: ConfigDict, workdir: Path) -> tuple[Trainer, Generator[Batch, None, None]]:
    """The step and its state as training makes them, and what it reads."""
    source = sources.data(config, workdir)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    rows = sharding.rows(mesh, config.batch_size)
    loader = sources.loader(config, source, source.train, shuffle=True, rows=rows)
    per_epoch = loader.windows / config.batch_size
    plan = steps.plan(config, mesh, per_epoch, *source.known)
    params = flat.initialise(plan.make, config.seed, plan.shardings)
    state = training_state.init_state(params, plan.abstract, plan.optimizer)
    step = steps.trace(config, plan).lower().compile()
    return Trainer(step, state, mesh, config.batch_size), cotraining.batches(loader, None)


@contextlib.contextmanager
def taking(
    trainer: Trainer,
    batches: Generator[Batch, None, None],
    first: Batch,
    ahead: int | None,
    clock: Clock,
) -> Generator[Next, None, None]:
    """How a line comes by its batches."""
    mesh, size = trainer.mesh, trainer.batch_size
    if ahead is None:
        yield lambda report: first
    elif ahead == 0:

        def in_turn(report: Any) -> Batch:
            with clock.during("input"):
                batch = next(batches)
            return sharding.global_batch(batch, mesh, size)

        yield in_turn
    else:
        fed = feed.Feed(batches, mesh, size, ahead)
        try:
            yield lambda report: fed.next(0, report, clock)
        finally:
            fed.close()


def run(trainer: Trainer, take: Next, count: int, clock: Clock) -> tuple[Trainer, Block]:
    """`count` steps as the loop of training does them: the next batch while one runs, numbers one
    step late.
    """
    state, batch, late = trainer.state, take(None), None
    before = clock.seconds()["input"]
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        state, report = trainer.step(state, batch)
        batch = take(report)
        if late is not None:
            jax.device_get(late)
        late = report
    jax.device_get(late)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    waited = clock.seconds()["input"] - before
    return trainer._replace(state=state), Block(seconds / count, cpu / count, waited / seconds)


def summarised(blocks: dict[str, list[Block]]) -> dict[str, Any]:
    """The middle of every line's repeats, printed, and its ratios to synthetic batches."""
    print(
        f"{'':10s} {'s a step':>9s} {'ratio':>7s} {'of repeats':>15s} {'CPU-s':>8s} {'input':>7s}"
    )
    table: dict[str, Any] = {}
    base = blocks["synthetic"]
    for name, line in blocks.items():
        ratios = [one.seconds / other.seconds for one, other in zip(line, base, strict=True)]
        row = {
            "seconds": float(np.median([block.seconds for block in line])),
            "ratio": float(np.median(ratios)),
            "ratios": ratios,
            "cpu_seconds": float(np.median([block.cpu_seconds for block in line])),
            "input_share": float(np.median([block.input_share for block in line])),
        }
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(
            f"{name:10s} {row['seconds']:9.4f} {row['ratio']:7.3f} {spread:>15s}"
            f" {row['cpu_seconds']:8.3f} {row['input_share']:7.2%}"
        )
        table[name] = row
    return table
