"""Rows of several episodes, for one program.

Programs are compiled for a count of rows; the last row stands in for those that are not asked, so
that a row's numbers depend on no other's, nor on how many there are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.params import Params
from vla_jax.types import Guide


def over_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """The program (params, *arguments) that gives `function` of each row of the arguments, of which
    rows are the first axis; what it gives has [1 ...] of a row, hence [r 1 ...] here.
    """

    @jax.jit
    def program(params: Params, *given: Any) -> Any:
        if len(jax.tree.leaves(given)[0]) == 1:
            out = function(params, *jax.tree.map(lambda x: x[0], given))
            return jax.tree.map(lambda x: x[None], out)
        return jax.vmap(functools.partial(function, params))(*given)

    return program


def of_rows(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    """The program (params, rows, count) that gives function(params, *row) for each of several rows
    of arguments, in one pass, where each row's are kept apart: on the device.
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

    def together(params: Params, rows: Sequence[tuple[Any, ...]], count: int) -> list[Any]:
        whole = [*rows, *[rows[-1]] * (count - len(rows))]
        flat, trees = zip(*(jax.tree.flatten(row) for row in whole), strict=True)
        # What is on the host goes over as one array; the rest is where it stays.
        leaves = [
            leaf if isinstance(leaf[0], jax.Array) else np.stack(leaf)
            for leaf in zip(*flat, strict=True)
        ]
        return program(params, leaves, trees[0], count)[: len(rows)]

    return together


def row(tree: Any, i: int) -> Any:
    """One row of numpy arrays that have rows as their first axis: [1 ...]."""
    return jax.tree.map(lambda x: x[i : i + 1], tree)


def filled(tree: Any, count: int) -> Any:
    """The same with `count` rows: the last one again."""
    n = len(jax.tree.leaves(tree)[0])
    places = np.minimum(np.arange(count), n - 1)
    return tree if n == count else jax.tree.map(lambda x: x[places], tree)


def of_all(guides: Sequence[Guide | None]) -> Guide | None:
    """Of guides [1 ...] the rows together. Where some are led, of the others one that leads
    nowhere: it is one program.
    """
    led = next((each for each in guides if each is not None), None)
    if led is None:
        return None
    nowhere = Guide(np.zeros_like(led.actions), np.zeros_like(led.weight))
    return jax.tree.map(
        lambda *rows: np.concatenate(rows),
        *(nowhere if each is None else each for each in guides),
    )
