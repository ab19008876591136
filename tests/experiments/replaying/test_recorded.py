"""Recorded episodes: the right data or none, and frames as training decodes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines import images
from data_pipelines.builders.blocks import write_blocks
from data_pipelines.files import remote
from experiments.replaying.recorded import Recording, Where, check, open_recording
from vla_jax.actions import ActionSpec


def test_frames_are_those_that_training_sees(recording: Recording) -> None:
    episode, split = recording.episode(2), recording.split
    row = int(split.first[2]) + 3
    for slot in ("primary", "wrist"):
        shard, offset, length = (int(column[row]) for column in split.frames[slot])
        data = remote.read_range(split.shards[shard], offset, offset + length)
        seen = images.decode(data, 24, resize="bicubic")  # as the artefact says
        np.testing.assert_array_equal(episode.frames[3][slot], seen)
    np.testing.assert_array_equal(episode.actions[3], split.actions[row])
    np.testing.assert_array_equal(episode.state[3], split.state[row])
    assert episode.instruction == split.words(2)
    assert episode.where.endswith(":2")


def test_the_held_out_split_is_replayed_unless_another_is_asked_for(
    root: Path, artefact: Path
) -> None:
    assert open_recording(artefact, Where(str(root), "blocks", None)).split.name == "val"
    assert open_recording(artefact, Where(str(root), "blocks", "train")).split.name == "train"
    with pytest.raises(ValueError, match="--split: expected one of train, val, got 'test'"):
        open_recording(artefact, Where(str(root), "blocks", "test"))


def test_other_data_than_trained_on_is_refused_with_the_dims(
    artefact: Path, tmp_path: Path
) -> None:
    write_blocks(tmp_path, train=4, val=2, seed=5)
    with pytest.raises(
        ValueError, match=r"normalised with other statistics(.|\n)*y \(q99\): expected offset"
    ):
        open_recording(artefact, Where(str(tmp_path), "blocks", None))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "config.json",
            lambda body: body.update(cameras=["primary", "secondary"]),
            "expected the cameras primary, sec",
        ),
        (
            "norm_stats.json",
            lambda body: body["datasets"].update(bridge=body["datasets"].pop("blocks")),
            r"\(bridge\)",
        ),
        (
            "norm_stats.json",
            lambda body: body["datasets"]["blocks"]["action"]["names"].reverse(),
            "action: expected the",
        ),
        (
            "norm_stats.json",
            lambda body: body["datasets"]["blocks"]["state"]["names"].reverse(),
            "state: expected the",
        ),
    ],
)
def test_an_artefact_that_does_not_fit_is_refused(
    root: Path, artefact: Path, tmp_path: Path, file, change, message
):
    for name in ("config.json", "norm_stats.json"):
        body = json.loads((artefact / name).read_text())
        if name == file:
            change(body)
        (tmp_path / name).write_text(json.dumps(body))
    with pytest.raises(ValueError, match=message):
        open_recording(tmp_path, Where(str(root), "blocks", None))


@pytest.mark.parametrize(
    "chain", [("q99",), ("gaussian",), ("bounds",), ("q99", ("bounds", -0.65, 0.65)), ("none",)]
)
def test_statistics_are_compared_whatever_the_rules(
    recording: Recording, chain: tuple[Any, ...]
) -> None:
    dataset, stats = recording.index.dataset, recording.index.splits["train"].stats["action"]
    body = ActionSpec.fit(dataset.action_names, dataset.binary, stats, chain).to_json()
    check(Path("a"), "action", body, dataset.action_names, stats)
    if chain != ("none",):
        wider = {name: 1.1 * value for name, value in stats.items()}
        with pytest.raises(ValueError, match=f"z \\({chain[0]}\\)"):
            check(Path("a"), "action", body, dataset.action_names, wider)
