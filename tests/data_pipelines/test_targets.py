"""Absolute targets, motions per step, and targets relative to the state at their chunk's start."""

import dataclasses
import re

import numpy as np
import pytest

from data_pipelines import learnt, windows
from data_pipelines.datasets import DATASETS, Standardised
from data_pipelines.datasets.table import table
from data_pipelines.index import open_index
from data_pipelines.mixture import Member
from data_pipelines.standardise import Moved, Offset, Recipe, Turned
from tests.data_pipelines import loading
from vla_jax.robot import relative, rotations
from vla_jax.robot.relative import Relative

ANGLES = ("roll", "pitch", "yaw")
BLOCKS = DATASETS["blocks"]


def reached(columns):
    """The play table with its next pose as the target, and a wrist that turns past half a turn."""
    whole = BLOCKS.standardise(columns)
    turning = 0.3 * np.arange(len(whole.state))[:, None] + np.float32([2.0, 0.1, -2.5])
    pose = np.concatenate([whole.state[:, :3], turning, whole.state[:, 6:]], axis=1)
    pose[:, 3:6] = rotations.wrap(turning) * np.float32([1, 0.1, 1])
    pose = pose.astype(np.float32)
    actions = np.concatenate([pose[1:, :6], whole.actions[:-1, 6:]], axis=1)
    return Standardised(actions, pose[:-1], whole.frames[:-1])


TARGETS = dataclasses.replace(
    BLOCKS,
    name="targets",
    tfds_name="blocks",
    columns=BLOCKS.columns,
    standardise=reached,
    targets="relative",
    rotations={"euler": ANGLES},
)


@pytest.fixture(scope="module")
def targets(written, tmp_path_factory):
    return open_index(written, TARGETS, tmp_path_factory.mktemp("targets"))


def windows_of(index, chunk):
    """The recorded actions [n k d] from each step of train on, which are in its episode, and the
    states [n p], written without the pipeline.
    """
    split = index.splits["train"]
    actions, within = [], []
    for first, length in zip(split.first, split.length, strict=True):
        for step in range(length):
            steps = first + np.arange(step, step + chunk)
            within.append(steps < first + length)
            actions.append(split.actions[np.minimum(steps, first + length - 1)])
    return np.array(actions), np.array(within), np.array(split.state)


