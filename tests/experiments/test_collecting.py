"""Trials in worlds: the same however many there are, and without those whose processes end."""

import os
import signal
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from experiments.learning import batches
from experiments.learning.collecting import Collector, Episode, of_round
from experiments.rolling import worlds as of_worlds
from experiments.rolling.processes import Process
from experiments.rolling.worlds import Apart, Local, apart, lanes
from experiments.sims.blocks import Blocks
from tests.experiments.trials import trial
from vla_jax.types import Observation, ObservationSizes, Seen, new_observation


class Wanderer:
    """Stands in for a JaxPolicy: what it does depends on its draw, its step and what it sees."""

    cameras = ("primary",)

    def __init__(self) -> None:
        self.draw = self.step = 0
        self.together = list[int]()  # how many were asked at a time

    def sessions(self, n: int, at_once: int) -> "list[Wanderer]":
        out = [type(self)() for _ in range(n)]
        for each in out:
            each.together = self.together
        return out

    def reset(self, instruction: str, seed: int) -> None:
        self.draw, self.step = seed, 0

    @staticmethod
    def act_together(policies: "Sequence[Wanderer]", seen: Sequence[Seen]) -> list[np.ndarray]:
        out = []
        policies[0].together.append(len(policies))
        for policy, each in zip(policies, seen, strict=True):
            draw = np.random.default_rng((policy.draw, policy.step))
            policy.chunk = draw.normal(size=(4, 7)).astype(np.float32)
            policy.light = each.images["primary"].mean()
            policy.step += 1
            out.append(policy.chunk * 0.05)
        return out

    def readouts(self) -> np.ndarray:
        return np.full((1, 1, 2), self.light, np.float32)

    def looked(self, seen: Seen) -> Observation:
        obs = new_observation(ObservationSizes(1, 1, 0, 1, 7, (2,)), np.zeros)
        light = seen.images["primary"].mean()
        return obs._replace(images=(np.full((1, 1, 2, 2, 3), light),), proprio=seen.executed)

    def taken(self) -> tuple[Observation, np.ndarray]:
        obs = new_observation(ObservationSizes(1, 1, 0, 1, 7, (2,)), np.zeros)
        return obs._replace(images=(np.full((1, 1, 2, 2, 3), self.light),)), self.chunk


def collected(
    worlds: list[Any],
    episodes: list[Episode],
    again: Any = None,
    ending: bool = False,
    policy: Any = None,
) -> Any:
    collector = Collector(worlds, again, seed=5, ending=ending, reading=True)
    try:
        return collector.collect(policy or Wanderer(), episodes), collector
    finally:
        collector.close()


def test_trials_do_not_depend_on_how_many_worlds_there_are() -> None:
    episodes = of_round(0, 5, 2, len(Blocks.tasks), len(Blocks.wordings))
    one, _ = collected([Local("blocks")], episodes)
    several, _ = collected([Local("blocks") for _ in range(3)], episodes)
    assert [each.episode for each in one] == episodes
    for a, b in zip(one, several, strict=True):
        assert (a.episode, a.steps, a.success) == (b.episode, b.steps, b.success)
        np.testing.assert_array_equal(a.chunks, b.chunks)
        np.testing.assert_array_equal(a.frames[-1].images[0], b.frames[-1].images[0])
    # The same beginning, other draws.
    np.testing.assert_array_equal(one[0].frames[0].images[0], one[1].frames[0].images[0])
    assert not np.array_equal(one[0].chunks[0], one[1].chunks[0])
    assert all(0 < each.steps[-1] <= 4 for each in one)


def test_trials_have_their_last_frame_where_it_is_asked_for() -> None:
    [plain], _ = collected([Local("blocks")], [Episode(0, 0)])
    [whole], _ = collected([Local("blocks")], [Episode(0, 0)], ending=True)
    assert plain.last is None
    assert whole.steps == plain.steps
    # Nobody has planned from it: it is another one than the newest that was planned from.
    assert whole.last.images[0].flat[0] != whole.frames[-1].images[0].flat[0]
    used = whole.chunks[-1][whole.steps[-1] - 1] * 0.05  # the last action carried out
    np.testing.assert_array_equal(whole.last.proprio, used)


