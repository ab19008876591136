"""Training: the state, one step, and the loop. Read this first.

A step is a pure function of (state, batch): its random key is folded from the seed and the step
counter, so training 2n steps equals training n, stopping, and training n more, bit for bit.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils

from vla_jax import sharding
from vla_jax.models import lora
from vla_jax.params import Params, merge
from vla_jax.training import compile_cache, hosts, machine, metrics, optim, reports
from vla_jax.training.augment import augmented
from vla_jax.training.checkpoint import Checkpointer
from vla_jax.training.clock import Clock
from vla_jax.training.feed import Feed
from vla_jax.training.objective import microbatch_loss, task_weights
from vla_jax.training.patience import Patience
from vla_jax.training.profiler import Profiler
from vla_jax.training.reports import Metrics, Pairs, Units
from vla_jax.training.state import TrainConfig, TrainState, inference_params, shardings_of
from vla_jax.types import Batch

DROP = 2**31 - 2  # folded into the step's key, as those of augment.py are
# 128 + SIGTERM: what schedulers expect of a process that stopped because it was asked to.
SIGTERM_EXIT = 143

EvalStep = Callable[[TrainState, Batch], Pairs]


class Follower(Protocol):
    """What does something with checkpoints beside the training, which never waits for it."""

    def saved(self, step: int, last: bool) -> None:
        """The checkpoint of a step is being written; `last`: there comes no other."""

    def look(self) -> None:
        """A step ended: it may begin, or tell, what is due."""


class Hooks(NamedTuple):
    """What the loop reports to."""

    checkpointer: Checkpointer
    recorder: metrics.Recorder
    clock: Clock
    profiler: Profiler
    evaluate: Callable[[TrainState], dict[str, float]] | None = None
    peers: hosts.Hosts = hosts.ALONE
    # before a save: whether all hosts still train the same; raises where they do not
    agree: Callable[[int, TrainState], None] | None = None
    patience: Patience | None = None
    follower: Follower | None = None


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optim.Optimizer,
    config: TrainConfig,
    abstract: TrainState,
    units: Units,
) -> Any:
    """The jitted step (state, batch) -> (state, metrics). The state is donated; metrics stay on the
    device.

    The model is `merge(graphdef, params)` with `.loss(batch, key) -> Objective`,
    `.mask_counts(batch)` of the same tasks and their `.config.loss_weights`. Its parameters come in
    the compute type. What it takes for a batch is its own affair, but for `obs` and `dataset_id`.
    """
    where, mesh = shardings_of(abstract), abstract.step.sharding.mesh
    check_parts(config, mesh)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        with sharding.activations_over(mesh):
            return update(state, batch)

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        # Before accumulation: what an example looks like does not depend on how the batch is cut.
        batch = batch._replace(obs=augmented(batch.obs, key, config.augment))
        # Once, before accumulation, keeping the sharding: fsdp then gathers the compute type and
        # not float32.
        cast = {
            name: jax.lax.with_sharding_constraint(value.astype(config.dtype), where.params[name])
            for name, value in state.params.items()
        }

        # Those of the whole batch first: with several tasks no division afterwards mends a part's.
        tasks = task_weights(merge(graphdef, {**cast, **state.frozen}), batch)

        dropped = jax.random.fold_in(key, DROP)  # one mask per step, however the batch is cut

        def objective(params: Params, part: Any, key: jax.Array) -> tuple[jax.Array, Pairs]:
            params = lora.drop(params, dropped, config.adapter_dropout)
            return microbatch_loss(
                merge(graphdef, {**params, **state.frozen}), tasks, part, key, units
            )

        grads, pairs = _accumulate(
            jax.grad(objective, has_aux=True), cast, batch, key, config.accum
        )
        means = reports.means(pairs, units)
        grads = optim.mask_layers(grads, optimizer.layers)
        norm = optax.tree.norm(grads)
        rate = optimizer.schedule(state.step)
        new = _apply_gradients(state, grads, rate, optimizer, config.ema)
        finite = jnp.isfinite(means["loss"]) & jnp.isfinite(norm)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        report = {**means, "grad_norm": norm, "lr": rate, "skipped": skipped}
        return new._replace(step=state.step + 1, skipped=skipped), report

    return jax.jit(
        step,
        in_shardings=(where, sharding.batch_sharding(mesh)),
        out_shardings=(where, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def _apply_gradients(
    state: TrainState, grads: Params, rate: jax.Array, optimizer: optim.Optimizer, ema: float
) -> TrainState:
    """The state after one update of the optimizer, with its running average."""
    direction, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
    direction = optim.mask_layers(direction, optimizer.layers)
    params = {name: value - rate * direction[name] for name, value in state.params.items()}
    averaged = state.ema
    if averaged is not None:
        averaged = {name: ema * old + (1 - ema) * params[name] for name, old in averaged.items()}
    return state._replace(params=params, opt_state=opt_state, ema=averaged)


def make_eval_step(
    graphdef: nnx.GraphDef, config: TrainConfig, abstract: TrainState, units: Units
) -> Any:
    """The jitted (state, batch) -> sums and weights of the loss and its metrics, with
    `inference_params`.
    """
    where, mesh = shardings_of(abstract), abstract.step.sharding.mesh

    def step(state: TrainState, batch: Batch) -> Pairs:
        params = {
            name: value.astype(config.dtype) for name, value in inference_params(state).items()
        }
        model = merge(graphdef, params)
        with sharding.activations_over(mesh):
            return microbatch_loss(
                model, task_weights(model, batch), batch, jax.random.key(config.seed), units
            )[1]

    return jax.jit(
        step,
        in_shardings=(where, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
    )


def evaluate(
    eval_step: EvalStep, state: TrainState, batches: Iterable[Batch], units: Units
) -> dict[str, float]:
    """Means over all (global, on the device) batches: "loss" and every metric of the model."""
    sums: dict[str, Any] = {}
    for batch in batches:
        pairs = jax.device_get(eval_step(state, batch))
        sums = jax.tree.map(np.add, sums, pairs) if sums else pairs
    if not sums:
        raise ValueError("evaluate: expected at least one batch, got none; is the split empty?")
    return {name: float(value) for name, value in reports.means(sums, units).items()}


def check_parts(config: TrainConfig, mesh: sharding.AnyMesh) -> None:
    """Raises ValueError unless every device has as many examples of every part of a batch."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % (config.accum * parts):
        raise ValueError(
            f"batch_size: expected a multiple of accum x (data x fsdp) = {config.accum} x {parts},"
            f" got {config.batch_size}; change batch_size, accum or the mesh"
        )


