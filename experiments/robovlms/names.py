"""RoboVLMs' parameter names as ours: the arrays of a checkpoint, tidied, and the table of their
names.
"""

import fnmatch
import re
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from vla_jax.weights import pretrained, transforms
from vla_jax.weights.pretrained import Entry, WeightFiles

# Arrays without meaning: constant masks and tables that older versions of transformers and of GPT-2
# saved.
BUFFERS = (
    "act_head.gpt.*.attn.bias",
    "act_head.gpt.*.attn.masked_bias",
    "*.embed_positions.weights",
)
# Of use_clip_norm, a whole CLIP text encoder among them: only training looks at them.
TRAINING = ("clip_norm_head.*",)


def renamed(opened: WeightFiles) -> tuple[WeightFiles, list[str]]:
    """The arrays of a RoboVLMs checkpoint as `names` wants them, and the names that were left out.

    Backbone arrays get the names of the backbone's Hugging Face release, the others lose the prefix
    "model."; an LSTM gets one bias where PyTorch has the sum of two.
    """
    arrays, dropped = {}, []
    for name, array in opened.arrays.items():
        short = name.removeprefix("model.")
        short = (
            pretrained.normalise(short.removeprefix("backbone."))
            if short.startswith("backbone.")
            else short
        )
        if any(fnmatch.fnmatchcase(short, pattern) for pattern in BUFFERS + TRAINING):
            dropped.append(short)
        elif short in arrays:
            raise ValueError(f"{opened.path}: {short} twice, with and without 'model.'; keep one")
        else:
            arrays[short] = array
    dropped += _tied(opened.path, arrays)
    for name in [name for name in arrays if re.fullmatch(r"act_head\.rnn\.bias_ih_l\d+", name)]:
        other = name.replace("bias_ih", "bias_hh")
        if other in arrays:
            arrays[name.replace("bias_ih", "bias")] = arrays.pop(name) + arrays.pop(other)
    # nn.Identity in RoboVLMs, where the widths agree.
    if "act_head.gpt.wpe.weight" in arrays and "act_head.fc.weight" not in arrays:
        width = arrays["act_head.gpt.wpe.weight"].shape[1]
        arrays |= {
            "act_head.fc.weight": np.eye(width, dtype=np.float32),
            "act_head.fc.bias": np.zeros(width, np.float32),
        }
    return WeightFiles(opened.path, opened.kind, arrays), dropped


def _tied(path: Path, arrays: dict[str, np.ndarray]) -> list[str]:
    """Takes out copies of the token table that stand for the output layer."""
    heads = [name for name in arrays if name.endswith("lm_head.weight")]
    tables = [name for name in arrays if name.endswith("embed_tokens.weight")]
    for head in heads:
        for table in tables:
            if not _same(arrays[head], arrays[table]):
                raise ValueError(
                    f"{path}: {head} and {table} differ, but RoboVLMs' backbones tie them; is it"
                    " another model's?"
                )
        del arrays[head]
    return heads


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equality by rows, so that no mask as large as a table is made."""
    return one.shape == other.shape and all(
        np.array_equal(one[i : i + 1024], other[i : i + 1024]) for i in range(0, len(one), 1024)
    )


def names(config: ConfigDict, backbone: dict[str, Entry]) -> dict[str, Entry]:
    """Our parameters -> names that `renamed` gives. `backbone` is that of the backbone alone."""
    readouts = config.model.readouts
    table = {f"backbone/{name}": entry for name, entry in backbone.items()}
    table["readout_embedding"] = Entry(
        "action_token", lambda x: np.broadcast_to(x.reshape(1, -1), (readouts, x.size))
    )
    for ours, theirs in (("arm", "actions"), ("gripper", "gripper")):
        table |= _linear(
            f"head/outputs/{ours}/layers/",
            f"act_head.{theirs}.mlp.",
            len(config.model.head_mlp) + 1,
        )
    if config.model.head == "lstm":
        for i in range(config.model.head_layers):
            layer = f"head/layers/{i}/"
            table[f"{layer}w_ih"] = Entry(f"act_head.rnn.weight_ih_l{i}", transforms.transposed)
            table[f"{layer}w_hh"] = Entry(f"act_head.rnn.weight_hh_l{i}", transforms.transposed)
            table[f"{layer}bias"] = Entry(f"act_head.rnn.bias_l{i}", transforms.as_is)
    elif config.model.head == "mlp":
        table |= _linear("head/mlp/layers/", "act_head.mlp.", 2)
    else:
        table |= _gpt(config.model.head_layers)
    return table


def _linear(ours: str, theirs: str, count: int) -> dict[str, Entry]:
    """The linear layers of an nn.Sequential in which each is followed by an activation."""
    return {
        f"{ours}{i}/{leaf}": Entry(f"{theirs}{2 * i}.{name}", change)
        for i in range(count)
        for leaf, name, change in (
            ("kernel", "weight", transforms.transposed),
            ("bias", "bias", transforms.as_is),
        )
    }


def _gpt(depth: int) -> dict[str, Entry]:
    """The trunk of GPTDecoder. GPT-2's Conv1D keeps kernels as [in, out], and q, k, v side
    by side.
    """
    plain, layer, blocks = transforms.as_is, "act_head.gpt.h.{}.", "head/blocks/stack/blocks/"
    table = {
        "head/input/kernel": Entry("act_head.fc.weight", transforms.transposed),
        "head/input/bias": Entry("act_head.fc.bias", plain),
        "head/positions": Entry("act_head.gpt.wpe.weight", plain),
    }
    for ours, name in (("scale", "weight"), ("bias", "bias")):
        table[f"head/blocks/norm/{ours}"] = Entry(f"act_head.gpt.ln_f.{name}", plain)
        for norm, theirs in (("norm_attn", "ln_1"), ("norm_mlp", "ln_2")):
            table[f"{blocks}{norm}/{ours}"] = Entry(f"{layer}{theirs}.{name}", plain, depth)
    for ours, name in (("kernel", "weight"), ("bias", "bias")):
        for i, part in enumerate("qkv"):
            table[f"{blocks}attn/{part}/{ours}"] = Entry(
                f"{layer}attn.c_attn.{name}", _third(i), depth
            )
        for part, theirs in (
            ("attn/o", "attn.c_proj"),
            ("mlp/up", "mlp.c_fc"),
            ("mlp/down", "mlp.c_proj"),
        ):
            table[f"{blocks}{part}/{ours}"] = Entry(f"{layer}{theirs}.{name}", plain, depth)
    return table


def _third(i: int) -> transforms.Transform:
    """Third i of the last axis."""
    return lambda x: np.split(x, 3, axis=-1)[i] if x.shape[-1] % 3 == 0 else x
