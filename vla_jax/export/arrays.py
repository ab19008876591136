"""The parameters as an artefact holds them: our flat names, one array per layer.

Axes: x layers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from vla_jax.models.stack import Stack
from vla_jax.models.vla import VLA


def names(model: VLA) -> dict[str, tuple[str, int | None]]:
    """Name in the artefact -> (name of the parameter, layer), of every array that the artefact
    needs.

    ".../blocks/attn/q/kernel" of a stack becomes ".../blocks/0/attn/q/kernel" and so on; other
    names stay.
    """
    stacks = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Stack):
            stacks["/".join(map(str, path)) + "/blocks/"] = module.depth
    # Only training needs the auxiliary tasks, only a head that writes tokens the output layer.
    skipped = tuple(f"{task.path}/" for task in model.tasks().values())
    skipped += () if model.head.num_tokens else ("backbone/lm_head/",)
    out: dict[str, tuple[str, int | None]] = {}
    for path, _ in nnx.to_flat_state(nnx.split(model)[1]):
        name = "/".join(map(str, path))
        if name.startswith(skipped):
            continue
        prefix = next((prefix for prefix in stacks if name.startswith(prefix)), None)
        if prefix is None:
            out[name] = (name, None)
            continue
        for layer in range(stacks[prefix]):
            out[f"{prefix}{layer}/{name.removeprefix(prefix)}"] = (name, layer)
    return out


def unstacked(model: VLA, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of the artefact as views of `params`. Raises ValueError when one is missing."""
    wanted = names(model)
    missing = sorted({name for name, _ in wanted.values()} - set(params))
    if missing:
        raise ValueError(
            f"export: the checkpoint lacks {', '.join(missing)}; is it an imported backbone without"
            " a policy head? train it first"
        )
    return {
        name: np.asarray(params[ours]) if layer is None else np.asarray(params[ours])[layer]
        for name, (ours, layer) in wanted.items()
    }
