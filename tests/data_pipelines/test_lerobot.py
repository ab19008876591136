"""LeRobot datasets: the same windows as from RLDS, every frame the right one."""

from pathlib import Path

import fsspec
import numpy as np
import pytest

import data_pipelines
from data_pipelines.config import LoaderConfig
from data_pipelines.datasets import DATASETS, lerobot
from data_pipelines.files import video
from data_pipelines.index import build_parts, open_index
from data_pipelines.selection import Selection
from tests.data_pipelines import lerobot_files as written
from tests.data_pipelines.blocks_files import edit
from tests.data_pipelines.lerobot_files import CAMERAS, LENGTHS, MINE, TASKS, number, told
from tests.data_pipelines.loading import BLOCKS, make, member, same, take

ALL = Selection(held_out=0)
BOTH = {"cameras": ("primary", "wrist"), "image_size": (32, 32)}
KINDS = {
    "v2.1": ("v2.1", {}),
    "v3.0": ("v3.0", {}),
    "v3.0 h264 with frames out of order": ("v3.0", {"codec": "libx264", "gop": 12}),
    "v3.0 av1": ("v3.0", {"codec": "libsvtav1", "gop": 6}),
    "v2.1 one image camera": ("v2.1", {"images": CAMERAS[:1]}),
    "v3.0 images alone": ("v3.0", {"images": CAMERAS}),
}


@pytest.fixture
def written_blocks(index):
    """The root of the embedded dataset."""
    return Path(index.splits["train"].shards[0]).parents[2]


