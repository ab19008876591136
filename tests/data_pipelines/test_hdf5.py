"""HDF5 datasets: the same windows as from RLDS and LeRobot, every frame the right one; what is
refused, by name.
"""

import dataclasses
import os
import re
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest

from data_pipelines import convert, images, mixture, report
from data_pipelines.files import formats, hdf5
from data_pipelines.index import build_parts, open_index
from data_pipelines.selection import Selection
from tests.data_pipelines import hdf5_files as written
from tests.data_pipelines import lerobot_files
from tests.data_pipelines.hdf5_files import ALOHA, LENGTHS, LIBERO, WORDS
from tests.data_pipelines.lerobot_files import MINE, number, picture, told
from tests.data_pipelines.loading import BLOCKS, make, same, take

ALL = Selection(held_out=0)
BOTH = {"cameras": ("primary", "wrist"), "image_size": (32, 32)}


def libero(folder):
    written.write_demos(folder / "libero/demo.hdf5")


def robomimic(folder):
    """Two files; chunks of several frames and a part of the rows of each, as h5py guesses them."""
    options = {"chunks": (4, 32, 64, 3), "compression": "gzip"}
    written.write_demos(folder / "libero/a.hdf5", (0, 1), **options)
    written.write_demos(folder / "libero/b.h5", (2, 10), **options)


def aloha(folder):
    written.write_aloha(folder / "aloha")


KINDS = {
    "LIBERO": (libero, LIBERO),
    "robomimic": (robomimic, LIBERO),
    "ALOHA": (aloha, ALOHA),
    "ALOHA, raw": (lambda folder: written.write_aloha(folder / "aloha", compress=False), ALOHA),
}


@pytest.fixture(scope="module", params=KINDS)
def there(request, tmp_path_factory):
    """(root, what is there)."""
    write, dataset = KINDS[request.param]
    root = tmp_path_factory.mktemp("hdf5")
    write(root)
    return root, dataset


def test_the_index_holds_what_was_recorded(there, tmp_path):
    root, dataset = there
    split = open_index(root, dataset, tmp_path, ALL).splits["train"]
    assert split.length.tolist() == list(LENGTHS.values())
    assert split.sentences == ((WORDS,) if dataset is LIBERO else (ALOHA.instruction,))
    for episode, demo in enumerate(LENGTHS):
        rows = slice(int(split.first[episode]), int(split.first[episode]) + LENGTHS[demo])
        actions, states = written.numbers(demo, len(dataset.action_names))
        if dataset is LIBERO:
            actions[:, 6] = 1 - actions[:, 6]
        np.testing.assert_array_equal(split.actions[rows], actions.astype(np.float32))
        np.testing.assert_array_equal(split.state[rows], states.astype(np.float32))
        for camera, slot in enumerate(dataset.cameras):
            shown = [
                number(images.raw(each))
                for each in split.pictures(slot, np.arange(rows.start, rows.stop))
            ]
            assert shown == [told(demo, t, camera) for t in range(LENGTHS[demo])]
    np.testing.assert_allclose(split.stats["action"]["max"], split.actions.max(0))


def test_frames_of_batches_and_ahead_are_the_right_ones(there, tmp_path):
    root, dataset = there
    loader = make(open_index(root, dataset, tmp_path, ALL), window=1, future=(3,))
    for episode, (demo, length) in enumerate(LENGTHS.items()):
        batch = loader.episode(episode)
        now = [number(pixels) for pixels in batch.obs.images[0][:, -1]]
        assert now == [told(demo, t, 0) for t in range(length)]
        ahead = [number(pixels) for pixels in batch.future.images[0][:, 0, 0]]
        assert ahead[:-3] == now[3:]


def test_three_formats_in_one_mixture_go_on_where_they_were(index, tmp_path):
    root = tmp_path / "data"
    robomimic(root)
    lerobot_files.write(root / "mine", "v3.0")
    opened = [
        index,
        open_index(root, MINE, tmp_path / "a"),
        open_index(root, LIBERO, tmp_path / "b"),
    ]
    options = {"batch_size": 9, "ram_budget": 3 * 10**5, "windows_per_visit": 4, **BOTH}
    batches = take(make(*opened, **options), 0, 12)
    same(batches[7:], take(make(*opened, **options), 7, 5))
    assert {int(i) for batch in batches for i in np.unique(batch.dataset_id)} == {0, 1, 2}


