"""Results beside each other: the table, and whether two end alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.rolling import beside
from experiments.rolling.results import figures


def written(folder: Path, outcomes: list[str]) -> str:
    rows: list[dict[str, Any]] = [
        {
            "episode": number, "task": "red left", "wording": ("seen", "held out")[number % 2],
            "outcome": outcome, "steps": 7, "milliseconds": [1.0], "seconds": 0.1, "jerk": {},
        }
        for number, outcome in enumerate(outcomes)
    ]  # fmt: skip
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({**figures(rows, 5.0), "episodes": rows}))
    return str(folder)


def test_each_has_a_line_and_two_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ["success", "success", "success", "out of time"]
    policy = written(tmp_path / "policy", good)
    same = written(tmp_path / "artefact", good)
    other = written(tmp_path / "random", ["out of time"] * 4)
    assert beside.main([policy, same, other, "--alike", "policy", "artefact"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["policy", "artefact", "random"]
    assert lines[1].split()[1:] == ["100.0%", "50.0%", "75.0%", "[30,", "95]", "of", "4"]
    assert lines[4] == "episodes of policy and artefact: all end alike, after as many steps"
    assert beside.main([policy, other, "--alike", "policy", "random"]) == 1
    assert "random: 0, 1, 2 do not" in capsys.readouterr().out


def test_an_episode_that_one_lacks_is_not_alike(tmp_path: Path) -> None:
    more = written(tmp_path / "more", ["success"] * 3)
    fewer = written(tmp_path / "fewer", ["success"] * 2)
    assert beside.main([more, fewer, "--alike", "more", "fewer"]) == 1
    assert beside.main([more, fewer, "--alike", "fewer", "more"]) == 1


def test_folders_and_names_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing/results\.json: expected what experiments"):
        beside.main([str(tmp_path / "nothing")])
    with pytest.raises(SystemExit):
        beside.main([written(tmp_path / "a", ["success"]), "--alike", "a", "b"])
