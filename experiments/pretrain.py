"""Trains a policy.

    python -m experiments.pretrain --config=oxe_paligemma.py[:tiny] [--config.a.b=value ...]
    [--workdir=DIR] [--dry_run] [--change[=yes]] [--then=evaluate,export,replay]

Run it again with the same arguments and it continues from the last complete checkpoint. Where
the config is another, --change lists what that does and --change=yes goes on so. --then runs these
commands when the run is done, on the policy that it leaves. On several hosts start it on each with
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set (on TPU pods and under Slurm jax
finds these itself: set JAX_COORDINATOR_ADDRESS=auto), or with a script of experiments/launch. It
exits with 143 where SIGTERM asked it to save and stop, and with 75 where another host was lost:
start it again then.
"""

import argparse
import contextlib
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from data_pipelines.image_text import Reader
from data_pipelines.loader import Loader
from experiments import sims
from experiments.composition import (
    beginning,
    changes,
    cotraining,
    dry_run,
    estimate,
    following,
    plots,
    replicas,
    sources,
    spaces,
    steps,
    validation,
    workdir,
)
from experiments.composition.closed_loop import Rollouts
from experiments.composition.config import parse_argv
from experiments.composition.lock import held
from vla_jax import command, sharding
from vla_jax.models import lora
from vla_jax.progress import Progress
from vla_jax.training import compile_cache, hosts, train
from vla_jax.training.checkpoint import Checkpointer, check_fits, complete_steps
from vla_jax.training.clock import Clock
from vla_jax.training.metrics import Recorder
from vla_jax.training.patience import Patience, resumed
from vla_jax.training.profiler import Profiler
from vla_jax.training.transfer import Transfer


