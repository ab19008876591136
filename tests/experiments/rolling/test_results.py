"""Figures of episodes, and the folder that keeps them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments.rolling.results import NORMAL, Kept, figures, text, wilson

SETTINGS: dict[str, Any] = {"sim": "navigation", "seed": 0, "policy": {"kind": "expert"}}


def row(number: int, outcome: str = "success", wording: str = "seen") -> dict[str, Any]:
    return {
        "episode": number, "task": f"task {number % 2}", "wording": wording, "instruction": "왼쪽",
        "outcome": outcome, "steps": 3, "milliseconds": [1.0, 2.0, 3.0], "seconds": 0.5,
        "jerk": {"m/s^3": 0.25 * (number + 1)},
    }  # fmt: skip


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (1, 7), (120, 160), (50, 100)])
def test_wilson_holds_the_shares_from_which_the_count_is_not_far(successes: int, n: int) -> None:
    for p in wilson(successes, n):
        assert abs(successes / n - p) == pytest.approx(NORMAL * math.sqrt(p * (1 - p) / n))


def test_wilson_of_what_never_and_of_what_always_happens() -> None:
    z2 = NORMAL**2
    assert wilson(0, 20) == pytest.approx((0.0, z2 / (20 + z2)))
    assert wilson(20, 20) == pytest.approx((20 / (20 + z2), 1.0))
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)  # as tables have it
    with pytest.raises(ValueError, match="one episode or more"):
        wilson(0, 0)


def test_figures_by_wording_and_task() -> None:
    rows = [row(0), row(1, "collision"), row(2, "success", "held out"), row(3, "too slow")]
    body = figures(rows, 0.4)
    assert (body["success"]["successes"], body["success"]["episodes"]) == (2, 4)
    assert {name: cell["successes"] for name, cell in body["by_wording"].items()} == {
        "seen": 1, "held out": 1
    }  # fmt: skip
    assert body["by_task"]["task 1"]["seen"]["successes"] == 0
    assert body["outcomes"] == {"success": 2, "collision": 1, "too slow": 1}
    assert (body["plans"], body["milliseconds"]) == (12, {"p50": 2.0, "p95": 3.0})
    assert body["steps_per_second"] == 6.0
    assert body["late"] == 0.0  # a plan is for one step, of 2.5 s
    assert figures(rows, 400.0)["late"] == pytest.approx(1 / 3)  # of 2.5 ms
    assert "in_a_row" not in body
    said = text(body)
    assert "50.0% [15, 85] of 4: success 2, collision 1, too slow 1" in said
    assert "task 0" in said
    assert body["jerk"] == {"m/s^3": 0.625}
    assert "jerk of what was carried out: 0.625 m/s^3" in said


def test_what_was_kept_is_there_again_without_the_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    with Kept(tmp_path, SETTINGS) as kept:
        kept.add(row(0), None)
        kept.add(row(1), None)
    file = tmp_path / "episodes.jsonl"
    whole = file.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[1])):
        file.write_bytes(whole[:-cut])
        with Kept(tmp_path, SETTINGS) as kept:
            assert kept.rows == {0: row(0)}
            kept.add(row(1), None)
        assert file.read_bytes() == whole


def test_results_of_other_settings_are_not_added_to(tmp_path: Path) -> None:
    with Kept(tmp_path, SETTINGS | {"seed": 9}):
        pass  # of which no episode ended
    with Kept(tmp_path, SETTINGS) as kept:
        kept.add(row(0), None)
    before = (tmp_path / "settings.json").read_bytes()
    other = SETTINGS | {"seed": 1, "policy": {"kind": "random"}}
    with pytest.raises(
        ValueError, match=r"policy\.kind: \"expert\", now \"random\"\n  seed: 0, now 1"
    ):
        Kept(tmp_path, other)
    assert (tmp_path / "settings.json").read_bytes() == before
    with Kept(tmp_path, SETTINGS) as kept:
        assert kept.rows == {0: row(0)}


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with Kept(tmp_path, SETTINGS), pytest.raises(ValueError, match="another process"):
        Kept(tmp_path, SETTINGS)
    with Kept(tmp_path, SETTINGS) as kept:
        kept.add(row(0), None)
    assert json.loads((tmp_path / "episodes.jsonl").read_text())["instruction"] == "왼쪽"


def test_chains_are_counted_by_how_far_they_came() -> None:
    chains = [
        {**row(i), "solved": solved, "chain": ["a"] * 5} for i, solved in enumerate((5, 2, 0))
    ]
    body = figures(chains, 30.0)["in_a_row"]
    assert [each["successes"] for each in body["at_least"]] == [2, 2, 1, 1, 1]
    assert body["mean"] == pytest.approx(7 / 3)
    half = NORMAL * math.sqrt(((5 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (7 / 3) ** 2) / 2 / 3)
    assert body["high"] == pytest.approx(min(5.0, 7 / 3 + half))
    assert "66.7 / 66.7 / 33.3 / 33.3 / 33.3%; mean 2.33" in text(figures(chains, 30.0))


def test_an_error_is_no_outcome_and_is_played_again(tmp_path: Path) -> None:
    with Kept(tmp_path, SETTINGS) as kept:
        kept.add({"episode": 0, "outcome": "error", "error": "signal 9"}, None)
        assert kept.rows == {}
        assert kept.errors == {0: "signal 9"}
    with Kept(tmp_path, SETTINGS) as kept:
        assert kept.rows == {}
        kept.add(row(0), None)
        assert (kept.rows, kept.errors) == ({0: row(0)}, {})
    with Kept(tmp_path, SETTINGS) as kept:
        assert kept.rows == {0: row(0)}
