"""What config.json says of a network: sizes and switches of every part, read off the modules
themselves.

Whatever the torch code does not compute is refused here by name, before anything is written.
"""

import dataclasses
from typing import Any

from vla_jax.models.backbones.flamingo import Flamingo
from vla_jax.models.backbones.kosmos2 import Kosmos2
from vla_jax.models.backbones.llava import Llava
from vla_jax.models.backbones.paligemma import PaliGemma
from vla_jax.models.backbones.qwen3vl import Qwen3VL
from vla_jax.models.backbones.smolvlm import SmolVLM
from vla_jax.models.heads.attention import ROPE_THETA, AttentionHead
from vla_jax.models.heads.discrete import DiscreteHead
from vla_jax.models.heads.expert import ExpertHead
from vla_jax.models.heads.fast import FastHead
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.gpt import GPTHead
from vla_jax.models.heads.lstm import LSTMHead
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.oft import OFTHead
from vla_jax.models.qwen_vision import QwenVisionConfig
from vla_jax.models.sensors.picture import Picture
from vla_jax.models.sensors.points import PointSet
from vla_jax.models.sensors.series import Series
from vla_jax.models.transformer import BlockConfig
from vla_jax.models.vision import VisionConfig
from vla_jax.models.vla import VLA
from vla_jax.robot.sensing import Sensor

BACKBONES = {
    PaliGemma: "paligemma",
    Kosmos2: "kosmos2",
    Llava: "llava",
    Flamingo: "flamingo",
    SmolVLM: "smolvlm",
    Qwen3VL: "qwen3vl",
}
HEADS = {
    LSTMHead: "lstm",
    MLPHead: "mlp",
    GPTHead: "gpt",
    AttentionHead: "attention",
    FlowHead: "flow",
    ExpertHead: "expert",
    DiscreteHead: "discrete",
    FastHead: "fast",
    OFTHead: "oft",
}
ENCODERS = {Series: "Series", PointSet: "PointSet", Picture: "Picture"}  # of sensors


