"""The figures of a replay, of policies whose errors are known beforehand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.replaying import figures, rollout
from experiments.replaying.recorded import Episode, Recording
from tests.experiments.replaying.fake_policy import FakePolicy, K, replayed
from vla_jax.actions import ActionSpec


def test_a_perfect_policy_has_no_error_and_the_demonstrations_jerk(recording: Recording) -> None:
    body = figures.figures(recording, [replayed(recording, i) for i in range(4)])
    assert (
        body["arm_loss"] == body["arm_error"]["every_step"] == body["arm_error"]["open_loop"] == 0
    )
    assert body["gripper_accuracy"]["every_step"] == 1
    assert body["dims"]["x"]["correlation"] == pytest.approx(1)
    assert body["dims"]["roll"]["correlation"] is None
    assert body["jerk"]["every_step"] == body["jerk"]["demonstration"] > 0
    assert body["dims"]["x"]["mean_action"]["mae"] > 0.01
    assert "WORSE" not in figures.text({**body, **_told()})


def test_an_episode_that_a_page_shows_is_linked(recording: Recording) -> None:
    body = {**figures.figures(recording, [replayed(recording, i) for i in range(2)]), **_told()}
    body["worst"][1]["view"] = "file:///page.html#run-1"
    lines = figures.text(body).splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.strip() == "file:///page.html#run-1"]
    assert body["worst"][1]["instruction"] in lines[place - 1]


def _told() -> dict[str, Any]:
    return {"data": {"dataset": "blocks", "split": "val"}, "artefact": "a", "device": "cpu"}


def test_an_error_is_told_in_robot_units_and_in_network_units(recording: Recording) -> None:
    scale = recording.spec.units()[0]
    body = figures.figures(recording, [replayed(recording, offset=0.01)])
    row = body["dims"]["x"]["every_step"]
    assert row["mae"] == pytest.approx(0.01, rel=1e-4)
    assert row["rms"] == pytest.approx(0.01, rel=1e-4)
    assert body["dims"]["y"]["every_step"]["mae"] == 0
    # Half the square, over six dims, where the sum is not clipped.
    assert body["arm_error"]["every_step"] == pytest.approx(0.5 * (0.01 / scale) ** 2 / 6, rel=0.5)
    assert body["worst"][0]["worst_dim"] == "x"


def test_actions_that_come_a_step_late_show(recording: Recording) -> None:
    body = figures.figures(recording, [replayed(recording, i, late=1) for i in range(4)])
    assert min(body["lag"], key=body["lag"].get) == "-1"
    assert "THE RECORDED ACTION -1 STEPS LATER FITS BETTER" in figures.text({**body, **_told()})


def test_a_policy_that_learnt_little_is_not_said_to_be_late(recording: Recording) -> None:
    """Of errors that are all near those of the mean action one is the least."""
    body = figures.figures(recording, [replayed(recording, i, late=1) for i in range(4)])
    error = body["arm_error"]["mean_action"]
    for lag, all_of in (
        ({"-1": 0.8 * error, "0": error, "1": error}, False),
        (
            {"-1": 0.2 * error, "0": error, "1": error},
            True,
        ),
    ):
        said = figures.text({**body, **_told(), "lag": lag})
        assert ("LATER FITS BETTER" in said) == all_of


def test_whole_chunks_are_planned_at_their_first_frame_alone(recording: Recording) -> None:
    episode = recording.episode(0)
    policy = FakePolicy(recording.spec, [episode])
    rollout.plans(policy, episode, "blocks", K)
    said = [
        None if t == 0 else episode.actions[t - 1].tolist()
        for t in range(0, len(episode.frames), K)
    ]
    assert policy.seen == list(zip(range(0, len(episode.frames), K), said, strict=True))


def test_jerk_at_borders_is_apart_from_that_inside(recording: Recording) -> None:
    one = replayed(recording)
    flat = np.zeros_like(one.open_loop)
    flat[K:, 0] = 0.01  # one jump, at the first border
    jerk = figures.jerks(recording.spec, [one._replace(open_loop=flat)])
    assert jerk["inside"] == 0
    assert jerk["border"] > 0


def test_the_chunk_loss_leaves_out_what_lies_after_the_episode(recording: Recording) -> None:
    one = replayed(recording)
    chunks = one.chunks.copy()
    chunks[-1, 1:] = 1e3
    assert figures.tally(recording.spec, [one._replace(chunks=chunks)]).arm_loss() == 0
    chunks[0, 1, 0] += 0.01
    assert figures.tally(recording.spec, [one._replace(chunks=chunks)]).arm_loss() > 0


def test_a_dim_that_is_constant_is_counted_as_the_robot_gets_it(recording: Recording) -> None:
    """The network's noise there is no error: the runtime holds the dim in its range."""
    one, spec = replayed(recording), recording.spec
    assert spec.names[spec.constant[0]] == "roll"
    said = spec.normalise(one.chunks)
    said[..., spec.constant[0]] += 0.02
    executed = spec.unnormalise(said)
    body = figures.tally(spec, [one._replace(chunks=executed)]).figures()
    assert body["l1"]["roll"] == body["arm_loss"] == 0


def test_halves_share_no_episode_and_no_pattern() -> None:
    parts = figures.halves(200)
    assert sorted([*parts["fit"], *parts["report"]]) == list(range(200))
    assert len(parts["fit"]) == 100
    for period in (2, 3, 12):  # the embedded data has 3 colours and 4 directions in turn
        assert len(set(parts["fit"] % period)) == len(set(parts["report"] % period)) == period


def test_the_figures_of_two_arms_are_by_the_names_of_their_dims() -> None:
    """Both grippers and the joints between them; nothing here is of seven numbers."""
    names = ("left_joint", "left_gripper", "right_joint", "right_gripper")
    stats = {name: np.full(4, value) for name, value in
        {"min": -2, "q01": -2, "max": 2, "q99": 2, "mean": 0, "std": 1}.items()}  # fmt: skip
    spec = ActionSpec.fit(names, (1, 3), stats, ("q99",))
    actions = np.zeros((6, 4), np.float32)
    actions[:, 0] = np.linspace(0, 1, 6)
    chunks = np.repeat(actions[:, None], K, 1)
    chunks[..., 2] += 0.2
    chunks[:3, :, 3] = 1.0
    episode = Episode(0, "record", "fold the shirt", [], np.zeros((6, 0)), actions)
    none = {"steps": np.full((6, K), np.nan)}
    times = np.ones((6, len(rollout.TIMES)))
    one = rollout.Replayed(episode, chunks, spec.normalise(chunks), chunks[:, 0], none, times)
    recorded = SimpleNamespace(spec=spec, mean=np.zeros(4, np.float32))
    body = figures.figures(recorded, [one])
    assert list(body["dims"]) == ["left_joint", "right_joint"]
    assert body["dims"]["right_joint"]["every_step"]["mae"] == pytest.approx(0.2)
    assert body["worst"][0]["worst_dim"] == "right_joint"
    assert body["gripper_accuracy"]["every_step"] == 0.75
    assert "right_joint" in figures.text({**body, **_told()})