def test_a_bucket_and_parts_of_other_jobs_give_the_same(there, tmp_path):
    root, dataset = there
    near = open_index(root, dataset, tmp_path / "near")
    for job in range(2):
        build_parts(root, dataset, (job, 2), tmp_path / "parts")
    assert open_index(root, dataset, tmp_path / "parts").digest == near.digest
    memory = fsspec.filesystem("memory")
    for path in root.glob("*/*.h*5"):
        memory.pipe_file(f"/hdf5/{path.relative_to(root)}", path.read_bytes())
    try:
        far = open_index("memory://hdf5", dataset, tmp_path / "far")
        assert far.digest == near.digest
        same(take(make(far), 0, 2), take(make(near), 0, 2))
    finally:
        memory.rm("/hdf5", recursive=True)


def test_held_out_episodes_are_the_last(there, tmp_path):
    root, dataset = there
    index = open_index(root, dataset, tmp_path, Selection(held_out=1))
    assert index.splits["train"].length.tolist() == list(LENGTHS.values())[:3]
    assert index.splits["val"].length.tolist() == [LENGTHS[10]]
    shown = next(index.splits["val"].pictures("primary", np.arange(1)))
    assert number(images.raw(shown)) == told(10, 0, 0)


def test_an_index_is_kept_and_built_again_for_other_files(tmp_path, capsys):
    libero(tmp_path)
    path = tmp_path / "libero/demo.hdf5"
    first = open_index(tmp_path, LIBERO)
    capsys.readouterr()
    os.utime(path, ns=(1, 1))  # copied: the same bytes
    assert open_index(tmp_path, LIBERO).digest == first.digest
    assert capsys.readouterr().out == ""
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][3, 0] = 5
    again = open_index(tmp_path, LIBERO)
    assert "the index is stale (demo.hdf5" in capsys.readouterr().out
    assert again.splits["train"].actions[LENGTHS[0] + 3, 0] == 5


def test_slices_are_of_whole_chunks_and_bounded(tmp_path, monkeypatch):
    robomimic(tmp_path)
    path, key = str(tmp_path / "libero/b.h5"), LIBERO.cameras["primary"]
    monkeypatch.setattr(hdf5, "READ", 6 * 64 * 64 * 3)  # bytes: room for one chunk of 4 frames
    asked = []
    read = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, at: (asked.append(at), read(self, at))[1]
    )
    rows = np.array([2, 3, 4, 5, 5, 9])
    shown = [number(each) for each in hdf5.frames(path, key, 2 * hdf5.ROWS + rows)]
    assert shown == [told(2, t, 0) for t in rows.tolist()]
    assert asked == [slice(2, 4), slice(4, 6), slice(9, 10)]
    with pytest.raises(ValueError, match="expected row 17, it ends at 17"):
        list(hdf5.frames(path, key, 2 * hdf5.ROWS + np.array([16, 17])))


