"""Modules as a graphdef and one flat dict of arrays.

Modules hold parameters and sizes only: no RNG streams, no state. Everything above the model works
on `dict[str, Array]` keyed by path ("backbone/layers/attn/q/kernel"), because `jax.jit` on a dict
costs 2 ms per call at 400 variables where nnx.jit costs 18-21 ms.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Params = dict[str, jax.Array]
Shapes = dict[str, jax.ShapeDtypeStruct]
Logical = dict[str, tuple[str | None, ...]]
Build = Callable[[nnx.Rngs], nnx.Module]


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """The graphdef and the flat parameters of a module. Raises ValueError on any variable that is
    not an nnx.Param.
    """
    graphdef, state = nnx.split(module)
    flat = {}
    for path, variable in nnx.to_flat_state(state):
        name = "/".join(str(part) for part in path)
        if not isinstance(variable, nnx.Param):
            raise ValueError(
                f"{name}: expected nnx.Param, got {type(variable).__name__}; modules hold"
                " parameters only"
            )
        flat[name] = variable.get_value()
    return graphdef, flat


def merge(graphdef: nnx.GraphDef, params: Params) -> nnx.Module:
    """The inverse of `split`; cheap enough to run inside jit."""
    return nnx.merge(
        graphdef,
        nnx.from_flat_state([(_path(name), nnx.Param(value)) for name, value in params.items()]),
    )


def abstract(build: Build) -> tuple[nnx.GraphDef, Shapes, Logical]:
    """Graphdef, shapes and logical axis names of `build(rngs)` without allocating anything.

    A parameter declares its axes as `nnx.Param(value, logical=("embed", "mlp"))`; without it all
    axes are unnamed. Layers stacked by nnx.vmap have one leading axis more than their names: it is
    padded with None.
    """
    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graphdef, state = nnx.split(module)
    shapes, logical = {}, {}
    for path, variable in nnx.to_flat_state(state):
        name = "/".join(str(part) for part in path)
        value = variable.get_value()
        shapes[name] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        axes = tuple(variable.get_metadata().get("logical", ()))
        logical[name] = (None,) * (len(value.shape) - len(axes)) + axes
    return graphdef, shapes, logical


def initialise(build: Build, seed: int, shardings: Mapping[str, jax.sharding.Sharding]) -> Params:
    """Random parameters, made in their shardings: the whole model never sits on one device.

    Only the names in `shardings` are made; XLA drops the rest, so a head costs no backbone.
    """
    return jax.jit(
        lambda: {
            name: value
            for name, value in split(build(nnx.Rngs(seed)))[1].items()
            if name in shardings
        },
        out_shardings=dict(shardings),
    )()


def not_finite(array: np.ndarray) -> int:
    """How many of the numbers are NaN or infinite."""
    return int(array.size - np.count_nonzero(np.isfinite(array)))


@jax.jit
def not_finite_on_device(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """`not_finite` of each, counted where they lie, over all hosts."""
    return {name: jnp.sum(~jnp.isfinite(array)) for name, array in arrays.items()}


def refuse_not_finite(where: object, counts: Mapping[str, int]) -> None:
    """Raises ValueError naming the arrays of `where` that hold values which are NaN or infinite;
    `counts` says how many, 0 where there are none.
    """
    bad = [f"{name}: {count:,}" for name, count in counts.items() if count]
    if bad:
        raise ValueError(
            f"{where}: expected finite numbers, got NaN or infinity in {len(bad)} arrays:\n  "
            + "\n  ".join(bad)
            + "\nit is damaged, or comes from a training that diverged: get it again, or an earlier"
            " one"
        )


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("/"))
