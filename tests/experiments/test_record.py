"""Rollouts become a dataset that says how they ended, and a list of those that failed."""

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from data_pipelines import images, quarantine
from data_pipelines.datasets import user
from data_pipelines.index import Split, open_index
from data_pipelines.selection import Selection
from experiments import judge, record, rollout
from experiments.rolling.episodes import actions_of
from experiments.sims.blocks import Blocks
from experiments.succeeding.looks import Frames, Watching
from vla_jax.policy import JaxPolicy
from vla_jax.types import Observation, ObservationSizes, Seen, new_observation

pytestmark = pytest.mark.slow

COUNT = 3  # episodes of each
ALL = Selection(held_out=0)


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Episodes of who knows the world, which succeed, and of who does not."""
    folder = tmp_path_factory.mktemp("rollouts")
    for who in ("expert", "random"):
        own = ["--policy", who, "--sim", "blocks", "--episodes", str(COUNT)]
        assert not rollout.main([*own, "--out", str(folder / who)])
    return [folder / "expert", folder / "random"]


@pytest.fixture(scope="module")
def root(rollouts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    record.main(["--rollouts", *map(str, rollouts), "--out", str(out), "--dataset", "tried"])
    return out


def opened(root: Path, selection: Selection = ALL) -> Split:
    own = user.dataset(str(root), "tried", str(root / "tried.py"))
    return open_index(str(root), own, selection=selection).splits["train"]


def test_what_was_done_and_seen_is_recorded(root: Path, rollouts: list[Path]) -> None:
    split = opened(root)
    assert split.outcome.tolist() == [1] * COUNT + [0] * COUNT
    actions = actions_of(rollouts[0], 1)
    rows = slice(int(split.first[1]), int(split.first[1] + split.length[1]))
    assert split.length[1] == len(actions) + 1  # and what is seen at the end
    np.testing.assert_array_equal(split.actions[rows][:-1], actions.astype(np.float32))
    np.testing.assert_array_equal(split.actions[rows][-1], [*[0] * 6, np.float32(actions[-1][6])])
    world = Blocks()
    world.reset(world.tasks[1], "seen", (0, 1))
    assert split.words(1) == world.instruction
    for action in actions:
        world.step(action)
    seen, state = world.observe()
    np.testing.assert_array_equal(split.state[rows.stop - 1], np.float32(state))
    (stored,) = split.pictures("primary", np.array([rows.stop - 1]))
    off = images.raw(stored).astype(int) - seen["primary"]  # a JPEG
    assert np.abs(off).mean() < 3 < np.abs(seen["primary"].astype(int) - 128).mean()
    mine = user.dataset(str(root), "tried", str(root / "tried.py"))
    itself = user.dataset(str(root), "tried", "")  # as its info.json says
    assert (mine.binary, itself.binary) == ((6,), ())
    assert (itself.outcome, itself.action_names) == (mine.outcome, mine.action_names)


class Looker:
    """A policy that sees the pictures as they are and keeps what it was shown."""

    cameras = ("primary",)

    def reset(self, instruction: str) -> None:
        self.told, self.shown = instruction, list[Seen]()

    def looked(self, seen: Seen) -> Observation:
        self.shown.append(seen)
        sizes = ObservationSizes(b=1, t=1, p=0, l=1, d=7, image_size=(32,))
        obs = new_observation(sizes, np.zeros)
        return obs._replace(images=(seen.images["primary"][None, None],))


def test_a_window_holds_what_a_policy_would_have_seen(root: Path) -> None:
    own = user.dataset(str(root), "tried", str(root / "tried.py"))
    index = open_index(str(root), own, selection=ALL)
    split, policy = index.splits["train"], Looker()
    frames = Frames(index, Watching(cast(JaxPolicy, policy), every=4, window=3))
    episode = int(np.argmax(split.length))
    first = int(split.first[episode])
    window, start = frames.at(split, episode, [9, 0])
    assert policy.told == split.words(episode)

    def picture(step: int) -> np.ndarray:
        (stored,) = split.pictures("primary", np.array([first + step]))
        return images.raw(stored)

    for place, step in enumerate((4, 8, 9)):  # once a chunk, and where it is asked
        np.testing.assert_array_equal(window.images[0][0, place], picture(step))
    assert window.step_mask.all()
    np.testing.assert_array_equal(start.step_mask, [[False, False, True]])
    np.testing.assert_array_equal(start.images[0][0, 2], picture(0))
    before = [seen.executed for seen in policy.shown]
    assert before[0] is None
    np.testing.assert_array_equal(np.stack(before[1:]), split.actions[first + np.array([3, 7, 8])])
    policy.cameras = ("secondary",)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="none called secondary; it has primary, wrist"):
        Frames(index, Watching(cast(JaxPolicy, policy), 4, 3))


def test_failures_are_listed_and_left_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--root", str(root), "--dataset", "tried", "--datasets", str(root / "tried.py")]
    judge.main([*own, "--out", str(tmp_path), "--held_out", "0"])
    assert "failures among what is learnt from: 50.0% before, 0.0% after" in capsys.readouterr().out
    listed = quarantine.read(tmp_path / "failures.txt", "data.quarantine")
    assert {record for _, record in listed} == {COUNT + i for i in range(COUNT)}
    left = opened(root, Selection(quarantine=listed, held_out=0))
    assert left.outcome.tolist() == [1] * COUNT
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * COUNT
    page = (tmp_path / "scores.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * COUNT
    with pytest.raises(ValueError, match="--threshold: expected a chance"):
        judge.main([*own, "--out", str(tmp_path), "--threshold", "1"])
    with pytest.raises(ValueError, match="says how its episodes ended"):
        judge.main(["--root", str(root), "--dataset", "tried", "--datasets",
                    str(_silent(root, tmp_path)), "--out", str(tmp_path)])  # fmt: skip


def _silent(root: Path, folder: Path) -> Path:
    """The same description without an outcome."""
    out = folder / "silent.py"
    out.write_text((root / "tried.py").read_text().replace("outcome='next.success'", "outcome=''"))
    return out


def test_what_is_no_record_of_this_world_is_refused(rollouts: list[Path], tmp_path: Path) -> None:
    def refused(*outs: Path, name: str = "again") -> str:
        words = ["--rollouts", *map(str, outs), "--out", str(tmp_path), "--dataset", name]
        with pytest.raises(ValueError) as error:  # noqa: PT011
            record.main(words)
        assert not (tmp_path / name / "meta").exists()
        return str(error.value)

    assert "none of ours, got 'blocks'" in refused(rollouts[0], name="blocks")
    other = tmp_path / "other"
    other.mkdir()
    settings = json.loads((rollouts[1] / "settings.json").read_text())
    (other / "settings.json").write_text(json.dumps(settings | {"seed": 5}))
    (other / "episodes.jsonl").write_bytes((rollouts[0] / "episodes.jsonl").read_bytes())
    (other / "actions").symlink_to(rollouts[0] / "actions")
    assert "episode 0 ends with 'success' as it did" in refused(other)
    assert "expected a folder that is new" in refused(rollouts[0])
    (other / "settings.json").write_text(json.dumps(settings | {"sim": "navigation"}))
    assert "expected a rollout in blocks" in refused(rollouts[0], other, name="mixed")
