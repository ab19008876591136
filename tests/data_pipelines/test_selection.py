"""What is held out, and what is left out on purpose."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import report
from data_pipelines.builders import calvin, rlds_files
from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.datasets.calvin import CALVIN, CALVIN_PLAY
from data_pipelines.files import tfds_folder
from data_pipelines.index import FOLDER, open_index
from data_pipelines.selection import Selection, check_apart, last_stretches
from tests.data_pipelines.blocks_files import FIRST, edit, files, rewrite, shard
from tests.data_pipelines.test_calvin import frame, write_labels

BLOCKS = DATASETS["blocks"]
TEXT = "steps/language_instruction"


def lengths(index):
    return {name: split.length.tolist() for name, split in index.splits.items()}


@pytest.fixture
def whole(tmp_path):
    """Ten episodes and no held-out split."""
    write_blocks(tmp_path, train=10, val=1)
    edit(files(tmp_path) / tfds_folder.INFO, lambda info: info["splits"].pop())
    return tmp_path


@pytest.mark.parametrize(
    ("held_out", "count"), [(0.05, 1), (0.3, 3), (4, 4), (9, 9), (0, 0), (0.0, 0)]
)
def test_a_share_or_a_number_is_held_out_from_the_end(whole, held_out, count, capsys):
    everything = lengths(open_index(whole, BLOCKS, selection=Selection(held_out=0)))["train"]
    index = open_index(whole, BLOCKS, selection=Selection(held_out=held_out))
    got = lengths(index)
    assert got["train"] == everything[: 10 - count]
    assert got.get("val", []) == everything[10 - count :]
    assert (index.held_out is None) == (count == 0)
    if count:
        assert f"indexed split held out of train: {count} episodes" in capsys.readouterr().out


def test_a_list_is_held_out(whole):
    everything = lengths(open_index(whole, BLOCKS, selection=Selection(held_out=0)))["train"]
    listed = frozenset({(shard(whole).name, 1), (shard(whole).name, 3), ("another", 0)})
    index = open_index(whole, BLOCKS, selection=Selection(held_out=listed))
    assert lengths(index)["val"] == [everything[1], everything[3]]
    assert lengths(index)["train"] == [n for i, n in enumerate(everything) if i not in (1, 3)]


def test_what_cannot_be_held_out_is_refused(whole, root):
    with pytest.raises(ValueError, match=r"data.held_out: expected fewer than the 10 episodes"):
        open_index(whole, BLOCKS, selection=Selection(held_out=10))
    for wrong in (1.0, -1, -0.5):
        with pytest.raises(ValueError, match=r"data.held_out: expected a share below 1, a number"):
            Selection(held_out=wrong)
    listed = frozenset({(shard(root).name, 0)})
    with pytest.raises(ValueError, match=r"blocks has a split 'val' of its own"):
        open_index(root, BLOCKS, selection=Selection(held_out=listed))


def test_a_split_of_its_own_is_what_is_held_out(root):
    index = open_index(root, BLOCKS, selection=Selection(held_out=0.5))
    assert len(index.splits["train"].length) == 6
    assert index.held_out.label == "val"


# Play of two recordings, whose annotations overlap: as frames [first, stop).
PLAY = [(3, 20), (10, 25), (25, 40), (30, 45), (44, 60), (60, 70), (65, 80), (82, 90)]


def annotated(root, labels):
    folder = root / "source" / "training"
    folder.mkdir(parents=True)
    np.save(folder / "ep_start_end_ids.npy", np.array([(0, 61), (62, 95)]))
    for number in range(96):
        np.savez(folder / f"episode_{number:07d}.npz", **frame(number))
    write_labels(folder, [(a, b, f"do {a}", "task") for a, b in labels])
    calvin.build(str(root / "source"), str(root / "out"), ("training",))
    return root / "out"


def recorded(split):
    """The frames of the recording that a split holds: each has a gripper pose of its own."""
    return {row.tobytes() for row in np.array(split.state[:, :6])}


@pytest.mark.parametrize("dataset", [CALVIN, CALVIN_PLAY], ids=lambda dataset: dataset.name)
def test_no_held_out_step_is_trained_on_though_annotations_overlap(tmp_path, dataset):
    labels = [PLAY[i] for i in (4, 7, 2, 0, 6, 3, 1)]  # in no order; none crosses 61
    index = open_index(annotated(tmp_path, labels), dataset)
    held, train = index.splits["val"], index.splits["train"]
    assert held.label == "held out of train"
    assert {held.words(i) for i in range(len(held.length))} == {"do 82"}
    assert len(train.length) == 6
    assert not recorded(held) & recorded(train)
    assert len(recorded(held)) == 8
    index = open_index(tmp_path / "out", dataset, selection=Selection(held_out=2))
    held, train = index.splits["val"], index.splits["train"]
    assert {held.words(i) for i in range(len(held.length))} == {"do 65", "do 82"}
    assert not recorded(held) & recorded(train)


def test_the_cut_is_where_no_annotation_crosses():
    first, stop = (np.array(x) for x in zip(*PLAY, strict=True))
    cuts = {len(PLAY) - n: last_stretches(first, stop, n, "here").sum() for n in range(1, 8)}
    # Between 25 and 25, 60 and 60, 80 and 82.
    assert cuts == {7: 1, 6: 1, 5: 3, 4: 3, 3: 6, 2: 6, 1: 6}
    held = last_stretches(first, stop, 0.4, "here")
    assert held.tolist() == [False] * 5 + [True] * 3
    # Episodes of no step have no place and stay.
    assert not last_stretches(np.append(first, 99), np.append(stop, 99), 0.4, "here")[-1]


def test_play_that_cannot_be_cut_is_refused(tmp_path):
    out = annotated(tmp_path, [(3, 20), (10, 25), (20, 40), (15, 61)])
    with pytest.raises(ValueError, match=r"calvin: data.held_out: the 4 episodes of train overlap"):
        open_index(out, CALVIN)
    index = open_index(out, CALVIN, selection=Selection(held_out=0))
    assert list(index.splits) == ["train"]
    name = next((out / "calvin" / "1.0.0").glob("*.tfrecord*")).name
    with pytest.raises(ValueError, match=r"frame 10 of the recording is in an episode that the li"):
        open_index(out, CALVIN, selection=Selection(held_out=frozenset({(name, 0)})))


def test_lists_that_share_frames_with_train_are_refused():
    first, stop = np.array([0, 5, 20, 30]), np.array([10, 15, 30, 40])
    check_apart(first, stop, np.array([False, False, True, False]), "here")
    for held in ([True, False, False, False], [False, True, False, False]):
        with pytest.raises(ValueError, match="here: frame 5 of the recording"):
            check_apart(first, stop, np.array(held), "here")


def test_episodes_without_words_are_left_out_and_counted(root, capsys):
    everything = lengths(open_index(root, BLOCKS))["train"]
    rewrite(shard(root), lambda f: f.update({TEXT: [b" "] * len(f[TEXT])}))
    capsys.readouterr()
    split = open_index(root, BLOCKS).splits["train"]
    why = "without words (data.skip_unlabelled)"
    assert split.length.tolist() == everything[1:]
    assert split.left_out == {why: 1}
    assert f"indexed split train: 5 episodes, {sum(everything[1:])} steps (left out: 1 {why})" in (
        capsys.readouterr().out
    )
    lines = "\n".join(report.lines(BLOCKS, "train", report.measure(BLOCKS, split)))
    assert f"left out: 1 episodes {why}" in lines
    np.testing.assert_array_equal(split.stats["action"]["max"], split.actions.max(0))
    kept = open_index(root, BLOCKS, selection=Selection(skip_unlabelled=False)).splits["train"]
    assert kept.length.tolist() == everything
    assert kept.words(0) == " "
    # An index of each: neither is built again.
    capsys.readouterr()
    open_index(root, BLOCKS)
    open_index(root, BLOCKS, selection=Selection(skip_unlabelled=False))
    assert capsys.readouterr().out == ""
    assert len(list((files(root) / FOLDER).glob("blocks*.index"))) == 2


def test_what_is_left_out_is_not_held_out(whole):
    """A share of what is trained on: here the last two of ten episodes have no words."""
    everything = lengths(open_index(whole, BLOCKS, selection=Selection(held_out=0)))["train"]
    last = sorted(files(whole).glob("*-train.*"))[-1]
    kept = iter([True, True, True, False, False])
    rewrite(
        last, lambda f: None if next(kept) else f.update({TEXT: [b""] * len(f[TEXT])}), records=5
    )
    index = open_index(whole, BLOCKS, selection=Selection(held_out=0.25))
    assert lengths(index) == {"train": everything[:6], "val": everything[6:8]}
    assert index.splits["train"].left_out == {"without words (data.skip_unlabelled)": 2}


def test_an_episode_with_some_words_is_kept(root):
    rewrite(shard(root), lambda f: f.update({TEXT: [b""] * 5 + [b"lift"] * (FIRST - 5)}))
    assert len(open_index(root, BLOCKS).splits["train"].length) == 6


def test_a_split_of_which_all_is_left_out_says_why(root):
    for path in files(root).glob("*-val.*"):
        rewrite(path, lambda f: f.update({TEXT: [b""] * len(f[TEXT])}), records=9)
    with pytest.raises(
        ValueError, match=r"split 'val' is empty: .*\(left out: 2 without words \(data.skip_unl"
    ):
        open_index(root, BLOCKS)


def test_short_episodes_are_left_out(root):
    everything = np.array(lengths(open_index(root, BLOCKS))["train"])
    least = int(np.median(everything)) + 1
    split = open_index(root, BLOCKS, selection=Selection(min_length=least)).splits["train"]
    assert split.length.tolist() == everything[everything >= least].tolist()
    assert split.left_out == {"shorter than data.min_length": int((everything < least).sum())}


def test_idle_episodes_are_left_out(root):
    def rest(features):
        still = features["steps/action"].reshape(-1, 7)
        still[:, :6] = 0
        still[:, 6] = 1
        still[:3, 0] = 0.02  # moves for 3 steps

    rewrite(shard(root), rest)
    before = open_index(root, BLOCKS)
    assert report.measure(BLOCKS, before.splits["train"])["idle_frames"] >= FIRST - 3
    for most, left in (((FIRST - 3) / FIRST + 0.01, 6), ((FIRST - 3) / FIRST - 0.01, 5)):
        index = open_index(root, BLOCKS, selection=Selection(max_idle=most))
        assert len(index.splits["train"].length) == left
    with pytest.raises(ValueError, match=r"data.max_idle: expected .* a share above 0"):
        Selection(max_idle=0.0)


def test_a_pattern_in_a_text_of_the_episode_is_required(root):
    """DROID's paths: only what was recorded as a success."""

    def declare(body):
        episode = body["featuresDict"]["features"]
        episode["episode_metadata"] = rlds_files.folder({"file_path": rlds_files.text()})

    edit(files(root) / tfds_folder.FEATURES, declare)
    paths = iter([b"/lab/success/1", b"/lab/failure/2", b"/success/3"] * 9)
    for path in sorted(files(root).glob("*.tfrecord*")):
        rewrite(path, lambda f: f.update({"episode_metadata/file_path": [next(paths)]}), records=9)
    wanted = dataclasses.replace(BLOCKS, require="episode_metadata/file_path", pattern="/success/")
    split = open_index(root, wanted).splits["train"]
    assert split.record.tolist() == [0, 2, 0, 2]
    assert split.left_out == {"not required (Dataset.require)": 2}
    with pytest.raises(ValueError, match=r"blocks: expected in `require` what `pattern` looks at"):
        dataclasses.replace(BLOCKS, pattern="x")
