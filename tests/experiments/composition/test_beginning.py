"""Where images with texts are read on; windows are tested in data_pipelines/test_place.py, whole
runs in experiments/test_changes.py.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.composition import beginning
from experiments.composition.config import load_config

WINDOWS = {"seed": 1, "batch_size": 8, "datasets": [["blocks", "train", 1.0, "abc"]]}
TEXTS = {"dataset": ["captions", "train", "def"], "seed": 1, "batch_size": 8, "length": 16}


def begin(monkeypatch: pytest.MonkeyPatch, saved: dict[str, Any], now: Any) -> beginning.Begin:
    """Where a run goes on from a checkpoint of step 6 with that item `saved`; windows are the
    same, texts those `now`.
    """
    statistics = {"statistics": {}}
    monkeypatch.setattr(beginning, "complete_steps", lambda folder: [6])
    monkeypatch.setattr(beginning, "load_data", lambda folder, step: saved)
    monkeypatch.setattr(beginning, "load_meta", lambda folder, step: statistics)
    loader: Any = SimpleNamespace(identity=lambda: WINDOWS)
    texts: Any = None if now is None else SimpleNamespace(identity=lambda: now)
    config = load_config("oxe_paligemma.py:tiny")
    return beginning.begin(config, Path("run"), loader, texts, statistics)


def test_texts_go_on_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    both = WINDOWS | {"image_text": TEXTS}
    begins = begin(monkeypatch, {"identity": both, "position": 6}, TEXTS)
    assert (begins.windows, begins.texts, begins.lines, begins.other) == (6, 6, [], [])
    assert begins.ahead == {"position": 0, "image_text": 0}
    begins = begin(monkeypatch, {"identity": both, "position": 6, "image_text": 2}, TEXTS)
    assert (begins.windows, begins.texts) == (6, 2)


def test_texts_of_another_batch_size_and_of_another_dataset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = {"identity": WINDOWS | {"image_text": TEXTS}, "position": 6, "image_text": 5}
    begins = begin(monkeypatch, saved, TEXTS | {"batch_size": 16})
    assert (begins.windows, begins.texts) == (6, 2)
    assert begins.ahead == {"position": 0, "image_text": -4}
    assert begins.lines == ["images with texts: 40 were read; goes on at image 32 of the new order"]
    assert begins.other == ["data: image_text/batch_size: checkpoint 8, this run 16"]
    begins = begin(monkeypatch, saved, TEXTS | {"dataset": ["others", "train", "def"]})
    assert begins.texts == 0
    begins = begin(monkeypatch, {"identity": WINDOWS, "position": 6}, TEXTS)
    assert begins.texts == 0
    assert begins.lines == ["images with texts: captions is new, read from its beginning"]


def test_without_texts_one_position_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    begins = begin(monkeypatch, {"identity": WINDOWS, "position": 9}, None)
    assert begins.resumes
    assert begins.ahead == {"position": 3, "image_text": 3}
