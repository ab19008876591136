"""Arm actions for a base: both mappings, what comes back and what cannot; Korean through every
backbone.
"""

import math
import unicodedata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_jax.models.backbones import flamingo, kosmos2, llava, paligemma, qwen3vl, smolvlm
from vla_jax.models.tokenizer import open_tokenizer
from vla_jax.robot.mobile import ARM, LOST, from_base, to_base
from vla_jax.robot.navigation import SCENARIOS

BACKBONES = (paligemma, kosmos2, llava, flamingo, smolvlm, qwen3vl)
# Where x is this much smaller than y it drowns in the length's rounding.
numbers = st.floats(-1, 1).map(lambda v: 0.0 if abs(v) < 1e-3 else v)
batches = hnp.arrays(np.float64, (4, 7), elements=numbers)
quick = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def test_the_snippet_and_the_table() -> None:
    action = np.array([-3.0, 4.0, 9.0, 0.1, 0.2, 0.3, 1.0])
    np.testing.assert_array_equal(to_base(action), [5, 4, 0.3])
    np.testing.assert_array_equal(to_base(action, signed=True), [-5, 4, 0.3])
    np.testing.assert_array_equal(to_base(action, "table"), [-3, 0.3, 1])


def test_a_step_to_the_side_drives_the_snippet_forward_too() -> None:
    """The documented fault of its mapping, kept."""
    np.testing.assert_array_equal(to_base(np.array([0, -0.5, 0, 0, 0, 0, 0])), [0.5, -0.5, 0])


@quick
@given(batches, st.sampled_from(["snippet", "signed", "table"]))
def test_what_can_be_inverted_comes_back(actions: np.ndarray, how: str) -> None:
    mapping, signed = ("table" if how == "table" else "snippet"), how == "signed"
    base = to_base(actions, mapping, signed)
    back = from_base(base, mapping, signed)
    expected = actions.copy()
    expected[:, [ARM.index(name) for name in LOST[mapping]]] = 0
    if how == "snippet":
        expected[:, 0] = abs(expected[:, 0])  # its sign is lost
    np.testing.assert_allclose(back, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(to_base(back, mapping, signed), base, rtol=1e-12, atol=1e-15)


@quick
@given(hnp.arrays(np.float64, (4, 7), elements=st.floats(-1e6, 1e6)))
def test_every_image_of_an_action_has_an_inverse(actions: np.ndarray) -> None:
    for signed in (False, True):
        base = to_base(actions, signed=signed)
        np.testing.assert_allclose(
            to_base(from_base(base, signed=signed), signed=signed), base, rtol=1e-9, atol=1e-300
        )


@pytest.mark.parametrize("base", [[0.1, 0.2, 0.0], [0.1, -0.2, 0.0], [-0.5, 0.1, 0.0]])
def test_motions_that_the_snippet_cannot_make_are_refused(base: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected \|linear_x\| >= \|linear_y\|"):
        from_base(np.array(base))


def test_signed_reverses() -> None:
    np.testing.assert_allclose(
        from_base(np.array([-5.0, 4.0, 0.3]), signed=True)[[0, 1, 5]], [-3, 4, 0.3]
    )


@pytest.mark.parametrize(
    ("values", "mapping", "signed", "message"),
    [
        (np.zeros(6), "snippet", False, "7 numbers last"),
        (np.zeros(7, np.int64), "snippet", False, "expected floats"),
        (np.full(7, math.nan), "snippet", False, "expected finite numbers"),
        (np.zeros(7), "table", True, "with the snippet's mapping only"),
    ],
)
def test_bad_input_is_refused(values: np.ndarray, mapping: str, signed: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_base(values, mapping, signed)


def test_eight_scenarios() -> None:
    assert set(SCENARIOS) == {
        f"{boxes}box_{layout}_{side}"
        for boxes in (1, 2)
        for layout in ("vert", "hori")
        for side in ("left", "right")
    }
    assert len({scenario.korean for scenario in SCENARIOS.values()}) == 8
    for key, (korean, english) in SCENARIOS.items():
        assert unicodedata.is_normalized("NFC", korean)
        assert " ".join(korean.split()) == korean
        assert ("왼쪽" in korean) == ("left" in english) == key.endswith("left")
        assert ("오른쪽" in korean) == ("right" in english) == key.endswith("right")
        assert korean.startswith("두 박스") == ("both boxes" in english) == key.startswith("2box")


@pytest.mark.parametrize(
    "backbone", BACKBONES, ids=lambda module: module.__name__.rpartition(".")[2]
)
@pytest.mark.parametrize("taught", [True, False], ids=["korean", "bytes"])
def test_korean_survives_prompt_and_tokenizer(
    backbone: ModuleType, taught: bool, tmp_path: Path
) -> None:
    """Every scenario comes out of the ids letter by letter, with a tokenizer that has seen Korean,
    and with one that has not and falls back on bytes. So does decomposed Korean (NFD, as macOS
    writes it), which nobody recomposes.
    """
    texts = (
        [scenario.korean for scenario in SCENARIOS.values()] if taught else ["push the red block"]
    )
    backbone.train_tiny_tokenizer(texts, tmp_path / "tokenizer")
    tokenizer = backbone.load_tokenizer(tmp_path / "tokenizer")
    under = open_tokenizer(tmp_path / "tokenizer", ())
    seen = set()
    for korean, _ in SCENARIOS.values():
        for text in (korean, unicodedata.normalize("NFD", korean)):
            assert text in backbone.prompt(text)
            ids = tokenizer.encode(text)
            assert under.unk_token_id not in ids
            assert text in under.decode(ids)
            assert max(ids) < tokenizer.vocab
            seen.add(tuple(ids))
    assert len(seen) == 16
    plain = "박"
    pieces = under.convert_ids_to_tokens(under.encode(plain, add_special_tokens=False))
    assert (f"<0x{plain.encode()[0]:02X}>" in pieces) == (not taught)
