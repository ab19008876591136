"""The one composition table: a config becomes a model and an optimizer. Every command and
`vla_jax.load_policy` build through here.

What only the data knows is given, where the action tokens end, or stands in the config once it is
known, the names of actions and state (experiments/composition/spaces.py).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from vla_jax import build_heads
from vla_jax.models.backbones import (
    BackboneFile,
    flamingo,
    kosmos2,
    llava,
    paligemma,
    qwen3vl,
    smolvlm,
)
from vla_jax.models.fast_vocabulary import FastVocabulary
from vla_jax.models.heads.expert import ExpertConfig
from vla_jax.models.keypoints import KeypointsConfig
from vla_jax.models.lora import LoRAConfig, attach
from vla_jax.models.objectives import (
    Caption,
    FastStrings,
    ForwardConfig,
    ForwardPrediction,
    ImageTextTask,
    MakeTask,
    SensedPrediction,
    TextAlign,
)
from vla_jax.models.resampler import ResamplerConfig
from vla_jax.models.sensors.picture import Picture
from vla_jax.models.sensors.points import PointSet
from vla_jax.models.sensors.series import Series
from vla_jax.models.stack import blocks_in_eight_bits
from vla_jax.models.state_words import BLANK, StateWords
from vla_jax.models.tokens import PastConfig, StateConfig
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.params import Build, Params
from vla_jax.rl import reward, success
from vla_jax.rl.direct import DirectLearner
from vla_jax.rl.flowing import FlowLearner
from vla_jax.rl.learner import DIRECT, Learner, LearnerConfig
from vla_jax.rl.reward import RewardModel
from vla_jax.rl.success import SuccessModel
from vla_jax.robot import sensing
from vla_jax.robot.sensing import Sensor
from vla_jax.training.augment import AugmentConfig
from vla_jax.training.checkpoint import complete_steps, load_arrays
from vla_jax.training.optim import FreezeConfig, OptimConfig

# Name in the config -> the backbone's file.
BACKBONES: dict[str, BackboneFile] = {
    "paligemma": paligemma,
    "kosmos2": kosmos2,
    "llava": llava,
    "flamingo": flamingo,
    "smolvlm": smolvlm,
    "qwen3vl": qwen3vl,
}

# Kind of sensor (sensing.KINDS) -> what makes tokens of it: (sensor, width, rngs) -> the encoder.
ENCODERS: dict[str, Any] = {
    "vector": Series,
    "scan": Series,
    "points": PointSet,
    "depth": Picture,
    "tactile": Picture,
    "audio": Series,
}


def backbone_config(config: ConfigDict) -> Any:
    """The backbone's own config: its released sizes with this run's image sizes, remat and layer
    loop. Positions that were learned for another image size are interpolated where weights are
    read (transforms.positions).
    """
    module = backbone_module(config)
    if config.model.variant not in module.CONFIGS:
        raise ValueError(
            f"model.variant: expected one of {', '.join(module.CONFIGS)}, got"
            f" {config.model.variant!r}"
        )
    sizes = module.CONFIGS[config.model.variant]
    size, cameras = config.model.image_size, camera_sizes(config)
    patch = sizes.vision.patch * math.prod(getattr(sizes.vision, "stem", ()))
    for field, given in (("image_size", (size,)), ("image_sizes", cameras)):
        if any(each < patch or each % patch for each in given):
            raise ValueError(
                f"model.{field}: expected a multiple of {patch}, the patch of"
                f" {config.model.variant} (released for {sizes.image_size}), got"
                f" {', '.join(map(str, given))}"
            )
    others = tuple(each for each in dict.fromkeys(cameras) if each != size)
    vision = dataclasses.replace(sizes.vision, image_size=size, other_sizes=others)
    changes: dict[str, Any] = {
        "vision": vision,
        "remat": config.model.remat,
        "layers": config.model.layers,
    }
    tasks = config.objectives
    if module.OWN_LM_HEAD:  # it is made where tokens are scored
        changes["has_lm_head"] = build_heads.writes_tokens(config) or bool(
            tasks.caption.weight or tasks.image_text.weight or tasks.fast.weight
        )
    return dataclasses.replace(sizes, **changes)


def camera_sizes(config: ConfigDict) -> tuple[int, ...]:
    """Pixels of a side of each camera's images. Raises ValueError where model.image_sizes is not
    one per camera.
    """
    model = config.model
    if model.image_sizes and len(model.image_sizes) != len(model.cameras):
        raise ValueError(
            f"model.image_sizes: expected one per camera ({', '.join(model.cameras)}), or () where"
            f" all have model.image_size, got {tuple(model.image_sizes)}"
        )
    return tuple(model.image_sizes) or (model.image_size,) * len(model.cameras)


def load_backbone(config: ConfigDict, specs: dict[str, jax.ShapeDtypeStruct]) -> Params:
    """The backbone's pretrained parameters, in the dtypes and shardings of `specs`.

    model.weights is what the backbone's file reads, or a checkpoints directory of a run or of
    import_weights.
    """
    path, allowed = Path(config.model.weights).expanduser(), tuple(config.model.allow_missing)
    if complete_steps(path):
        prefix = "backbone/"
        allowed = tuple(prefix + pattern for pattern in allowed)
        arrays = load_arrays(path, {prefix + name: spec for name, spec in specs.items()}, allowed)
        return {name.removeprefix(prefix): value for name, value in arrays.items()}
    return backbone_module(config).load(path, backbone_config(config), specs, allowed)


def lora(config: ConfigDict) -> LoRAConfig:
    """The adapters' config."""
    # A saved config has lists where there were tuples.
    wanted = LoRAConfig(**config.lora.to_dict() | {"targets": tuple(config.lora.targets)})
    outside = [pattern for pattern in wanted.targets if not pattern.startswith("backbone/")]
    if wanted.rank and outside:
        raise ValueError(
            f'lora.targets: expected patterns that begin with "backbone/", got {outside}; the rest'
            " is trained whole"
        )
    return wanted


