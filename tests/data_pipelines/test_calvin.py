"""CALVIN to RLDS: a generated split and the real sample, read back; what is refused."""

import dataclasses
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines import windows
from data_pipelines.builders import calvin
from data_pipelines.builders.calvin_source import Annotation, read_recording
from data_pipelines.datasets.calvin import CALVIN, CALVIN_PLAY
from data_pipelines.files import remote
from data_pipelines.index import open_index
from tests.wheels import needs_rlds, needs_tensorflow

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "calvin_sample"
RANGES = {"training": [(3, 30), (40, 52)], "validation": [(60, 72)]}
LABELS = {  # the first two overlap
    "training": [
        (5, 20, "open the drawer", "open_drawer"),
        (12, 26, "pull it", "open_drawer"),
        (40, 53, "hé", "lift"),
    ],
    "validation": [(61, 70, "push", "push_block")],
}


def frame(number):
    """Smooth pictures, so that a JPEG comes close; numbers that tell which frame it is."""
    ramp = np.linspace(0, 200, 200)
    big = np.stack(
        np.broadcast_arrays(ramp[:, None], ramp[None], np.full((1, 1), number % 255.0)), -1
    )
    small = np.ascontiguousarray(big[:84, :84][..., ::-1])
    draw = np.random.default_rng(number)
    gripper = 1.0 if number % 3 else -1.0
    return {
        "rgb_static": big.astype(np.uint8),
        "rgb_gripper": small.astype(np.uint8),
        "rel_actions": np.append(draw.uniform(-1, 1, 6), gripper),
        "actions": draw.normal(size=7),
        "robot_obs": np.append(draw.normal(size=14), -gripper),
        "scene_obs": np.zeros(24),
    }


def write_labels(folder, labels):
    (folder / "lang_annotations").mkdir(exist_ok=True)
    first, stop, text, task = zip(*labels, strict=True)
    content = {
        "language": {
            "ann": list(text),
            "task": list(task),
            "emb": np.zeros((len(text), 1, 384), np.float32),
        },
        "info": {"indx": list(zip(first, stop, strict=True)), "episodes": []},
    }
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", content, allow_pickle=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("calvin")
    for split, ranges in RANGES.items():
        folder = root / split
        folder.mkdir()
        np.save(folder / "ep_start_end_ids.npy", np.array(ranges))
        for first, last in ranges:
            for number in range(first, last + 1):
                np.savez_compressed(folder / f"episode_{number:07d}.npz", **frame(number))
        write_labels(folder, LABELS[split])
    np.save(
        root / "training" / "scene_info.npy",
        {"calvin_scene_D": [0, 45], "calvin_scene_A": [46, 99]},
    )
    return root


@pytest.fixture
def source(made, tmp_path):
    """A copy to be damaged: links, because nothing is written into them."""
    for path in made.rglob("*"):
        target = tmp_path / "source" / path.relative_to(made)
        if path.is_dir():
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return tmp_path / "source"


