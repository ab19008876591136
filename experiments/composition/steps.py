"""A config's train step on a mesh, before there is any data or weight: what training runs, what
--dry_run counts and what is compiled ahead of time.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from experiments.composition import datasets, estimate, open_loop
from vla_jax import build, sharding
from vla_jax import params as flat
from vla_jax.models.fast_vocabulary import FastVocabulary
from vla_jax.models.state_words import StateWords
from vla_jax.rl.learner import CRITIC, CRITIC_VALUE
from vla_jax.training import train
from vla_jax.training.optim import FreezeConfig, OptimConfig, Optimizer, make_optimizer, partition
from vla_jax.training.reports import Units
from vla_jax.training.state import (
    TrainConfig,
    TrainState,
    abstract_state,
    inference_params,
    shardings_of,
)
from vla_jax.types import Observation

# Of a run whose length the data decide (config.epochs): it is evaluated so often at least, and its
# warm-up is no longer than this part of it.
EVALUATIONS = 20
WARM_UP = 10


class Plan(NamedTuple):
    """All that the step is made of."""

    make: flat.Build
    graphdef: nnx.GraphDef
    shapes: flat.Shapes
    shardings: sharding.Shardings
    optimizer: Optimizer
    run: TrainConfig
    abstract: TrainState


def plan(
    config: ConfigDict,
    mesh: sharding.AnyMesh,
    steps_per_epoch: float = 1.0,
    action_end: int = 0,
    vocabulary: FastVocabulary | None = None,
    words: StateWords | None = None,
) -> Plan:
    """The plan of a run. No shape of its state or batch depends on `steps_per_epoch`, `action_end`,
    `vocabulary` or `words`, which only the data and the tokenizer know.

    Raises ValueError for what the model, the optimizer or the mesh refuses.
    """
    make = build.training_model(config, action_end, vocabulary, words)
    graphdef, shapes, logical = flat.abstract(make)
    shardings = sharding.resolve(shapes, logical, mesh)
    freeze, run = build.optim(config)[1], train_config(config, steps_per_epoch)
    if config.rl.head_only:
        freeze = _but_head(freeze, shapes, config.model.head)
    settings = optimizer_config(config, steps_per_epoch)
    optimizer = make_optimizer(settings, freeze, shapes, run.steps, steps_per_epoch)
    trainable = partition(shapes, freeze)[0]
    train.check_parts(run, mesh)
    abstract = abstract_state(shapes, shardings, trainable, optimizer, run)
    return Plan(make, graphdef, shapes, shardings, optimizer, run, abstract)


def _but_head(freeze: FreezeConfig, shapes: flat.Shapes, head: str) -> FreezeConfig:
    """Freezes all but the head and what only learning by trial needs."""
    if not any(name.startswith("head/") for name in shapes):
        raise ValueError(
            f"rl.head_only: the head {head} has no parameters; set it to False, or adapters (:lora)"
        )
    rest = tuple(name for name in shapes if not name.startswith(("head/", CRITIC)))
    return dataclasses.replace(freeze, patterns=(*freeze.patterns, *rest))


def length(config: ConfigDict, steps_per_epoch: float) -> int:
    """The steps of a run: those of config.epochs, and config.steps at most. Before the data are
    known (`steps_per_epoch` 0) it may be config.steps.
    """
    if not (config.epochs and steps_per_epoch):
        return config.steps
    return min(config.steps, max(1, round(config.epochs * steps_per_epoch)))


def optimizer_config(config: ConfigDict, steps_per_epoch: float) -> OptimConfig:
    """The optimizer's numbers; with config.epochs the warm-up is cut to its part of the run. A
    critic has a rate of its own: it begins at random where the policy needs little.
    """
    settings, _ = build.optim(config)
    if config.rl.algorithm == "ppo":
        factor = config.rl.critic_lr / settings.lr
        settings = dataclasses.replace(settings, faster=((CRITIC_VALUE, factor),))
    warm = settings.warmup_steps + settings.warmup_epochs * steps_per_epoch
    most = length(config, steps_per_epoch) // WARM_UP
    if not config.epochs or warm <= most:
        return settings
    return dataclasses.replace(settings, warmup_steps=most, warmup_epochs=0.0)


def of_epochs(config: ConfigDict, plan: Plan, windows: int) -> str:
    """A line that says what config.epochs make of data with so many windows; "" without them."""
    if not config.epochs:
        return ""
    per_epoch = windows / config.batch_size
    settings = optimizer_config(config, per_epoch)
    warm = settings.warmup_steps + settings.warmup_epochs * per_epoch
    most = f" (steps: {config.steps:,} at most)" if plan.run.steps == config.steps else ""
    evaluated = f", an evaluation every {plan.run.eval_every}" if plan.run.eval_every else ""
    return (
        f"{config.epochs:g} epochs of {windows:,} windows in batches of {config.batch_size}:"
        f" {plan.run.steps:,} steps{most}, the first {warm:g} of them warm-up{evaluated}"
    )


def train_config(config: ConfigDict, steps_per_epoch: float) -> TrainConfig:
    """The numbers of a run."""
    steps, evaluated = length(config, steps_per_epoch), config.eval_every
    if config.epochs and evaluated:
        evaluated = min(evaluated, max(1, steps // EVALUATIONS))
    return TrainConfig(
        steps=steps,
        batch_size=config.batch_size,
        accum=config.accum,
        seed=config.seed,
        dtype=config.model.dtype,
        ema=config.optim.ema,
        nan_patience=config.nan_patience,
        log_every=config.log_every,
        eval_every=evaluated,
        save_every=config.save_every,
        adapter_dropout=config.lora.dropout if config.lora.rank else 0.0,
        augment=build.augmentation(config),
    )


def train_step(plan: Plan, units: Units) -> Any:
    """The jitted train step."""
    return train.make_train_step(plan.graphdef, plan.optimizer, plan.run, plan.abstract, units)


def eval_step(plan: Plan, units: Units) -> Any:
    """The jitted step of an evaluation."""
    return train.make_eval_step(plan.graphdef, plan.run, plan.abstract, units)


def act_step(plan: Plan) -> Any:
    """The jitted (state, observation, number) -> the chunks [b k d] that the policy of a state
    gives, in network units; computed in the training's type, as the loss of evaluations is.
    """
    where, mesh = shardings_of(plan.abstract), plan.abstract.step.sharding.mesh
    chunks = open_loop.program(plan.graphdef, mesh)

    def act(state: TrainState, obs: Observation, number: jax.Array) -> Any:
        params = inference_params(state).items()
        return chunks({name: x.astype(plan.run.dtype) for name, x in params}, obs, number)

    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    return jax.jit(act, in_shardings=(where, split, whole), out_shardings=whole)


def trace(config: ConfigDict, plan: Plan, evaluate: bool = False) -> jax.stages.Traced:
    """The train step (or the evaluation's), traced for a batch of the config's size; the plan's
    mesh has devices.
    """
    mesh: Any = plan.abstract.step.sharding.mesh
    where, names = sharding.batch_sharding(mesh), tuple(config.model.action_names)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        estimate.of_step(config, plan.graphdef, plan.shapes, config.batch_size),
    )
    units = Units(names, np.ones((len(datasets.members(config)), len(names)), np.float32))
    step = eval_step(plan, units) if evaluate else train_step(plan, units)
    return step.trace(plan.abstract, batch)