def test_recorded_windows_come_back(targets):
    """All windows of all frames of a window, each seen from its own frame's state."""
    member = Member.fit(targets, "train", 1.0, ("bounds",), loading.BASE.chunk)
    loader = loading.make(member, shuffle=False, past_action=True)
    actions, within, states = windows_of(targets, loading.BASE.chunk)
    first = targets.splits["train"].first
    for number, batch in enumerate(loading.take(loader, 0, len(actions) // 7)):
        rows = loader.ids(number)
        begin = first[np.searchsorted(first, rows, side="right") - 1]
        for t in range(3):
            newest = rows - 2 + t
            there = newest >= begin
            np.testing.assert_array_equal(batch.obs.step_mask[:, t], there)
            at, valid = newest[there], batch.action_mask[there, t, :, 0]
            np.testing.assert_array_equal(valid, within[at])
            back = member.action_spec.unnormalise(batch.actions[there, t], states[at][:, None])
            np.testing.assert_allclose(back[valid], actions[at][valid], atol=1e-6)
            before = there & (newest > begin)
            at = newest[before]
            past = member.action_spec.unnormalise(batch.obs.past_action[before, t], states[at])
            # What was done a step ago lies outside of what chunks go through, and is clipped there.
            clipped = member.action_spec.unnormalise(
                member.action_spec.normalise(actions[at - 1, 0], states[at]), states[at]
            )
            np.testing.assert_allclose(past, clipped, atol=1e-6)


def test_statistics_are_of_all_steps_of_all_chunks(targets):
    """Positions as differences, the angles of the rotation that leads to the target."""
    actions, within, states = windows_of(targets, 4)
    seen = actions.astype(np.float64)
    seen[..., :3] -= states[:, None, :3]
    pair = (rotations.matrix("euler", x) for x in (actions[..., 3:6], states[:, None, 3:6]))
    turn = [*pair]
    seen[..., 3:6] = rotations.from_matrix("euler", turn[0] @ turn[1].swapaxes(-1, -2))
    wanted, got = seen[within], learnt.action_stats(targets, 4)
    np.testing.assert_allclose(got["mean"], wanted.mean(0), atol=1e-9)
    np.testing.assert_allclose(got["std"], wanted.std(0), atol=1e-9)
    np.testing.assert_array_equal(got["min"], wanted.min(0))
    np.testing.assert_array_equal(got["max"], wanted.max(0))
    # A wrist that turns a little each step never seems to jump, and the gripper stays what it is.
    assert np.abs([got["min"][3:6], got["max"][3:6]]).max() < 2
    assert set(np.unique(wanted[:, 6])) == {0, 1}
    assert Member.fit(targets, "train", 1.0, ("q99",), 4).action_stats is not got


def test_of_very_many_chunks_every_nth_counts(targets, monkeypatch):
    monkeypatch.setattr(learnt, "MOST", 50)
    monkeypatch.setattr(learnt, "BLOCK", 16)
    actions, within, states = windows_of(targets, 4)
    every = -(-len(actions) // 50)
    x = (actions - states[:, None])[::every, :, 0][within[::every]]
    np.testing.assert_allclose(learnt.action_stats(targets, 4)["mean"][0], x.mean(), atol=1e-7)


def test_relative_targets_need_a_chunk(targets):
    with pytest.raises(
        ValueError, match="targets: relative targets: expected the steps of a chunk"
    ):
        Member.fit(targets, "train", 1.0, ("q99",))


def test_positions_do_not_rest_at_nothing():
    """Beyond an episode stands the last position, where a motion would be 0."""
    steps = windows.steps(np.array([1]), np.array([2]), 1, 3)
    column = np.ones((2, 7), np.float32)
    for described, rest in ((BLOCKS, 0), (TARGETS, 1)):
        actions = windows.actions(column, np.array([0]), steps, windows.motion(described))
        assert actions[0, 0, :, 0].tolist() == [1, rest, rest]


def test_absolute_targets_are_learnt_as_they_are(targets, written, tmp_path):
    described = dataclasses.replace(TARGETS, targets="absolute", rotations={})
    index = open_index(written, described, tmp_path)
    assert index.digest == targets.digest
    assert learnt.action_stats(index, 4) is index.splits["train"].stats["action"]
    assert Member.fit(index, "train", 1.0, ("q99",)).action_spec.relative == ()


def test_the_two_arms_of_aloha_have_absolute_targets_that_may_be_learnt_relative():
    aloha = DATASETS["aloha_static_dataset"]
    assert aloha.targets == "absolute"
    assert aloha.relative == ()
    (part,) = dataclasses.replace(aloha, targets="relative").relative
    assert part == Relative("number", *((*range(6), *range(7, 13)),) * 2)  # no gripper


def test_the_examples_of_the_table_of_datasets_work():
    said: dict = {}
    exec(re.search(r"```python\n(.*?)```", table(), re.S)[1], said)
    columns = {key: np.ones((11, 14)) for key in ("action", "observation/state")}
    columns["action"][:, 6] = 0.3
    arms = said["delta"].standardise(columns).actions
    assert arms.shape == (3, 14)
    assert not arms[:, [0, 5, 7, 12]].any()
    np.testing.assert_allclose(arms[:, [6, 13]], [[0.3, 1]] * 3, rtol=1e-6)
    assert [part.kind for part in said["relative"].relative] == ["number"]
    quaternion, number = said["pose"].relative
    assert quaternion == Relative("quat_xyzw", (3, 4, 5, 6), (3, 4, 5, 6))
    assert number == Relative("number", (0, 1, 2), (0, 1, 2))
    pose = {"pose": np.tile([1.0, 2, 3, 0, 0, 0, 1], (4, 1)), "gripper": np.ones(4)}
    assert said["reached"](pose).actions.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": "relativ"}, r"targets: expected one of .*, got 'relativ'"),
        ({"state_names": ("x", "y", "z")}, "expected a state dim for each of x, .* got none for"),
        ({"relative_to": {"x": "height"}}, r"expected names of state_names .*, got height"),
        ({"relative_to": {"X": "x"}}, r"expected names of action_names .*, got X"),
        ({"rotations": {"euler": ("rol", "pitch", "yaw")}}, "names of action_names .*, got rol"),
        ({"rotations": {"euler": ("roll", "pitch")}}, r"euler \(3 names each\).* with 2 names"),
        ({"rotations": {"quat": ANGLES}}, "expected angle or one of .*, got 'quat'"),
        ({"rotations": {"euler": ANGLES, "angle": ("yaw",)}}, "expected each name once"),
        ({"relative_to": {"roll": "roll"}}, "expected all of the rotation roll, pitch, yaw or"),
        ({"relative_to": {"gripper": "gripper"}}, "gripper: a binary dim means open or closed"),
        ({"targets": "absolute", "relative_to": {"x": "x"}}, "with targets='relative' alone"),
        (
            {"state_units": {"x": "mm"}, "action_units": {"x": "m"}},
            "expected one unit for x and the state's x, got m and mm",
        ),
    ],
)
def test_a_relation_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=f"targets: .*{message}"):
        dataclasses.replace(TARGETS, **change)