def training_model(
    config: ConfigDict,
    action_end: int = 0,
    vocabulary: FastVocabulary | None = None,
    words: StateWords | None = None,
) -> Build:
    """What is trained: the policy of `model` (what learns by trial, with rl.algorithm), with
    adapters when lora.rank > 0, and its blocks' products in 8 bits with model.eight_bits.

    Raises ValueError as `model`, and where nothing would train a backbone that is not frozen.
    """
    insulated = build_heads.options_of(config.model.head_options).get("insulated")
    taught = any(task.weight for task in config.objectives.values())
    if insulated and not taught and not config.optim.freeze_backbone:
        raise ValueError(
            "model.head_options: insulated=True expects a task that trains the backbone, such as"
            " objectives.fast.weight=1, got none; or optim.freeze_backbone=True"
        )
    whole = attach(_made_of(_kind(config), config, action_end, vocabulary, words), lora(config))
    return blocks_in_eight_bits(whole, config.model.eight_bits)


def model(
    config: ConfigDict,
    action_end: int = 0,
    vocabulary: FastVocabulary | None = None,
    words: StateWords | None = None,
) -> Build:
    """A function of `nnx.Rngs` that makes the policy; nothing is allocated until it is called. It
    has no adapters, as `checkpoint.load_params` gives none.

    Args:
        config: every field of it, see saved_config.
        action_end: see `action_token_end`. 0, where only shapes matter: the end of the vocabulary.
        vocabulary: of the head fast or objectives.fast. None, where only shapes matter: one of as
            many tokens.
        words: of the state, with model.state_words: state_words.prompt. None, where only shapes
            matter: words of no meaning.

    Raises ValueError for a name that is in none of the tables, and for a config whose dims are
    still to be had from the data.
    """
    return _made_of(VLA, config, action_end, vocabulary, words)


def _kind(config: ConfigDict) -> Callable[..., VLA]:
    """What is trained is of this class."""
    rl = config.rl
    if not rl.algorithm:
        return VLA
    if rl.algorithm == reward.ALGORITHM:
        return partial(RewardModel, rl.hidden)
    if rl.algorithm == success.ALGORITHM:
        return partial(SuccessModel, rl.hidden)
    learning = LearnerConfig(
        algorithm=rl.algorithm,
        clip=rl.clip,
        value=rl.value,
        divergence=rl.divergence,
        kept=rl.keep_weight if rl.keep else 0.0,
        log_std=math.log(rl.std),
        hidden=rl.hidden,
        binary=build_heads.binary(config),
    )
    if rl.algorithm == DIRECT:
        return partial(DirectLearner, learning, rl.beta)
    return partial(FlowLearner if config.model.head == "flow" else Learner, learning)


