"""Every number of a config has a range, and every number in it works or is refused by name."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from jax.sharding import AbstractMesh, AxisType

from experiments.composition import spaces, steps
from experiments.composition.config import check_values, load_config
from experiments.composition.ranges import RANGES, numbers
from vla_jax import sharding
from vla_jax.saved_config import flatten

FULL = flatten(load_config("oxe_paligemma.py").to_dict())
WITH_WORDS = {"data.mixture": ("blocks", 1.0), "data.normalise": ("bounds", -0.5, 0.5)}

# What has to be on for a field to matter.
ON = {
    "model.bins": ("model.head=discrete", "model.history=interleaved"),
    "model.temperature": ("model.head=discrete", "model.history=interleaved"),
    "model.fast": ("model.head=fast", "model.history=interleaved"),
    "model.head_attention": ("model.head=gpt",),
    "model.past_action_hidden": ("model.past_action=True",),
    "model.keypoints": ("model.keypoints.points=4",),
    "model.resampler": ("model.resampler.depth=1",),
    "objectives.forward": ("objectives.forward.weight=0.1",),
    "objectives.image_text": ("objectives.image_text.weight=0.1",),
    "objectives.sensed": (
        "objectives.sensed.weight=0.1",
        "objectives.sensed.sensor=scene=vector:1x4",
        "model.keypoints.points=4",
    ),
    "objectives.text_align": ("objectives.text_align.weight=0.1",),
    "lora": ("lora.rank=4",),
    "optim.min_lr_scale": ("optim.schedule=half_cosine",),
}


def beyond(field: str) -> Iterator[Any]:
    """The numbers just outside of a field's range, and those that are none."""
    wanted = RANGES[field]
    whole = isinstance(next(numbers(FULL[field]), 1.0), int)
    for end, away in ((wanted.least, -math.inf), (wanted.most, math.inf)):
        if end in wanted.without:
            yield end
        elif math.isfinite(end):
            value = end + math.copysign(1, away) if whole else math.nextafter(end, away)
            outside = [int(value)] if whole else [value]
            yield from (v for v in outside if v not in wanted.special)
    if wanted.special:
        yield min(wanted.special) - 1
    yield from (math.nan, math.inf, -math.inf)


def within(field: str) -> Iterator[Any]:
    """The ends of a field's range, and its special values."""
    wanted = RANGES[field]
    whole = isinstance(next(numbers(FULL[field]), 1), int)
    yield from wanted.special
    for end in (wanted.least, wanted.most):
        if math.isfinite(end) and not (whole and end in wanted.without):
            middle = 0.5 * (wanted.least + min(wanted.most, 1.0))
            yield math.nextafter(end, middle) if end in wanted.without else end


def values_with(field: str, number: float) -> dict[str, Any]:
    """A config's values with this number in the field: of a tuple in its last place."""
    now = WITH_WORDS.get(field, FULL[field])
    return {**FULL, field: (*now[:-1], number) if isinstance(now, tuple) else number}


class Values:
    """What `check_values` reads of a config: one may hold what a ConfigDict refuses to."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def to_dict(self) -> dict[str, Any]:
        return self.values


def check(values: dict[str, Any]) -> None:
    check_values(Values(values))  # type: ignore[arg-type]


def test_every_numeric_field_has_a_range() -> None:
    numeric = {field for field, value in FULL.items() if any(True for _ in numbers(value))}
    assert numeric <= RANGES.keys() <= FULL.keys()
    empty = {"augment.shift", "data.mixture", "data.normalise", "model.image_sizes"}
    assert RANGES.keys() - numeric == empty
    check(FULL)


@pytest.mark.parametrize("field", RANGES)
def test_numbers_beyond_are_refused_by_name_and_those_at_the_ends_are_not(field: str) -> None:
    outside, inside = list(beyond(field)), list(within(field))
    assert outside
    for number in outside:
        with pytest.raises(ValueError, match=rf"^--config\.{field}: expected [^\n]+, got [^\n]+$"):
            check(values_with(field, number))
    for number in inside:
        check(values_with(field, number))


def test_all_of_them_are_named_at_once() -> None:
    wrong = {"accum": 0, "optim.ema": 1.0, "loss.delta": math.nan, "augment.shift": (4, -1)}
    with pytest.raises(ValueError, match="expected") as error:
        check({**FULL, **wrong})
    assert str(error.value).splitlines() == [
        "--config.accum: expected 1 or more, got 0",
        "--config.augment.shift: expected 0 or more, got (4, -1)",
        "--config.loss.delta: expected more than 0, got nan",
        "--config.optim.ema: expected 0 to less than 1 (0: off), got 1.0",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("field", [field for field in RANGES if field not in WITH_WORDS])
def test_a_run_can_be_planned_with_the_numbers_at_the_ends_or_says_which_it_is(field: str) -> None:
    """Wherever a number in its range does not go with the others, the message names it."""
    mesh = AbstractMesh((1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    on = [f"--config.{more}" for key in ON if field.startswith(key) for more in ON[key]]
    for number in within(field):
        now = FULL[field]
        value = (number,) * (len(now) or 1) if isinstance(now, tuple) else number
        config = load_config("oxe_paligemma.py:tiny", [*on, f"--config.{field}={value}"])
        check_values(config)
        refused = ""
        try:
            steps.plan(spaces.resolve(config), mesh, steps_per_epoch=1.0)
        except ValueError as error:
            refused = str(error)
        assert not refused or field.rsplit(".", 1)[-1] in refused
