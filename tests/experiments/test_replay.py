"""Replay: the right data or none, frames as training decodes them, figures that are known
beforehand, and the whole.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines import images
from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.files import remote
from data_pipelines.index import open_index
from experiments import replay
from experiments.replaying import calibration, figures, recorded, regret, trigger
from experiments.replaying.figures import Replayed
from experiments.replaying.recorded import Episode, Recording, Where, check, open_recording
from vla_jax.actions import ActionSpec
from vla_jax.robot.events.calibration import Calibration, Logistic
from vla_jax.robot.events.trigger import Settings

from .test_pretrain import REPO, environment, run

K = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rlds")
    write_blocks(folder, train=6, val=4)
    return folder


@pytest.fixture(scope="module")
def artefact(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of an artefact says which data it belongs to."""
    folder = tmp_path_factory.mktemp("artefact")
    dataset, stats = DATASETS["blocks"], open_index(root, DATASETS["blocks"]).splits["train"].stats
    specs = {
        "action": (
            ActionSpec.fit(
                dataset.action_names, dataset.binary, stats["action"], ("q99",)
            ).to_json()
        ),
        "state": ActionSpec.fit(dataset.state_names, (), stats["state"], ("q99",)).to_json(),
    }
    config = {
        "cameras": ["primary", "wrist"],
        "image": {"size": 24},
        "network": {
            "sequence": {"state": {"dims": 7}, "window": 2},
            "head": {"kind": "mlp", "chunk": K},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "norm_stats.json").write_text(json.dumps({"datasets": {"blocks": specs}}))
    (folder / "SHA256SUMS").write_text("")
    return folder


@pytest.fixture(scope="module")
def recording(root: Path, artefact: Path) -> Recording:
    return open_recording(artefact, Where(str(root), "blocks", None))


class FakePolicy:
    """Knows the demonstrations (it tells where it is by the state, which never comes twice) and
    gives them `late` steps late, with `offset` of each chunk step added to x. Sure of all but the
    third action.
    """

    def __init__(
        self,
        spec: ActionSpec,
        episodes: list[Episode],
        late: int = 0,
        offset: tuple[float, ...] = (0.0,) * K,
    ) -> None:
        self.spec, self.stages = spec, {}
        self.episodes, self.late, self.offset, self.seen = episodes, late, offset, []
        self.config = {"network": {"sequence": {"window": 1}, "head": {"chunk": K}}}

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        assert dataset == "blocks"
        assert instruction in [episode.instruction for episode in self.episodes]

    def act(self, images: Any, proprio: Any = None, executed: Any = None) -> dict[str, Any]:
        places = [
            (e, t)
            for e in self.episodes
            for t in np.flatnonzero((e.state == proprio).all(1)).tolist()
        ]
        ((episode, t),) = places
        assert images["primary"].shape == (24, 24, 3)
        self.seen.append((t, None if executed is None else executed.tolist()))
        actions = episode.actions[
            np.clip(t + np.arange(K) - self.late, 0, len(episode.actions) - 1)
        ].copy()
        actions[:, 0] += self.offset
        self.stages = {"action": torch.from_numpy(self.spec.normalise(actions))}
        confidence = {"gripper": 0.9, "agreement": None, "token": None, "steps": [0.9, 0.9, 0.4]}
        return {
            "actions": actions,
            "confidence": confidence,
            "timing": dict.fromkeys(figures.TIMES, 1.0),
        }


def fake_of_all(recording: Recording, offset: tuple[float, ...]) -> FakePolicy:
    """It knows the training split too."""
    train = dataclasses.replace(recording, split=recording.index.splits["train"])
    return FakePolicy(
        recording.spec,
        [part.episode(i) for part in (recording, train) for i in part.episodes(None)],
        offset=offset,
    )


def replayed(recording: Recording, number: int = 0, late: int = 0, offset: float = 0.0) -> Replayed:
    episode = recording.episode(number)
    return figures.replay(
        FakePolicy(recording.spec, [episode], late, (offset,) * K), episode, "blocks"
    )


# ----------------------------------------------------------------------------------------- the data


def test_frames_are_those_that_training_sees(recording: Recording) -> None:
    episode, split = recording.episode(2), recording.split
    row = int(split.first[2]) + 3
    for slot in ("primary", "wrist"):
        shard, offset, length = (int(column[row]) for column in split.frames[slot])
        data = remote.read_range(split.shards[shard], offset, offset + length)
        np.testing.assert_array_equal(episode.frames[3][slot], images.decode(data, 24))
    np.testing.assert_array_equal(episode.actions[3], split.actions[row])
    np.testing.assert_array_equal(episode.state[3], split.state[row])
    assert episode.instruction == split.sentences[split.instruction[2]]
    assert episode.where.endswith(":2")


def test_the_held_out_split_is_replayed_unless_another_is_asked_for(
    root: Path, artefact: Path
) -> None:
    assert open_recording(artefact, Where(str(root), "blocks", None)).split.name == "val"
    assert open_recording(artefact, Where(str(root), "blocks", "train")).split.name == "train"
    with pytest.raises(ValueError, match="--split: expected one of train, val, got 'test'"):
        open_recording(artefact, Where(str(root), "blocks", "test"))


def test_other_data_than_trained_on_is_refused_with_the_dims(
    artefact: Path, tmp_path: Path
) -> None:
    write_blocks(tmp_path, train=4, val=2, seed=5)
    with pytest.raises(
        ValueError, match=r"normalised with other statistics(.|\n)*y \(q99\): expected offset"
    ):
        open_recording(artefact, Where(str(tmp_path), "blocks", None))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "config.json",
            lambda body: body.update(cameras=["primary", "secondary"]),
            "expected the cameras primary, sec",
        ),
        (
            "norm_stats.json",
            lambda body: body["datasets"].update(bridge=body["datasets"].pop("blocks")),
            r"\(bridge\)",
        ),
        (
            "norm_stats.json",
            lambda body: body["datasets"]["blocks"]["action"]["names"].reverse(),
            "action: expected the",
        ),
        (
            "norm_stats.json",
            lambda body: body["datasets"]["blocks"]["state"]["names"].reverse(),
            "state: expected the",
        ),
    ],
)
def test_an_artefact_that_does_not_fit_is_refused(
    root: Path, artefact: Path, tmp_path: Path, file, change, message
):
    for name in ("config.json", "norm_stats.json"):
        body = json.loads((artefact / name).read_text())
        if name == file:
            change(body)
        (tmp_path / name).write_text(json.dumps(body))
    with pytest.raises(ValueError, match=message):
        open_recording(tmp_path, Where(str(root), "blocks", None))


