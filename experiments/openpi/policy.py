"""What policy of ours an openpi checkpoint is: pi0 or pi0.5, and its sizes, read off its arrays.

What the arrays do not say is openpi's default: chunks of 50 steps (a conversion's config.json has
it, --chunk gives another), two cameras (base and left wrist; a third that a robot lacks is masked
there, and not there here), pi0's states and actions by mean and standard deviation, pi0.5's by
quantiles.

pi0.5 reads the state as words of its prompt (vla_jax/robot/state_words.py), but where its run had
discrete_state_input=False (pi05_libero): --no_state_words.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.composition import spaces
from experiments.configs import oxe_paligemma
from experiments.openpi import files, names
from vla_jax import build, build_heads
from vla_jax import params as flat
from vla_jax.models.backbones import paligemma
from vla_jax.models.heads.expert import ExpertConfig
from vla_jax.weights import pretrained, transforms

CHUNK = 50  # action_horizon
DEAD = files.DEAD
READOUTS = "readout_embedding"  # ours alone; the expert does not look at them
ZEROS = "(zeros: openpi has no readouts)"
VARIANTS = ("3b-pt-224", "tiny")  # of openpi's gemma_2b, and of tests
PROMPT = 64  # tokens of an instruction beside the state's words; openpi has 200 for both


class Policy(NamedTuple):
    """A checkpoint, and the policy of `config` that it fills. `notes`: what to say of it."""

    config: ConfigDict
    files: pretrained.WeightFiles
    table: dict[str, pretrained.Entry]
    shapes: flat.Shapes
    notes: list[str]


def policy(path: Path, dataset: str, chunk: int | None, stated: bool = True) -> Policy:
    """The policy in an openpi checkpoint.

    Args:
        path: its folder.
        dataset: ours whose actions and state it is to have; "": the default config's.
        chunk: steps it was trained to give; None: those of config.json, or CHUNK.
        stated: pi0.5 reads the state in its prompt; False: it sees none.

    Raises ValueError where the arrays are not pi0's or pi0.5's, or of no width that is known.
    """
    opened = files.open_checkpoint(path)
    pi05, (padded, hidden, inner) = _is_pi05(opened), _expert_sizes(opened)
    if not (pi05 or stated):
        raise ValueError(
            f"--no_state_words: {path}: expected pi0.5, got pi0, whose state is a token"
        )
    config = oxe_paligemma.get_config("expert")
    model = config.model
    config.data.mixture = dataset or config.data.mixture
    config.data.normalise = ("q99",) if pi05 else ("gaussian",)
    model.variant = _variant(opened)
    model.image_size = paligemma.CONFIGS[model.variant].image_size
    model.resize, model.cameras = "bilinear", ("primary", "wrist")
    model.history, model.window = "one_step", 1
    model.chunk = chunk or _horizon(opened)
    model.proprio, model.head_hidden = stated or not pi05, hidden
    if pi05 and stated:
        model.state_words, model.prompt_length = True, PROMPT
    options = {
        "inner": inner,
        "padded": padded,
        "bound": 0.0,
        "time": "adaptive" if pi05 else "concat",
        "state": "backbone" if pi05 else "expert",
    }
    model.head_options = ",".join(f"{name}={value!r}" for name, value in options.items())
    spaces.resolve(config)
    shapes = flat.abstract(build.model(config))[1]
    head = build_heads.head_config(config, build.backbone_config(config))
    assert isinstance(head, ExpertConfig)
    of = names.jax_names if opened.kind == "orbax" else names.torch_names
    table = of(paligemma.CONFIGS[model.variant], head)
    opened.arrays[ZEROS] = np.zeros(shapes[READOUTS].shape, np.float32)
    table[READOUTS] = pretrained.Entry(ZEROS, transforms.as_is)
    notes = [f"chunk: {model.chunk} steps; the arrays do not say it: --chunk"]
    notes += [f"statistics in it: {file}" for file in files.statistics_in(path)]
    if pi05:
        notes += [f"state: {'words of the prompt' if stated else 'none'}; --no_state_words"]
    return Policy(config, opened, table, shapes, notes)


def _is_pi05(opened: pretrained.WeightFiles) -> bool:
    """Which of the two it is, by the layers that take the time in."""
    adapters = sorted(name for name in opened.arrays if name.endswith(("lora_a", "lora_b")))
    if adapters:
        raise ValueError(
            f"{opened.path}: expected pi0 or pi0.5 without adapters, got {len(adapters)} of them"
            f" ({adapters[0]}, ...); merge them in openpi first"
        )
    heads = {name.partition("_in")[0] for name in opened.arrays if "time_mlp_in" in name}
    kinds = {frozenset({"action_time_mlp"}): False, frozenset({"time_mlp"}): True}
    if frozenset(heads) not in kinds:
        some = ", ".join(sorted(opened.arrays)[:3])
        raise ValueError(
            f"{opened.path}: expected the arrays of pi0 (action_time_mlp_in) or pi0.5"
            f" (time_mlp_in), got {len(opened.arrays)} others ({some}, ...); pi0-FAST has no action"
            " expert, and other versions of openpi have other names"
        )
    return kinds[frozenset(heads)]


def _expert_sizes(opened: pretrained.WeightFiles) -> tuple[int, int, int]:
    """Numbers of an action, the expert's width, and the numbers inside its MLPs."""
    if opened.kind == "orbax":
        padded, hidden = _shape(opened, "action_in_proj/kernel", 2)
        return padded, hidden, _shape(opened, "PaliGemma/llm/layers/mlp_1/linear", 3)[1]
    hidden, padded = _shape(opened, "action_in_proj.weight", 2)
    inner = _shape(opened, "gemma_expert.model.layers.0.mlp.up_proj.weight", 2)[0]
    return padded, hidden, inner


def _variant(opened: pretrained.WeightFiles) -> str:
    """The backbone whose token table is as wide."""
    table = {
        "orbax": "PaliGemma/llm/embedder/input_embedding",
        "hf": "language_model.embed_tokens.weight",
    }[opened.kind]
    width = _shape(opened, table, 2)[1]
    for variant in VARIANTS:
        if paligemma.CONFIGS[variant].width == width:
            return variant
    raise ValueError(
        f"{opened.path}: {table}: expected width {paligemma.CONFIGS[VARIANTS[0]].width}, openpi's"
        f" gemma_2b, got {width}; another paligemma_variant has no counterpart here"
    )


def _horizon(opened: pretrained.WeightFiles) -> int:
    """Steps of a chunk as a conversion's config.json says; openpi's default without one."""
    if not (opened.path / "config.json").is_file():
        return CHUNK
    return int(opened.config().get("action_horizon", CHUNK))


def _shape(opened: pretrained.WeightFiles, name: str, axes: int) -> tuple[int, ...]:
    if name not in opened.arrays or opened.arrays[name].ndim != axes:
        got = "nothing" if name not in opened.arrays else f"shape {opened.arrays[name].shape}"
        raise ValueError(
            f"{opened.path}: {name}: expected {axes} axes, got {got}; is it another version of"
            " openpi's?"
        )
    return opened.arrays[name].shape