def test_rounds_have_tasks_in_turn_seen_words_and_no_episode_twice() -> None:
    tasks, wordings = len(Blocks.tasks), len(Blocks.wordings)
    rounds = [of_round(i, 30, 1, tasks, wordings) for i in range(3)]
    numbers = [each.number for round_ in rounds for each in round_]
    assert len(set(numbers)) == 90
    assert [number % tasks for number in numbers[:24]] == list(range(12)) * 2
    assert all(number // tasks % wordings == 0 for number in numbers)  # as episodes.begin has them


def same(one: list[Any], other: list[Any]) -> None:
    """Whether trials are the same to the bit."""
    for a, b in zip(one, other, strict=True):
        assert (a.episode, a.steps, a.success) == (b.episode, b.steps, b.success)
        for mine, its in ((a.chunks, b.chunks), (a.readouts, b.readouts)):
            np.testing.assert_array_equal(mine, its)


def test_worlds_share_processes_that_are_played_in_lanes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Opened:
        def __init__(self, name: str, count: int) -> None:
            self.number, self.count = next(numbers), count

    numbers = iter(range(100))
    monkeypatch.setattr(of_worlds, "Process", Opened)
    for processors, sim, count, sizes, shares in (
        (2, "blocks", 5, [2, 2, 1], [2, 2, 1]),
        (1, "blocks", 5, [2, 2, 1], [2, 2, 1]),
        (3, "blocks", 9, [3, 2, 2, 2], [5, 2, 2]),
        (8, "blocks", 2, [1, 1], [1, 1]),
        (2, "blocks", 1, [1], [1]),
        (2, "metaworld:push-v3", 4, [1, 1, 1, 1], [2, 1, 1]),  # one may take its process down
    ):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=processors: range(n))
        worlds = apart(sim, count)
        opened: dict[int, Any] = {world.process: world._process for world in worlds}
        assert [each.count for each in opened.values()] == sizes
        assert len(worlds) == count
        assert [len(lane) for lane in lanes(worlds)] == shares
        for lane in lanes(worlds):
            own = {world.process for world in lane}
            assert sum(world.process in own for world in worlds) == len(lane)  # whole ones
    assert [len(lane) for lane in lanes([Local("blocks") for _ in range(3)])] == [3]


@pytest.mark.slow
def test_lanes_play_the_same_and_a_process_that_ends_loses_all_its_episodes() -> None:
    episodes = of_round(0, 7, 1, len(Blocks.tasks), len(Blocks.wordings))
    one, _ = collected([Local("blocks")], episodes)
    both, policy = [Process("blocks", 2), Process("blocks", 1)], Wanderer()
    worlds = [Apart(both[0], 0), Apart(both[1], 0), Apart(both[0], 1)]
    assert all(world.about.tasks for world in worlds)  # open: else one lane may play them all
    several, _ = collected(worlds, episodes, policy=policy)
    same(one, several)
    assert max(policy.together) == 2

    fragile = Process("blocks", 2)

    class Deadly(Wanderer):
        @staticmethod
        def act_together(policies: Any, seen: Any) -> Any:
            if len(policies[0].together) == 3:
                os.kill(fragile.number, signal.SIGKILL)
            return Wanderer.act_together(policies, seen)

    worlds = [Apart(fragile, 0), Apart(fragile, 1)]
    got, collector = collected(worlds, episodes, lambda: apart("blocks", 1)[0], policy=Deadly())
    same(one, got)
    assert collector.lost == 0


