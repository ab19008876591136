"""The numbers of a dataset's report against hand-made columns, and what validation finds."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines import report
from data_pipelines.datasets import DATASETS
from data_pipelines.index import Split, open_index
from data_pipelines.selection import Selection
from tests.data_pipelines.blocks_files import files, flip, rewrite, shard

BLOCKS = DATASETS["blocks"]
NAMES = ("x", "roll", "gripper")
TOY = dataclasses.replace(BLOCKS, action_names=NAMES, binary=(2,), state_names=("x", "roll"))


def split(actions, state, lengths, sentences=("go",), instruction=None):
    lengths = np.array(lengths, np.int32)
    actions, state = np.array(actions, np.float32), np.array(state, np.float32)

    def stats(x):
        low, high = np.quantile(x, (0.01, 0.99), axis=0)
        return {
            "mean": x.mean(0),
            "std": x.std(0),
            "min": x.min(0),
            "max": x.max(0),
            "q01": low,
            "q99": high,
        }

    first = np.cumsum(lengths, dtype=np.int64) - lengths
    told = np.zeros(len(lengths), np.int32) if instruction is None else np.array(instruction)
    shard, record = np.zeros(len(actions), np.int32), np.arange(len(lengths))
    own = {"action": stats(actions), "state": stats(state)}
    return Split(
        "train", (), (), shard, first, lengths, record, first, told[:, None], sentences, actions,
        state, {}, {}, own, "train", {},
    )  # fmt: skip


def wander(lengths, shift, seed=0):
    """States, and actions that are the motion of `shift` steps later."""
    draw = np.random.default_rng(seed)
    actions, states = [], []
    for length in lengths:
        moves = draw.normal(0, 0.5, (length + 2, 2))
        state = np.cumsum(moves, axis=0)
        state[:, 1] = (state[:, 1] + np.pi) % (2 * np.pi) - np.pi
        # state[t + 1] - state[t] is moves[t + 1]
        actions.append(
            np.column_stack([moves[1 + shift : 1 + shift + length], draw.random(length) > 0.5])
        )
        states.append(state[:length])
    return np.concatenate(actions), np.concatenate(states)


@pytest.mark.parametrize("shift", [0, 1])
def test_consistency_tells_a_shift_by_a_step(shift):
    lengths = [7, 30, 1, 2, 50]
    correlations = report.consistency(TOY, split(*wander(lengths, shift), lengths))
    for name in ("x", "roll"):
        assert correlations[name][shift] == pytest.approx(1.0, abs=1e-5)
        assert abs(correlations[name][1 - shift]) < 0.4
    text = "\n".join(
        report.lines(TOY, "train", report.measure(TOY, split(*wander(lengths, shift), lengths)))
    )
    assert ("shifted by a step?" in text) == (shift == 1)


def test_consistency_of_constants_is_not_a_number():
    actions, state = wander([20], 0)
    actions[:, 0] = 0.3
    assert report.consistency(TOY, split(actions, state, [20]))["x"] == [None, None]


def test_idle_frames_stand_still_and_keep_the_gripper():
    actions = np.zeros((200, 3))
    actions[:100, :2] = np.random.default_rng(0).normal(0, 1, (100, 2))
    actions[:100, :2] += np.sign(actions[:100, :2])  # moves clearly
    actions[150:, 2] = 1  # one change of the gripper while standing still
    idle, below = report.idle_frames(TOY, split(actions, np.zeros((200, 2)), [120, 80]))
    assert idle == 100 - 1
    assert below["x"] == pytest.approx(0.01 * np.diff(np.quantile(actions[:, 0], (0.01, 0.99)))[0])
    # The same change at the first step of an episode is none.
    assert report.idle_frames(TOY, split(actions, np.zeros((200, 2)), [150, 50]))[0] == 100


def test_measure_counts():
    draw = np.random.default_rng(0)
    actions = np.column_stack(
        [draw.uniform(-1, 1, 1000), np.full(1000, 0.2), draw.random(1000) > 0.25]
    )
    made = split(actions, np.zeros((1000, 2)), [400, 0, 600], ("go", " ", "no"), [0, 2, 1])
    measured = report.measure(TOY, made)
    assert (measured["episodes"], measured["frames"]) == (3, 1000)
    assert measured["episode_length"] == [400, 500.0, 600]
    assert measured["instructions"] == 3
    assert measured["steps_without_words"] == 600
    assert measured["several_instructions"] == 0
    assert measured["actions"]["x"]["clipped"] == pytest.approx(0.02, abs=0.001)
    assert not measured["actions"]["x"]["constant"]
    assert measured["actions"]["roll"]["constant"]
    assert measured["actions"]["roll"]["clipped"] == 0
    assert list(measured["gripper"]["gripper"]) == ["1", "0"]
    assert sum(measured["gripper"]["gripper"].values()) == pytest.approx(1)


def test_good_files_have_no_problems(root):
    problems = []
    episodes, pictures = report.validate(str(files(root)), BLOCKS, problems.append)
    assert not problems
    assert episodes == 8
    steps = sum(len(s.actions) for s in open_index(root, BLOCKS).splits.values())
    assert pictures == 2 * steps


def spoil(root):
    """Four bad records in three files: NaN, words that are no UTF-8 and a broken picture; a flipped
    bit.
    """
    first, second = sorted(files(root).glob("*-train.*"))

    def picture(features):
        features["steps/observation/image"][2] = b"no picture"
        features["steps/action"].reshape(-1, 7)[1, 3] = np.nan

    rewrite(first, picture)

    def words(features):
        features["steps/language_instruction"] = [b"\xff"] * len(
            features["steps/language_instruction"]
        )

    rewrite(second, words)
    flip(second, 2)

    def wrist(features):
        features["steps/observation/wrist_image"][1] = features["steps/observation/wrist_image"][1][
            :-30
        ]

    rewrite(shard(root, "val"), wrist)


def test_every_problem_is_found_and_named(root):
    spoil(root)
    problems = []
    episodes, _ = report.validate(str(files(root)), BLOCKS, problems.append)
    places = {(e.path.rsplit("/", 1)[1].split(".")[0], e.record, e.step, e.field) for e in problems}
    assert places == {
        ("blocks-train", 0, 1, "action[3]"),
        ("blocks-train", 0, 0, "language_instruction"),
        ("blocks-train", 2, None, ""),
        ("blocks-val", 0, 1, "wrist"),
    }
    assert episodes == 8 - 3
    assert all(error.fix for error in problems)


def test_pictures_that_change_their_size_are_found(root):
    def other(features):
        features["steps/observation/image"][1] = features["steps/observation/wrist_image"][0] = (
            tiny()
        )

    rewrite(shard(root), other)
    problems = []
    report.validate(str(files(root)), BLOCKS, problems.append)
    assert {(e.field, e.step) for e in problems} >= {("primary", 1)}
    assert "expected (32, 32) pixels as before, got (4, 4)" in [e.problem for e in problems]


def tiny():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def test_binary_dims_outside_their_range_are_found(root):
    wide = dataclasses.replace(BLOCKS, binary=(2, 6))  # z is no gripper
    problems = []
    report.validate(str(files(root)), wide, problems.append)
    assert problems
    assert {e.field for e in problems} == {"z"}
    assert "expected 0 (closed) to 1 (open)" in problems[0].problem


def test_records_can_be_read_again_after_quarantine(root):
    spoil(root)
    problems = []
    report.validate(str(files(root)), BLOCKS, problems.append)
    bad = frozenset((e.path.rsplit("/", 1)[1], e.record) for e in problems)
    splits = open_index(root, BLOCKS, selection=Selection(quarantine=bad)).splits
    assert len(splits["train"].length) == 3
    assert len(splits["val"].length) == 1