def main(argv: list[str]) -> int:
    """Parses the flags and runs; returns the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument(
        "--change", nargs="?", const="list", default="", choices=("list", "yes"),
        help="list what another config or other data mean for the run; yes: go on with them",
    )  # fmt: skip
    own.add_argument(
        "--then", metavar="WORDS", help="when the run is done: evaluate, export, replay, or some"
    )
    args = parse_argv(argv, own)
    if args.dry_run:
        dry_run.show(args.config)
        return 0
    if args.then is not None:
        words = following.parse(args.then, args.workdir)
        after = following.commands(words, args.config, args.workdir)
        return following.run([["experiments.pretrain", *_without_then(argv)], *after])
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until training listens, it must not kill
    peers = hosts.join(moved=lambda: Progress.moved)
    try:
        with peers.together():
            _check_sim(args.config.rollouts.sim)
            absent = sources.missing(args.config)
            if absent:
                raise ValueError("this run cannot start; missing here:\n\n" + "\n\n".join(absent))
            _say(compile_cache.enable())
            first = peers.index == 0
            if first:
                workdir.check_writable(args.workdir)
            with held(args.workdir) if first else contextlib.nullcontext():
                pretrain(args.config, args.workdir, peers, args.change)
    finally:
        peers.close()
    return 0


def _without_then(argv: list[str]) -> list[str]:
    words = iter(argv)
    rest = []
    for word in words:
        if word == "--then":
            next(words)
        elif not word.startswith("--then="):
            rest.append(word)
    return rest


class Prepared(NamedTuple):
    """A run of which everything is known and checked, and nothing written or compiled."""

    source: sources.Data
    loader: Loader
    texts: Reader | None
    plan: steps.Plan
    step: Any  # jitted
    evaluate: Callable[[train.TrainState], dict[str, float]] | None
    meta: dict[str, Any]
    identity: dict[str, Any]
    before: workdir.Before | None  # on host 0: the run that goes on
    taken: Transfer | None  # what a new run takes over from another


def pretrain(
    config: ConfigDict, folder: Path, peers: hosts.Hosts = hosts.ALONE, change: str = ""
) -> None:
    """Trains to the end of config.steps or config.epochs, from the last complete checkpoint in the
    work directory `folder` if there is one.

    Args:
        change: what to do where config or data are other than until now: "" refuses, "list" refuses
            after listing what it means, "yes" goes on so.
    """
    clock = Clock(folder / "goodput.json" if peers.index == 0 else None)
    program = replicas.program(spaces.resolve(config))
    peers.same("start", program)
    with tempfile.TemporaryDirectory() as scratch:
        run = _prepare(config, folder, Path(scratch), peers, bool(change))
        facts = {**program, **replicas.data(run.identity, run.meta)}

        def agree(step: int, *parts: train.TrainState) -> None:
            if peers.count > 1:
                drawn = replicas.rows(run.source.train, config.seed, step)
                peers.same(f"step {step}", {**facts, **drawn, **hosts.replicas(parts)})

        agree(0)
        begins = beginning.begin(config, folder, run.loader, run.texts, run.meta)
        changed = _changed(config, folder, run, begins, change) if peers.index == 0 else None
        state = _state(config, folder, run, peers, begins, changed)
    checkpointer = Checkpointer(
        folder / "checkpoints", run.meta, run.identity, config.keep_checkpoints, begins.ahead
    )
    if state is None:
        with _telling("restoring the checkpoint"):
            state = checkpointer.restore(run.plan.abstract, same_data=not begins.other)
        assert state is not None  # `_state` saw that it is there
        _say(f"continuing from the checkpoint of step {state.step} in {checkpointer.directory}")
    start = int(state.step)
    agree(start, state)
    recorder = Recorder(folder, start, run.plan.run.steps, config.wandb, config.to_dict())
    if changed is not None and changed.asked_for:
        recorder.changed(start, changed.asked_for)
    clock.resume(start)
    profiler = Profiler(folder / "profiles", recorder.say)
    patience = _patience(config, folder, start, checkpointer, peers)
    rollouts = _rollouts(config, folder, recorder, checkpointer, (start, run.plan.run.steps))
    hooks = train.Hooks(
        checkpointer, recorder, clock, profiler, run.evaluate, peers, agree, patience, rollouts
    )
    batches = cotraining.batches(run.loader, run.texts, begins.windows, begins.texts)
    try:
        with peers.together():  # before what follows waits for a host that is gone
            train.fit(state, run.step, batches, run.plan.run, hooks)
            if rollouts is not None:
                with clock.during("evaluation"):
                    rollouts.wait()
    finally:
        batches.close()
        if rollouts is not None:
            rollouts.close()
        recorder.close()
        with clock.during("checkpoint"):
            checkpointer.close()
        clock.write()
        _say(f"goodput: {clock.summary()}")
    _say(_best(patience, checkpointer))
    if jax.process_index() == 0:
        plots.curves(folder / "metrics.jsonl", run.source.train, folder / "curves.png")
        files = f"{folder / 'metrics.jsonl'}, {folder / 'curves.png'}"
        _say(f"done: {files}, {checkpointer.directory}")


def _prepare(
    config: ConfigDict, folder: Path, scratch: Path, peers: hosts.Hosts, asked: bool
) -> Prepared:
    """Everything of the run but its state, after all checks. What no data can mend comes first:
    reading the data may take hours. A tokenizer that has to be trained lies in `scratch`; `asked`
    is whether config and data may be other than until now.
    """
    before = workdir.check(folder, config, asked) if peers.index == 0 else None
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    rows = sharding.rows(mesh, config.batch_size)
    early = steps.plan(config, mesh, steps_per_epoch=0.0)
    taken = None
    kept = complete_steps(folder / "checkpoints")
    if kept:
        check_fits(folder / "checkpoints" / str(kept[-1]), early.abstract)
    else:
        taken = beginning.start(config, early)
        _say(beginning.interpolated(config) if taken is None else str(taken))
    source = _open(config, folder, scratch, peers)
    loader = sources.loader(config, source, source.train, shuffle=True, rows=rows)
    texts = cotraining.reader(config, source.texts, "train", rows)
    per_epoch = loader.windows / config.batch_size
    plan = steps.plan(config, mesh, per_epoch, *source.known)
    units = sources.units(config, source)
    run = Prepared(
        source=source,
        loader=loader,
        texts=texts,
        plan=plan,
        step=steps.train_step(plan, units),
        evaluate=validation.evaluation(config, source, plan, mesh, units),
        meta=sources.meta(config, source, folder),
        identity=cotraining.identity(loader, texts),
        before=before,
        taken=taken,
    )
    _say(
        f"{loader.summary()}\n{sources.held_out(source, config.data.stride)}\n"
        f"mesh {dict(mesh.shape)}"
    )
    _say(steps.of_epochs(config, plan, loader.windows))
    _say_constant_dims(source)
    _say(sharding.table(plan.shapes, plan.shardings))
    if config.lora.rank:
        _say(str(lora.quantities(plan.shapes)))
    sizes = estimate.memory(plan.abstract)
    parts = ", ".join(f"{name} {size / 2**30:.3f}" for name, size in sizes.items() if size)
    _say(f"GiB per device: {sum(sizes.values()) / 2**30:.3f} without activations ({parts})")
    return run


def _changed(
    config: ConfigDict, folder: Path, run: Prepared, begins: beginning.Begin, change: str
) -> changes.Changed | None:
    """What is other in the run from its next step on, printed; None where nothing is.

    Raises ValueError for other data that were not asked for, and where the changes are only to be
    listed.
    """
    fields = run.before.changes if run.before else []
    told = begins.lines
    known = changes.recorded(folder, begins.step, begins.digest)
    other = begins.other if begins.resumes and not known else []
    if other and not change:
        first = "\n  ".join(other[:12])
        raise ValueError(
            f"{folder}: data or statistics differ from those of this run:\n  {first}\nresuming"
            " would train on other numbers; restore the data and configuration, give --change,"
            " which lists what they mean, or use a new work directory"
        )
    end = run.plan.run.steps
    if begins.resumes and begins.step > end:
        raise ValueError(
            f"--config.steps: expected {begins.step} or more, which {folder} has done, got"
            f" {end}; evaluate it as it is"
        )
    if run.before and fields:
        schedule = run.plan.optimizer.schedule
        told = [*changes.rates(run.before.config, schedule, begins.step, run.loader.windows), *told]
    shown = [changes.table(fields)] * bool(fields) + other[:12] + told
    if shown:
        _say("\n".join([f"from step {begins.step} on:", *shown]))
    if change == "list":
        raise ValueError(
            f"--change: {folder} is as it was; "
            + ("--change=yes goes on so" if fields or other else "nothing is other than before")
        )
    if not (fields or other or run.taken):
        return None
    taken = str(run.taken).splitlines() if run.taken else []
    return changes.Changed(begins.step, fields, [*taken, *other, *told], begins.digest)


def _state(
    config: ConfigDict,
    folder: Path,
    run: Prepared,
    peers: hosts.Hosts,
    begins: beginning.Begin,
    changed: changes.Changed | None,
) -> train.TrainState | None:
    """The state of a new run; None where a checkpoint is to be continued. Only when its weights are
    read is the work directory this run's.
    """
    newest = begins.step if begins.resumes else None
    peers.same("newest checkpoint", {"newest complete checkpoint": newest})
    peers.at(0, "restoring or initialising")
    state = None
    if not begins.resumes:
        with _telling("reading weights, making parameters"):
            state = beginning.state(config, run.plan, run.taken)
    if peers.index == 0:
        workdir.claim(folder, config, run.source, changed)
    peers.wait("work directory")
    if peers.index != 0:
        workdir.await_claim(folder)
    return state


def _rollouts(
    config: ConfigDict,
    folder: Path,
    recorder: Recorder,
    checkpointer: Checkpointer,
    steps: tuple[int, int],
) -> Rollouts | None:
    """What has checkpoints act while the run goes from its first to its last of `steps`, on host 0;
    None without a simulator.
    """
    if not config.rollouts.sim or jax.process_index() != 0:
        return None
    rollouts = Rollouts(config.rollouts, folder, recorder, checkpointer)
    rollouts.resume(*steps)
    return rollouts


def _patience(
    config: ConfigDict, folder: Path, start: int, checkpointer: Checkpointer, peers: hosts.Hosts
) -> Patience | None:
    """What ends the run early, as far as it got by step `start`; None without. The same on all
    hosts, and the checkpoint that is marked is its best one.
    """
    patience = None
    if config.early_stop:
        kept = complete_steps(folder / "checkpoints")
        patience = resumed(config.early_stop, folder / "metrics.jsonl", start, kept)
        facts = {"best step": patience.step, "evaluations since": patience.count}
        peers.same(f"early stopping at step {start}", facts)
    checkpointer.mark(None if patience is None else patience.step)
    return patience


def _best(patience: Patience | None, checkpointer: Checkpointer) -> str:
    """A line that names the checkpoint of the lowest held-out loss; "" where none is looked for."""
    if patience is None or patience.step is None:
        return ""
    return (
        f"held-out loss: lowest at step {patience.step} ({patience.loss:.5f}), {patience.count}"
        f" evaluations before the end: {checkpointer.directory / str(patience.step)}, which"
        " evaluate, export and load_policy take"
    )


def _open(config: ConfigDict, folder: Path, scratch: Path, peers: hosts.Hosts) -> sources.Data:
    """The data. All hosts read their share of what is not indexed; then host 0 goes first: the
    index that it writes, the others find, however long it takes.
    """
    peers.at(0, "opening the data")
    if peers.count > 1:
        read = sources.read_share(config, (peers.index, peers.count))
        peers.wait("parts of the index")
        for line in sources.unshared(config, read):
            print(f"host {peers.index}: {line}", flush=True)
    if peers.index == 0:
        source = sources.data(config, folder, scratch=scratch)
    peers.wait("data")
    if peers.index != 0:
        source = sources.data(config, folder, scratch=scratch)
    peers.wait("data of all")  # who has a copy of its own has to index it
    return source


def _check_sim(sim: str) -> None:
    """Raises ValueError for no name of a simulator."""
    if sim and sim.partition(":")[0] not in sims.SIMS:
        raise ValueError(
            f"--config.rollouts.sim: expected one of {', '.join(sims.SIMS)}, or '' for none, got"
            f" {sim!r}"
        )


def _say_constant_dims(source: sources.Data) -> None:
    for member in source.train:
        constant = ", ".join(member.action_spec.names[i] for i in member.action_spec.constant)
        if constant:
            _say(
                f"{member.index.dataset.name}: action dims that hardly vary, held in the range of"
                f" the data: {constant}"
            )


def _telling(what: str) -> contextlib.AbstractContextManager[Any]:
    """Within, a line says now and then that this still goes on."""
    return Progress(what) if jax.process_index() == 0 else contextlib.nullcontext()


def _say(line: str) -> None:
    if line and jax.process_index() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    command.run(main)
