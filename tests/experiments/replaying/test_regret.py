"""The regret of going on with a chunk: what trying all ways says, and what a network learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments.replaying import recorded, regret, trigger
from experiments.replaying.recorded import Where, open_recording
from tests.experiments.replaying.fake_policy import FakePolicy, K, fake_of_all
from vla_jax.robot.events.trigger import Settings


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
        cost = regret.regret(error, np.array([0.3]))[..., 0]
        for t in range(length):
            for j in range(1, min(K, length - t)):
                wanted = brute(error, 0.3, t, j, True) - brute(error, 0.3, t, j, False)
                assert cost[t, j] == pytest.approx(wanted)
    assert cost[0, 0] == 0


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


class HalfBad(FakePolicy):
    """Its third action is off while the gripper is closed, and it is sure of none."""

    def act(self, images: Any, proprio: Any = None, executed: Any = None) -> dict[str, Any]:
        out = super().act(images, proprio, executed)
        out["actions"][2, 0] += 0.1 * (1 - out["actions"][0, 6])
        out["confidence"]["steps"] = None
        return out


@pytest.mark.slow
def test_the_regret_tells_what_no_confidence_says(
    artefact: Path, tmp_path: Path, small: None, monkeypatch
) -> None:
    """The third action of a chunk is bad while the gripper is closed; the policy does not say how
    sure it is.
    """
    monkeypatch.setattr(
        recorded, "check", lambda *args: None
    )  # these are other statistics, which nothing here uses
    write_blocks(tmp_path, train=40, val=12)
    recording = open_recording(artefact, Where(str(tmp_path), "blocks", None))
    policy = fake_of_all(recording, (0.01, 0.01, 0.01), HalfBad)
    regrets = regret.learn(policy, recording, 40)
    assert len(regrets) == len(regret.PRICES)

    def run(settings: Settings) -> tuple[int, int]:
        passes = bad = 0
        for i in range(12):
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
