"""JSON files of the commands."""

import json
from pathlib import Path

import numpy as np

from experiments.composition.json_files import write_json


def test_files_are_whole_and_hold_no_nan(tmp_path: Path) -> None:
    write_json(
        tmp_path / "a.json",
        {"a": np.float32(1.5), "b": float("nan"), "c": [np.arange(2)], "d": None},
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "a": 1.5,
        "b": None,
        "c": [[0, 1]],
        "d": None,
    }
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
