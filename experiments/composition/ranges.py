"""What every number of a config may be: one that makes no sense is refused by name, before
anything is opened.

How numbers go together (a batch and its mesh, heads of attention and a width) the model, the
optimizer and the loader say, by name too.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The numbers from `least` to `most`, which are finite.

    Attributes:
        without: the ends that are not among them.
        special: values with a meaning of their own, in the range or not, and that meaning.
    """

    least: float
    most: float = math.inf
    without: tuple[float, ...] = ()
    special: Mapping[float, str] = {}

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        inside = self.least <= value <= self.most and value not in self.without
        return inside or value in self.special

    def __str__(self) -> str:
        low = f"more than {self.least:g}" if self.least in self.without else f"{self.least:g}"
        if self.most == math.inf:
            text = low if self.least in self.without else f"{low} or more"
        else:
            text = f"{low} to {'less than ' * (self.most in self.without)}{self.most:.10g}"
        meanings = ", ".join(f"{value:g}: {meaning}" for value, meaning in self.special.items())
        return f"{text} ({meanings})" if meanings else text


COUNT = Range(1)
POSITIVE = Range(0, without=(0,))
AMOUNT = Range(0)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, without=(1,))
DEVICES = Range(1, special={-1: "all that are left"})
WEIGHT = Range(0, special={0: "left out of the program"})

# Of every numeric field; of a tuple it is every number in it.
RANGES: dict[str, Range] = {
    "steps": Range(1, 2**31 - 1),  # the state counts them in 32 bits
    "epochs": Range(0, special={0: "off, steps count"}),
    "batch_size": COUNT,
    "accum": COUNT,
    "seed": Range(0, 2**32 - 1),  # jax takes larger ones for smaller ones
    "log_every": COUNT,
    "eval_every": Range(0, special={0: "never"}),
    "early_stop": Range(0, special={0: "off"}),
    "save_every": COUNT,
    "eval_batches": COUNT,
    "keep_checkpoints": COUNT,
    "nan_patience": COUNT,
    "data.mixture": POSITIVE,
    "data.min_length": AMOUNT,
    "data.max_idle": Range(0, 1, without=(0,)),
    "data.normalise": Range(-math.inf),
    "data.ram_budget": COUNT,
    "data.windows_per_visit": COUNT,
    "data.stride": COUNT,
    "model.prompt_length": COUNT,
    "model.image_size": COUNT,
    "model.image_sizes": COUNT,
    "model.window": COUNT,
    "model.chunk": COUNT,
    "model.action_dim": Range(0, special={0: "from the data"}),
    "model.readouts": COUNT,
    "model.head_hidden": COUNT,
    "model.head_layers": AMOUNT,  # the head discrete has none
    "model.head_mlp": COUNT,
    "model.head_attention": COUNT,
    "model.bins": Range(2),
    "model.temperature": AMOUNT,
    "model.fast.scale": POSITIVE,
    "model.fast.tokens": Range(3),
    "model.fast.most": Range(0, special={0: "as many as any chunk can need"}),
    "model.past_action_hidden": SHARE,
    "model.resampler.depth": Range(0, special={0: "off"}),
    "model.keypoints.points": Range(0, special={0: "off"}),
    "model.keypoints.hidden": COUNT,
    "model.keypoints.tokens": COUNT,
    "model.resampler.heads": COUNT,
    "model.resampler.dim_head": COUNT,
    "model.resampler.latents": COUNT,
    "augment.crop_scale": Range(0, 1, without=(0,)),
    "augment.crop_ratio": POSITIVE,
    "augment.brightness": SHARE,
    "augment.contrast": POSITIVE,
    "augment.saturation": POSITIVE,
    "augment.hue": Range(0, 0.5),
    "augment.shift": AMOUNT,
    "augment.sensor_dropout": BELOW_ONE,
    "augment.word_dropout": BELOW_ONE,
    "objectives.forward.weight": WEIGHT,
    "objectives.forward.offsets": COUNT,
    "objectives.forward.tokens": COUNT,
    "objectives.forward.width": COUNT,
    "objectives.forward.depth": COUNT,
    "objectives.forward.patch": COUNT,
    "objectives.caption.weight": WEIGHT,
    "objectives.image_text.weight": WEIGHT,
    "objectives.image_text.length": COUNT,
    "objectives.fast.weight": WEIGHT,
    "objectives.sensed.weight": WEIGHT,
    "objectives.sensed.hidden": COUNT,
    "objectives.text_align.weight": WEIGHT,
    "objectives.text_align.width": COUNT,
    "loss.delta": POSITIVE,
    "loss.arm": AMOUNT,
    "loss.gripper": AMOUNT,
    "lora.rank": Range(0, special={0: "off"}),
    "lora.alpha": POSITIVE,
    "lora.dropout": BELOW_ONE,
    "optim.lr": AMOUNT,
    "optim.b1": BELOW_ONE,
    "optim.b2": BELOW_ONE,
    "optim.eps": POSITIVE,
    "optim.weight_decay": AMOUNT,
    "optim.clip": Range(0, special={0: "off"}),
    "optim.min_lr_scale": SHARE,
    "optim.warmup_steps": AMOUNT,
    "optim.warmup_epochs": AMOUNT,
    "optim.ema": Range(0, 1, without=(1,), special={0: "off"}),
    "optim.train_decoder_layers": Range(0, special={-1: "all"}),
    "rollouts.every": COUNT,
    "rollouts.episodes": COUNT,
    "rl.episodes": COUNT,
    "rl.trials": COUNT,
    "rl.environments": COUNT,
    "rl.epochs": COUNT,
    "rl.discount": Range(0, 1, without=(0,)),
    "rl.decay": SHARE,
    "rl.clip": Range(0, 1, without=(0, 1)),
    "rl.update_limit": POSITIVE,
    "rl.value": POSITIVE,
    "rl.divergence": WEIGHT,
    "rl.keep_episodes": COUNT,
    "rl.keep_weight": POSITIVE,
    "rl.budget": WEIGHT,
    "rl.beta": POSITIVE,
    "rl.std": POSITIVE,
    "rl.hidden": COUNT,
    "rl.critic_lr": POSITIVE,
    "mesh.data": DEVICES,
    "mesh.fsdp": DEVICES,
    "mesh.tensor": DEVICES,
}


def wrong(values: Mapping[str, Any]) -> list[str]:
    """A line for each of a config's `values` ({"a.b": value}) that is out of its range."""
    return [
        f"{field}: expected {each}, got {values[field]}"
        for field, each in RANGES.items()
        if any(number not in each for number in numbers(values[field]))
    ]


def numbers(value: Any) -> Iterator[int | float]:
    """The numbers that a field's value is or holds; switches and words are none."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