@pytest.mark.parametrize(("zero", "what"), [("state", "state"), ("actions", "action")])
def test_recorded_quaternions_that_are_none_are_named(written, tmp_path, zero, what):
    names = ("qx", "qy", "qz", "qw")

    def turned(columns):
        whole = BLOCKS.standardise(columns)
        quaternion = np.tile(np.float32([0, 0, 0, 1]), (len(whole.actions), 1))
        made = whole._replace(actions=quaternion, state=quaternion)
        return made._replace(**{zero: 0 * quaternion})

    described = dataclasses.replace(
        BLOCKS,
        name="turned",
        standardise=turned,
        action_names=names,
        state_names=names,
        action_units={},
        state_units={},
        binary=(),
        targets="relative",
        rotations={"quat_xyzw": names},
    )
    index = open_index(written, described, tmp_path)
    message = (
        rf"turned: relative targets: {what}: quat_xyzw: .*length 1, got \[0.0, 0.0, 0.0, 0.0\]"
    )
    with pytest.raises(ValueError, match=message):
        Member.fit(index, "train", 1.0, ("q99",), 4)


def test_motions_reached_lead_from_the_measured_state_to_the_next_ones():
    """A recipe turns poses into motions per step; `integrate` turns a chunk of them back."""
    rng = np.random.default_rng(0)
    position = rng.normal(size=(9, 3))
    turn = rotations.convert(rng.normal(size=(9, 3)), "axis_angle", "quat_wxyz")
    recipe = Recipe(actions=(Moved("pose[0:3]"), Turned("pose[3:7]", "quat_wxyz")), stride=2)
    out = recipe({"pose": np.concatenate([position, turn], axis=1)})
    assert out.frames.tolist() == [0, 2, 4, 6]
    for kind, dims, poses in (("number", slice(0, 3), position), ("quat_wxyz", slice(3, 7), turn)):
        back = relative.integrate(kind, out.actions[:, dims], poses[0])
        np.testing.assert_allclose(back, poses[2::2], atol=1e-5)


def test_targets_as_offsets_from_the_state_and_back():
    rng = np.random.default_rng(0)
    joints, target = rng.uniform(-3, 3, (2, 6, 2))
    recipe = Recipe(actions=(Offset("a[0:1]", "s[0:1]"), Offset("a[1:2]", "s[1:2]", "angle")))
    out = recipe({"a": target, "s": joints})
    np.testing.assert_allclose(out.actions[:, 0], (target - joints)[:, 0], atol=1e-6)
    assert np.abs(target - joints)[:, 1].max() > np.pi > np.abs(out.actions[:, 1]).max()
    back = relative.compose("angle", out.actions[:, 1].astype(float), joints[:, 1])
    np.testing.assert_allclose(back, target[:, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Turned("s[0:3]", "rpy"), "expected a kind of euler, .* got 'rpy'"),
        (Offset("a", "s", "degrees"), "expected a kind of number, angle, .* got 'degrees'"),
        (Turned("s[0:2]", "euler"), "euler: expected 3 numbers, got 2"),
        (Offset("a", "s[0:2]"), "expected two parts of one width, got 4 and 2"),
        (Offset("a", "s", "euler"), "euler: expected 3 numbers, got 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(part, message):
    columns = {"a": np.zeros((3, 4)), "s": np.zeros((3, 4))}
    with pytest.raises(ValueError, match=re.compile(message)):
        Recipe(actions=(part,))(columns)
