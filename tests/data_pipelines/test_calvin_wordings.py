"""Sentences of ours for CALVIN's tasks."""

import pytest

from data_pipelines.builders.calvin_wordings import PATTERNS, wordings


def test_a_pattern_stands_for_all_its_sentences() -> None:
    said = wordings("push_red_block_left", ["Go push the red block left"])
    assert "shove the red block towards the left" in said
    assert "go push the red block left" not in said  # held out, in whatever case
    assert len(said) == len(set(said)) == 42
    assert not [text for text in said if set(text) & set("{|}") or "  " in text]


def test_no_sentence_is_of_two_tasks() -> None:
    said = [text for task in PATTERNS for text in wordings(task, [])]
    assert len(PATTERNS) == 34
    assert len(said) == len(set(said)) > 4_000


def test_a_task_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a task of CALVIN's, got 'fold_towel'"):
        wordings("fold_towel", [])
