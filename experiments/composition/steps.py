"""A config's train step on a mesh, before there is any data or weight: what training runs, what
--dry_run counts and what is compiled ahead of time.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from experiments.composition import datasets, estimate
from vla_jax import build, sharding
from vla_jax import params as flat
from vla_jax.training import train
from vla_jax.training.optim import Optimizer, make_optimizer, partition
from vla_jax.training.reports import Units
from vla_jax.training.state import TrainConfig, TrainState, abstract_state


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
) -> Plan:
    """The plan of a run. No shape depends on `steps_per_epoch` or `action_end`, which only the data
    knows.

    Raises ValueError for what the model, the optimizer or the mesh refuses.
    """
    make = build.training_model(config, action_end, datasets.states(config))
    graphdef, shapes, logical = flat.abstract(make)
    shardings = sharding.resolve(shapes, logical, mesh)
    settings, freeze = build.optim(config)
    optimizer = make_optimizer(settings, freeze, shapes, config.steps, steps_per_epoch)
    trainable, run = partition(shapes, freeze)[0], train_config(config)
    train.check_parts(run, mesh)
    abstract = abstract_state(shapes, shardings, trainable, optimizer, run)
    return Plan(make, graphdef, shapes, shardings, optimizer, run, abstract)


def train_config(config: ConfigDict) -> TrainConfig:
    """The numbers of a run."""
    return TrainConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        accum=config.accum,
        seed=config.seed,
        dtype=config.model.dtype,
        ema=config.optim.ema,
        nan_patience=config.nan_patience,
        log_every=config.log_every,
        eval_every=config.eval_every,
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


def trace(config: ConfigDict, plan: Plan, evaluate: bool = False) -> jax.stages.Traced:
    """The train step (or the evaluation's), traced for a batch of the config's size; the plan's
    mesh has devices.
    """
    mesh: Any = plan.abstract.step.sharding.mesh
    where, dims = sharding.batch_sharding(mesh), config.model.action_dim
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        estimate.batch(config, config.batch_size),
    )
    names = tuple(f"dim {i}" for i in range(dims))
    units = Units(names, np.ones((len(datasets.members(config)), dims), np.float32))
    step = eval_step(plan, units) if evaluate else train_step(plan, units)
    return step.trace(plan.abstract, batch)
