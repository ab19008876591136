"""When the backbone runs: each reason alone, what is executed between, and what a failed pass
leaves behind.
"""

import json
from typing import Any

import numpy as np
import pytest

from vla_jax.robot.events.calibration import SCHEMA
from vla_jax.robot.events.regret import Regret, signals
from vla_jax.robot.events.trigger import (
    EventPolicy,
    Look,
    Settings,
    Trigger,
    difference,
    load,
    luminance,
)

K = 4


def image(level: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


class FakePolicy:
    """Its chunk number n is [n, n + 0.1, n + 0.2, n + 0.3] in the one dim; it notes what it was
    asked.
    """

    def __init__(self, sure: list[float] | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.sure, self.passes, self.broken = sure, 0, False
        self.heard: list[Any] = []

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        self.calls.append(("reset", instruction, dataset, seed))

    def act(
        self,
        images: dict[str, np.ndarray],
        proprio: Any = None,
        executed: Any = None,
        sensors: Any = None,
    ) -> dict[str, Any]:
        if self.broken:
            raise ValueError("broken")
        self.heard.append(sensors)
        self.calls.append(("act", None if executed is None else round(float(executed[0]), 1)))
        actions = self.passes + np.arange(K, dtype=np.float32)[:, None] / 10
        self.passes += 1
        return {"actions": actions, "confidence": {"steps": self.sure}}


def loop(settings: Settings, sure: list[float] | None = None) -> tuple[EventPolicy, FakePolicy]:
    policy = FakePolicy(sure)
    events = EventPolicy(policy, Trigger(settings))
    events.reset("push", "blocks", 7)
    return events, policy


def run(events: EventPolicy, levels: list[int]) -> list[tuple[float, str | None]]:
    steps = [events.act({"primary": image(level)}) for level in levels]
    return [(round(float(step.action[0]), 1), step.reason) for step in steps]


def test_without_events_a_chunk_is_executed_to_its_end() -> None:
    events, _ = loop(Settings(horizon=9))
    said = run(events, [0, 50, 100, 150, 200])
    assert said == [(0.0, "start"), (0.1, None), (0.2, None), (0.3, None), (1.0, "chunk")]
    assert events.trigger.counts == {"start": 1, "continued": 3, "chunk": 1}


def test_the_horizon_cuts_a_chunk_and_1_runs_at_each_step() -> None:
    assert [reason for _, reason in run(loop(Settings(2))[0], [0] * 5)] == [
        "start",
        None,
        "chunk",
        None,
        "chunk",
    ]
    assert [action for action, _ in run(loop(Settings(1))[0], [0] * 3)] == [0.0, 1.0, 2.0]


def test_speech_of_a_step_without_a_pass_is_not_lost() -> None:
    """Other readings are of their own step; a new episode begins in silence."""
    events, policy = loop(Settings(2))
    said = (np.zeros(3), 16000)
    for sensors in ({"imu": 0}, {"command": said}, {"imu": 2}, None, None):
        events.act({"primary": image(0)}, sensors=sensors)
    assert policy.heard == [{"imu": 0}, {"command": said, "imu": 2}, {"command": said}]
    events.reset("push")
    events.act({"primary": image(0)})
    assert policy.heard[-1] is None


def test_another_scene_than_at_the_last_pass() -> None:
    events, _ = loop(Settings(K, scene=10 / 255))
    # 8 levels are not enough, 12 from the pass's frame are; then 12 counts from that one.
    assert run(events, [100, 108, 112, 112, 101]) == [
        (0.0, "start"), (0.1, None), (1.0, "scene"), (1.1, None), (2.0, "scene"),
    ]  # fmt: skip


def test_an_unsure_step_of_the_chunk_is_planned_anew_and_the_first_is_executed() -> None:
    events, _ = loop(Settings(K, confidence=0.9), [0.1, 0.95, 0.8, 0.99])
    assert run(events, [0] * 4) == [(0.0, "start"), (0.1, None), (1.0, "confidence"), (1.1, None)]


def test_a_policy_that_does_not_say_how_sure_it_is_goes_on() -> None:
    assert [reason for _, reason in run(loop(Settings(K, confidence=0.9))[0], [0] * 3)] == [
        "start",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("measured", "expected", "reason"),
    [
        ([0.0, 9.0], [0.01, 0.0], None),
        ([0.0, 0.0], [0.03, 0.0], "tracking"),
        ([np.nan, 0.0], [0.0, 0.0], "tracking"),
        ([0.0, np.nan], [0.0, 0.0], None),
        ([0.0, 0.0], None, None),
    ],
)
def test_tracking_looks_at_the_dims_that_have_a_tolerance(measured, expected, reason) -> None:
    events, _ = loop(Settings(K, tracking=(0.02, None)))
    events.act({"primary": image(0)})
    assert (
        events.act({"primary": image(0)}, None, None, np.array(measured), expected).reason == reason
    )


def test_other_words_within_an_episode() -> None:
    events, policy = loop(Settings(K))
    run(events, [0, 0])
    events.instruct("push")
    assert run(events, [0]) == [(0.2, None)]
    events.instruct("pull")
    assert run(events, [0, 0]) == [(1.0, "instruction"), (1.1, None)]
    assert policy.calls[-2:] == [("reset", "pull", "blocks", 8), ("act", None)]


def test_gaps_keep_the_history_and_tell_the_last_action_executed() -> None:
    events, policy = loop(Settings(3))
    run(events, [0] * 7)
    assert policy.calls == [
        ("reset", "push", "blocks", 7),
        ("act", None),
        ("act", 0.2),
        ("act", 1.2),
    ]


def test_restart_begins_the_history_anew_where_steps_were_skipped_and_only_there() -> None:
    events, policy = loop(Settings(K, scene=10 / 255, history="restart"))
    run(events, [0, 50, 50, 50, 100, 150])
    assert policy.calls == [
        ("reset", "push", "blocks", 7), ("act", None), ("act", 0.0), ("reset", "push", "blocks", 9),
        ("act", None),
        ("act", 2.0),
    ]  # fmt: skip


def test_what_was_really_executed_is_passed_on() -> None:
    events, policy = loop(Settings(1))
    events.act({"primary": image(0)})
    events.act({"primary": image(0)}, executed=np.array([5.0]))
    assert policy.calls[-1] == ("act", 5.0)


def test_after_a_failed_pass_the_next_step_asks_for_one() -> None:
    events, policy = loop(Settings(K, scene=10 / 255))
    run(events, [0, 0])
    policy.broken = True
    with pytest.raises(ValueError, match="broken"):
        run(events, [90])
    policy.broken = False
    assert run(events, [0, 0]) == [(1.0, "start"), (1.1, None)]


def test_a_new_episode_forgets_the_old_one() -> None:
    events, _ = loop(Settings(K))
    run(events, [0, 0])
    events.reset("push", "blocks", 7)
    assert run(events, [0]) == [(1.0, "start")]


def test_no_step_before_reset() -> None:
    with pytest.raises(ValueError, match="before the first frame"):
        EventPolicy(FakePolicy(), Trigger(Settings(1))).act({"primary": image(0)})


def test_difference_is_of_luminance_in_cells_and_of_the_camera_that_differs_most() -> None:
    red = np.zeros((64, 48, 3), np.uint8)
    red[..., 0] = 100
    black = luminance({"a": np.zeros_like(red), "b": np.zeros_like(red)})
    np.testing.assert_allclose(
        difference(luminance({"a": np.zeros_like(red), "b": red}), black), 29.9 / 255
    )
    quarter = np.zeros_like(red)
    quarter[:32, :24] = 255
    np.testing.assert_allclose(
        difference(luminance({"a": quarter}), luminance({"a": np.zeros_like(red)})), 0.5
    )


def test_cells_are_means_for_sizes_that_are_no_multiple_and_for_small_ones() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    cells = luminance({"a": picture})["a"]
    grey = picture @ np.array([0.299, 0.587, 0.114])
    assert cells.shape == (16, 16)
    np.testing.assert_allclose(cells[0, -1], grey[:2, 46:].mean())
    np.testing.assert_allclose(cells[15, 15], grey[34:, 46:].mean())
    np.testing.assert_allclose(luminance({"a": picture[:3, :5]})["a"], grey[:3, :5])


def test_a_frozen_camera_never_passes_for_motion_and_noise_of_a_level_does_not_either() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(1, 255, (64, 64, 3), dtype=np.uint8)
    noisy = (picture + rng.integers(-1, 2, picture.shape)).astype(np.uint8)
    assert difference(luminance({"a": picture}), luminance({"a": picture})) == 0
    assert difference(luminance({"a": picture}), luminance({"a": noisy})) < 1 / 255


def test_other_cameras_than_at_the_last_pass_are_refused() -> None:
    trigger = Trigger(Settings(K, scene=0.1))
    trigger.ran(Look({"primary": image(0)}, "push"), np.zeros((K, 1)), None)
    for images in ({"wrist": image(0)}, {}):
        with pytest.raises(ValueError, match="expected the cameras and sizes of the last pass"):
            trigger.reason(Look(images, "push"))
    with pytest.raises(ValueError, match="expected uint8 RGB"):
        trigger.reason(Look({"primary": np.zeros((4, 4, 3))}, "push"))


def test_states_of_another_length_are_refused() -> None:
    trigger = Trigger(Settings(K, tracking=(0.1,)))
    trigger.ran(Look({"primary": image(0)}, "push"), np.zeros((K, 1)), None)
    with pytest.raises(ValueError, match="expected 1 measured numbers"):
        trigger.reason(Look({"primary": image(0)}, "push", np.zeros(2), np.zeros(2)))


def test_settings_survive_json() -> None:
    settings = Settings(5, 0.2, (0.1, None), 0.9, None, "restart")
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


# --------------------------------------------------------------------------------------- the regret


def brightness(least: float) -> Regret:
    """Above 0 where the mean luminance of a frame of 4 x 4 pixels has risen by more than `least`
    since the pass.
    """
    kernel = np.zeros((7 + 2 * 16, 1), np.float32)
    kernel[-16:] = 1 / 16
    return Regret(
        np.zeros(len(kernel)), np.full(len(kernel), 100.0), [(kernel, np.array([-least / 100]))]
    )


def test_a_pass_where_going_on_is_expected_to_cost_more() -> None:
    events, _ = loop(Settings(K, regret=brightness(10)))
    said = [events.act({"primary": image(level, 4)}) for level in (50, 59, 61, 61, 20)]
    assert [step.reason for step in said] == ["start", None, "regret", None, None]


def test_what_the_regret_sees() -> None:
    chunk = np.arange(8.0).reshape(4, 2)
    now, then = (
        {"b": np.full((1, 1), 9.0), "a": np.full((1, 2), 5.0)},
        {"b": np.full((1, 1), 8.0), "a": np.zeros((1, 2))},
    )
    values = signals(chunk, 2, [0.0, 0.5, 0.9, 0.1], now, then)
    pictures = [5, 5, 5, 5, 9, 1]  # camera a now and since the pass, then b
    np.testing.assert_allclose(
        values, [2, np.log(0.1), np.log(0.5), 2, 3, 4, 5, 6, 7, 0 + 2, 1 + 3, *pictures], rtol=1e-6
    )
    last = signals(chunk, 3, [0.0, 1.0, 1.0, 1.0], now, then)
    np.testing.assert_allclose(
        last[:9], [3, np.log(1e-4), np.log(1e-4), 4, 5, 6, 7, 6, 7], rtol=1e-6
    )
    assert signals(chunk, 1, None, now, then)[1:3].tolist() == [0, 0]


def test_linear_layers_with_relu_between_and_far_signals_count_as_five_deviations() -> None:
    network = Regret(
        np.array([1.0]), np.array([2.0]),
        [(np.array([[1.0, -1.0]]), np.array([0.0, 0.5])), (np.array([[2.0], [3.0]]),
        np.array([-1.0]))],
    )  # fmt: skip
    for signal, x in ((3.0, 1.0), (-5.0, -3.0), (1e9, 5.0)):
        assert network(np.array([signal])) == pytest.approx(2 * max(x, 0) + 3 * max(0.5 - x, 0) - 1)


def test_a_nan_among_the_signals_asks_for_a_pass() -> None:
    trigger = Trigger(Settings(K, regret=brightness(10)))
    look = Look({"primary": image(0, 4)}, "push")
    trigger.ran(look, np.full((K, 1), np.nan), None)
    assert trigger.reason(look) == "regret"


def test_a_regret_survives_json_and_wrong_ones_are_refused() -> None:
    settings = Settings(5, regret=brightness(10))
    body = json.loads(json.dumps(settings.to_json()))
    again = Settings.from_json(body).regret
    seen = np.linspace(0, 200, 39)
    assert again is not None
    assert again(seen) == pytest.approx(brightness(10)(seen), rel=1e-6)
    with pytest.raises(
        ValueError, match="expected 39 signals, as it was learnt from, got \\(38,\\)"
    ):
        again(seen[1:])
    right = body["regret"]
    for change, message in (
        ({"speed": 1}, "expected the keys"),
        ({"layers": {}}, "expected a list of layers"),
        ({"layers": []}, "expected finite layers"),
        ({"layers": right["layers"] * 2}, "expected finite layers"),
        ({"deviation": right["layers"][0]["kernel"]}, "expected finite layers"),
        ({"mean": {"shape": [39], "float32": "?"}}, "expected an array of float32"),
        (
            {"mean": {"shape": [40], "float32": right["mean"]["float32"]}},
            "expected an array of float32",
        ),
        (
            {"mean": {"shape": "x", "float32": right["mean"]["float32"]}},
            "expected an array of float32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Regret.from_json(right | change)
    with pytest.raises(ValueError, match="expected finite layers"):
        Regret(np.array([np.nan]), np.ones(1), [(np.ones((1, 1)), np.ones(1))])


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon: expected 1 action or more"),
        ({"horizon": 2.0}, "horizon"),
        ({"horizon": True}, "horizon"),
        ({"scene": 0}, "scene"),
        ({"scene": float("nan")}, "scene"),
        ({"confidence": 1.5}, "confidence"),
        ({"confidence": "0.5"}, "confidence"),
        ({"tracking": 0.5}, "tracking"),
        ({"tracking": [0.1, float("inf")]}, "tracking"),
        ({"history": "none"}, "gaps | restart"),
        ({"speed": 1}, "expected the keys"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.from_json(Settings(1).to_json() | change)


def test_load_refuses_another_artefacts_file(tmp_path) -> None:
    file = tmp_path / "trigger.json"
    file.write_text(
        json.dumps({"schema": SCHEMA, "artefact": "abc", "settings": Settings(3).to_json()})
    )
    assert load(file, "abc") == Settings(3)
    with pytest.raises(ValueError, match="expected measurements of the artefact"):
        load(file, "abd")
    file.write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        load(file, "abc")
