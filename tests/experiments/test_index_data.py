"""The command a user looks at data with."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.builders.blocks import write_blocks
from data_pipelines.quarantine import read
from experiments import index_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("blocks")
    write_blocks(root, train=6, val=2)
    return root


def run(*args: object) -> int:
    return index_data.main([str(arg) for arg in args])


def test_report_numbers_and_picture(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--root", root, "--dataset", "blocks", "--out", tmp_path)
    text = capsys.readouterr().out
    for line in (
        "blocks, train: 6 episodes",
        "blocks, val: 2 episodes",
        "  gripper: ",
        "at lag 0",
        "clipped",
        "idle",
    ):
        assert line in text
    numbers = json.loads((tmp_path / "blocks.json").read_text())["splits"]["train"]
    assert numbers["episodes"] == 6
    assert numbers["actions"]["roll"]["constant"]
    with Image.open(tmp_path / "blocks.png") as picture:
        assert picture.size[0] == 1600
        assert picture.size[1] > 1200  # histograms and six film strips


def test_validate_passes_good_data(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--root", root, "--dataset", "blocks", "--validate") == 0
    assert "0 problems in 8 readable episodes" in capsys.readouterr().out


def test_validate_names_bad_episodes_and_lists_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_blocks(tmp_path, train=4, val=2)
    file = sorted((tmp_path / "blocks" / "1.0.0").glob("*-train*"))[1]
    body = bytearray(file.read_bytes())
    body[200] ^= 4
    file.write_bytes(body)
    listed = ("--quarantine", tmp_path / "bad.txt")
    assert run("--root", tmp_path, "--dataset", "blocks", "--validate", *listed) == 1
    text = capsys.readouterr().out
    assert f"{file}: record 0: damaged: " in text
    assert "download the file again" in text
    assert read(tmp_path / "bad.txt") == {(file.name, 0)}
    with pytest.raises(ValueError, match=r"record 0: damaged.*\n\(--validate lists everything"):
        run("--root", tmp_path, "--dataset", "blocks", "--out", tmp_path)
    assert run("--root", tmp_path, "--dataset", "blocks", "--out", tmp_path, *listed) == 0
    assert "(1 episodes in quarantine left out)" in capsys.readouterr().out


def test_a_users_own_dataset_needs_no_edit_of_ours(root: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import dataclasses\nfrom data_pipelines.datasets import DATASETS as ours\nmine ="
        " dataclasses.replace(ours['blocks'], name='mine', cameras={'wrist':"
        " 'observation/image'})\nDATASETS = {'mine': mine}\n"
    )
    run("--root", root, "--dataset", "mine", "--datasets", tmp_path / "own.py", "--out", tmp_path)
    assert (tmp_path / "mine.png").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--root", "/nowhere", "--dataset", "blocks"), "/nowhere/blocks/1.0.0/dataset_info.json"),
        (("--root", "/nowhere", "--dataset", "blogs"), "--dataset: expected one of blocks, bridge"),
        (
            ("--root", "/nowhere", "--dataset", "blocks", "--quarantine", "x"),
            "--quarantine: no file x",
        ),
    ],
)
def test_what_cannot_work_is_refused(args: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(*args)


def test_a_job_is_one_of_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--root", "/nowhere", "--dataset", "blocks", "--shard", "8/8")
    assert (
        "--shard: expected I/N with I from 0 to N-1, as 3/8, got '8/8'" in capsys.readouterr().err
    )
