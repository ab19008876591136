"""What training costs, without running it: the bytes of its state, and of a window (of a decision,
where a policy learns by trial) the FLOPs and the bytes kept for backward, counted on the traced
program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from experiments.composition import datasets
from vla_jax import build, build_heads, sharding
from vla_jax.params import Shapes, merge
from vla_jax.rl.learner import ALGORITHMS, Decisions, unseen
from vla_jax.training import metrics
from vla_jax.training.state import TrainState
from vla_jax.types import (
    ActionTokens,
    Batch,
    Future,
    ImageText,
    Observation,
    ObservationSizes,
    new_observation,
)


class Cost(NamedTuple):
    """Of one window, over all devices."""

    forward: float  # FLOPs of the loss
    training: float  # FLOPs of the loss and its gradient, what remat computes again included
    activations: int  # bytes that wait for the backward pass under the config's remat


def memory(state: TrainState) -> dict[str, int]:
    """The bytes that each device holds of a state of shapes and shardings, by its parts, and of the
    gradients, which are float32 as the trained parameters are. Activations come on top.
    """
    parts = {name: getattr(state, name) for name in ("params", "frozen", "opt_state", "ema")}
    return {
        name: sharding.bytes_per_device(part)
        for name, part in {**parts, "gradients": state.params}.items()
    }


def per_window(
    config: ConfigDict, graphdef: nnx.GraphDef, trainable: Shapes, frozen: Shapes
) -> Cost:
    """The difference between two windows and one: what does not grow with the batch (cast weights,
    say) is left out.
    """
    two, one = (_of(config, graphdef, (trainable, frozen), b) for b in (2, 1))
    return Cost(
        two.forward - one.forward, two.training - one.training, two.activations - one.activations
    )


def batch(config: ConfigDict, b: int) -> Batch:
    """A batch of b windows as shapes and types."""
    model, tasks = config.model, config.objectives
    t, size, cameras = model.window, model.image_size, build.camera_sizes(config)
    frames, length = len(tasks.forward.offsets), tasks.image_text.length

    def spec(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    def images(*shape: int) -> tuple[Any, ...]:
        return tuple(spec(np.uint8, *shape, each, each, 3) for each in cameras)

    sizes = ObservationSizes(
        b=b,
        t=t,
        p=_state_dims(config),
        l=model.prompt_length,
        d=len(model.action_names),
        image_size=cameras,
        past_action=model.past_action,
        sensors={each.name: (each.shape, each.dtype) for each in build.sensors(config)},
    )
    obs = new_observation(sizes, jax.ShapeDtypeStruct)
    tokens = (spec(np.int32, length), spec(bool, length), spec(bool, length))
    text, q = ImageText(spec(np.uint8, size, size, 3), *tokens), build_heads.strings(config)
    return Batch(
        obs=obs,
        actions=spec(np.float32, t, model.chunk, len(model.action_names)),
        action_mask=spec(bool, t, model.chunk, len(model.action_names)),
        dataset_id=spec(np.int32),
        future=(
            Future(images(t, frames), spec(bool, t, frames, len(cameras)))
            if tasks.forward.weight
            else None
        ),
        text_target=spec(np.float32, tasks.text_align.width) if tasks.text_align.weight else None,
        image_text=text if tasks.image_text.weight else None,
        action_tokens=ActionTokens(spec(np.int32, t, q), spec(bool, t, q)) if q else None,
    )


def of_step(config: ConfigDict, graphdef: nnx.GraphDef, shapes: Shapes, b: int) -> Any:
    """What the step of a config's kind of learning takes, b of them, as shapes and types. Raises
    ValueError for learning from preferences.
    """
    if not config.rl.algorithm:
        return batch(config, b)
    if config.rl.algorithm not in ALGORITHMS:
        raise ValueError(
            f"rl.algorithm: expected one of {', '.join(ALGORITHMS)}, or none, got"
            f" {config.rl.algorithm!r}: what a step that learns from preferences takes is not known"
            " before its clips are"
        )
    obs, dims = batch(config, b).obs, len(config.model.action_names)

    def spec(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    def first(params: Any, obs: Observation) -> tuple[Any, Any]:
        model: Any = merge(graphdef, params)
        return jnp.zeros((b, config.model.chunk, model.drawn)), model.readouts(obs)

    def says(params: Any, decisions: Decisions) -> Any:
        model: Any = merge(graphdef, params)
        return model.judged(decisions)[0]

    chunk, readouts = jax.eval_shape(first, shapes, obs)
    one = spec(np.float32)
    if config.rl.head_only:
        obs = unseen(obs)
    decisions = Decisions(
        obs=obs,
        chunk=chunk,
        mask=spec(bool, config.model.chunk, dims),
        log_prob=one,
        advantage=one,
        returns=one,
        reference=one,
        valid=spec(bool),
        kept=spec(bool),
        dataset_id=spec(np.int32),
        readouts=readouts if config.rl.head_only else None,
    )
    return decisions._replace(reference=jax.eval_shape(says, shapes, decisions))


def _state_dims(config: ConfigDict) -> int:
    """Numbers of the state in a batch: the policy's, or where it sees none, all of the data."""
    each = [dataset.state_names for dataset, _ in datasets.members(config)]
    return len(config.model.state_names or {name for names in each for name in names})


def _of(config: ConfigDict, graphdef: nnx.GraphDef, shapes: tuple[Shapes, Shapes], b: int) -> Cost:
    dtype = jnp.dtype(config.model.dtype)
    params, frozen = (
        {k: jax.ShapeDtypeStruct(v.shape, dtype) for k, v in part.items()} for part in shapes
    )

    def loss(params: Any, frozen: Any, batch: Any) -> jax.Array:
        model: Any = merge(graphdef, {**params, **frozen})
        return sum(model.loss(batch, jax.random.key(0)).sums.values(), start=jnp.zeros(()))

    data = of_step(config, graphdef, {**params, **frozen}, b)
    forward = jax.make_jaxpr(loss)(params, frozen, data)
    training = jax.make_jaxpr(jax.grad(loss))(params, frozen, data)
    # The function that jax.vjp returns is a pytree: its leaves are what it keeps.
    kept = jax.eval_shape(
        lambda params, frozen, data: jax.vjp(lambda p: loss(p, frozen, data), params)[1],
        params,
        frozen,
        data,
    )
    size = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return Cost(metrics.count_flops(forward.jaxpr), metrics.count_flops(training.jaxpr), size)