def test_gray_is_repeated_alpha_dropped_and_half_a_jpeg_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["gray"] = picture(9)[None, ..., :1]
        file["alpha"] = np.concatenate([picture(9), picture(3)[..., :1]], -1)[None]
        whole = written.padded(picture(9)[None])
        file["half"] = np.where(np.arange(whole.shape[1]) < whole.shape[1] // 2, whole, 0)
    place = np.zeros(1, np.int64)
    for key in ("gray", "alpha"):
        (shown,) = hdf5.frames(str(tmp_path / "a.h5"), key, place)
        np.testing.assert_array_equal(images.raw(shown), picture(9))
    (half,) = hdf5.frames(str(tmp_path / "a.h5"), "half", place)
    with pytest.raises(ValueError, match="expected a whole JPEG or PNG"):
        images.raw(half)


@pytest.mark.parametrize("to", ["lerobot", "rlds"])
def test_converted_to_another_format(tmp_path, to):
    written.write_demos(tmp_path / "libero/demo.hdf5", (0, 1))
    with h5py.File(tmp_path / "libero/demo.hdf5", "a") as file:
        for demo in (0, 1):  # float64 has no place in a TFRecord
            for key in ("actions", "obs/ee"):
                values = file[f"data/demo_{demo}/{key}"][()].astype(np.float32)
                del file[f"data/demo_{demo}/{key}"]
                file[f"data/demo_{demo}/{key}"] = values
    convert.convert(str(tmp_path), LIBERO, to, str(tmp_path), lossless=True)
    split = open_index(tmp_path, LIBERO, selection=ALL).splits["train"]
    other = open_index(tmp_path, convert.described(LIBERO, to, True), selection=ALL)
    np.testing.assert_array_equal(other.splits["train"].actions, split.actions)
    np.testing.assert_array_equal(other.splits["train"].state, split.state)
    assert other.splits["train"].sentences == (WORDS,)
    rows = np.arange(LENGTHS[0])
    shown = [number(images.raw(each)) for each in other.splits["train"].pictures("wrist", rows)]
    assert shown == [told(0, t, 1) for t in range(LENGTHS[0])]


def put(file, key, values):
    """Another dataset in place of one."""
    del file[key]
    if values is not None:
        file[key] = values


WRONG = {
    "NaN": (
        lambda file: put(file, "data/demo_1/actions", np.full((9, 7), np.nan)),
        r"demo.hdf5: record 1: step 0: demo_1: actions\[0\]: expected a finite number, got nan",
    ),
    "no such camera": (
        lambda file: put(file, "data/demo_1/obs/agentview_rgb", None),
        r"record 1: demo_1: obs/agentview_rgb: expected pictures, .* got no such feature",
    ),
    "depth": (
        lambda file: put(file, "data/demo_1/obs/agentview_rgb", np.zeros((9, 8, 8, 1), np.float32)),
        r"record 1: demo_1: obs/agentview_rgb: expected pictures, .* got float32 \[9, 8, 8, 1\]",
    ),
    "encoded as in no other": (
        lambda file: put(file, "data/demo_1/obs/agentview_rgb", np.zeros((9, 80), np.uint8)),
        r"record 1: demo_1: obs/agentview_rgb: expected \(64, 64, 3\) a step",
    ),
    "another length": (
        lambda file: put(file, "data/demo_1/actions", np.zeros((8, 7))),
        r"record 1: demo_1: expected as many steps in every feature, .* got .*actions 8",
    ),
    "another width": (
        lambda file: put(file, "data/demo_1/actions", np.zeros((9, 6))),
        r"record 1: demo_1: actions: expected \(7,\) a step, as in the first episode, got \(6,\)",
    ),
    "no step": (
        lambda file: [
            put(file, f"data/demo_1/{key}", np.zeros((0, *shape), kind))
            for key, shape, kind in (
                ("actions", (7,), float),
                ("obs/ee", (7,), float),
                ("obs/agentview_rgb", (64, 64, 3), np.uint8),
                ("obs/eye_in_hand_rgb", (64, 64, 3), np.uint8),
            )
        ],
        r"record 1: demo_1: expected as many steps in every feature, at least one, got",
    ),
    "texts for numbers": (
        lambda file: put(file, "data/demo_0/actions", np.array([b"a"] * 13)),
        r"demo_0: libero promises column 'actions' as 'actions': expected numbers .* there are"
        " actions, obs/agentview_rgb, obs/ee, obs/eye_in_hand_rgb, rewards",
    ),
    "another layout": (
        lambda file: file.move("data", "demos"),
        r"expected the group data of demo_N \(robomimic, LIBERO\), or action and observations"
        r" \(ALOHA\), got demos, mask",
    ),
    "something beside the demos": (
        lambda file: file.create_dataset("data/demo_7", data=1),
        r"data: expected groups demo_0, demo_1, ..., got demo_7",
    ),
    "no words": (
        lambda file: file["data"].attrs.pop("problem_info"),
        r"expected the words as an attribute 'problem_info' of the episode, .* got total; name",
    ),
    "words that are no JSON": (
        lambda file: file["data"].attrs.create("problem_info", "push"),
        r"problem_info/language_instruction: expected a text, got 'push'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_by_name(tmp_path, what):
    libero(tmp_path)
    change, message = WRONG[what]
    with h5py.File(tmp_path / "libero/demo.hdf5", "a") as file:
        change(file)
    with pytest.raises(ValueError, match=message):
        open_index(tmp_path, LIBERO)
    assert not list(tmp_path.rglob("*.index"))


def test_sensors_are_not_read_from_them(tmp_path):
    libero(tmp_path)
    described = dataclasses.replace(LIBERO, sensors={"force": "obs/ee"})
    with pytest.raises(ValueError, match="sensors force: expected none: they are read from RLDS"):
        open_index(tmp_path, described)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    """A bit of a compressed picture."""
    with h5py.File(path) as file:
        place = file["data/demo_1/obs/agentview_rgb"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 20] ^= 255
    path.write_bytes(data)


def test_a_file_cut_short_is_refused(tmp_path):
    robomimic(tmp_path)
    cut(tmp_path / "libero/b.h5")
    with pytest.raises(ValueError, match=r"b.h5: expected a whole HDF5 file, got .*truncated"):
        open_index(tmp_path, LIBERO)
    aloha(tmp_path)
    cut(tmp_path / "aloha/episode_2.hdf5")
    with pytest.raises(
        ValueError, match=r"episode_2.hdf5: record 0: expected a whole HDF5 file, got"
    ):
        open_index(tmp_path, ALOHA)
    listed = frozenset({("episode_2.hdf5", 0)})
    index = open_index(tmp_path, ALOHA, selection=Selection(quarantine=listed, held_out=0))
    assert index.splits["train"].length.tolist() == [LENGTHS[0], LENGTHS[1], LENGTHS[10]]


def test_files_of_two_layouts_are_refused(tmp_path):
    aloha(tmp_path)
    written.write_demos(tmp_path / "aloha/episode_99.hdf5")
    with pytest.raises(
        ValueError,
        match=r"episode_99.hdf5: record 0: expected action and observations \(ALOHA\) as in the",
    ):
        open_index(tmp_path, ALOHA)


def test_validate_names_all_that_is_wrong_and_quarantine_leaves_it_out(tmp_path):
    robomimic(tmp_path)
    flip(tmp_path / "libero/a.hdf5")
    with h5py.File(tmp_path / "libero/b.h5", "a") as file:
        file["data/demo_2/obs/ee"][4, 2] = np.inf
    found = []
    good, _ = report.validate(formats.folder(str(tmp_path), LIBERO), LIBERO, found.append)
    assert [(Path(each.path).name, each.record) for each in found] == [("a.hdf5", 1), ("b.h5", 0)]
    assert re.search("obs/agentview_rgb: damaged: .*read data", str(found[0]))
    assert good == 3
    listed = frozenset({("a.hdf5", 1), ("b.h5", 0)})
    split = open_index(tmp_path, LIBERO, selection=Selection(quarantine=listed, held_out=0))
    assert split.splits["train"].length.tolist() == [LENGTHS[0], LENGTHS[10]]


def test_what_is_missing_and_two_formats_at_once_are_told(tmp_path, root):
    (line,) = mixture.problems(str(tmp_path), [LIBERO])
    assert line == f"libero: no meta/info.json and no HDF5 file in {tmp_path}/libero; ask Ada"
    libero(tmp_path)
    assert mixture.problems(str(tmp_path), [LIBERO]) == []
    written.write_demos(root / "blocks/a.hdf5")
    with pytest.raises(ValueError, match=r"got a.hdf5 and 1.0.0/dataset_info.json; move all but"):
        formats.folder(str(root), BLOCKS)
    only = dataclasses.replace(LIBERO, segments=True)
    with pytest.raises(ValueError, match="libero asks for segments, which are of RLDS episodes"):
        open_index(tmp_path, only)
