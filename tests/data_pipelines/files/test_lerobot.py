"""LeRobot folders that are wrong in one way: each is refused by name."""

import contextlib
import dataclasses
import json
import os
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import mixture, report
from data_pipelines.index import open_index
from data_pipelines.selection import Selection
from data_pipelines.standardise import Recipe
from experiments import index_data
from tests.data_pipelines import lerobot_files as written
from tests.data_pipelines.blocks_files import edit
from tests.data_pipelines.lerobot_files import CAMERAS, FPS, LENGTHS, MINE, told

OLD_ROWS = "data/chunk-000/episode_000002.parquet"
OLD_FILM = f"videos/chunk-000/{CAMERAS[0]}/episode_000002.mp4"
NEW_ROWS = "data/chunk-000/file-000.parquet"
NEW_FILM = f"videos/{CAMERAS[0]}/chunk-000/file-001.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def old(tmp_path):
    written.write(tmp_path / "mine", "v2.1")
    return tmp_path / "mine"


@pytest.fixture
def new(tmp_path):
    written.write(tmp_path / "mine", "v3.0")
    return tmp_path / "mine"


def index(folder, dataset=MINE, **chosen):
    return open_index(folder.parent, dataset, selection=Selection(held_out=0, **chosen))


def rewrite(path, change):
    """Applies `change(rows by column)` to a parquet file."""
    table = pq.read_table(path)
    rows = table.to_pydict()
    change(rows)
    kinds = {field.name: field.type for field in table.schema}
    table = pa.table({key: pa.array(value, kinds.get(key)) for key, value in rows.items()})
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("version", "fix"),
    [
        ("v1.6", "convert it with lerobot's scripts"),
        ("v2.0", "convert it with lerobot's scripts"),
        ("v3.1", "newer than what is read here"),
        ("v4.0", "newer than what is read here"),
    ],
)
def test_another_version_is_named(new, version, fix):
    edit(new / "meta/info.json", lambda info: info.update(codebase_version=version))
    with pytest.raises(ValueError, match=rf"meta/info.json: expected LeRobot v2.1 or v3.0, got"
                       rf" {version}; .*{fix}"):  # fmt: skip
        index(new)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"cameras": {"primary": "observation.images.top"}},
            "camera 'primary' as the feature 'observation.images.top' of picture, got no such"
            " feature; the frames have action, .*observation.images.front",
        ),
        (
            {"standardise": Recipe(actions=("actions[0:7]",))},
            "column 'actions' as the feature 'actions' of numbers, got no such feature",
        ),
        (
            {"cameras": {"primary": "action"}},
            "camera 'primary' as the feature 'action' of picture, got one of float32",
        ),
        ({"language": "said"}, "feature 'said' of text, got no such feature; .* task"),
        ({"require": "success"}, "asks for require, which are of RLDS episodes"),
    ],
)
def test_a_promise_that_the_files_do_not_keep(old, changed, message):
    with pytest.raises(ValueError, match=message):
        index(old, dataclasses.replace(MINE, state_names=(), **changed))


def test_depth_is_no_camera(new):
    edit(
        new / "meta/info.json",
        lambda info: info["features"][CAMERAS[0]].update(info={"video.is_depth_map": True}),
    )
    with pytest.raises(ValueError, match="depth is no camera: name a colour feature"):
        index(new)


@pytest.mark.parametrize("name", [OLD_ROWS, OLD_FILM])
def test_a_missing_file_of_v2(old, name):
    (old / name).unlink()
    with pytest.raises(ValueError, match=rf"expected 18 files .* got 17; missing \['{name}'\]"):
        index(old)


@pytest.mark.parametrize("name", [NEW_ROWS, NEW_FILM])
def test_a_missing_file_of_v3(new, name):
    (new / name).unlink()
    with pytest.raises(ValueError, match=rf"expected 6 files .* got 5; missing \['{name}'\]"):
        index(new)


