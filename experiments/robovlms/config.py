"""RoboVLMs' experiments in our terms: its JSON config as our ConfigDict. names.py has its
parameters.

Every key of the JSON is translated, or ignored because it has no effect there or none here
(reported with the reason), or refused. The sequence of its policies is layout "robovlms", with its
history_type "pre" layout "robovlms_pre" (vla_jax/models/sequence.py).
"""

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.datasets import DATASETS
from data_pipelines.datasets.mixtures import MIXTURES
from data_pipelines.datasets.names import EEF
from experiments.configs import oxe_paligemma
from experiments.robovlms.keys import DATASET_KEYS, IGNORED, ONLY
from vla_jax.saved_config import flatten

BACKBONES = {
    "kosmos": "kosmos2",
    "paligemma": "paligemma",
    "llava": "llava",
    "flamingo": "flamingo",
}
HEADS = {"LSTMDecoder": "lstm", "FCDecoder": "mlp", "GPTDecoder": "gpt"}
HISTORIES = {"post": "head", "pre": "interleaved"}
SCHEDULES = {"constant": "constant", "cosine": "cosine", "half-cosine": "half_cosine"}
DTYPES = {
    "bf16": "bfloat16",
    "bf16-mixed": "bfloat16",
    "16": "bfloat16",
    "16-mixed": "bfloat16",
    "32": "float32",
}
# What its rollouts compute in: only this very word makes them other than float32.
ACT_DTYPES = {"bf16": "bfloat16"}
# Classes of data without a wrist image, whatever use_hand_rgb says.
OXE = ("OpenVLADataset",)
GPT_DEPTH, GPT_HEADS = 8, 8  # fixed in RoboVLMs' code
RENAMED_DATA = {"rt_1": "fractal20220817_data"}


class Line(NamedTuple):
    """What became of one key of the JSON."""

    key: str
    value: Any
    became: str  # "model.window = 16", or why it is ignored
    used: bool


class Translation(NamedTuple):
    """A config in our terms. `tokenizer` is the folder or name that RoboVLMs loads its tokenizer
    from.
    """

    config: ConfigDict
    lines: list[Line]
    tokenizer: str


