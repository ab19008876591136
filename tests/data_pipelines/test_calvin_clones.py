"""The user's clones of CALVIN: what is said of those that are not whole, and how its blocks are
placed.
"""

import os
import subprocess
from pathlib import Path

import pytest

from data_pipelines.builders.calvin_clones import NEEDED, fnv1_32, located, quiet


def clone(folder: Path, files: tuple[str, ...]) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("x")
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    return folder


@pytest.fixture
def clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    made = {name: clone(tmp_path / name, files) for name, files in NEEDED.items()}
    for name, folder in made.items():
        monkeypatch.setenv(name, str(folder))
    return made


def test_whole_clones_are_found_and_changes_of_theirs_seen(clones: dict[str, Path]) -> None:
    found = located()
    assert (found.calvin, found.env) == (clones["CALVIN_ROOT"], clones["CALVIN_ENV_ROOT"])
    assert all(len(commit) == 40 for commit in found.commits().values())
    (found.env / NEEDED["CALVIN_ENV_ROOT"][0]).write_text("y")
    assert found.commits()["calvin_env"].endswith("-dirty")


def test_what_is_missing_is_named(
    clones: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = clones["CALVIN_ENV_ROOT"] / "conf/scene/calvin_scene_D.yaml"
    scene.unlink()
    with pytest.raises(ValueError, match=r"1 are missing: conf/scene/calvin_scene_D\.yaml; git"):
        located()
    inside = clones["CALVIN_ROOT"] / "calvin_env"  # a submodule that was not fetched
    inside.mkdir()
    monkeypatch.delenv("CALVIN_ENV_ROOT")
    with pytest.raises(
        ValueError, match=r"CALVIN_ENV_ROOT=.*got a folder of the clone .*git clone"
    ):
        located()
    monkeypatch.setenv("CALVIN_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"CALVIN_ROOT=.*nowhere: expected a clone of mees/calvin"):
        located()
    monkeypatch.delenv("CALVIN_ROOT")
    with pytest.raises(ValueError, match="CALVIN_ROOT: expected the folder of a clone"):
        located()


def test_hashes_are_those_of_pyhash() -> None:
    assert fnv1_32("hello world") == 3799943344  # of pyhash 0.9.3


def test_what_is_written_inside_is_kept_from_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with quiet() as said:
        os.write(1, b"by C\n")
        os.write(2, b"and to stderr\n")
        assert sorted(said().splitlines()) == ["and to stderr", "by C"]
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")