def _made_of(
    kind: Callable[..., VLA],
    config: ConfigDict,
    action_end: int,
    vocabulary: FastVocabulary | None,
    words: StateWords | None,
) -> Build:
    """`model`, of a class that takes what VLA takes."""
    sizes, model = backbone_config(config), config.model
    make_backbone, binary = backbone_module(config).MODEL, build_heads.binary(config)
    of_head = build_heads.kind(config)
    head_sizes = build_heads.head_config(config, sizes, action_end, vocabulary)
    policy = VLAConfig(
        window=model.window,
        chunk=model.chunk,
        action_dim=len(model.action_names),
        cameras=tuple(model.cameras),
        layout=model.layout,
        history=model.history,
        history_start=model.history_start,
        readouts=build_heads.readouts(config),
        resampler=_fewer_tokens(config),
        state=_state(config) if model.proprio else None,
        state_to_head=isinstance(head_sizes, ExpertConfig) and head_sizes.state == "expert",
        state_words=_state_words(config, words),
        past=PastConfig(binary, model.past_action_hidden) if model.past_action else None,
        embodiments=len(model.embodiments) if model.embodiment else 0,
        loss_weights=(
            ("action", 1.0),
            *((name, task.weight) for name, task in config.objectives.items() if task.weight),
        ),
        sensors=sensing.parse(model.sensors),
        mutual=of_head.mutual,
    )
    told = (config, sizes, action_end, vocabulary)
    tasks = {name: TASKS[name](*told) for name, task in config.objectives.items() if task.weight}
    encoders = {each.name: partial(ENCODERS[each.kind], each) for each in policy.sensors}

    def make(rngs: nnx.Rngs) -> VLA:
        backbone: Any = make_backbone(sizes, rngs)
        head = of_head.make(backbone.width, head_sizes, rngs)
        return kind(backbone, head, policy, rngs, tasks, encoders)

    return make


def _fewer_tokens(config: ConfigDict) -> ResamplerConfig | KeypointsConfig | None:
    """What makes few tokens of an image's, if anything. Raises ValueError where two things are, and
    for heat maps over tokens that have no places.
    """
    resampler, keypoints = config.model.resampler, config.model.keypoints
    if keypoints.points and config.model.backbone in ("kosmos2", "flamingo"):
        raise ValueError(
            "model.keypoints.points: expected 0 with a backbone whose own resampler leaves no rows"
            f" of an image (kosmos2, flamingo), got {keypoints.points} with {config.model.backbone}"
        )
    if resampler.depth and keypoints.points:
        raise ValueError(
            "model.keypoints.points, model.resampler.depth: expected one of them above 0, got"
            f" {keypoints.points} and {resampler.depth}"
        )
    if keypoints.points:
        return KeypointsConfig(keypoints.points, keypoints.hidden, keypoints.tokens)
    return ResamplerConfig(**resampler.to_dict()) if resampler.depth else None


def _state(config: ConfigDict) -> StateConfig:
    names = tuple(config.model.state_names)
    return StateConfig(len(names), names.index("gripper") if "gripper" in names else None)


def _state_words(config: ConfigDict, words: StateWords | None) -> StateWords | None:
    """Those of model.state_words. Raises ValueError where nothing is there to say, or a layout of
    RoboVLMs': what there stands before the last token of a prompt is not what the state ends.
    """
    model = config.model
    if not model.state_words:
        return None
    if not model.proprio or model.layout != "prefix":
        raise ValueError(
            "model.state_words: expected model.proprio=True and model.layout=prefix, got"
            f" {model.proprio} and {model.layout}"
        )
    return words or BLANK


def _forward(config: ConfigDict, *_: Any) -> MakeTask:
    task, pixels = config.objectives.forward, camera_sizes(config)
    if len(set(pixels)) > 1:
        raise ValueError(
            f"objectives.forward: expected cameras of one size, got {pixels}: its decoder fills in"
            " equally many patches of each; set objectives.forward.weight=0 or equal"
            " model.image_sizes"
        )
    sizes = ForwardConfig(
        frames=len(task.offsets),
        cameras=len(config.model.cameras),
        tokens=task.tokens,
        width=task.width,
        depth=task.depth,
        patch=task.patch,
        image_size=pixels[0],
    )
    return lambda width, rngs: ForwardPrediction(width, sizes, rngs)