@pytest.mark.parametrize(
    "chain", [("q99",), ("gaussian",), ("bounds",), ("q99", ("bounds", -0.65, 0.65)), ("none",)]
)
def test_statistics_are_compared_whatever_the_rules(
    recording: Recording, chain: tuple[Any, ...]
) -> None:
    dataset, stats = recording.index.dataset, recording.index.splits["train"].stats["action"]
    body = ActionSpec.fit(dataset.action_names, dataset.binary, stats, chain).to_json()
    check(Path("a"), "action", body, dataset.action_names, stats)
    if chain != ("none",):
        wider = {name: 1.1 * value for name, value in stats.items()}
        with pytest.raises(ValueError, match=f"z \\({chain[0]}\\)"):
            check(Path("a"), "action", body, dataset.action_names, wider)


# -------------------------------------------------------------------------------------- the figures


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


def test_whole_chunks_are_planned_at_their_first_frame_alone(recording: Recording) -> None:
    episode = recording.episode(0)
    policy = FakePolicy(recording.spec, [episode])
    figures.plans(policy, episode, "blocks", K)
    said = [
        None if t == 0 else episode.actions[t - 1].tolist()
        for t in range(0, len(episode.frames), K)
    ]
    assert policy.seen == list(zip(range(0, len(episode.frames), K), said, strict=True))


