"""What is trained and how: freezing, schedules, and AdamW with a decay mask by name."""

import dataclasses
import difflib
import fnmatch
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vla_jax.models.lora import ADAPTERS, split_adapters
from vla_jax.params import Params, Shapes

SCHEDULES = ("constant", "cosine", "half_cosine")
MU_DTYPES = ("float32", "bfloat16")

# Leaves that weight decay touches: matrices. Norm gains, biases and learned tokens are left alone
# whatever their rank: a stacked norm gain is [layers, width], so the usual rule "two axes or more"
# would decay it. Decay pulls adapters towards the pretrained model.
DECAYED = ("kernel", "embedding", "w_ih", "w_hh", *ADAPTERS)

# Where the parts that FreezeConfig names live.
BACKBONE = "backbone/*"
VISION = "backbone/vision/*"
TEXT_EMBEDDING = "backbone/embed/*"
DECODER_LAYERS = "backbone/decoder/layers/*"


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW.

    Attributes:
        clip: largest global gradient norm; 0 is off.
        schedule: "constant"; "cosine" from 1 to 0; "half_cosine" from 1 to min_lr_scale. All after
            a linear warm-up.
        min_lr_scale: where "half_cosine" ends, as a fraction of lr.
        warmup_steps, warmup_epochs: the length of the warm-up is their sum.
        mu_dtype: what the first moment is kept in. "bfloat16" saves two bytes a parameter; the
            second, whose small changes it would round away, stays float32.
        faster: (pattern of names, so many times longer is their step) each.
    """

    lr: float = 2e-5
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 0.0
    schedule: str = "constant"
    min_lr_scale: float = 0.0
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    mu_dtype: str = "float32"
    faster: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.mu_dtype not in MU_DTYPES:
            raise ValueError(
                f"optim.mu_dtype: expected one of {', '.join(MU_DTYPES)}, got {self.mu_dtype!r}"
            )


@dataclasses.dataclass(frozen=True)
class FreezeConfig:
    """What stays as loaded. A model with adapters (lora.py) keeps all of the backbone but them,
    whatever is set here.

    Attributes:
        patterns: fnmatch patterns on parameter paths, e.g. ("backbone/projector/*",); `*` crosses
            slashes.
        freeze_backbone: everything under backbone/.
        train_vision, train_text_embedding: False freezes the vision tower, the token embedding.
        train_decoder_layers: -1 trains all decoder layers, k >= 0 only the last k.
    """

    patterns: tuple[str, ...] = ()
    freeze_backbone: bool = False
    train_vision: bool = True
    train_text_embedding: bool = True
    train_decoder_layers: int = -1


class Optimizer(NamedTuple):
    """An optax transformation with what the train step needs beside it.

    The transformation gives the direction; the step is `-schedule(step)` times it, so that the
    learning rate follows the step counter and not a counter of its own that stands still when a
    step is skipped.

    `layers` holds, for each stacked parameter of which only the last k layers train, a [layers, 1,
    ...] mask of 0 and 1. The stack cannot be cut in two without changing every checkpoint, so the
    first layers do cost optimizer state: their gradients and updates are set to zero.
    """

    transform: optax.GradientTransformation
    schedule: optax.Schedule  # step -> learning rate
    layers: dict[str, np.ndarray]


def partition(shapes: Shapes, freeze: FreezeConfig) -> tuple[list[str], list[str]]:
    """Trainable and frozen parameter names; with adapters the backbone around them is frozen.

    Raises ValueError when a pattern or switch matches no parameter, or an adapter: frozen it would
    stay at nothing.
    """
    patterns = list(freeze.patterns)
    if freeze.freeze_backbone:
        patterns.append(BACKBONE)
    if not freeze.train_vision:
        patterns.append(VISION)
    if not freeze.train_text_embedding:
        patterns.append(TEXT_EMBEDDING)
    if freeze.train_decoder_layers == 0:
        patterns.append(DECODER_LAYERS)
    frozen = {name for pattern in patterns for name in _matching(pattern, shapes)}
    base, adapters = split_adapters(shapes)
    dead = sorted(frozen & adapters.keys())
    if dead:
        raise ValueError(
            f"freeze: {patterns} freeze {len(dead)} of the {len(adapters)} adapter arrays,"
            f" {dead[0]} first; remove the pattern or switch (with lora.rank > 0 the rest of the"
            " backbone is frozen anyway), or narrow lora.targets"
        )
    if adapters:
        frozen |= {name for name in base if fnmatch.fnmatchcase(name, BACKBONE)}
    trainable = [name for name in shapes if name not in frozen]
    if not trainable:
        raise ValueError(f"freeze: {patterns} leave no parameter to train; remove a pattern")
    return trainable, [name for name in shapes if name in frozen]


def make_optimizer(
    config: OptimConfig,
    freeze: FreezeConfig,
    shapes: Shapes,
    steps: int,
    steps_per_epoch: float | int,
) -> Optimizer:
    """Clip, Adam, decoupled decay. `shapes` are those of all parameters; the transformation sees
    the trainable ones.
    """
    schedule = make_schedule(config, steps, steps_per_epoch)
    parts = [
        # Something stands here either way: clipping may begin or end in a run that goes on, and
        # checkpoints name the moments by their place.
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
    ]
    for pattern, factor in config.faster:
        named = frozenset(_matching(pattern, shapes))
        parts.append(optax.stateless(functools.partial(_longer, named, factor)))
    return Optimizer(optax.chain(*parts), schedule, _layer_masks(shapes, freeze))


def make_schedule(config: OptimConfig, steps: int, steps_per_epoch: float | int) -> optax.Schedule:
    """Learning rate of step i = 0, 1, ...: lr * i / warm while i < warm, then the named decay until
    `steps`.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(
            f"optim.schedule: expected one of {', '.join(SCHEDULES)}, got {config.schedule!r}"
        )
    if config.min_lr_scale and config.schedule != "half_cosine":
        raise ValueError(
            f"optim.min_lr_scale: {config.min_lr_scale} has no effect with"
            f" optim.schedule={config.schedule!r}; set it to 0 or use half_cosine"
        )
    warm = config.warmup_steps + config.warmup_epochs * steps_per_epoch
    if not 0 <= warm < steps:
        raise ValueError(
            f"optim: expected a warm-up shorter than the {steps} steps of the run, got {warm:g}"
            f" (warmup_steps {config.warmup_steps} + warmup_epochs {config.warmup_epochs} x"
            f" {steps_per_epoch:g} steps)"
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        i = jnp.asarray(step, jnp.float32)
        if config.schedule == "constant":
            after = jnp.ones_like(i)
        else:
            done = jnp.clip((i - warm) / (steps - warm), 0.0, 1.0)
            after = config.min_lr_scale + (1 - config.min_lr_scale) * 0.5 * (
                1 + jnp.cos(math.pi * done)
            )
        return config.lr * jnp.where(i < warm, i / max(warm, 1e-9), after)

    return schedule


def decay_mask(params: Mapping[str, object]) -> dict[str, bool]:
    """True for the parameters that weight decay touches, by the last part of their name."""
    return {name: name.rsplit("/", 1)[-1] in DECAYED for name in params}


def mask_layers(tree: Params, layers: Mapping[str, np.ndarray]) -> Params:
    """Gradients or updates with zeros in the layers that do not train."""
    return {
        name: value * layers[name].astype(value.dtype) if name in layers else value
        for name, value in tree.items()
    }


def _longer(
    names: frozenset[str], factor: float, updates: Params, _params: Params | None
) -> Params:
    return {name: x * factor if name in names else x for name, x in updates.items()}


def _layer_masks(shapes: Shapes, freeze: FreezeConfig) -> dict[str, np.ndarray]:
    last = freeze.train_decoder_layers
    trainable, _ = partition(shapes, freeze)
    if last < 0 or freeze.freeze_backbone:
        return {}
    masks = {}
    for name in _matching(DECODER_LAYERS, shapes):
        depth = shapes[name].shape[0]
        if last > depth:
            raise ValueError(
                f"freeze.train_decoder_layers: expected at most {depth}, the layers of {name}, got"
                f" {last}"
            )
        if name in trainable and last < depth:
            mask = (np.arange(depth) >= depth - last).astype(np.float32)
            masks[name] = mask.reshape(depth, *[1] * (len(shapes[name].shape) - 1))
    return masks


def _matching(pattern: str, shapes: Shapes) -> list[str]:
    names = [name for name in shapes if fnmatch.fnmatchcase(name, pattern)]
    if not names:
        near = difflib.get_close_matches(pattern, shapes, n=3, cutoff=0.0)
        raise ValueError(
            f"freeze: expected {pattern!r} to match a parameter, got none; nearest are"
            f" {', '.join(near)}"
        )
    return names
