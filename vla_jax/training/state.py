"""The numbers of a run, and all that training carries from one step to the next."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vla_jax import sharding
from vla_jax.params import Params, Shapes
from vla_jax.training import optim
from vla_jax.training.augment import AugmentConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The numbers of a run.

    Attributes:
        batch_size: windows per step over all devices; computed in `accum` equal parts.
        augment: of the images in training, see augment.py; evaluation sees them as they are.
        adapter_dropout: in training, see lora.drop.
        dtype: of the computation and of frozen parameters. Trained parameters and the optimizer are
            float32.
        ema: decay of the running average of the parameters; 0 keeps none.
        nan_patience: stop after this many steps in a row with a loss or gradient that is not
            finite; each is skipped.
    """

    steps: int
    batch_size: int
    accum: int = 1
    seed: int = 0
    dtype: str = "bfloat16"
    ema: float = 0.0
    nan_patience: int = 10
    log_every: int = 10
    eval_every: int = 1000  # 0: never
    save_every: int = 1000
    adapter_dropout: float = 0.0
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)


class TrainState(NamedTuple):
    """All that training carries from one step to the next. No random key: it is folded from the
    seed and `step`.
    """

    step: Any  # int32 []: steps done, which is also the position in the data
    params: dict[str, Any]  # trainable, float32
    frozen: dict[str, Any]  # in the compute type
    opt_state: Any
    ema: dict[str, Any] | None  # running average of params
    skipped: Any  # int32 []: steps skipped in a row because loss or gradients were not finite


def abstract_state(
    shapes: Shapes,
    shardings: sharding.Shardings,
    trainable: list[str],
    optimizer: optim.Optimizer,
    config: TrainConfig,
) -> TrainState:
    """The state as shapes, types and shardings, from those of all parameters.

    It is what `Checkpointer.restore`, `make_train_step` and `make_eval_step` need to know of a
    state.
    """
    mesh: Any = next(iter(shardings.values())).mesh
    whole = sharding.replicated(mesh)

    def spec(name: str, dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shapes[name].shape, dtype, sharding=shardings[name])

    params = {name: spec(name, jnp.float32) for name in trainable}

    def moment(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # Moments are dicts by parameter name, counters are not.
        name = getattr(path[-1], "key", None)
        where = shardings[name] if name in params else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(
        step=counter,
        params=params,
        frozen={name: spec(name, config.dtype) for name in shapes if name not in params},
        opt_state=jax.tree_util.tree_map_with_path(
            moment, jax.eval_shape(optimizer.transform.init, params)
        ),
        ema=dict(params) if config.ema else None,
        skipped=counter,
    )


def init_state(params: Params, abstract: TrainState, optimizer: optim.Optimizer) -> TrainState:
    """The state at step 0 from all parameters in their shardings. They become part of it: do not
    use them after.
    """

    def start(used: Params, rest: Params) -> TrainState:
        trained = {name: used[name].astype(jnp.float32) for name in abstract.params}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=trained,
            frozen={name: rest[name].astype(like.dtype) for name, like in abstract.frozen.items()},
            opt_state=optimizer.transform.init(trained),
            ema=None,
            skipped=jnp.zeros((), jnp.int32),
        )

    used = {name: value for name, value in params.items() if name in abstract.params}
    rest = {name: value for name, value in params.items() if name in abstract.frozen}
    where = shardings_of(abstract._replace(ema=None))
    state = jax.jit(start, donate_argnums=0, out_shardings=where)(used, rest)
    if abstract.ema is None:
        return state
    # A program of its own: two equal outputs of one may share a buffer, and both are donated later.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=where.params)
    return state._replace(ema=copy(state.params))


def inference_params(state: TrainState) -> Params:
    """What evaluates: the average if one is kept, else the trained parameters; and the frozen ones.
    Not merged.
    """
    return {**(state.params if state.ema is None else state.ema), **state.frozen}


def shardings_of(abstract: TrainState) -> TrainState:
    """The shardings of a state of shapes, in the same tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
