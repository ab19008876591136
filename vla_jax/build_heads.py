"""Policy heads by name, and what a config makes of one. The rest of a policy: build.py."""

import ast
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vla_jax.actions import places
from vla_jax.models.fast_vocabulary import FastVocabulary, blank
from vla_jax.models.heads import discrete, fast
from vla_jax.models.heads.attention import AttentionHead
from vla_jax.models.heads.discrete import DiscreteConfig, DiscreteHead
from vla_jax.models.heads.expert import ExpertConfig, ExpertHead
from vla_jax.models.heads.fast import FastConfig, FastHead
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.gpt import GPTHead
from vla_jax.models.heads.lstm import LSTMHead
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.oft import OFTConfig, OFTHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.losses import ActionLoss
from vla_jax.models.stack import StackConfig
from vla_jax.models.tokenizer import open_tokenizer, special_tokens


class HeadKind(NamedTuple):
    """A policy head: made by `make(width, config, rngs)`, and the dataclass of its config, whose
    fields that no other part of the run's config knows are the head's own options.
    """

    make: Any
    config: type
    mutual: bool = False  # a frame's readouts see each other


HEADS = {
    "lstm": HeadKind(LSTMHead, HeadConfig),
    "mlp": HeadKind(MLPHead, HeadConfig),
    "gpt": HeadKind(GPTHead, HeadConfig),
    "attention": HeadKind(AttentionHead, HeadConfig),
    "flow": HeadKind(FlowHead, HeadConfig),
    "expert": HeadKind(ExpertHead, ExpertConfig),
    "discrete": HeadKind(DiscreteHead, DiscreteConfig),
    "fast": HeadKind(FastHead, FastConfig),
    "oft": HeadKind(OFTHead, OFTConfig, mutual=True),
}


def kind(config: ConfigDict) -> HeadKind:
    """That of model.head. Raises ValueError for an unknown one."""
    if config.model.head not in HEADS:
        raise ValueError(
            f"model.head: expected one of {', '.join(HEADS)}, got {config.model.head!r}"
        )
    return HEADS[config.model.head]


def has_strings(config: ConfigDict) -> bool:
    """Whether chunks become strings of FAST: for the head fast, or for objectives.fast."""
    return config.model.head == "fast" or bool(config.objectives.fast.weight)


def writes_tokens(config: ConfigDict) -> bool:
    """Whether the head writes tokens of the language model."""
    return bool(kind(config).make.trains_on == "tokens")


def readouts(config: ConfigDict) -> int:
    """Of a frame: model.readouts is for each step of the chunk where a head decodes in parallel."""
    steps = config.model.chunk if kind(config).mutual else 1
    return int(config.model.readouts * steps)


def head_config(
    config: ConfigDict,
    sizes: Any,
    action_end: int = 0,
    vocabulary: FastVocabulary | None = None,
) -> Any:
    """The config of the policy head on a backbone of these `sizes`; see build.model."""
    model, of = config.model, kind(config)
    if of.make.trains_on == "prefix" and model.history == "interleaved":
        raise ValueError(
            f"model.history: expected head or one_step with the head {model.head}, which trains on"
            " the keys and values of each frame, got interleaved"
        )
    shared = _shared(config, sizes, action_end, vocabulary)
    fields = {field.name for field in dataclasses.fields(of.config)}
    own, options = sorted(fields - shared.keys()), options_of(model.head_options)
    if set(options) - set(own):
        raise ValueError(
            f"model.head_options: expected options of the head {model.head}"
            f" ({', '.join(own) or 'it has none'}), got {model.head_options!r}"
        )
    given = {name: value for name, value in shared.items() if name in fields}
    return of.config(**given, **options)


def fast_config(
    config: ConfigDict,
    sizes: Any,
    action_end: int = 0,
    vocabulary: FastVocabulary | None = None,
) -> FastConfig:
    """What the strings of objectives.fast mean, as `head_config` of the head fast.

    Raises ValueError beside a head that writes tokens itself.
    """
    if writes_tokens(config):
        raise ValueError(
            "objectives.fast: expected a head that writes no tokens itself, got the head"
            f" {config.model.head}: set objectives.fast.weight=0"
        )
    shared = _shared(config, sizes, action_end, vocabulary)
    return FastConfig(**{each.name: shared[each.name] for each in dataclasses.fields(FastConfig)})


def _shared(
    config: ConfigDict, sizes: Any, action_end: int, vocabulary: FastVocabulary | None
) -> dict[str, Any]:
    """The fields of heads' configs that the run's config knows, or its data."""
    model = config.model
    return {
        "chunk": model.chunk,
        "action_dim": len(model.action_names),
        "binary": binary(config),
        "tokens": readouts(config),
        "loss": ActionLoss(**config.loss.to_dict()),
        "hidden": model.head_hidden,
        "layers": model.head_layers,
        "mlp": tuple(model.head_mlp),
        "attention_heads": model.head_attention,
        "window": model.window,
        "end": action_end or sizes.vocab,
        "bins": model.bins,
        "temperature": model.temperature,
        "block": sizes.block,
        "depth": sizes.depth,
        "run": StackConfig(model.remat, model.layers),
        "state_dims": len(model.state_names) if model.proprio else 0,
        "most": model.fast.most,
        "vocabulary": vocabulary
        or blank(model.chunk, tuple(model.action_names), model.fast.tokens),
    }


def options_of(text: str) -> dict[str, Any]:
    """ "name=value,other=value" as a dict of Python literals."""
    try:
        pairs = [part.split("=") for part in text.split(",") if part]
        return {name.strip(): ast.literal_eval(value.strip()) for name, value in pairs}
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"model.head_options: expected name=value,other=value in Python's words, got {text!r}"
        ) from error


def binary(config: ConfigDict) -> tuple[int, ...]:
    """The policy's binary dims. Raises ValueError for a config that does not know its dims."""
    names = config.model.action_names
    if not names or (config.model.embodiment and not config.model.embodiments):
        raise ValueError(
            "model.action_names: expected names, got none: spaces.resolve has them from the data"
        )
    return tuple(places(config.model.action_binary, names))


def action_token_end(config: ConfigDict, folder: Path) -> int:
    """One more than the largest id of an action token of the tokenizer in `folder`; 0 where the
    head writes none and no task does.
    """
    if not (writes_tokens(config) or has_strings(config)):
        return 0
    tokenizer = open_tokenizer(folder, ())
    if has_strings(config):
        return fast.token_end(tokenizer.vocab_size)
    return discrete.action_end(tokenizer.vocab_size, special_tokens(tokenizer))


def strings(config: ConfigDict) -> int:
    """Tokens of a chunk that the loader writes (Batch.action_tokens); 0: nobody asks for them."""
    model = config.model
    if not has_strings(config):
        return 0
    return model.fast.most or model.chunk * len(model.action_names) + 1