def test_jerk_at_borders_is_apart_from_that_inside(recording: Recording) -> None:
    one = replayed(recording)
    flat = np.zeros_like(one.open_loop)
    flat[K:, 0] = 0.01  # one jump, at the first border
    found = figures.jerks(recording.spec, [one._replace(open_loop=flat)])
    assert found["inside"] == 0
    assert found["border"] > 0


def test_the_chunk_loss_leaves_out_what_lies_after_the_episode(recording: Recording) -> None:
    one = replayed(recording)
    normalised = one.normalised.copy()
    normalised[-1, 1:] = 1e3
    assert figures.chunk_loss(recording.spec, [one._replace(normalised=normalised)]) == 0
    normalised[0, 1] += 1
    assert figures.chunk_loss(recording.spec, [one._replace(normalised=normalised)]) > 0


def test_files_are_whole_and_hold_no_nan(tmp_path: Path) -> None:
    replay.write(
        tmp_path / "a.json",
        {"a": np.float32(1.5), "b": float("nan"), "c": [np.arange(2)], "d": None},
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "a": 1.5,
        "b": None,
        "c": [[0, 1]],
        "d": None,
    }
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


# -------------------------------------------------------------------------------------- calibration


def test_platt_scaling_finds_the_scale_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    said = rng.uniform(0.5, 0.999, 20_000)
    truth = Logistic(0.4, -0.3)
    found = calibration.logistic(said, (rng.random(len(said)) < truth(said)).astype(float))
    assert found.slope == pytest.approx(0.4, abs=0.05)
    assert found.offset == pytest.approx(-0.3, abs=0.1)
    raw = calibration.reliability(said, truth(said))
    assert calibration.reliability(found(said), truth(said))["ece"] < 0.02 < raw["ece"]


def test_a_scale_is_finite_where_nothing_is_wrong_and_flat_where_surer_is_worse() -> None:
    found = calibration.logistic(np.linspace(0.5, 1, 50), np.ones(50))
    assert found(0.5) > 0.5
    said = np.linspace(0.5, 0.99, 100)
    flat = calibration.logistic(said, (said < 0.7).astype(float))
    np.testing.assert_allclose(flat([0.5, 0.99]), (said < 0.7).mean(), atol=1e-6)


def test_the_curve_falls_and_covers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    agreement = rng.uniform(0.5, 1, 5000)
    error = (1 - agreement) * rng.exponential(1.0, 5000)
    curve = calibration.monotone(agreement, error)
    report = calibration.agreement_report(curve, agreement, error)
    assert report["coverage_90"] == pytest.approx(0.9, abs=0.02)
    assert report["rank_correlation"] > 0.3
    rising = calibration.monotone(agreement, agreement)
    assert len(rising.error) == 1
    assert rising.error[0] == pytest.approx(agreement.mean())


def test_rank_correlation_by_hand() -> None:
    assert calibration.rank_correlation(
        np.array([1, 5, 9.0]), np.array([2, 3, 100.0])
    ) == pytest.approx(1)
    assert calibration.rank_correlation(
        np.array([1, 1, 2.0]), np.array([3, 3, 1.0])
    ) == pytest.approx(-1)
    assert calibration.rank_correlation(np.array([1, 1.0]), np.array([3, 1.0])) is None


