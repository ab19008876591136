"""Normalisation: exact inverse, limits, pass-through dims, chains, JSON."""

import json

import numpy as np
import pytest

from vla_jax.actions import ActionSpec
from vla_jax.robot.relative import Relative

NAMES = ("x", "yaw", "flat", "gripper")


def make_stats() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    data = np.stack(
        [rng.normal(0.3, 2, 500), rng.normal(size=500), np.full(500, 7.0), rng.integers(0, 2, 500)],
        -1,
    )
    quantiles = np.quantile(data, [0.01, 0.99], axis=0)
    return {
        "mean": data.mean(0), "std": data.std(0), "min": data.min(0), "max": data.max(0),
        "q01": quantiles[0], "q99": quantiles[1],
    }  # fmt: skip


@pytest.mark.parametrize(
    "rules", [("bounds",), ("q99",), ("gaussian",), ("none",), ("q99", ("bounds", -0.65, 0.65))]
)
def test_unnormalise_is_the_inverse(rules: tuple) -> None:
    spec = ActionSpec.fit(NAMES, (3,), make_stats(), rules)
    rng = np.random.default_rng(1)
    inside = np.stack(
        [
            rng.uniform(-1, 1, 50),
            rng.uniform(-0.5, 0.5, 50),
            np.full(50, 7.0),
            rng.integers(0, 2, 50),
        ],
        -1,
    )
    np.testing.assert_allclose(spec.unnormalise(spec.normalise(inside)), inside, atol=1e-6)


def test_bounds_map_the_limits_to_plus_minus_one_and_clip() -> None:
    spec = ActionSpec.fit(NAMES, (3,), make_stats(), (("bounds", -0.65, 0.65),))
    y = spec.normalise(np.array([[-0.65, 0.65, 0.0, 1.0], [-9.0, 9.0, 0.1, 0.0]]))
    np.testing.assert_allclose(y[:, :2], [[-1, 1], [-1, 1]])
    np.testing.assert_allclose(y[:, 3], [1, 0])  # binary dims are never touched


def test_q99_uses_the_quantiles() -> None:
    stats = make_stats()
    spec = ActionSpec.fit(NAMES, (3,), stats, ("q99",))
    np.testing.assert_allclose(spec.normalise(stats["q01"])[:2], -1, atol=1e-6)
    np.testing.assert_allclose(spec.normalise(stats["q99"])[:2], 1, atol=1e-6)


def test_chain_is_the_composition() -> None:
    """RoboVLMs' OXE recipe: q99 to [-1, 1], then clip to +-0.65 and rescale."""
    stats = make_stats()
    chained = ActionSpec.fit(NAMES, (3,), stats, ("q99", ("bounds", -0.65, 0.65)))
    once = ActionSpec.fit(NAMES, (3,), stats, ("q99",))
    x = np.array([[0.5, -0.2, 7.0, 1.0], [4.9, 2.2, 7.0, 0.0]])
    np.testing.assert_allclose(
        chained.normalise(x)[:, :2],
        np.clip(once.normalise(x)[:, :2], -0.65, 0.65) / 0.65,
        rtol=1e-5,
    )


def test_near_constant_dims_are_named_not_scaled_and_stay_in_the_range_of_the_data() -> None:
    assert ActionSpec.fit(NAMES, (3,), make_stats(), ("bounds",)).constant == (2,)
    for rules in (("q99",), ("gaussian",), ("q99", ("bounds", -0.65, 0.65))):
        stats = make_stats()
        stats["max"][2] = 7.5  # once
        spec = ActionSpec.fit(NAMES, (3,), stats, rules)
        assert [spec.names[i] for i in spec.constant] == ["flat"]
        assert spec.normalise(np.array([0, 0, 7.25, 0.0]))[2] == np.float32(7.25)
        assert spec.unnormalise(np.array([0, 0, 7.25, 0.0]))[2] == np.float32(7.25)
        again = ActionSpec.from_json(spec.to_json())
        for said, moved in ((7.6, 7.5), (6.9, 7.0)):
            assert spec.unnormalise(np.array([0, 0, said, 0.0]))[2] == np.float32(moved)
            assert again.unnormalise(np.array([[0, 0, said, 0.0]]))[0, 2] == np.float32(moved)


def test_specs_of_older_checkpoints_let_constant_dims_pass() -> None:
    spec = ActionSpec.fit(NAMES, (3,), make_stats(), ("q99",))
    body = spec.to_json()
    body["steps"][0]["low"][2] = body["steps"][0]["high"][2] = None
    assert ActionSpec.from_json(body).unnormalise(np.array([0, 0, 6.9, 0.0]))[2] == np.float32(6.9)


