"""A whole backbone from a folder, as no command needs it: production loads into a policy."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vla_jax.models.backbones import BackboneFile
from vla_jax.params import Params
from vla_jax.weights import pretrained


def from_pretrained(
    module: BackboneFile,
    path: Path | str,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Any = jnp.float32,
    allow_missing: tuple[str, ...] = (),
) -> tuple[nnx.GraphDef, Params]:
    """(graphdef, params) of the model that a folder describes, sharded over the mesh (the first
    device without). An .npz, which describes nothing, is read as the tiny variant.
    """
    files = pretrained.open_weights(path)
    config = module.hf_config(files.config()) if files.kind == "hf" else module.CONFIGS["tiny"]
    return pretrained.init_from_pretrained(
        lambda rngs: module.MODEL(config, rngs),
        lambda specs: module.load(path, config, specs, allow_missing),
        mesh,
        dtype,
    )
