"""Flamingo's files: every spelling, strictly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from tests.models.backbones.loading import from_pretrained
from tests.models.backbones.test_flamingo import LATENTS, Case, V, make_case, make_loaded, write
from vla_jax import params as flat
from vla_jax.models.backbones import flamingo


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory)


@pytest.fixture(scope="module")
def loaded(case: Case) -> tuple[nnx.GraphDef, flat.Params]:
    return make_loaded(case)


WHERE = "lang_encoder.transformer.blocks."


def apart(name: str) -> str:
    """The names of repositories as they are, and gated layers in the alternative place."""
    parts = name.split(".")
    if "gated_cross_attn_layer" in parts:
        return ".".join(["lang_encoder.gated_cross_attn_layers", parts[3], *parts[5:]])
    return name.removeprefix("lang_encoder.").replace("vision_encoder.", "vision_model.")


def wrapped(name: str) -> str:
    """The names of a whole OpenFlamingo: its decoder layers stand inside of its own."""
    parts = name.split(".")
    if name.startswith(WHERE) and "gated_cross_attn_layer" not in parts:
        return ".".join([*parts[:4], "decoder_layer", *parts[4:]])
    return name.replace("vision_encoder.", "vision_encoder.vision_model.")


def old(name: str) -> str:
    parts = name.split(".")
    is_layer = name.startswith(WHERE) and "gated_cross_attn_layer" not in parts
    return ".".join(["lang_encoder.old_decoder_blocks", *parts[3:]]) if is_layer else name


@pytest.mark.parametrize("spelling", [apart, wrapped, old])
def test_other_spellings(case: Case, loaded: Any, tmp_path: Path, spelling: Any) -> None:
    renamed = {spelling(name): x for name, x in case.arrays.items()}
    assert renamed.keys() != case.arrays.keys()
    _, params = from_pretrained(flamingo, write(tmp_path / "other", renamed))
    for name, x in loaded[1].items():
        np.testing.assert_array_equal(params[name], x, err_msg=name)


def test_weights_are_strict(case: Case, tmp_path: Path) -> None:
    gate = f"{WHERE}1.gated_cross_attn_layer.attn_gate"
    for i, (changes, message) in enumerate(
        (
            ({gate: None}, rf"missing: {gate} \(for gated/0/attn_gate\)"),
            ({"perceiver.more": np.zeros(1, np.float32)}, r"unexpected: perceiver\.more"),
            (
                {"perceiver.latents": np.zeros((LATENTS + 1, V), np.float32)},
                r"shape: perceiver\.latents",
            ),
            (
                {"lang_encoder.gated_cross_attn_layers.1.attn_gate": np.zeros(1, np.float32)},
                "got a second one",
            ),
        )
    ):
        arrays = {name: x for name, x in (case.arrays | changes).items() if x is not None}
        with pytest.raises(ValueError, match=message):
            from_pretrained(flamingo, write(tmp_path / str(i), arrays))


def test_a_table_cut_to_the_tokenizer_is_filled_up(case: Case, loaded: Any, tmp_path: Path) -> None:
    name = "lang_encoder.transformer.wte.weight"
    _, params = from_pretrained(
        flamingo, write(tmp_path / "cut", case.arrays | {name: case.arrays[name][:41]})
    )
    np.testing.assert_array_equal(params["embed/embedding"][:41], loaded[1]["embed/embedding"][:41])
    assert not params["embed/embedding"][41:].any()
