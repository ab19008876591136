"""Augmentation inside the jitted train step: of images, one draw per window and camera, the same
for all of its frames; of sensors and of the instruction's tokens, some of which a window goes
without.

The operations, their order and the clipping between them are those of the field's RLDS loaders
(kvablack/dlimp at ad72ce3, augmentations.py: Octo, OpenVLA and RoboVLMs use it on OXE), with three
differences: the draws of one window are independent of each other (there one seed serves them all,
so that a larger crop is always a brighter one), the crop is sampled at pixel centres, and values
are rounded to the nearest. The random shift is that of RoboVLMs' CALVIN loader, with one offset per
window instead of one per frame.

Draws belong to the global example: any mesh gives the same ones.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8

from vla_jax.types import Array, Observation, SensorReading

# Folded into the step's key; the parts of a batch count up from 0.
IMAGES, SENSORS, WORDS = 2**31 - 1, 2**31 - 3, 2**31 - 4

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is drawn, uniformly, for each window and camera. The defaults change nothing and cost
    nothing.

    Attributes:
        crop_scale: share of the area that is kept and resized to the whole.
        crop_ratio: width over height of the crop (its logarithm is uniform).
        brightness: largest change, as a share of white.
        contrast: factor of the distance to the frame's mean colour.
        saturation: factor of the HSV saturation.
        hue: largest rotation of the HSV hue, in turns.
        shift: largest shift in pixels of each camera, in their order; uncovered borders repeat the
            edge. () = none.
        flip: must stay False. A mirrored picture shows another action: y, roll and yaw would have
            to be mirrored too.
        sensor_dropout: share of windows that go without a sensor, drawn for each of them.
        word_dropout: share of the prompt's tokens that are left out, drawn for each (Iyyer et al.
            2015, "Deep Unordered Composition Rivals Syntactic Methods", 3.2): a policy that has
            seen few sentences does not hang on all of their words, and one that it does not know
            matters less.
    """

    crop_scale: Range = (1.0, 1.0)
    crop_ratio: Range = (1.0, 1.0)
    brightness: float = 0.0
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    hue: float = 0.0
    shift: tuple[int, ...] = ()
    flip: bool = False
    sensor_dropout: float = 0.0
    word_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.flip:
            raise ValueError(
                "augment.flip: expected False, got True: a mirrored picture shows another action,"
                " and actions are not mirrored here; leave it off"
            )
        for name in ("crop_scale", "crop_ratio", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                raise ValueError(
                    f"augment.{name}: expected 0 < low <= high{' <= 1' * (name == 'crop_scale')},"
                    f" got {low}, {high}"
                )
        if (
            not 0 <= self.brightness <= 1
            or not 0 <= self.hue <= 0.5
            or any(p < 0 for p in self.shift)
        ):
            raise ValueError(
                "augment: expected brightness in [0, 1], hue in [0, 0.5] and shift >= 0, got"
                f" {self.brightness}, {self.hue}, {self.shift}"
            )

    @property
    def crops(self) -> bool:
        """Whether windows are cropped."""
        return self.crop_scale != (1.0, 1.0) or self.crop_ratio != (1.0, 1.0)

    @property
    def colours(self) -> bool:
        """Whether colours change."""
        neutral = (0.0, (1.0, 1.0), (1.0, 1.0), 0.0)
        return (self.brightness, self.contrast, self.saturation, self.hue) != neutral


def augmented(obs: Observation, key: jax.Array, config: AugmentConfig) -> Observation:
    """What a batch's windows show, as their draws change it; of clips, [b 2 s ...], each window has
    draws of its own. Raises ValueError as `augment`.
    """
    lead = obs.step_mask.shape[:-1]
    if len(lead) > 1:
        windows = jax.tree.map(lambda x: x.reshape(math.prod(lead), *x.shape[len(lead) :]), obs)
        changed = augmented(windows, key, config)
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), changed)
    obs = obs._replace(images=augment(obs.images, jax.random.fold_in(key, IMAGES), config))
    if config.sensor_dropout:
        drawn = jax.random.fold_in(key, SENSORS)
        obs = obs._replace(sensors=drop_sensors(obs.sensors, drawn, config.sensor_dropout))
    if config.word_dropout:
        drawn = jax.random.fold_in(key, WORDS)
        prompt, mask = drop_words(obs.prompt, obs.prompt_mask, drawn, config.word_dropout)
        obs = obs._replace(prompt=prompt, prompt_mask=mask)
    return obs