def test_probability_of_a_binary_dim_becomes_zero_or_one() -> None:
    spec = ActionSpec.fit(NAMES, (3,), make_stats(), ("q99",))
    assert spec.unnormalise(np.array([[0, 0, 0, 0.6], [0, 0, 0, 0.4]]))[:, 3].tolist() == [1, 0]


def test_units_turn_network_error_into_robot_error() -> None:
    spec = ActionSpec.fit(NAMES, (3,), make_stats(), ("q99", ("bounds", -0.65, 0.65)))
    a, b = np.array([0.1, 0.2, 7, 1.0]), np.array([0.3, -0.1, 7, 1.0])
    np.testing.assert_allclose(
        (spec.normalise(a) - spec.normalise(b)) * spec.units(), a - b, atol=1e-6
    )


def test_json_round_trip() -> None:
    spec = ActionSpec.fit(NAMES, (3,), make_stats(), ("gaussian",))
    assert ActionSpec.from_json(json.loads(json.dumps(spec.to_json(), allow_nan=False))) == spec
    with pytest.raises(ValueError, match="expected the fields"):
        ActionSpec.from_json({"names": ["x"]})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (("q98",), "expected one of"),
        (("q99", "bounds"), "explicit limits"),
        ((("q99", 0, 1),), "only .*bounds"),
        ((("bounds", 1, 0),), "low < high"),
    ],
)
def test_bad_rules_are_refused(rules: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSpec.fit(NAMES, (3,), make_stats(), rules)


def test_bad_statistics_and_shapes_are_refused() -> None:
    stats = make_stats()
    with pytest.raises(ValueError, match="'q99' is missing"):
        ActionSpec.fit(NAMES, (3,), {k: v for k, v in stats.items() if k != "q99"}, ("q99",))
    with pytest.raises(ValueError, match="4 finite numbers"):
        ActionSpec.fit(NAMES, (3,), {**stats, "mean": np.full(4, np.nan)}, ("q99",))
    with pytest.raises(ValueError, match="expected 4 dims"):
        ActionSpec.fit(NAMES, (3,), stats, ("q99",)).normalise(np.zeros((2, 7)))


RELATIVE = (Relative("number", (0,), (2,)), Relative("euler", (1, 2, 3), (3, 4, 5)))


def test_relative_actions_have_an_exact_inverse_and_survive_json() -> None:
    """In any shapes that broadcast: a window of chunks from a window of states."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.4, 1.4, (5, 3, 4, 5)).astype(np.float32)
    actions[..., 4] = rng.integers(0, 2, (5, 3, 4))
    states = rng.uniform(-1.4, 1.4, (5, 3, 6)).astype(np.float32)
    limits = dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"), np.zeros(5))
    names = ("x", "roll", "pitch", "yaw", "gripper")
    spec = ActionSpec.fit(names, (4,), limits, (("bounds", -4.0, 4.0),), RELATIVE)
    spec = ActionSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert spec.relative == RELATIVE
    seen = spec.normalise(actions, states[:, :, None])
    np.testing.assert_allclose(seen[..., 0] * 4, actions[..., 0] - states[:, :, None, 2], atol=1e-6)
    np.testing.assert_array_equal(seen[..., 4], actions[..., 4])
    np.testing.assert_allclose(spec.unnormalise(seen, states[:, :, None]), actions, atol=3e-6)


def test_relative_actions_need_a_state_that_can_be() -> None:
    spec = ActionSpec(("x", "roll", "pitch", "yaw", "gripper"), (4,), relative=RELATIVE)
    for state, message in (
        (None, r"expected its dims \[2, 3, 4, 5\], got none"),
        (np.zeros(5), r"expected its dims \[2, 3, 4, 5\], got shape \(5,\)"),
        (np.array([0, 0, 0, 0, np.inf, 0]), "expected finite numbers"),
    ):
        for change in (spec.normalise, spec.unnormalise):
            with pytest.raises(ValueError, match=message):
                change(np.zeros((2, 5)), state)


def test_a_spec_from_before_relative_actions_opens_and_a_later_kind_is_refused() -> None:
    body = ActionSpec(("x",), relative=(Relative("number", (0,), (0,)),)).to_json()
    body["relative"][0]["kind"] = "screw"
    with pytest.raises(ValueError, match=r"relative: expected the kinds number, .* got screw"):
        ActionSpec.from_json(body)
    del body["relative"]
    assert ActionSpec.from_json(body) == ActionSpec(("x",))