@pytest.fixture(scope="module")
def root(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("rlds")
    calvin.build(str(made), str(out))
    return out


def picture(split, slot, row):
    shard, offset, length = (int(column[row]) for column in split.frames[slot])
    data = remote.read_range(split.shards[shard], offset, offset + length)
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("dataset", [CALVIN, CALVIN_PLAY], ids=lambda d: d.name)
def test_every_annotation_is_an_episode_of_the_recorded_frames(root, dataset):
    index = open_index(root, dataset)
    for split, name in (("training", "train"), ("validation", "val")):
        written = index.splits[name]
        labels = sorted(LABELS[split])
        assert [written.words(i) for i in range(len(written.length))] == [
            text for _, _, text, _ in labels
        ]
        # The end is exclusive.
        assert written.length.tolist() == [stop - first for first, stop, _, _ in labels]
        for (first, stop, _, _), row in zip(labels, written.first, strict=True):
            for number in range(first, stop):
                at, wanted = row + number - first, frame(number)
                moved = wanted["rel_actions"].astype(np.float32)
                np.testing.assert_array_equal(written.actions[at], [*moved[:6], max(moved[6], 0)])
                pose = wanted["robot_obs"].astype(np.float32)
                np.testing.assert_array_equal(written.state[at], [*pose[:7], max(pose[14], 0)])
                if number % 5 == 0:
                    for slot, key in (("primary", "rgb_static"), ("wrist", "rgb_gripper")):
                        error = picture(written, slot, at).astype(int) - wanted[key]
                        assert np.abs(error).max() <= 4


def test_both_views_give_the_same_windows_and_play_stores_frames_once(root):
    a, b = (open_index(root, dataset).splits["train"] for dataset in (CALVIN, CALVIN_PLAY))
    np.testing.assert_array_equal(a.actions, b.actions)
    np.testing.assert_array_equal(a.state, b.state)
    assert (picture(a, "wrist", 20) == picture(b, "wrist", 20)).all()
    assert len(np.unique(a.frames["primary"].offset)) == 15 + 14 + 13
    assert len(np.unique(b.frames["primary"].offset)) == 26 - 5 + 13  # 12 to 19 are shared


def test_actions_past_the_annotation_are_masked(root):
    """As RoboVLMs does it: frame `end` and all after it do not count, whatever the play goes on
    with.
    """
    split = open_index(root, CALVIN_PLAY).splits["train"]
    length = split.length[:1].astype(np.int64)
    at = windows.steps(length - 1, length, 2, 3)
    assert at.action_mask[0].tolist() == [[True, True, False], [True, False, False]]


def test_records_keep_task_scene_and_place(root):
    file = next((root / "calvin_play" / "1.0.0").glob("*train*"))
    bodies = [record.data for record in calvin.tfrecord.read(str(file))]
    kept = []
    for body in bodies:
        parsed = calvin.tfrecord.parse(body)
        words = {
            key.rsplit("/", 1)[1]: [
                body[a : a + n].decode() for a, n in zip(*parsed[key], strict=True)
            ]
            for key in ("episode_metadata/scene", "episode_metadata/segment_task")
        }
        kept.append(
            (int(parsed["episode_metadata/first_frame"][0]), words["scene"], words["segment_task"])
        )
    assert kept == [
        (3, ["calvin_scene_D"], ["open_drawer"] * 2),
        (40, ["calvin_scene_D"], ["lift"]),
    ]


def test_sentences_in_lists_of_their_own_are_sentences(source):
    """As some copies, and CALVIN's own embeddings.npy, have them."""
    first, stop, text, task = zip(*LABELS["training"], strict=True)
    wrapped = [
        (a, b, [t], np.array([k])) for a, b, t, k in zip(first, stop, text, task, strict=True)
    ]
    (source / "training" / "lang_annotations" / "auto_lang_ann.npy").unlink()
    write_labels(source / "training", wrapped)
    read = read_recording(str(source / "training")).annotations
    assert [(a.text, a.task) for a in read] == list(zip(text, task, strict=True))
    (source / "training" / "lang_annotations" / "auto_lang_ann.npy").unlink()
    write_labels(source / "training", [(5, 20, ["one", "two"], "open")])
    with pytest.raises(ValueError, match=r"expected a sentence, got \['one', 'two'\]"):
        read_recording(str(source / "training"))


def test_another_language_folder_is_named(source):
    folder = source / "training"
    (folder / "lang_annotations").rename(folder / "lang_paraphrase-MiniLM-L3-v2")
    with pytest.raises(
        ValueError, match=r"found lang_paraphrase-MiniLM-L3-v2, .* copy one to lang_"
    ):
        read_recording(str(folder))


def test_scenes_that_are_no_dict_are_refused(source):
    path = source / "training" / "scene_info.npy"
    path.unlink()
    np.save(path, np.arange(3))
    with pytest.raises(ValueError, match=r"scene_info.npy: expected a dict .* got int64 of shape"):
        read_recording(str(source / "training"))


@pytest.mark.parametrize(
    ("labels", "cuts"),
    [
        ([], [512, 1024, 1100]),
        ([(500, 530)], [500, 1012, 1100]),
        ([(500, 530), (480, 505)], [480, 992, 1100]),
        ([(0, 600), (590, 650)], [650, 1100]),
        ([(512, 540)], [512, 1024, 1100]),
    ],
)
def test_no_annotation_crosses_a_record(labels, cuts):
    annotations = tuple(Annotation(a, b, "x", "y") for a, b in labels)
    recording = calvin.Recording("folder", ((0, 1099),), annotations, ())
    assert [task.stop for task in calvin.play_tasks(recording)] == cuts


def test_what_is_there_is_not_overwritten_and_nothing_half_written_stays(source, root, tmp_path):
    with pytest.raises(
        ValueError, match=r"calvin_play/1\.0\.0: expected nothing there, got a dataset"
    ):
        calvin.build(str(source), str(root))
    spoil(source / "training" / "episode_0000045.npz", rel_actions=np.full(7, np.nan))
    with pytest.raises(ValueError, match=r"episode_0000045\.npz: rel_actions: expected finite"):
        calvin.build(str(source), str(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("dataset_info.json"))
    with pytest.raises(ValueError, match=r"expected the file TFDS writes"):
        open_index(tmp_path / "out", CALVIN_PLAY)


def spoil(path, **changes):
    content = frame(int(path.stem[-7:])) | changes
    path.unlink()
    np.savez(path, **{key: value for key, value in content.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb_gripper": None}, "expected the key 'rgb_gripper'"),
        (
            {"rgb_static": np.zeros((100, 200, 3), np.uint8)},
            r"rgb_static: expected u\(200, 200, 3\)",
        ),
        ({"rgb_static": np.zeros((200, 200, 3))}, "rgb_static: expected u"),
        ({"robot_obs": np.zeros(14)}, r"robot_obs: expected f\(15,\)"),
        (
            {"rel_actions": np.array([2.0, 0, 0, 0, 0, 0, 1])},
            r"rel_actions: expected motion in \[-1, 1\]",
        ),
        ({"rel_actions": np.zeros(7)}, "a gripper of -1 or 1"),
    ],
)
def test_frames_that_are_not_right_are_refused(source, tmp_path, changes, message):
    spoil(source / "training" / "episode_0000010.npz", **changes)
    with pytest.raises(ValueError, match=f"episode_0000010.npz.*{message}"):
        calvin.build(str(source), str(tmp_path / "out"))


def test_missing_frames_are_counted_and_strays_reported(source, capsys):
    (source / "training" / "episode_0000099.npz").symlink_to(
        source / "training" / "episode_0000010.npz"
    )
    read_recording(str(source / "training"))
    assert "1 frames outside of ep_start_end_ids.npy are not used: [99]" in capsys.readouterr().out
    for number in (10, 11, 50):
        (source / "training" / f"episode_{number:07d}.npz").unlink()
    with pytest.raises(
        ValueError,
        match=r"3 are missing: episode_0000010.npz, episode_0000011.npz, episode_0000050.npz;",
    ):
        read_recording(str(source / "training"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([(5, 5, "a", "b")], "annotation 0 .*got 5 to 5"),
        (
            [(5, 20, "a", "b"), (28, 33, "c", "d")],
            r"annotation 1 \('c'\): expected frames inside one recorded stretch",
        ),
        ([(5, 20, "a", "b")] * 5, "80% of 5 annotations repeat another"),
    ],
)
def test_annotations_that_cannot_be_right_are_refused(source, labels, message):
    path = source / "training" / "lang_annotations" / "auto_lang_ann.npy"
    path.unlink()
    write_labels(source / "training", labels)
    with pytest.raises(ValueError, match=message):
        read_recording(str(source / "training"))


def test_ranges_that_overlap_or_are_missing_are_refused(source):
    path = source / "training" / "ep_start_end_ids.npy"
    path.unlink()
    with pytest.raises(ValueError, match="is --source an unzipped task folder"):
        read_recording(str(source / "training"))
    np.save(path, np.array([[3, 30], [30, 52]]))
    with pytest.raises(ValueError, match=r"do not overlap, got \[3, 30\], \[30, 52\]"):
        read_recording(str(source / "training"))


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_pickle_that_would_run_something_is_not_loaded(source, tmp_path):
    path = source / "training" / "lang_annotations" / "auto_lang_ann.npy"
    path.unlink()
    np.save(path, np.array(Touch(str(tmp_path / "ran")), dtype=object), allow_pickle=True)
    with pytest.raises(
        ValueError, match=r"expected an npy file of plain data, got: a pickle that wants"
    ):
        read_recording(str(source / "training"))
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Touch(str(tmp_path / "ran"))))  # it would have
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no CALVIN sample beside the repository")
def test_the_real_sample(tmp_path):
    calvin.build(str(SAMPLE), str(tmp_path))
    play, episodes = (open_index(tmp_path, dataset) for dataset in (CALVIN_PLAY, CALVIN))
    for name, folder in (("train", "training"), ("val", "validation")):
        labels = read_recording(str(SAMPLE / folder)).annotations
        split = episodes.splits[name]
        assert split.length.tolist() == [a.stop - a.first for a in labels]
        assert [split.words(i) for i in range(len(split.length))] == [a.text for a in labels]
        np.testing.assert_array_equal(split.actions, play.splits[name].actions)
        wanted = np.load(SAMPLE / folder / f"episode_{labels[-1].stop - 1:07d}.npz")
        np.testing.assert_array_equal(
            split.actions[-1, :6], wanted["rel_actions"][:6].astype(np.float32)
        )
        assert np.abs(picture(split, "primary", -1).astype(int) - wanted["rgb_static"]).mean() < 2