def augment(
    images: tuple[UInt8[Array, "b t _ _ 3"], ...], key: jax.Array, config: AugmentConfig
) -> tuple[UInt8[Array, "b t _ _ 3"], ...]:
    """Every camera's frames [b t h w 3], whose sizes may differ, changed by its windows' draws.

    Raises ValueError when `shift` is not one number per camera.
    """
    if config.shift and len(config.shift) != len(images):
        raise ValueError(
            f"augment.shift: expected one number per camera ({len(images)}), got {config.shift}; ()"
            " means none"
        )
    if not (config.shift or config.crops or config.colours):
        return images
    out = []
    for camera, frames in enumerate(images):
        moved, cropped, coloured = jax.random.split(jax.random.fold_in(key, camera), 3)
        if config.shift and config.shift[camera]:
            frames = shift(frames, moved, config.shift[camera])
        if config.crops or config.colours:
            x = frames.astype(jnp.float32) / 255.0
            if config.crops:
                x = crop(x, cropped, config)
            if config.colours:
                x = colour(x, coloured, config)
            frames = jnp.round(x * 255.0).astype(jnp.uint8)
        out.append(frames)
    return tuple(out)


def drop_sensors(
    sensors: dict[str, SensorReading], key: jax.Array, rate: float
) -> dict[str, SensorReading]:
    """Takes a sensor away from some windows, so that a policy learns to go without."""
    out = {}
    for number, (name, reading) in enumerate(sorted(sensors.items())):
        mask = reading.mask
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, mask.shape[:1])
        out[name] = reading._replace(mask=mask & kept.reshape(-1, *[1] * (mask.ndim - 1)))
    return out


def drop_words(
    prompt: Int[Array, "b l"], mask: Bool[Array, "b l"], key: jax.Array, rate: float
) -> tuple[Int[Array, "b l"], Bool[Array, "b l"]]:
    """Prompts and their masks without some tokens; the others close up. The first one and the last
    stay: they are the frame that the backbone's prompt has around the words.
    """
    place = jnp.arange(prompt.shape[1])[None]
    ends = (place == 0) | (place == jnp.sum(mask, axis=1, keepdims=True) - 1)
    kept = mask & (ends | jax.random.bernoulli(key, 1 - rate, mask.shape))
    order = jnp.argsort(~kept, axis=1, stable=True)
    kept = jnp.take_along_axis(kept, order, axis=1)
    return jnp.where(kept, jnp.take_along_axis(prompt, order, axis=1), 0), kept


def shift(frames: UInt8[Array, "b t h w 3"], key: jax.Array, pad: int) -> UInt8[Array, "b t h w 3"]:
    """Moves each window by -pad to pad whole pixels in both directions; the edge is repeated."""
    b, _, h, w, _ = frames.shape
    offsets = jax.random.randint(key, (2, b), -pad, pad + 1)

    def one(window: Array, y: Array, x: Array) -> Array:
        rows = jnp.clip(jnp.arange(h) + y, 0, h - 1)
        columns = jnp.clip(jnp.arange(w) + x, 0, w - 1)
        return window[:, rows][:, :, columns]

    return jax.vmap(one)(frames, *offsets)