def _text_align(config: ConfigDict, *_: Any) -> MakeTask:
    embedding = config.objectives.text_align.width
    return lambda width, rngs: TextAlign(width, embedding, rngs)


def _sensed(config: ConfigDict, *_: Any) -> MakeTask:
    (sensor,), cameras = sensed(config), len(config.model.cameras)
    hidden, points = config.objectives.sensed.hidden, config.model.keypoints
    if not points.points:
        raise ValueError(
            "objectives.sensed: expected tokens of heat maps (model.keypoints.points above 0), got"
            f" {points.points}"
        )
    if sensor.shape[0] > points.tokens:
        raise ValueError(
            "objectives.sensed.sensor: expected at most a row for each of the"
            f" {points.tokens} tokens (model.keypoints.tokens), got {sensor.shape[0]}"
        )
    return lambda width, rngs: SensedPrediction((cameras, width), hidden, sensor, rngs)


def sensed(config: ConfigDict) -> tuple[Sensor, ...]:
    """The sensor of objectives.sensed, if that counts. Raises ValueError where it names another
    number of them, or one that the policy has.
    """
    task, own = config.objectives.sensed, sensing.parse(config.model.sensors)
    if not task.weight:
        return ()
    sensors = sensing.parse(task.sensor)
    if len(sensors) != 1 or sensors[0].kind != "vector" or sensors[0] in own:
        raise ValueError(
            "objectives.sensed.sensor: expected one of rows of numbers that model.sensors does not"
            f" have, as in scene=vector:4x8, got {task.sensor!r}"
        )
    return sensors


def sensors(config: ConfigDict) -> tuple[Sensor, ...]:
    """Those that are read from data: the policy's own, and what it learns to say."""
    return (*sensing.parse(config.model.sensors), *sensed(config))


def _fast(*told: Any) -> MakeTask:
    strings = build_heads.fast_config(*told)
    return lambda width, rngs: FastStrings(strings)


# Name in config.objectives -> what makes the auxiliary task, of the config, the backbone's sizes,
# the end of action tokens and the vocabulary of strings (see `model`).
TASKS: dict[str, Callable[..., MakeTask]] = {
    "forward": _forward,
    "caption": lambda *told: lambda width, rngs: Caption(),
    "image_text": lambda *told: lambda width, rngs: ImageTextTask(),
    "text_align": _text_align,
    "sensed": _sensed,
    "fast": _fast,
}


def optim(config: ConfigDict) -> tuple[OptimConfig, FreezeConfig]:
    """The optimizer's and the freezing configs."""
    values = config.optim.to_dict()
    del values["ema"]  # belongs to the train step
    freeze = FreezeConfig(
        patterns=tuple(values.pop("freeze")),
        **{
            key: values.pop(key)
            for key in (
                "freeze_backbone",
                "train_vision",
                "train_text_embedding",
                "train_decoder_layers",
            )
        },
    )
    return OptimConfig(**values), freeze


def augmentation(config: ConfigDict) -> AugmentConfig:
    """What is done in training to what windows show."""
    for name in ("crop_scale", "crop_ratio", "contrast", "saturation"):
        if len(config.augment[name]) != 2:
            raise ValueError(
                f"augment.{name}: expected two numbers, low and high, got {config.augment[name]}"
            )
    shift, cameras = config.augment.shift, tuple(config.model.cameras)
    if shift and (len(shift) != len(cameras) or not all(isinstance(x, int) for x in shift)):
        raise ValueError(
            f"augment.shift: expected one number per camera {cameras}, whole pixels, got {shift}"
        )
    return AugmentConfig(**config.augment.to_dict())


def backbone_module(config: ConfigDict) -> BackboneFile:
    """The file of the backbone. Raises ValueError for an unknown one."""
    if config.model.backbone not in BACKBONES:
        raise ValueError(
            f"model.backbone: expected one of {', '.join(BACKBONES)}, got {config.model.backbone!r}"
        )
    return BACKBONES[config.model.backbone]