def test_right_is_counted_within_the_episode(recording: Recording, artefact: Path) -> None:
    found = [replayed(recording, i) for i in range(4)]
    body = calibration.calibrate(artefact, recording.spec, found)
    raw = body["report"]["gripper"]["raw"]
    steps = [len(found[i].chunks) for i in figures.halves(4)["report"]]
    assert raw["steps"] == sum(K * n - K * (K - 1) // 2 for n in steps)
    assert raw["mean_right"] == 1
    assert Calibration.from_json(body["calibration"]).agreement is None


def test_tokens_are_right_within_a_bin(recording: Recording) -> None:
    one = replayed(recording)
    width = 2 / 10
    chunks = one.chunks.copy()
    rest = np.abs(recording.spec.normalise(chunks)[..., 0]) < 0.5
    chunks[..., 0] += 1.5 * width * recording.spec.units()[0] * rest
    head = {"low": -1.0, "high": 1.0, "bins": 11}
    _, right = calibration.tokens(recording.spec, head, one._replace(chunks=chunks))
    within, _ = figures.ahead(one.episode.actions, K)
    np.testing.assert_allclose(right, np.where(rest, 6 / 7, 1)[within])


# -------------------------------------------------------------------------------------- the trigger


def point(saved: float, fit: list[float], report: float) -> trigger.Point:
    """What gave the errors `fit` in the four episodes of the fit half, and `report` in all of the
    other.
    """
    frames, errors = np.full(8, 10.0), np.full(8, report)
    errors[figures.halves(8)["fit"]] = fit
    trial = trigger.Trial("scene", saved, Settings(2, scene=max(saved, 0.01)))
    return trigger.Point(trial, frames, (1 - saved) * frames, errors, frames)


def test_halves_share_no_episode_and_no_pattern() -> None:
    parts = figures.halves(200)
    assert sorted([*parts["fit"], *parts["report"]]) == list(range(200))
    assert len(parts["fit"]) == 100
    for period in (2, 3, 12):  # the embedded data has 3 colours and 4 directions in turn
        assert len(set(parts["fit"] % period)) == len(set(parts["report"] % period)) == period


def test_the_choice_saves_most_within_the_allowed_error_of_the_fit_half_alone() -> None:
    base = point(0.0, [1.0] * 4, 1.0)
    good = point(0.5, [1.04] * 4, 9.0)  # bad on the report half, which must not be looked at
    bad = point(0.9, [1.06] * 4, 0.0)
    assert trigger.choose([base, good, bad], base, 0.05) is good
    assert good.measured("fit", base)["added"] == pytest.approx(0.04)
    assert good.measured("report", base)["added"] == pytest.approx(8.0)
    assert trigger.choose([base, bad], base, 0.05) is base


def test_a_mean_within_the_limit_by_luck_is_not_chosen() -> None:
    base = point(0.0, [1.0] * 4, 1.0)
    lucky = point(0.5, [0.5, 0.5, 0.5, 2.6], 1.0)
    assert lucky.measured("fit", base)["added"] == pytest.approx(0.025)
    assert trigger.choose([base, lucky], base, 0.05) is base


def test_passes_and_actions_of_a_run(recording: Recording) -> None:
    episode = recording.episode(0)
    policy = FakePolicy(recording.spec, [episode])
    actions, passes = trigger.execute(policy, episode, "blocks", Settings(K))
    np.testing.assert_array_equal(actions, episode.actions)
    assert passes == -(-len(actions) // K)
    # The third action of each chunk is unsure.
    _, passes = trigger.execute(policy, episode, "blocks", Settings(K, confidence=0.5))
    assert passes == -(-len(actions) // 2)


def test_hindsight_is_no_worse_than_any_fixed_horizon(recording: Recording) -> None:
    rng = np.random.default_rng(0)
    found = []
    for i in range(4):
        one = replayed(recording, i)
        noise = np.zeros_like(one.chunks)
        noise[..., 0] = 0.02 * rng.normal(size=noise.shape[:2])
        found.append(one._replace(chunks=one.chunks + noise))
    tables = [
        figures.arm_error(recording.spec, one.chunks, figures.ahead(one.episode.actions, K)[1])
        for one in found
    ]
    frames = sum(map(len, tables))
    every = sum(float(table[:, 0].sum()) for table in tables) / frames
    rows = trigger.hindsight(recording, found, every)
    for n in range(1, K + 1):
        error = sum(table[t - t % n, t % n] for table in tables for t in range(len(table))) / frames
        passes = sum(-(-len(table) // n) for table in tables)
        for price, row in zip(trigger.PRICES, rows, strict=True):
            cost = price * (1 - row["saved"]) * frames + (row["added"] + 1) * every * frames
            assert cost <= price * passes + error * frames + 1e-6


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is learnt in a second."""
    monkeypatch.setattr(regret, "HIDDEN", 32)
    monkeypatch.setattr(regret, "EPOCHS", 6)
    monkeypatch.setattr(regret, "LEAST_UPDATES", 400)


def brute(error: np.ndarray, price: float, t: int, j: int, on: bool) -> float:
    """Least cost from step t + j on of the chunk made at t, beginning with going on or with a pass;
    by trying all.
    """
    length, k = error.shape
    if t + j >= length:
        return 0.0
    if on:
        return float(error[t, j]) + min(
            brute(error, price, t, j + 1, way) for way in ((True, False) if j + 1 < k else (False,))
        )
    now = t + j
    ways = (True, False) if k > 1 else (False,)
    return price + float(error[now, 0]) + min(brute(error, price, now, 1, way) for way in ways)


def test_regret_is_what_trying_all_ways_says() -> None:
    rng = np.random.default_rng(0)
    for length in (1, 2, 5, 7):
        error = rng.uniform(0, 1, (length, K))
        error[np.add.outer(np.arange(length), np.arange(K)) >= length] = 0
        found = regret.regret(error, np.array([0.3]))[..., 0]
        for t in range(length):
            for j in range(1, min(K, length - t)):
                wanted = brute(error, 0.3, t, j, True) - brute(error, 0.3, t, j, False)
                assert found[t, j] == pytest.approx(wanted)
    assert found[0, 0] == 0


def test_the_network_learns_a_mean_for_each_price(small: None) -> None:
    """The second signal never varies, and is no hindrance."""
    rng = np.random.default_rng(0)
    seen = np.stack([rng.uniform(-1, 1, 4000), np.ones(4000)], 1).astype(np.float32)
    noise = rng.normal(0, 0.5, 4000)
    target = np.stack([np.abs(seen[:, 0]) + noise, 3 * seen[:, 0] + noise], 1).astype(np.float32)
    first, second = regret.regress(seen, np.zeros(2, np.float32), target)
    for x in (-0.8, -0.3, 0.4, 0.9):
        signals = np.array([x, 1], np.float32)
        assert first(signals) == pytest.approx(abs(x), abs=0.15)
        assert second(signals) / 3 == pytest.approx(x, abs=0.15)


def test_the_fit_finds_what_the_policy_can_be_trusted_with(
    recording: Recording, artefact: Path, small: None
) -> None:
    policy = fake_of_all(recording, (0.001, 0.001, 0.05))
    found = [figures.replay(policy, recording.episode(i), "blocks") for i in range(4)]
    body = trigger.fit(artefact, policy, recording, found, trigger.Aim(0.05, 6))
    # Two actions of three are as good as the first, the third is announced as unsure.
    assert body["chosen"]["horizon"] == 2 or body["chosen"]["family"].split(",")[0] in (
        "confidence",
        "regret",
    )
    assert 0.3 < body["measured"]["saved"] < 0.6
    assert abs(body["measured"]["added"]) < 0.05
    assert not body["target_met"]
    assert "NOT MET" in trigger.text(body)
    assert Settings.from_json(body["settings"]).horizon == body["chosen"]["horizon"]
    with pytest.raises(ValueError, match="four episodes"):
        trigger.fit(artefact, policy, recording, found[:3], trigger.Aim(0.05, 6))


@pytest.mark.slow
def test_the_regret_tells_what_no_confidence_says(
    artefact: Path, tmp_path: Path, small: None, monkeypatch
) -> None:
    """The third action of a chunk is bad while the gripper is open; the policy does not say how
    sure it is.
    """
    monkeypatch.setattr(
        recorded, "check", lambda *args: None
    )  # these are other statistics, which nothing here uses
    write_blocks(tmp_path, train=40, val=4)
    recording = open_recording(artefact, Where(str(tmp_path), "blocks", None))
    policy = fake_of_all(recording, (0.01, 0.01, 0.01))
    act = policy.act

    def half_bad(images: Any, proprio: Any = None, executed: Any = None) -> dict[str, Any]:
        out = act(images, proprio, executed)
        out["actions"][2, 0] += 0.1 * out["actions"][0, 6]
        out["confidence"]["steps"] = None
        return out

    policy.act = half_bad  # type: ignore[method-assign]
    regrets = regret.learn(policy, recording, 40)
    assert len(regrets) == len(regret.PRICES)

    def run(settings: Settings) -> tuple[int, int]:
        passes = bad = 0
        for i in range(4):
            episode = recording.episode(i)
            actions, ran = trigger.execute(policy, episode, "blocks", settings)
            passes, bad = (
                passes + ran,
                bad + int((np.abs(actions - episode.actions)[:, 0] > 0.05).sum()),
            )
        return passes, bad

    (passes, bad), (_, whole) = run(Settings(K, regret=regrets[-4])), run(Settings(K))
    assert bad <= whole / 4
    assert passes < run(Settings(2))[0]


def test_a_policy_of_one_frame_is_looked_up(recording: Recording) -> None:
    episode, one = recording.episode(0), replayed(recording)
    policy = FakePolicy(recording.spec, [episode])
    for settings in (Settings(1), Settings(K), Settings(K, confidence=0.5)):
        wanted, passes = trigger.execute(policy, episode, "blocks", settings)
        found, looked_up = trigger.execute(
            trigger.Planned(one, episode.frames), episode, "blocks", settings
        )
        np.testing.assert_array_equal(found, wanted)
        assert looked_up == passes


# ---------------------------------------------------------------------------------------- the whole


@pytest.mark.slow
def test_replay_of_an_exported_policy_reports_what_evaluate_reports(
    root: Path, tmp_path: Path
) -> None:
    work, out, place = tmp_path / "run", tmp_path / "out", tmp_path / "artefact"
    options = (
        "--config=oxe_paligemma.py:tiny", "--config.steps=2", "--config.batch_size=4",
        "--config.eval_every=2",
        "--config.eval_batches=1", "--config.save_every=2", "--config.optim.warmup_steps=1",
        "--config.model.window=1",
        "--config.model.head=mlp", "--config.model.proprio=True",
    )  # fmt: skip
    for module, args in (
        ("pretrain", (*options, f"--config.data.root={root}", f"--workdir={work}")),
        ("export", ("--checkpoint", str(work / "checkpoints"), "--out", str(place))),
        ("evaluate", (f"--workdir={work}",)),
    ):
        done = run(*args, module=f"experiments.{module}")
        assert done.returncode == 0, done.stderr
    # As on a robot's computer, which has no JAX. One thread: several wait for each other beside
    # other tests.
    script = (
        "import sys; sys.modules['jax'] = None; from experiments import replay;"
        " replay.main(sys.argv[1:])"
    )
    options = (
        "--artefact",
        str(place),
        "--data",
        str(root),
        "--out",
        str(out),
        "--trigger",
        "--calibrate",
    )
    found = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, timeout=300,
        check=False, cwd=REPO,
        env={**environment(), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    said = json.loads((work / "evaluation.json").read_text())["datasets"]["blocks"]
    body = json.loads((out / "replay.json").read_text())
    assert body["arm_loss"] == pytest.approx(said["arm_loss"], abs=1e-5)
    assert body["frames"] == said["windows"]
    files = {
        "replay.json",
        "traces.png",
        "calibration.json",
        "reliability.png",
        "trigger.json",
        "trigger.png",
    }
    assert {file.name for file in out.iterdir()} == files
