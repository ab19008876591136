"""Rows of several episodes, for one program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.params import Params
from vla_jax.types import Guide


def of_rows(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    """The program that gives function(params, *row) for each of several rows of arguments, in one
    pass, compiled for their number.
    """

    # Of leaves: types of ours know no axis of rows.
    @functools.partial(jax.jit, static_argnums=(2, 3))
    def program(params: Params, leaves: list[Any], tree: Any, count: int) -> list[Any]:
        given: list[Any] = []  # the tree of what function gives

        def of_leaves(row: list[Any]) -> list[Any]:
            out, made = jax.tree.flatten(function(params, *jax.tree.unflatten(tree, row)))
            given.append(made)
            return out

        stacked = [jnp.stack(leaf) if isinstance(leaf, tuple) else leaf for leaf in leaves]
        if count == 1:
            return [
                jax.tree.unflatten(given[0], row) for row in [of_leaves([x[0] for x in stacked])]
            ]
        out = jax.vmap(of_leaves)(stacked)
        return [jax.tree.unflatten(given[0], [part[i] for part in out]) for i in range(count)]

    def together(params: Params, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
        flat, trees = zip(*(jax.tree.flatten(row) for row in rows), strict=True)
        # What is on the host goes over as one array; the rest is where it stays.
        leaves = [
            leaf if isinstance(leaf[0], jax.Array) else np.stack(leaf)
            for leaf in zip(*flat, strict=True)
        ]
        return program(params, leaves, trees[0], len(rows))

    return together


def of_all(guides: Sequence[Guide | None]) -> Sequence[Guide | None]:
    """Where some are led, of the others one that leads nowhere: it is one program."""
    led = next((each for each in guides if each is not None), None)
    if led is None:
        return guides
    nowhere = Guide(np.zeros_like(led.actions), np.zeros_like(led.weight))
    return [nowhere if each is None else each for each in guides]
