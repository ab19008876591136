"""An openpi checkpoint opened: a folder with `params` as orbax wrote it, or with the
model.safetensors of openpi's conversion to PyTorch.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from vla_jax.weights import pretrained

PREFIX = "paligemma_with_expert."
# Of the conversion: an output layer that nothing made or uses; the expert writes no words.
DEAD = ("gemma_expert.lm_head.weight",)


def open_checkpoint(path: Path) -> pretrained.WeightFiles:
    """Its arrays by openpi's names, `kind` "orbax" or "hf". Raises ValueError for a folder that is
    neither, or damaged.

    What orbax wrote is read whole; the safetensors are mapped.
    """
    if (path / "model.safetensors").is_file():
        return _converted(pretrained.open_weights(path))
    folder = path / "params" if (path / "params").is_dir() else path
    if not (folder / "_METADATA").is_file():
        raise ValueError(
            f"--from openpi:{path}: expected a checkpoint of openpi, a folder with params/_METADATA"
            " (orbax) or model.safetensors (its conversion to PyTorch), got neither"
        )
    try:
        tree = _restored(folder)
    except (ValueError, KeyError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder}: orbax cannot read it ({str(error)[:300]}); download it again"
        ) from error
    if not isinstance(tree, dict) or set(tree) != {"params"}:
        top = ", ".join(sorted(tree)) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(
            f"{folder}: expected one tree named params, as openpi saves it, got {top}; is it"
            " another version's?"
        )
    arrays = traverse_util.flatten_dict(tree["params"], sep="/")
    # Checkpoints of training have a `value` at the end of every name, released ones do not.
    if all(name.endswith("/value") for name in arrays):
        arrays = {name.removesuffix("/value"): array for name, array in arrays.items()}
    return pretrained.WeightFiles(path, "orbax", arrays)


def statistics_in(path: Path) -> list[Path]:
    """The files of statistics that lie in a checkpoint."""
    return sorted((path / "assets").rglob("norm_stats.json"))


def _restored(folder: Path) -> Any:
    """The tree of numpy arrays."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder.absolute()).item_metadata
        if found is None:  # orbax only logs it
            raise ValueError(f"{folder / '_METADATA'} is damaged")
        tree = found.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(
            folder.absolute(), ocp.args.PyTreeRestore(item=tree, restore_args=args)
        )


def _converted(files: pretrained.WeightFiles) -> pretrained.WeightFiles:
    """Names without the prefixes of the two models, the token table under its own name."""
    arrays = {}
    for name, array in files.arrays.items():
        own = name.removeprefix(PREFIX)
        if own.startswith("paligemma."):
            own = pretrained.normalise(own.removeprefix("paligemma."))
        arrays[own] = array
    # It is tied to the output layer, and safetensors keeps one of two names.
    table = "language_model.embed_tokens.weight"
    if table not in arrays and "lm_head.weight" in arrays:
        arrays[table] = arrays.pop("lm_head.weight")
    return pretrained.WeightFiles(files.path, "hf", arrays)