@pytest.mark.slow
def test_an_episode_whose_process_ends_is_played_again_then_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Apart] = []

    def again() -> Apart:
        opened.extend(apart("blocks", 1))
        return opened[-1]

    answer = Apart.answer

    def dying(times: int) -> Any:
        left = [times]

        def end(world: Apart, chunk: Any) -> None:
            if left[0]:
                left[0] -= 1
                os.kill(world._process.number, signal.SIGKILL)
            answer(world, chunk)

        return end

    episodes = [Episode(0, 0), Episode(1, 1)]
    want, _ = collected([Local("blocks")], episodes)
    monkeypatch.setattr(Apart, "answer", dying(1))
    got, collector = collected([again()], episodes, again)
    assert (len(got), collector.lost) == (2, 0)
    np.testing.assert_array_equal(got[0].chunks, want[0].chunks)
    monkeypatch.setattr(Apart, "answer", dying(2))
    got, collector = collected([again()], episodes, again)
    assert ([each.episode.number for each in got], collector.lost) == ([1], 1)
    monkeypatch.setattr(Apart, "answer", dying(4))
    with pytest.raises(RuntimeError, match="all 2 episodes of this round were lost"):
        collected([again()], episodes, again)


def test_windows_repeat_the_first_frame_unseen_and_masks_end_with_the_episode() -> None:
    both = batches.gathered([trial(2, [4, 1]), trial(3, [4, 4, 2])], 2, np.array([True, False]))
    np.testing.assert_array_equal(both.obs.images[0][:2, :, 0, 0, 0], [[0, 0], [0, 1]])
    got = jax.tree.map(lambda x: x[2:], both)
    np.testing.assert_array_equal(got.obs.step_mask, [[False, True], [True, True], [True, True]])
    pixels = got.obs.images[0][:, :, 0, 0, 0]
    np.testing.assert_array_equal(pixels, [[0, 0], [0, 1], [1, 2]])
    assert got.mask[..., 0].sum(1).tolist() == [4, 4, 2]
    assert not got.mask[..., 1].any()
    read = trial(3, [4, 4, 2])._replace(readouts=[np.full((2, 1, 3), i) for i in range(3)])
    again = batches.gathered([read], 2, np.array([True, False]))
    np.testing.assert_array_equal(again.readouts[:, 0, 0, 0], [0, 1, 2])
    np.testing.assert_array_equal(again.obs.step_mask, got.obs.step_mask)
    assert again.obs.images == ()  # nobody looks at them any more


def test_batches_have_every_decision_once_and_one_size() -> None:
    decisions = batches.gathered([trial(0, [4] * 5)], 1, np.ones(2, bool))
    order = np.random.default_rng(0).permutation
    parts = list(batches.batches(decisions, 2, order))
    assert [part.valid.tolist() for part in parts] == [[True] * 2, [True] * 2, [True, False]]
    seen = [int(part.obs.images[0][i, 0, 0, 0, 0]) for part in parts for i in (0, 1)]
    assert sorted(seen[:-1]) == [0, 1, 2, 3, 4]


def test_scores_of_both_algorithms_and_rewards_that_are_none() -> None:
    trials = [trial(0, [4, 4], True), trial(0, [4]), trial(1, [4], True)]
    decisions = batches.gathered(trials, 1, np.ones(2, bool))
    judged = batches.Judged(np.arange(4.0), np.zeros(4), decisions.reference)
    rewards = batches.of_success(trials)
    grpo = batches.scored(decisions, judged, trials, rewards, batches.Scoring("grpo", 1.0, 1.0))
    np.testing.assert_allclose(grpo.advantage, [1, 1, -1, 0], atol=1e-5)
    ppo = batches.scored(decisions, judged, trials, rewards, batches.Scoring("ppo", 0.5, 1.0))
    np.testing.assert_allclose(ppo.returns, [0.5**4, 1, 0, 1])
    np.testing.assert_allclose(ppo.advantage.mean(), 0, atol=1e-6)
    rewards[1] = np.array([np.nan])
    with pytest.raises(ValueError, match="reward of episode 0: expected finite"):
        batches.scored(decisions, judged, trials, rewards, batches.Scoring("ppo", 1.0, 1.0))