def test_beam_writes_the_same_files(made, root, tmp_path):
    pytest.importorskip(
        "apache_beam", reason="apache_beam is not installed: the builder runs in threads"
    )
    calvin.build(str(made), str(tmp_path), beam_options="--runner=DirectRunner")
    for path in root.rglob("1.0.0/*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(root)).read_bytes() == path.read_bytes(), path


# rlds imports reverb, which has no wheel for this Python, for its pattern matching alone: nothing
# here touches it.
READ = """
import json, sys
from unittest import mock
sys.modules["reverb"] = mock.MagicMock()
import numpy as np, tensorflow_datasets as tfds, rlds
ENDS = (rlds.IS_FIRST, rlds.IS_LAST, rlds.IS_TERMINAL)
out = {}
for name in ("calvin", "calvin_play"):
    data = tfds.builder_from_directory(f"{sys.argv[1]}/{name}/1.0.0").as_dataset(split="train")
    episodes = []
    for episode in data:
        steps = list(episode[rlds.STEPS])
        meta = {k: v.numpy() for k, v in episode["episode_metadata"].items()}
        text = lambda x: [t.decode() for t in np.ravel(x).tolist()]
        row = {
            "actions": [s[rlds.ACTION].numpy().tolist() for s in steps],
            "state": [s[rlds.OBSERVATION]["state"].numpy().tolist() for s in steps],
            "shape": list(steps[0][rlds.OBSERVATION]["wrist_image"].shape),
            "flags": [[bool(s[f]) for f in ENDS] for s in (steps[0], steps[-1])],
            "length": int(rlds.transformations.episode_length(episode[rlds.STEPS])),
            "scene": text(meta["scene"]),
        }
        if name == "calvin":
            row["text"] = text(steps[0]["language_instruction"].numpy())
            row["task"] = text(meta["task"])
        else:
            row |= {"first": meta["segment_first"].tolist(), "text": text(meta["segment_text"])}
        episodes.append(row)
    out[name] = episodes
print(json.dumps(out))
"""


@pytest.mark.slow
@needs_tensorflow
@needs_rlds
def test_tfds_and_rlds_read_the_same_steps(root):
    done = subprocess.run(
        [sys.executable, "-c", READ, str(root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    split = open_index(root, CALVIN).splits["train"]
    for episode, row, length, label in zip(
        read["calvin"], split.first, split.length, sorted(LABELS["training"]), strict=True
    ):
        actions, state = (
            np.array(episode["actions"], np.float32),
            np.array(episode["state"], np.float32),
        )
        assert len(actions) == episode["length"] == length
        np.testing.assert_array_equal(actions[:, :6], split.actions[row : row + length, :6])
        np.testing.assert_array_equal(state[:, :7], split.state[row : row + length, :7])
        assert (episode["text"], episode["task"]) == ([label[2]], [label[3]])
        assert episode["flags"] == [[True, False, False], [False, True, True]]
        assert episode["shape"] == [84, 84, 3]
    play = read["calvin_play"]
    assert [(len(e["actions"]), e["first"], e["text"]) for e in play] == [
        (28, [2, 9], ["open the drawer", "pull it"]),
        (13, [0], ["hé"]),
    ]


def test_entries_differ_only_in_where_the_frames_are():
    same = dataclasses.replace(
        CALVIN_PLAY,
        name=CALVIN.name,
        tfds_name=CALVIN.tfds_name,
        segments=False,
        notes=CALVIN.notes,
    )
    assert same == CALVIN