def crop(
    x: Float[Array, "b t h w 3"], key: jax.Array, config: AugmentConfig
) -> Float[Array, "b t h w 3"]:
    """Cuts a rectangle out of each window and stretches it over the whole, bilinearly."""
    b, _, h, w, _ = x.shape
    areas, ratios, tops, lefts = jax.random.split(key, 4)
    area = jax.random.uniform(areas, (b,), minval=config.crop_scale[0], maxval=config.crop_scale[1])
    low, high = (math.log(r) for r in config.crop_ratio)
    ratio = jnp.exp(jax.random.uniform(ratios, (b,), minval=low, maxval=high))
    height, width = (
        jnp.minimum(jnp.sqrt(area / ratio), 1.0),
        jnp.minimum(jnp.sqrt(area * ratio), 1.0),
    )
    top = jax.random.uniform(tops, (b,)) * (1 - height)
    left = jax.random.uniform(lefts, (b,)) * (1 - width)
    # Two products with banded matrices: exact on every device, and what accelerators are good at.
    x = jnp.einsum(
        "bij,btjwc->btiwc", _stretch(top, height, h), x, precision=jax.lax.Precision.HIGHEST
    )
    x = jnp.einsum(
        "bij,bthjc->bthic", _stretch(left, width, w), x, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.clip(x, 0.0, 1.0)


def _stretch(
    begin: Float[Array, " b"], share: Float[Array, " b"], size: int
) -> Float[Array, "b size size"]:
    """Row i holds the bilinear weights of the pixels under the centre of output pixel i."""
    centre = (
        begin[:, None] + (jnp.arange(size)[None] + 0.5) / size * share[:, None]
    ) * size - 0.5  # b i
    centre = jnp.clip(centre, 0, size - 1)
    return jnp.maximum(1.0 - jnp.abs(centre[:, :, None] - jnp.arange(size)[None, None]), 0.0)


def colour(
    x: Float[Array, "b t h w 3"], key: jax.Array, config: AugmentConfig
) -> Float[Array, "b t h w 3"]:
    """Brightness, contrast, saturation, hue, in this order, clipped to [0, 1] after each."""
    bright, contrasts, saturations, hues = jax.random.split(key, 4)

    def draw(key: jax.Array, low: float, high: float) -> Array:
        return jax.random.uniform(key, (x.shape[0], 1, 1, 1, 1), minval=low, maxval=high)

    if config.brightness:
        x = jnp.clip(x + draw(bright, -config.brightness, config.brightness), 0.0, 1.0)
    if config.contrast != (1.0, 1.0):
        mean = x.mean((2, 3), keepdims=True)
        x = jnp.clip((x - mean) * draw(contrasts, *config.contrast) + mean, 0.0, 1.0)
    if config.saturation != (1.0, 1.0):
        x = saturate(x, draw(saturations, *config.saturation))
    if config.hue:
        x = rotate_hue(x, draw(hues, -config.hue, config.hue))
    return x


def saturate(x: Float[Array, "*s 3"], factor: Float[Array, "*f"]) -> Float[Array, "*s 3"]:
    """Multiplies the HSV saturation, at most to 1. Value and hue stay: channels move from or to the
    largest.
    """
    value = x.max(-1, keepdims=True)
    range_ = value - x.min(-1, keepdims=True)
    # saturation = range / value; beyond 1 the smallest channel would leave [0, 1].
    most = jnp.where(range_ > 0, value / jnp.where(range_ > 0, range_, 1.0), 1.0)
    return value - (value - x) * jnp.minimum(factor, most)


def rotate_hue(x: Float[Array, "*s 3"], turns: Float[Array, "*f"]) -> Float[Array, "*s 3"]:
    """Adds to the HSV hue; value and saturation stay."""
    red, green, blue = x[..., :1], x[..., 1:2], x[..., 2:]
    value = x.max(-1, keepdims=True)
    range_ = value - x.min(-1, keepdims=True)
    safe = jnp.where(range_ > 0, range_, 1.0)
    # Not `value == red`: a compiler that computes the channels twice may round them differently,
    # and then no channel equals the largest. Near a tie both sides of these comparisons agree.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )  # in sixths of a turn
    hue = hue + 6.0 * turns
    # A channel is at its largest within a sixth of a turn around its own hue (0, 2, 4), and falls
    # off over the next.
    distance = jnp.concatenate(
        [jnp.abs((hue - own + 3.0) % 6.0 - 3.0) for own in (0.0, 2.0, 4.0)], axis=-1
    )
    return value - range_ * jnp.clip(distance - 1.0, 0.0, 1.0)
