"""What both sides of `benchmark train` read: the same weights by either's names, the same batches.

In a folder: ours.safetensors and inputs.json (train_ours.py), hub/ and rest.safetensors
(train_torch.py), batches.safetensors (both).
"""

import argparse
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from flax import nnx
from ml_collections import ConfigDict

from experiments.benchmarks import policies
from experiments.benchmarks.train_ours import configuration
from experiments.composition import estimate
from experiments.composition.json_files import write_json
from vla_jax import build, build_heads
from vla_jax.export import arrays, hf
from vla_jax.models.backbones import paligemma

BATCHES = 4  # that both go through again and again


def write_inputs(folder: Path, args: argparse.Namespace) -> ConfigDict:
    """Writes what both read: the weights by the names of either, the batches, the sizes."""
    own = {key: value for key, value in vars(args).items() if key != "json"}
    config = configuration(own)
    sizes = paligemma.CONFIGS[config.model.variant]
    make = build.training_model(config)
    model: Any = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    ours = policies.random_params(make, rng)
    safetensors.numpy.save_file(ours, folder / "ours.safetensors")
    torch_names = {k: torch.from_numpy(v) for k, v in arrays.unstacked(model, ours).items()}
    backbone = {
        name.removeprefix(hf.BACKBONE): value
        for name, value in torch_names.items()
        if name.startswith(hf.BACKBONE)
    }
    hf.hub_config(sizes, sizes.vocab - 1).save_pretrained(folder / "hub")
    written = hf.hub_tensors(sizes, backbone)
    safetensors.torch.save_file(written, folder / "hub" / "model.safetensors", {"format": "pt"})
    rest = {k: v.contiguous() for k, v in torch_names.items() if not k.startswith(hf.BACKBONE)}
    safetensors.torch.save_file(rest, folder / "rest.safetensors")
    batches = {f"{i}/{k}": v for i in range(BATCHES) for k, v in _batch(config, model, rng).items()}
    safetensors.numpy.save_file(batches, folder / "batches.safetensors")
    write_json(folder / "inputs.json", own | {
        "batches": BATCHES,
        "hidden": config.model.head_hidden, "lstm_layers": config.model.head_layers,
        "token_range": [sizes.vocab - config.model.bins, sizes.vocab],
        "loss": config.loss.to_dict(), "optim": config.optim.to_dict(),
    })  # fmt: skip
    return config


def _batch(config: ConfigDict, model: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random pictures, words and actions; prompts of several lengths."""
    like = estimate.batch(config, config.batch_size)
    b, t, k, d = like.actions.shape
    words = config.model.prompt_length
    length = rng.integers(8, words + 1, b)
    actions = rng.uniform(-0.9, 0.9, (b, t, k, d)).astype(np.float32)
    grippers = list(build_heads.binary(config))
    actions[..., grippers] = actions[..., grippers] > 0
    out = {
        "images": rng.integers(0, 256, like.obs.images[0].shape, np.uint8),
        "prompt": rng.integers(4, 1000, (b, words), np.int32),
        "prompt_mask": np.arange(words)[None] < length[:, None],
        "actions": actions,
    }
    if model.head.num_tokens:
        ids = model.head.targets(jnp.asarray(actions), jnp.ones(actions.shape, bool))
        out["ids"] = np.asarray(ids)
    return out