def _accumulate(
    grad: Any, params: Params, batch: Any, key: jax.Array, accum: int
) -> tuple[Params, Pairs]:
    """Gradients (float32) and metric pairs summed over `accum` parts of the batch."""
    if accum == 1:
        grads, pairs = grad(params, batch, key)
        return {name: value.astype(jnp.float32) for name, value in grads.items()}, pairs

    def split(x: jax.Array) -> jax.Array:
        # Part j takes examples j, j + accum, ...: every device keeps those it has. [b ...] ->
        # [accum b/accum ...]
        return x.reshape(x.shape[0] // accum, accum, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Params, part: tuple[Any, jax.Array]) -> tuple[Params, Pairs]:
        grads, pairs = grad(params, part[0], jax.random.fold_in(key, part[1]))
        return {
            name: total[name] + value.astype(jnp.float32) for name, value in grads.items()
        }, pairs

    zeros = {name: jnp.zeros_like(value, jnp.float32) for name, value in params.items()}
    grads, pairs = jax.lax.scan(add, zeros, (jax.tree.map(split, batch), jnp.arange(accum)))
    return grads, jax.tree.map(lambda x: x.sum(0), pairs)


def fit(
    state: TrainState, step: Any, batches: Iterator[Batch], config: TrainConfig, hooks: Hooks
) -> TrainState:
    """Trains until `config.steps`, from wherever `state` stands, and leaves a checkpoint of the
    last step.

    `batches` yields this process's rows (numpy) from position `state.step` on. With
    `hooks.patience` it may end earlier; the best evaluation's step is saved and marked. On SIGTERM
    the running step is finished and saved, and the process exits with SIGTERM_EXIT. Raises
    RuntimeError, after saving, when `nan_patience` steps in a row were not finite.
    """
    done, patience, follower = int(state.step), hooks.patience, hooks.follower
    if done >= config.steps or (patience is not None and patience.over):
        hooks.recorder.say(f"already at step {done} of {config.steps}: nothing to train")
        return state
    mesh, clock = state.step.sharding.mesh, hooks.clock
    with contextlib.ExitStack() as stack:
        feed = Feed(batches, mesh, config.batch_size)
        stack.callback(feed.close)
        stack.enter_context(hooks.profiler.listening())
        hooks.peers.at(done, "compiling")
        batch = feed.next(done, None, clock)
        compiled, flops = _compile(step, state, batch, config.steps - done, hooks)
        asked = stack.enter_context(asked_to_stop())
        stack.enter_context(clock.during("productive"))
        meter = metrics.Meter(config.batch_size, flops, mesh)
        log = _Log(config, hooks, meter)
        for number in range(done + 1, config.steps + 1):
            hooks.peers.at(number)
            hooks.profiler.before(number)
            with jax.transfer_guard("disallow"):
                state, report = compiled(state, batch)
            spent = clock.seconds()
            if number == done + 1:
                meter.read(number, spent)  # from here on
            if number < config.steps:
                batch = feed.next(number, report, clock)  # while the devices work on this step
            log.flush()  # the step before: its numbers are there without waiting for this one
            log.pending = _Pending(number, report, spent)
            hooks.profiler.after(number, report)
            stop, last, best = asked(number), number == config.steps, False
            if config.eval_every and (last or number % config.eval_every == 0):
                log.flush(evaluating=state)
                best = patience is not None and patience.saw(number, log.last["val/loss"])
            last = last or (patience is not None and patience.over)
            if stop or log.diverged or last or best or number % config.save_every == 0:
                log.flush()  # before saving: who resumes from this step must find its row
                _save(number, state, hooks, best)
                if follower is not None and not (stop or log.diverged):
                    follower.saved(number, last)
            if follower is not None:
                follower.look()
            hooks.recorder.progress(number, log.last.get("loss"))
            if stop or log.diverged:
                _leave(number, log, hooks)
            if last:
                break
    with clock.during("checkpoint"):
        hooks.checkpointer.wait()
    return state


def _compile(
    step: Any, state: TrainState, batch: Batch, left: int, hooks: Hooks
) -> tuple[Any, float]:
    """The step's program and its FLOPs over all devices. Says beforehand what the steps that are
    `left` will take, and afterwards what memory.
    """
    clock, mesh = hooks.clock, state.step.sharding.mesh
    before = clock.seconds()["compile"]
    with clock.during("compile"), compile_cache.hits() as found:
        traced = step.trace(state, batch)
        flops = metrics.count_flops(traced.jaxpr.jaxpr)
        kind = mesh.devices.flat[0].device_kind
        hooks.recorder.say(metrics.forecast(flops, left, kind, mesh.size))
        hooks.recorder.say("compiling the train step, or reading it from disk")
        # One program for the whole run: another shape is an error, not a recompilation.
        compiled = traced.lower().compile()
        machine.give_back()
    how = "read from the compiled programs on disk" if found else "compiled"
    size = metrics.program_bytes(compiled) / 2**30
    hooks.recorder.say(
        f"train step {how} in {clock.seconds()['compile'] - before:.1f} s; on each device it takes"
        f" {size:.3f} GiB, activations included"
    )
    return compiled, flops


def _save(number: int, state: TrainState, hooks: Hooks, best: bool) -> None:
    """Starts writing the checkpoint of step `number`; the best one is waited for and marked."""
    with hooks.clock.during("checkpoint"):
        if hooks.agree is not None:
            hooks.agree(number, state)
        hooks.clock.saving(number)
        hooks.checkpointer.save(number, state)
        if best:
            hooks.checkpointer.mark(number)


class _Pending(NamedTuple):
    """A step that runs: its metrics, and the seconds of each kind when it was dispatched."""

    number: int
    report: Metrics
    spent: dict[str, float]


class _Log:
    """Rows, one step late."""

    def __init__(self, config: TrainConfig, hooks: Hooks, meter: metrics.Meter) -> None:
        self._config, self._hooks, self._meter = config, hooks, meter
        self.pending: _Pending | None = None
        self.diverged = False
        self.last: dict[str, Any] = {}

    def flush(self, evaluating: TrainState | None = None) -> None:
        """Writes the pending step if it is one to log; given the state it led to, with the
        evaluation of that.
        """
        if self.pending is None:
            return
        (number, report, spent), self.pending = self.pending, None
        values = jax.device_get(report)
        self.last = {"step": number, "loss": values.pop("loss")}
        self.last |= {f"train/{name}": value for name, value in values.items()}
        self.diverged = int(values["skipped"]) >= self._config.nan_patience
        evaluate = None if evaluating is None else self._hooks.evaluate
        due = number % self._config.log_every == 0 or number == self._config.steps
        if not (due or evaluate or self.diverged):
            return
        speed = self._meter.read(number, spent)
        self.last |= {f"train/{name}": value for name, value in speed.items()}
        if evaluate is not None and evaluating is not None:
            with self._hooks.clock.during("evaluation"):
                held_out = evaluate(evaluating)
            self.last |= {f"val/{name}": value for name, value in held_out.items()}
        self._hooks.recorder.write(self.last)
        self._hooks.clock.write()


def _leave(number: int, log: _Log, hooks: Hooks) -> None:
    """Waits for the checkpoint of step `number`, then exits or raises."""
    with hooks.clock.during("checkpoint"):
        hooks.checkpointer.wait()
    where = f"{hooks.checkpointer.directory}/{number}"
    if log.diverged:
        raise RuntimeError(
            f"training stopped at step {number}: loss or gradients were not finite for"
            f" {log.last['train/skipped']} steps in a row (loss {log.last['loss']}, gradient norm"
            f" {log.last['train/grad_norm']}). Each was skipped, so the parameters saved in {where}"
            " are the last good ones; lower optim.lr, set optim.clip, or look at the data of these"
            " steps"
        )
    hooks.recorder.say(
        f"SIGTERM: step {number} is saved in {where}; the same command continues from there"
    )
    hooks.recorder.close()
    hooks.checkpointer.close()
    raise SystemExit(SIGTERM_EXIT)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[int], bool]]:
    """Within, SIGTERM does not kill: the yielded function says at each step, alike on every host,
    whether to stop.
    """
    # jax's coordination service hears the signal on any host and agrees on a step
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # only the main thread may listen to signals
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        yield lambda step: bool(heard)
    finally:
        signal.signal(signal.SIGTERM, before)
