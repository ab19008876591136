"""What a round of learning by trial computes beside its step, traced before there is a world: how
worlds are answered, and what decisions are looked at with before the policy learns from them.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.composition import estimate
from experiments.composition.steps import Plan
from experiments.learning import rounds
from vla_jax import build_heads, sharding
from vla_jax.params import Params, merge
from vla_jax.policy_rows import over_rows
from vla_jax.rl.learner import Learner
from vla_jax.types import Array, Observation, newest


class Asked(NamedTuple):
    """A program.

    Attributes:
        inputs: bytes of a device that go in beside parameters.
        parts: devices that its arithmetic is split over; 1: each does all of it, or less.
    """

    traced: jax.stages.Traced
    inputs: int
    parts: int


def copies(plan: Plan) -> tuple[Params, Params]:
    """Shapes of the parameters of who acts and of those before all learning (Rounds), in the
    type that the step computes in.
    """
    state, dtype = plan.abstract, plan.run.dtype

    def cast_(part: Any) -> dict[str, Any]:
        return {
            name: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
            for name, leaf in part.items()
        }

    return {**cast_(state.params), **state.frozen}, cast_({**state.params, **state.frozen})


def kept(plan: Plan) -> int:
    """Bytes of a device that both take beside the state, with which who acts shares what is
    frozen.
    """
    acting, reference = copies(plan)
    own = {name: acting[name] for name in plan.abstract.params}
    return sharding.bytes_per_device(own) + sharding.bytes_per_device(reference)


def of_round(config: ConfigDict, plan: Plan) -> dict[str, Asked]:
    """By what they do: "acts" for all worlds at once, "judges" a batch of decisions."""
    acting, reference = copies(plan)
    mesh: Any = plan.abstract.step.sharding.mesh
    batch = _placed(
        estimate.of_step(config, plan.graphdef, plan.shapes, config.batch_size),
        sharding.batch_sharding(mesh),
    )
    rows = _placed(_rows(config, plan), sharding.replicated(mesh))
    judge = rounds.judge_step(plan).trace(acting, reference, batch)
    return {
        "acts": Asked(_act(plan).trace(acting, *rows), sharding.bytes_per_device(rows), 1),
        "judges": Asked(judge, sharding.bytes_per_device(batch), mesh.size),
    }


def worlds(config: ConfigDict) -> int:
    """That are open at a time."""
    return int(min(config.rl.environments, config.rl.episodes * config.rl.trials))


def _act(plan: Plan) -> Any:
    """The jitted (parameters, rows) -> the chunks that explore, as policy.JaxPolicy answers its
    sessions: it runs the backbone on new frames alone where it may.
    """

    def act(
        params: Params, obs: Observation, kept: Array | None, seed: Array, step: Array
    ) -> Array:
        model, obs = cast(Learner, merge(plan.graphdef, params)), jax.tree.map(_alone, obs)
        key = jax.random.fold_in(jax.random.key(seed), step)
        if kept is None:
            return model.act(obs, key)
        read = jnp.concatenate([_alone(kept), model.readouts(newest(obs))], axis=1)
        return model.act_on_readouts(read, obs.step_mask, obs.action_dims, key)

    return over_rows(act)


def _alone(x: Array) -> Array:
    return x[None]


def _rows(config: ConfigDict, plan: Plan) -> tuple[Any, ...]:
    """The arguments of `act`, of all worlds, as shapes."""

    def earlier(params: Params, obs: Observation) -> Any:
        return cast(Learner, merge(plan.graphdef, params)).readouts(obs)[:, 1:]

    model, obs, kept = config.model, estimate.batch(config, worlds(config)).obs, None
    reads = build_heads.kind(config).make.acts_on == "readouts"
    if model.window > 1 and model.history == "head" and reads:
        kept = jax.eval_shape(earlier, plan.shapes, obs)
    numbers = jax.ShapeDtypeStruct((worlds(config),), np.uint32)
    return obs, kept, numbers, numbers


def _placed(tree: Any, where: jax.sharding.Sharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )
