"""Calibration at run time: the maps, what is None, and what is no calibration."""

import json
from typing import Any

import numpy as np
import pytest

from vla_jax.robot.events.calibration import SCHEMA, Calibration, Curve, Logistic, identity, load

WHOLE = Calibration(
    Logistic(0.5, 0.0), Logistic(1.0, -1.0), Curve((0.5, 0.9), (0.4, 0.1), (0.8, 0.2))
)


def test_a_logistic_scales_the_logit() -> None:
    np.testing.assert_allclose(
        Logistic(0.5, 0.0)(0.9), 0.75
    )  # logit(0.9) = log 9, half of it is log 3
    np.testing.assert_allclose(Logistic(1.0, 0.0)([0.2, 0.7]), [0.2, 0.7])
    assert np.isfinite(Logistic(2.0, 0.0)([0.0, 1.0])).all()


def test_the_curve_is_straight_between_points_and_flat_outside() -> None:
    expected, most = Curve((0.5, 0.9), (0.4, 0.1), (0.8, 0.2))([0.1, 0.7, 1.0])
    np.testing.assert_allclose(expected, [0.4, 0.25, 0.1])
    np.testing.assert_allclose(most, [0.8, 0.5, 0.2])


def test_a_policys_confidence_becomes_numbers_to_reckon_with() -> None:
    out = WHOLE({"gripper": 0.9, "agreement": 0.7, "token": None, "steps": None})
    assert out["token"] is out["steps"] is None
    np.testing.assert_allclose(
        [out["gripper"], out["arm_error"], out["arm_error_90"]], [0.75, 0.25, 0.5]
    )
    continuous = Calibration(Logistic(0.5, 0.0), None, None)
    said = {"gripper": 0.9, "agreement": None, "token": None, "steps": [0.9, 0.5]}
    assert continuous(said) == {
        "gripper": pytest.approx(0.75), "token": None, "steps": pytest.approx([0.75, 0.5]),
        "arm_error": None,
        "arm_error_90": None,
    }  # fmt: skip
    nothing = Calibration(None, None, None)(
        {"gripper": 0.9, "agreement": 0.7, "token": 0.5, "steps": [0.5]}
    )
    assert set(nothing.values()) == {None}


def test_the_steps_of_a_head_with_tokens_are_scaled_as_tokens() -> None:
    out = WHOLE({"gripper": 0.9, "agreement": None, "token": 0.5, "steps": [0.5]})
    assert out["steps"] == [out["token"]] == [pytest.approx(1 / (1 + np.e))]


def test_it_survives_json_and_belongs_to_an_artefact(tmp_path) -> None:
    (tmp_path / "SHA256SUMS").write_text("abc  model\n")
    file, name = tmp_path / "calibration.json", identity(tmp_path)
    file.write_text(
        json.dumps({"schema": SCHEMA, "artefact": name, "calibration": WHOLE.to_json()})
    )
    assert load(file, name) == WHOLE
    (tmp_path / "SHA256SUMS").write_text("abd  model\n")
    with pytest.raises(ValueError, match="expected measurements of the artefact"):
        load(file, identity(tmp_path))


@pytest.mark.parametrize(
    ("part", "body"),
    [
        ("gripper", {"slope": -1.0, "offset": 0.0}),
        ("gripper", {"slope": "a", "offset": 0.0}),
        ("gripper", {"slope": 1.0}),
        ("token", {"slope": float("nan"), "offset": 0.0}),
        ("agreement", {"agreement": [0.5, 0.4], "error": [0.2, 0.1], "error_90": [0.2, 0.1]}),
        ("agreement", {"agreement": [0.4, 0.5], "error": [0.1, 0.2], "error_90": [0.2, 0.1]}),
        ("agreement", {"agreement": [0.4, 0.5], "error": [0.1], "error_90": [0.2, 0.1]}),
        ("agreement", {"agreement": [], "error": [], "error_90": []}),
        ("agreement", [1]),
    ],
)
def test_what_is_no_calibration_is_refused_with_its_part(part: str, body: Any) -> None:
    with pytest.raises(ValueError, match=part):
        Calibration.from_json(WHOLE.to_json() | {part: body})


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99}'])
def test_what_is_no_file_of_replay_is_refused(tmp_path, text: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"calibration\.json: expected"):
        load(file, "abc")