class _Fields:
    """The keys of a JSON config, flattened to "a.b"; remembers what became of each."""

    def __init__(self, file: Path, body: dict[str, Any], config: ConfigDict) -> None:
        self.file, self.body, self.config = file, flatten(body), config
        self.lines: list[Line] = []

    def take(self, key: str, default: Any) -> Any:
        """The value of a key that the caller uses."""
        return self.body.pop(key, default)

    def put(self, key: str, target: str, value: Any) -> None:
        """Sets the config's `target` to `value`, which was made of `key`."""
        node: Any = self.config
        *parents, last = target.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
        self.lines.append(Line(key, value, f"{target} = {value!r}", used=True))

    def copy(self, key: str, target: str, kind: type, default: Any) -> None:
        """Takes `key` as it is."""
        value = self.take(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            self.refuse(key, value, f"a {kind.__name__}")
        self.put(key, target, value)

    def among(self, key: str, target: str, choices: Mapping[str, Any], default: str | None) -> None:
        """Takes `key` as one of `choices`."""
        value = self.take(key, default)
        if str(value) not in choices:
            self.refuse(key, value, f"one of {', '.join(choices)}")
        self.put(key, target, choices[str(value)])

    def drop(self, key: str, value: Any, why: str) -> None:
        """Reports a key that was taken and does not matter."""
        self.lines.append(Line(key, value, why, used=False))

    def refuse(self, key: str, value: Any, expected: str) -> None:
        """Raises ValueError."""
        raise ValueError(f"{self.file}: {key}: expected {expected}, got {value!r}")

    def finish(self) -> None:
        """Accounts for every key that nobody took."""
        unknown = []
        for key, value in self.body.items():
            if key in ONLY:
                allowed, why = ONLY[key]
                if value not in allowed:
                    self.refuse(key, value, f"{' or '.join(map(repr, allowed))}, because {why}")
                self.drop(key, value, "as here")
                continue
            reason = next(
                (why for pattern, why in IGNORED.items() if fnmatch.fnmatchcase(key, pattern)), None
            )
            if reason is None:
                unknown.append(key)
            else:
                self.drop(key, value, reason)
        if unknown:
            raise ValueError(
                f"{self.file}: {len(unknown)} keys that RoboVLMs does not read or that change its"
                f" policy in a way not known here: {', '.join(unknown)}; take them out if they do"
                " not matter to you"
            )


def translate(file: Path) -> Translation:
    """The config of a RoboVLMs JSON file and its parents. Raises ValueError naming what cannot be
    translated.
    """
    body = read(file)
    datasets = {key: body.pop(key, None) for key in ("train_dataset", "val_dataset")}
    config = oxe_paligemma.get_config()
    fields = _Fields(file, body, config)
    given = datasets["train_dataset"]
    first = given[0] if isinstance(given, list) and given else given or {}
    _policy(fields, str(first.get("type", "")))
    _training(fields)
    _data(fields, first)
    _known_dataset_keys(fields, datasets)
    tokenizer = fields.take(
        "tokenizer.pretrained_model_name_or_path", fields.body.get("model_path", "")
    )
    fields.finish()
    return Translation(config, fields.lines, str(tokenizer))


def read(file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A JSON file merged over its `parent`s; a dict with "__override__": true replaces the parent's
    instead.
    """
    file = file.expanduser()
    if file.resolve() in seen:
        raise ValueError(
            f"{file}: parent: a circle: {' -> '.join(str(path) for path in (*seen, file))}"
        )
    try:
        body = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected a RoboVLMs config in JSON ({error})") from error
    if not isinstance(body, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(body).__name__}")
    parent = body.pop("parent", None)
    if not parent:
        return _merged(file, {}, body)
    beside = file.parent / parent
    return _merged(
        file, read(beside if beside.exists() else Path(parent), (*seen, file.resolve())), body
    )


def _merged(file: Path, under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    if over.get("__override__"):
        under = {}
    out = dict(under)
    for key, value in over.items():
        if key == "__override__":
            continue
        old = out.get(key)
        if isinstance(value, dict):
            if old is not None and not isinstance(old, dict):
                raise ValueError(
                    f"{file}: {key}: expected {type(old).__name__} as in the parent, got an object"
                )
            value = _merged(file, old or {}, value)
        out[key] = value
    return out


def _policy(fields: _Fields, dataset: str) -> None:
    """Backbone, sequence and head; `dataset` is the class of the data it was trained on."""
    fields.among("model", "model.backbone", BACKBONES, None)
    fields.copy("image_size", "model.image_size", int, 224)
    # Of its image_processor, in training on CALVIN and at every rollout; OXE's frames were made
    # this large by TensorFlow's lanczos3 before.
    fields.put("(the code)", "model.resize", "bicubic")
    fields.copy("window_size", "model.window", int, 1)
    fields.copy("fwd_pred_next_n", "model.chunk", int, 1)
    hand = fields.take("use_hand_rgb", False)
    if hand and dataset in OXE:
        fields.put(
            f"use_hand_rgb (no effect in RoboVLMs with {dataset}, which gives no wrist image)",
            "model.cameras",
            ("primary",),
        )
    else:
        fields.put("use_hand_rgb", "model.cameras", ("primary", "wrist") if hand else ("primary",))
    fields.among("act_head.history_type", "model.history", HISTORIES, "post")
    if fields.config.model.history == "interleaved":
        fields.put(
            "(the code; at rollout it carries out the oldest frame's action by mistake, this the"
            " newest's)",
            "model.layout",
            "robovlms_pre",
        )
    else:
        fields.put("(the code)", "model.layout", "robovlms")
    # Its rollout keeps the readouts, or frames, that there are; its training has no others.
    fields.put("(the code)", "model.history_start", "grow")
    fields.among("act_head.type", "model.head", HEADS, None)
    fields.copy("act_head.hidden_size", "model.head_hidden", int, 1024)
    dims = fields.take("act_head.action_dim", len(EEF))
    if dims != len(EEF):
        fields.refuse("act_head.action_dim", dims, f"{len(EEF)}, as RoboVLMs' data have")
    fields.put("act_head.action_dim", "model.action_dim", dims)
    fields.put("(the code)", "model.action_names", EEF)
    fields.put("(the code)", "model.action_binary", ("gripper",))
    fields.copy("act_head.latent", "model.readouts", int, 1)
    fields.put("(the code)", "model.head_mlp", (1024, 512, 256))
    config = fields.config.model
    if config.head == "lstm":
        fields.copy("act_head.num_layers", "model.head_layers", int, 4)
    elif "act_head.num_layers" in fields.body:
        fields.drop(
            "act_head.num_layers",
            fields.take("act_head.num_layers", 4),
            "no effect but on LSTMDecoder",
        )
    if config.head == "gpt":
        if config.readouts > 1:
            fields.refuse("act_head.latent", config.readouts, "1 with GPTDecoder, as in RoboVLMs")
        fields.put("(the code)", "model.head_layers", GPT_DEPTH)
        fields.put("(the code)", "model.head_attention", GPT_HEADS)


def _training(fields: _Fields) -> None:
    """Losses, optimizer, freezing."""
    fields.copy("seed", "seed", int, 123)
    fields.copy("arm_gripper_loss_ratio", "loss.gripper", float, 0.01)
    fields.copy("learning_rate", "optim.lr", float, 2e-5)
    fields.copy("weight_decay", "optim.weight_decay", float, 0.0)
    fields.copy("warmup_epochs", "optim.warmup_epochs", float, 0.0)
    fields.copy("warmup_steps", "optim.warmup_steps", int, 0)
    # Not the trainer's, which RoboVLMs overwrites.
    fields.copy("gradient_clip_val", "optim.clip", float, 0.0)
    fields.among("scheduler", "optim.schedule", SCHEDULES, "constant")
    if fields.config.optim.schedule == "half_cosine":
        fields.copy("min_lr_scale", "optim.min_lr_scale", float, 0.01)
    precision = str(fields.body.get("trainer.precision", "bf16"))
    fields.among("trainer.precision", "model.dtype", DTYPES, "bf16")
    fields.put("trainer.precision", "model.act_dtype", ACT_DTYPES.get(precision, "float32"))
    fields.copy("trainer.accumulate_grad_batches", "accum", int, 1)
    if (fields.body.get("trainer.max_steps") or -1) > 0:
        fields.copy("trainer.max_steps", "steps", int, -1)
    for key, default in (
        ("freeze_backbone", False),
        ("train_vision", False),
        ("train_text_embedding", False),
    ):
        fields.copy(f"train_setup.{key}", f"optim.{key}", bool, default)
    fields.copy("train_setup.train_decoder_layers", "optim.train_decoder_layers", int, -1)


def _data(fields: _Fields, first: dict[str, Any]) -> None:
    """Mixture, normalisation, augmentation; `first` describes the data it was trained on."""
    calvin = "calvin" in str(first.get("type", "")).lower()
    name = (
        "calvin"
        if calvin
        else RENAMED_DATA.get(first.get("data_mix", ""), first.get("data_mix", ""))
    )
    if name in DATASETS or name in MIXTURES:
        fields.put("train_dataset", "data.mixture", name)
    rules: tuple[Any, ...] = () if calvin else ("q99",)
    low, high = float(fields.take("norm_min", -1.0)), float(fields.take("norm_max", 1.0))
    if fields.take("norm_action", False):
        rules += (("bounds", low, high),)
    fields.put("norm_action, norm_min, norm_max", "data.normalise", rules or ("none",))
    augment = fields.config.augment
    if calvin or not first.get("image_aug"):
        augment.crop_scale = augment.crop_ratio = augment.contrast = augment.saturation = (1.0, 1.0)
        augment.brightness = augment.hue = 0.0
    pads = (first.get("rgb_pad", -1), first.get("gripper_pad", -1))[
        : len(fields.config.model.cameras)
    ]
    if max(pads) > 0:
        fields.put(
            "train_dataset.rgb_pad, gripper_pad",
            "augment.shift",
            tuple(max(pad, 0) for pad in pads),
        )


def _known_dataset_keys(fields: _Fields, datasets: dict[str, Any]) -> None:
    for key, value in datasets.items():
        for each in value if isinstance(value, list) else [value or {}]:
            unknown = sorted(set(each) - set(DATASET_KEYS))
            if unknown:
                raise ValueError(
                    f"{fields.file}: {key}: unknown keys {', '.join(unknown)}; take them out"
                )
            fields.lines += [
                Line(f"{key}.{name}", each[name], DATASET_KEYS[name], used=False)
                for name in each
                if DATASET_KEYS[name]
            ]