@pytest.mark.parametrize("name", ["meta/tasks.parquet", EPISODES])
def test_a_missing_file_of_meta(new, name):
    (new / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: expected the file LeRobot writes, found none"):
        index(new)


def test_what_is_not_there_is_named_with_what_brings_it(tmp_path):
    (line,) = mixture.problems(str(tmp_path), [MINE])
    assert line == f"mine: no meta/info.json and no HDF5 file in {tmp_path}/mine; ask Ada"


def test_both_formats_in_one_folder_are_refused(old):
    (old / "1.0.0").mkdir()
    (old / "1.0.0/dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected RLDS, LeRobot or HDF5 files, got meta/info"):
        index(old, dataclasses.replace(MINE, version="1.0.0"))


@pytest.mark.parametrize("field", ["total_episodes", "total_frames"])
def test_meta_that_contradicts_itself(new, field):
    edit(new / "meta/info.json", lambda info: info.update({field: 7}))
    with pytest.raises(ValueError, match=rf"expected 7 \({field}\), meta/episodes lists"):
        index(new)


def test_a_video_that_ends_early(old):
    written.film(old / OLD_FILM, [told(2, t, 0) for t in range(LENGTHS[2] - 3)])
    with pytest.raises(
        ValueError,
        match=rf"{OLD_ROWS}: record 0: step 14: episode 2: {CAMERAS[0]}: {OLD_FILM}: expected a"
        r" frame at 1.400000 s, the video ends early: its 14 frames end at 1.300000 s; encode",
    ):
        index(old)


def test_a_video_that_is_cut_short(new):
    body = (new / NEW_FILM).read_bytes()
    (new / NEW_FILM).write_bytes(body[: len(body) // 2])
    with pytest.raises(ValueError, match=f"{NEW_FILM}: expected a whole video, got a file that is"):
        index(new)


def test_a_variable_frame_rate(old):
    times = np.arange(LENGTHS[2]) / FPS
    times[6:] += 0.03
    written.film(old / OLD_FILM, [told(2, t, 0) for t in range(LENGTHS[2])], times)
    with pytest.raises(
        ValueError,
        match=r"step 6: episode 2: .* expected a frame at 0.600000 s \(10 a second\), the nearest"
        r" is 0.030000 s off: a variable frame rate, frames follow each other by 0.100000 to"
        r" 0.130000 s",
    ):
        index(old)


def test_half_a_frame_is_an_error(new):
    def shift(rows):
        name = f"videos/{CAMERAS[0]}/from_timestamp"
        rows[name][3] += 0.5 / FPS

    rewrite(new / EPISODES, shift)
    with pytest.raises(ValueError, match=r"episode 3: .* expected a frame at 1.750000 s .* the"
                       r" nearest is 0.050000 s off; encode"):  # fmt: skip
        index(new)


def test_wrong_timestamps(old):
    rewrite(old / OLD_ROWS, lambda rows: rows["timestamp"].__setitem__(5, 0.52))
    with pytest.raises(
        ValueError,
        match=r"step 5: episode 2: timestamp: expected 0.500000 s, one frame of 10 a second after"
        r" the one before, got 0.520000",
    ):
        index(old)


@pytest.mark.parametrize(
    ("column", "step", "value", "message"),
    [
        ("action", 3, [float("nan")] * 7, r"action\[0\]: expected a finite number, got nan"),
        ("action", 3, [0.0] * 6, r"action: expected 7 numbers in each of 17 rows, got 118"),
        ("action", 3, None, r"action: expected 7 numbers in each of 17 rows"),
        ("frame_index", 3, 9, r"step 3: episode 2: frame_index: expected 3, the frames in their"),
        ("task_index", 3, 9, r"task_index: expected one of the 3 tasks of meta/tasks, got 9"),
        ("episode_index", 3, 1, r"expected rows of the episodes that meta/ lists, got some of"),
        ("action", 3, [9.0] * 7, r"episode 2: action: meta/ says of it max \S+ in column 0, the"
         " data has 9; the data or its statistics were changed"),
    ],
)  # fmt: skip
def test_wrong_rows(old, column, step, value, message):
    rewrite(old / OLD_ROWS, lambda rows: rows[column].__setitem__(step, value))
    with pytest.raises(ValueError, match=rf"{OLD_ROWS}: .*{message}"):
        index(old)


def test_more_rows_than_meta_says(new):
    rewrite(new / EPISODES, lambda rows: rows["length"].__setitem__(1, LENGTHS[1] - 2))
    edit(new / "meta/info.json", lambda info: info.pop("total_frames"))
    with pytest.raises(ValueError, match=r"episode 1: episode_index: expected 7 rows in a row"):
        index(new)


def test_rows_of_an_episode_in_two_places(new):
    def exchange(rows):
        for values in rows.values():
            values[2], values[40] = values[40], values[2]

    rewrite(new / NEW_ROWS, exchange)
    with pytest.raises(ValueError, match=r"expected 23 rows in a row .* got 2 and others of it"):
        index(new)


def test_an_episode_twice_or_half(new):
    rewrite(new / EPISODES, lambda rows: rows["episode_index"].__setitem__(1, 0))
    with pytest.raises(ValueError, match=r"expected every episode once, .* lists \[0\] more often"):
        index(new)
    rewrite(new / EPISODES, lambda rows: rows["episode_index"].__setitem__(1, None))
    rewrite(new / EPISODES, lambda rows: rows["length"].__setitem__(1, None))
    with pytest.raises(ValueError, match=r"meta/episodes: expected what LeRobot writes there"):
        index(new)


def test_fewer_rows_than_meta_says(old):
    def cut(rows):
        for values in rows.values():
            values.pop()

    rewrite(old / OLD_ROWS, cut)
    with pytest.raises(ValueError, match=r"episode_index: expected 17 rows in a row .* got 16"):
        index(old)


def test_statistics_may_be_computed_in_float32(old):
    """A joint that hardly moves far from 0, and its standard deviation as lerobot computes it: from
    the mean of squares.
    """
    values = (1000 + np.random.default_rng(0).normal(0, 0.05, (LENGTHS[2], 7))).astype(np.float32)
    rewrite(old / OLD_ROWS, lambda rows: rows.update(action=values.tolist()))
    mean, squares = values.mean(0), (values * values).mean(0)
    std = np.sqrt(np.maximum(squares - mean * mean, 0))
    assert (np.abs(std - values.std(0)) > 0.02).any()
    said = {"min": values.min(0), "max": values.max(0), "mean": mean, "std": std}
    path = old / "meta/episodes_stats.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["stats"]["action"] = {name: value.tolist() for name, value in said.items()}
    written.lines(path, rows)
    dataset = dataclasses.replace(MINE, standardise=Recipe(("action",), ("observation.state",)))
    assert index(old, dataset).splits["train"].actions.max() > 999
    rows[2]["stats"]["action"]["std"][3] = 9.0
    written.lines(path, rows)
    with pytest.raises(ValueError, match=r"meta/ says of it std 9 in column 3"):
        index(old, dataset)


def test_statistics_of_the_whole_are_checked(new):
    edit(new / "meta/stats.json", lambda stats: stats["action"]["mean"].__setitem__(2, 0.5))
    with pytest.raises(ValueError, match=r"mine: action: meta/stats.json has mean 0.5 in column 2"):
        index(new)
    with pytest.raises(ValueError, match=r"stats.json has mean 0.5 in column 2"):
        report.validate(str(new), MINE, lambda error: None)
    # With an episode left out they are of other data.
    chosen = {"quarantine": frozenset({(NEW_ROWS, 1)})}
    assert index(new, **chosen).splits["train"].record.tolist() == [0, 2, 0, 1, 2]


def test_a_damaged_parquet_file(new):
    body = (new / NEW_ROWS).read_bytes()
    (new / NEW_ROWS).write_bytes(body[:-40])
    with pytest.raises(ValueError, match=f"{NEW_ROWS}: damaged: .*download the file again"):
        index(new)


def test_deleted_episodes_leave_the_others_their_numbers(tmp_path):
    written.write_old(tmp_path / "mine", numbers=(0, 2, 5))
    split = index(tmp_path / "mine").splits["train"]
    assert [name.rpartition("_")[2] for name in split.listed] == [
        f"{n:06d}.parquet" for n in (0, 2, 5)
    ]
    assert split.length.tolist() == [LENGTHS[n] for n in (0, 2, 5)]


def test_an_image_outside_of_the_file(tmp_path):
    written.write(tmp_path / "mine", "v2.1", images=CAMERAS[:1])

    def take_out(rows):
        rows[CAMERAS[0]][4] = {"bytes": None, "path": "images/4.png"}

    rewrite(tmp_path / "mine" / OLD_ROWS, take_out)
    with pytest.raises(ValueError, match="expected the bytes of every image in the file"):
        index(tmp_path / "mine")


def test_validate_names_what_does_not_decode(old):
    body = bytearray((old / OLD_FILM).read_bytes())
    begin = body.index(b"mdat") + 4
    size = int.from_bytes(body[begin - 8 : begin - 4], "big") - 8
    body[begin + size // 2 : begin + size // 2 + 40] = bytes(40)
    (old / OLD_FILM).write_bytes(body)
    problems = []
    report.validate(str(old), MINE, problems.append)
    assert problems
    assert {(p.path, p.field) for p in problems} == {(str(old / OLD_ROWS), "primary")}


@pytest.mark.slow
def test_what_validate_lists_is_left_out(old, tmp_path, capsys):
    rewrite(old / OLD_ROWS, lambda rows: rows["frame_index"].__setitem__(3, 9))
    described, listed = tmp_path / "own.py", tmp_path / "bad.txt"
    described.write_text(
        "from tests.data_pipelines.lerobot_files import MINE\nDATASETS = {'mine': MINE}\n"
    )
    options = [f"--root={tmp_path}", f"--datasets={described}", "--dataset=mine"]
    assert index_data.main([*options, "--validate", f"--quarantine={listed}"]) == 1
    assert listed.read_text().startswith(f"{OLD_ROWS} 0  # episode 2: frame_index: expected 3")
    assert index_data.main([*options, f"--quarantine={listed}", f"--out={tmp_path}"]) == 0
    assert "(1 episodes in quarantine left out)" in capsys.readouterr().out


@pytest.mark.parametrize("name", [NEW_ROWS, NEW_FILM, EPISODES, "meta/tasks.parquet"])
def test_a_changed_file_is_noticed(new, name, capsys):
    first = index(new)
    if name == NEW_FILM:  # the same length in bytes, an older stamp
        written.film(new / name, [told(e, t, 1) for e in (2, 3, 4, 5) for t in range(LENGTHS[e])])
    elif name == NEW_ROWS:
        rewrite(new / name, lambda rows: rows["task_index"].__setitem__(0, 2))
    elif name == EPISODES:
        rewrite(new / name, lambda rows: rows["stats/action/max"][0].__setitem__(0, 99.0))
        with pytest.raises(ValueError, match="meta/ says of it max 99 in column 0"):
            index(new)
        return
    else:
        names = ["wipe the table", "open the drawer", "close the drawer"]
        rewrite(new / name, lambda rows: rows.update({"__index_level_0__": names}))
    again = index(new)
    assert "building it again" in capsys.readouterr().out
    assert name == NEW_FILM or again.digest != first.digest


def test_a_touched_file_is_not_read_again(new, capsys):
    first = index(new)
    capsys.readouterr()
    for name in (NEW_ROWS, NEW_FILM):
        os.utime(new / name, (1, 1))
    assert index(new).digest == first.digest
    assert capsys.readouterr().out == ""
    body = bytearray((new / NEW_FILM).read_bytes())
    body[len(body) // 2] ^= 1
    (new / NEW_FILM).write_bytes(body)
    index(new)
    assert f"{NEW_FILM}: its records have other bytes" in capsys.readouterr().out


def test_splits_of_info(new):
    edit(new / "meta/info.json", lambda info: info.update(splits={"train": "0:3", "test": "3:6"}))
    splits = index(new).splits
    assert {name: split.length.tolist() for name, split in splits.items()} == {
        "train": list(LENGTHS[:3]),
        "test": list(LENGTHS[3:]),
    }
    edit(new / "meta/info.json", lambda info: info.update(splits={"train": "0:4", "test": "4:6"}))
    with pytest.raises(ValueError, match="expected every data file in one of the splits"):
        index(new)


def test_meta_that_is_no_json(old):
    (old / "meta/tasks.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match=r"tasks.jsonl: expected a JSON object a line"):
        index(old)
    (old / "meta/info.json").write_text(json.dumps({"codebase_version": "v2.1"}))
    with pytest.raises(ValueError, match="expected features, fps, data_path as LeRobot writes it"):
        index(old)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_whatever_is_damaged_ends_with_a_message(tmp_path, version):
    """Any file, any bytes, and values of another kind in meta/: a ValueError, or the set as it
    is.
    """
    written.write(tmp_path / "mine", version, images=CAMERAS[1:])
    files = sorted(path for path in (tmp_path / "mine").rglob("*") if path.is_file())
    draw = random.Random(0)
    for _ in range(120):
        path = draw.choice(files)
        body = path.read_bytes()
        path.write_bytes(damaged(body, draw, path.suffix in (".json", ".jsonl")))
        with contextlib.suppress(ValueError, OSError):
            report.validate(str(tmp_path / "mine"), MINE, lambda error: None)
        path.write_bytes(body)


def damaged(body, draw, words):
    """Bytes with some changed; of JSON also one of its values, another in its place."""
    if words and draw.random() < 0.7:
        text = body.decode()
        found = draw.choice(list(re.finditer(r'"[^"]*"|-?[0-9.]+|\[|\]', text)))
        other = draw.choice(("null", "-1", '"x"', "[]", "{}", "1e99", "true", "0", '""'))
        return (text[: found.start()] + other + text[found.end() :]).encode()
    out = bytearray(body)
    for _ in range(draw.choice((1, 3, 20))):
        out[draw.randrange(len(out))] = draw.randrange(256)
    return bytes(out[: draw.randrange(len(out))] if draw.random() < 0.2 else out)