@pytest.fixture(scope="module", params=KINDS)
def root(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot")
    version, options = KINDS[request.param]
    written.write(folder / "mine", version, **options)
    return folder


def test_the_index_holds_what_was_recorded(root, tmp_path):
    split = open_index(root, MINE, tmp_path, ALL).splits["train"]
    assert split.length.tolist() == list(LENGTHS)
    for n, length in enumerate(LENGTHS):
        rows = written.columns(n, length, 0)
        inside = slice(int(split.first[n]), int(split.first[n]) + length)
        recorded = np.array(rows["action"].to_pylist(), np.float32)
        np.testing.assert_array_equal(split.actions[inside], recorded)
        recorded = np.array(rows["observation.state"].to_pylist(), np.float32)
        np.testing.assert_array_equal(split.state[inside], recorded)
        steps = np.arange(inside.start, inside.stop)
        said = split.told(steps, np.full(length, n), None)
        tasks = [TASKS[i] for i in rows["task_index"].to_pylist()]
        assert [split.sentences[i] for i in said] == tasks


def test_every_frame_of_a_batch_is_the_one_of_its_step(root, tmp_path):
    index = open_index(root, MINE, tmp_path, ALL)
    split = index.splits["train"]
    loader = make(index, window=1, batch_size=sum(LENGTHS), future=(3,), **BOTH)
    spec = member(index).state_spec
    (batch,) = take(loader, 0, 1)
    seen = set()
    for row in range(sum(LENGTHS)):
        first = number(batch.obs.images[0][row, 0])
        episode, step = divmod(first - 1, 256)[0], (first - 1) % 256 // 2
        assert number(batch.obs.images[1][row, 0]) == told(episode, step, 1)
        at = int(split.first[episode]) + step
        wanted = spec.normalise(split.state[at : at + 1])[0]
        np.testing.assert_array_equal(batch.obs.proprio[row, 0], wanted)
        seen.add((episode, step))
    assert len(seen) == sum(LENGTHS)


def test_frames_ahead_are_the_right_ones(root, tmp_path):
    batch = make(open_index(root, MINE, tmp_path, ALL), window=1, future=(3,)).episode(3)
    shown = [number(pixels) for pixels in batch.future.images[0][:, 0, 0]]
    assert shown[:-3] == [told(3, t + 3, 0) for t in range(LENGTHS[3] - 3)]


def test_a_frame_is_decoded_by_one_seek_to_the_key_frame_before_it(tmp_path, monkeypatch):
    path = tmp_path / "film.mp4"
    written.film(path, range(1, 101), gop=10)
    base = video.timeline(str(path)).base
    stamps = [round(t / written.FPS / base) for t in (57, 58, 58, 60)]
    decoded = []
    forward = video._decoded
    monkeypatch.setattr(
        video, "_decoded", lambda *a: ((decoded.append(f.pts), f)[1] for f in forward(*a))
    )
    assert [number(f) for f in video.frames(str(path), stamps)] == [58, 59, 59, 61]
    assert [round(pts * base * written.FPS) for pts in decoded] == list(range(50, 61))


def test_both_formats_in_one_mixture(root, written_blocks, tmp_path):
    """And the batches of a run that goes on at a position are those of one that was not stopped."""
    mine = open_index(root, MINE, tmp_path / "a")
    blocks = open_index(written_blocks, BLOCKS, tmp_path / "b")
    loader = make(mine, blocks, batch_size=9, ram_budget=3 * 10**5, windows_per_visit=4, **BOTH)
    batches = take(loader, 0, 12)
    again = make(mine, blocks, batch_size=9, ram_budget=3 * 10**5, windows_per_visit=4, **BOTH)
    same(batches[7:], take(again, 7, 5))
    filmed = [
        number(pixels) > 0 and pixels.std() > 60
        for batch in batches
        for pixels in batch.obs.images[0][:, -1]
    ]
    assert 0 < sum(filmed) < len(filmed)


def test_a_bucket_gives_the_same(root, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in (root / "mine").rglob("*"):
        if path.is_file() and ".vla_jax_index" not in path.parts:
            memory.pipe_file(f"/lerobot/{path.relative_to(root)}", path.read_bytes())
    try:
        far = open_index("memory://lerobot", MINE, tmp_path / "far")
        near = open_index(root, MINE, tmp_path / "near")
        assert far.digest == near.digest
        same(take(make(far, **BOTH), 0, 2), take(make(near, **BOTH), 0, 2))
    finally:
        memory.rm("/lerobot", recursive=True)


def test_parts_of_other_jobs_make_the_same_index(root, tmp_path):
    whole = open_index(root, MINE, tmp_path / "whole")
    for job in range(2):
        build_parts(root, MINE, (job, 2), tmp_path / "parts")
    joined = open_index(root, MINE, tmp_path / "parts")
    assert joined.digest == whole.digest
    assert joined.splits["train"].shards == whole.splits["train"].shards


def test_held_out_episodes_are_the_last(root, tmp_path):
    index = open_index(root, MINE, tmp_path, Selection(held_out=2))
    assert index.splits["train"].length.tolist() == list(LENGTHS[:4])
    assert index.splits["val"].length.tolist() == list(LENGTHS[4:])
    batch = make(member(index, "val")).episode(1)
    assert number(batch.obs.images[0][3, -1]) == told(5, 3, 0)


def test_a_folder_describes_itself(root):
    dataset = lerobot.described(str(root / "mine"))
    assert dataset.cameras == MINE.cameras
    assert dataset.action_names == dataset.state_names == written.NAMES
    assert (dataset.binary, dataset.control_hz, dataset.robot) == ((), 10.0, "so100")
    batch = data_pipelines.open(root, "mine", LoaderConfig(image_size=(32,))).episode(1)
    assert [number(pixels) for pixels in batch.obs.images[0][:, -1]] == [
        told(1, t, 0) for t in range(LENGTHS[1])
    ]
    assert lerobot.found(str(root), (("mine", 1.0), ("bridge", 1.0)), DATASETS).keys() == {"mine"}


def test_names_and_cameras_that_a_folder_does_not_give(tmp_path):
    written.write(tmp_path / "mine", "v3.0")

    def change(info):
        features = info["features"]
        features["action"]["names"] = {"motors": ["a", "b"]}
        features["observation.state"]["names"] = {"motors": list("abcdefg")}
        for key in ("side", "top", "back", "left_wrist"):
            features[f"observation.images.{key}"] = features[CAMERAS[0]]

    edit(tmp_path / "mine/meta/info.json", change)
    dataset = lerobot.described(str(tmp_path / "mine"))
    assert dataset.action_names == tuple(f"action_{i}" for i in range(1, 8))
    assert dataset.state_names == tuple("abcdefg")
    assert dataset.cameras["secondary"] == "observation.images.side"
    assert "top, observation.images.back, observation.images.left_wrist" in dataset.notes[1]
    edit(tmp_path / "mine/meta/info.json", lambda info: info["features"].pop("action"))
    with pytest.raises(
        ValueError, match=r"expected a feature 'action', got .*describe the dataset"
    ):
        lerobot.described(str(tmp_path / "mine"))
