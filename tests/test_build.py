"""The composition table: what a head's file says is enough to set the head's own options."""

import dataclasses

import jax
import pytest
from flax import nnx

from experiments.composition import spaces
from experiments.composition.config import load_config
from vla_jax import build, build_heads
from vla_jax.models.backbones import BackboneFile
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.outputs import HeadConfig


@dataclasses.dataclass(frozen=True)
class ToyConfig(HeadConfig):
    softness: float = 1.0  # known to this head alone


class ToyHead(MLPHead):
    def __init__(self, width: int, config: ToyConfig, rngs: nnx.Rngs) -> None:
        super().__init__(width, config, rngs)
        self.softness = config.softness


def made(*overrides: str):
    config = load_config("oxe_paligemma.py:tiny", [f"--config.model.{text}" for text in overrides])
    return nnx.eval_shape(lambda: build.model(spaces.resolve(config))(nnx.Rngs(jax.random.key(0))))


def test_a_heads_own_option_needs_its_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build_heads.HEADS, "toy", build_heads.HeadKind(ToyHead, ToyConfig))
    assert made("head=toy").head.softness == 1.0
    assert made("head=toy", "head_options=softness=0.5").head.softness == 0.5
    assert made("head=discrete", "head_options=low=-2.0,high=2.0").head.config.high == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("softnes=0.5", r"options of the head toy \(softness\), got 'softnes=0.5'"),
        ("hidden=3", "options of the head toy"),  # that is model.head_hidden
        ("softness", "expected name=value"),
        ("softness=half", "expected name=value"),
    ],
)
def test_an_unknown_option_is_named(
    options: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(build_heads.HEADS, "toy", build_heads.HeadKind(ToyHead, ToyConfig))
    with pytest.raises(ValueError, match=message):
        made("head=toy", f"head_options={options}")


def test_a_head_without_options_says_so() -> None:
    with pytest.raises(ValueError, match=r"the head lstm \(it has none\)"):
        made("head_options=steps=3")


@pytest.mark.parametrize("name", build.BACKBONES)
def test_a_backbones_file_has_all_that_is_asked_of_it(name: str) -> None:
    """What no training run calls, too; mypy does not say which name is lacking."""
    asked = {word for word in vars(BackboneFile) if not word.startswith("_")}
    assert "hf_names" in asked
    assert sorted(asked - vars(build.BACKBONES[name]).keys()) == []


def test_a_config_whose_dims_are_not_known_yet_says_so() -> None:
    with pytest.raises(ValueError, match=r"model.action_names: expected names, got none: spaces"):
        build.model(load_config("oxe_paligemma.py:tiny"))


POINTS, ROW = "model.keypoints.points=4", "objectives.sensed.weight=0.1"
SENSED = "objectives.sensed.sensor=scene=vector:"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((POINTS, "model.resampler.depth=1"), r"expected one of them above 0, got 4 and 1"),
        ((POINTS, "model.backbone=kosmos2"), r"points: expected 0 .*, got 4 with kosmos2"),
        ((POINTS, "model.backbone=flamingo"), r"points: expected 0 .*, got 4 with flamingo"),
        ((ROW, SENSED + "1x4"), r"sensed: expected tokens of heat maps .*, got 0"),
        ((POINTS, ROW, SENSED + "9x4"), r"at most a row for each of the 8 tokens .*, got 9"),
        ((POINTS, ROW), r"sensed\.sensor: expected one of rows of numbers .*, got ''"),
        ((POINTS, ROW, SENSED + "1x4", "model.sensors=scene=vector:1x4"), "does not have"),
    ],
)
def test_heat_maps_and_what_is_told_from_them_are_refused_where_they_mean_nothing(
    overrides: tuple[str, ...], message: str
) -> None:
    config = load_config("oxe_paligemma.py:tiny", [f"--config.{text}" for text in overrides])
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: build.model(spaces.resolve(config))(nnx.Rngs(jax.random.key(0))))


def test_the_state_has_its_numbers_by_name() -> None:
    assert made("proprio=True", "state_names=x,gripper").config.state.gripper == 1
    assert made("proprio=True", "state_names=x,y").config.state.gripper is None
    assert made("proprio=True").config.state.dims == 7  # of blocks