def network(model: VLA, prompt_length: int, image_size: tuple[int, ...]) -> dict[str, Any]:
    """The "network" of config.json. `image_size` is of each camera. Raises ValueError naming what
    has no torch counterpart.
    """
    config = model.config
    body = {
        "backbone": _backbone(model),
        "head": _head(model),
        "sequence": {
            "layout": config.layout,
            "history": config.history,
            "history_start": config.history_start,
            "window": config.window,
            "readouts": config.readouts,
            "mutual": config.mutual,
            "resampler": dataclasses.asdict(config.resampler) if config.resampler else None,
            "state": dataclasses.asdict(config.state) if config.state else None,
            "state_words": dataclasses.asdict(config.state_words) if config.state_words else None,
            "past": {"binary": list(config.past.binary)} if config.past else None,
            "embodiments": config.embodiments,
            "sensors": [_sensor(model, sensor) for sensor in config.sensors],
        },
    }
    look_back = body["backbone"]["block"]["window"]
    if model.head.acts_on == "prefix" and look_back:
        # Only PaliGemma 2 looks back so far, whose tokens are a tower's patches.
        patch = body["backbone"]["vision"]["patch"]
        cameras = sum(
            config.resampler.latents if config.resampler else (size // patch) ** 2
            for size in image_size
        )
        numbers = bool(config.state) + bool(config.past) + bool(config.embodiments)
        frame = cameras + prompt_length + config.readouts + numbers
        frame += config.layout == "robovlms_pre"
        if config.state is not None and config.state_words is not None:
            frame += config.state_words.count(config.state.dims) - 1
        frame += sum(sensor.tokens for sensor in config.sensors)
        slots = (
            frame * (config.window if config.history == "interleaved" else 1)
            + model.head.num_tokens
        )
        if slots > look_back:
            raise ValueError(
                f"export: head {body['head']['kind']}: expected at most {look_back} tokens, the"
                f" local layers' window, got {slots}; JAX does not decode them either"
            )
    return body


def block(config: BlockConfig) -> dict[str, Any]:
    """A block's flags; its axis is a matter of sharding."""
    body = dataclasses.asdict(config)
    del body["width_logical_axis"]
    return body


def _backbone(model: VLA) -> dict[str, Any]:
    backbone: Any = model.backbone
    kind = _named(backbone, BACKBONES, "backbone")
    config = backbone.config
    body = {
        "kind": kind,
        "vision": _vision(config.vision),
        "vocab": config.vocab,
        "block": block(config.block),
        "depth": config.depth,
    }
    if kind == "paligemma":
        body["final_softcap"] = config.final_softcap
    elif kind == "kosmos2":
        body["latents"] = config.latents
    elif kind in ("llava", "smolvlm", "qwen3vl"):
        own = {"llava": ("projector",), "smolvlm": ("scale",), "qwen3vl": ()}[kind]
        body |= {name: getattr(config, name) for name in own}
        body["lm_head"] = backbone.lm_head is not None and bool(model.head.num_tokens)
    else:
        body |= {"resampler": dataclasses.asdict(config.resampler), "every": config.every}
    return body


def _sensor(model: VLA, sensor: Sensor) -> dict[str, Any]:
    encoder = getattr(model, f"sensor_{sensor.name}").encoder
    body = {
        "name": sensor.name,
        "encoder": _named(encoder, ENCODERS, f"sensor {sensor.name}"),
        "shape": list(sensor.shape),
        "tokens": sensor.tokens,
    }
    return body | (
        {"vision": _vision(encoder.vision.config)} if isinstance(encoder, Picture) else {}
    )


def _vision(config: VisionConfig | QwenVisionConfig) -> dict[str, Any]:
    own = ("clip", "class_token", "final_norm") if isinstance(config, VisionConfig) else (
        "table", "taps",
    )  # fmt: skip
    names = ("image_size", "patch", "width", "depth", *own)
    body = {name: getattr(config, name) for name in names} | {"block": block(config.block)}
    stem = config.stem if isinstance(config, VisionConfig) else ()
    return body | ({"stem": list(stem)} if stem else {})


def _head(model: VLA) -> dict[str, Any]:
    head: Any = model.head
    kind = _named(head, HEADS, "head")
    if kind == "fast":
        return _strings(head)
    body = {"kind": kind, **dataclasses.asdict(head.config)}
    for training in ("loss", "attention_heads"):  # the block says how many heads it has
        body.pop(training, None)
    if kind in ("gpt", "attention", "flow"):
        body["block"] = block(head.config.block)
    if kind in ("attention", "flow"):
        body["rope_theta"] = ROPE_THETA
    if kind == "expert":
        body["block"] = block(head.config.own_block)
        del body["run"], body["insulated"]  # of training
    if kind == "oft":
        del body["readout"]  # bins are there where they are read
        if not head.config.discrete:
            del body["bins"]
    if kind == "discrete":
        body["middle"] = head.config.middle
    return body


def _strings(head: FastHead) -> dict[str, Any]:
    """What decoding a string takes: the numbers of every piece, as text, and no tokenizer."""
    config = head.config
    return {
        "kind": "fast",
        "chunk": config.chunk,
        "action_dim": config.action_dim,
        "binary": list(config.binary),
        "end": config.end,
        "tokens": config.tokens,
        "scale": config.vocabulary.scale,
        "pieces": [" ".join(map(str, piece)) for piece in config.vocabulary.pieces],
    }


def _named(module: Any, known: dict[Any, str], what: str) -> str:
    name = known.get(type(module))
    if name is None:
        raise ValueError(
            f"export: {what}: expected one of {', '.join(known.values())}, got"
            f" {type(module).__name__}, which vla_jax/robot/torch_policy does not compute; write"
            " its class there and name it in vla_jax/export/describe.py"
        )
    return name
