"""The vocabulary of the head fast and of objectives.fast: fitted on a run's data, and what a batch
gets of it.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments.composition import sources, spaces, strings
from experiments.composition.config import load_config
from vla_jax import build_heads
from vla_jax.models import fast_vocabulary
from vla_jax.models.heads.fast import FastConfig, FastHead, widened

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(config, data of a run)."""
    where = tmp_path_factory.mktemp("data")
    write_blocks(where, train=4, val=2)
    config = load_config(
        "oxe_paligemma.py:tiny,fast",
        [f"--config.data.root={where}", "--config.model.fast.tokens=200"],
    )
    spaces.resolve(config)
    return config, sources.data(config, where / "run")


def test_batches_hold_their_chunks_as_strings(opened):
    config, source = opened
    loader = sources.loader(config, source, source.train, shuffle=True)
    batch = loader.batch(3)
    ids, there = batch.action_tokens
    assert ids.shape == there.shape == (config.batch_size, config.model.window, 29)
    assert ids.dtype == np.int32
    known, end = source.vocabulary, source.action_end
    assert 40 < known.size <= 200
    assert ids.min() >= end - known.size
    assert ids.max() < end
    values = widened(batch.actions, np.ones((*batch.actions.shape[:2], 7), bool), (6,))
    expected = known.values(known.quantised(values.reshape(-1, 4, 7))).reshape(values.shape)
    for row in range(config.batch_size):
        for t in range(config.model.window):
            string = (end - 1 - ids[row, t][there[row, t]]).tolist()
            np.testing.assert_array_equal(known.decode(string), expected[row, t])
    assert there.sum(-1).max() < 29  # shorter than numbers alone
    again = sources.loader(config, source, source.train, shuffle=True).batch(3)
    np.testing.assert_array_equal(again.action_tokens.ids, ids)


def test_no_word_has_the_id_of_a_token(opened):
    _, source = opened
    with pytest.raises(ValueError, match=r"model\.head: the action tokens .*model\.fast\.tokens"):
        source.encode("go to <loc1000>")
    source.encode("go to <seg001>")


def test_the_vocabulary_is_of_these_statistics(opened, tmp_path: Path):
    config, source = opened
    file = tmp_path / "fast.json"
    strings.save(source.vocabulary, tmp_path)
    given = config.copy_and_resolve_references()
    given.model.fast.file = str(file)
    assert strings.vocabulary(given, source.train, tmp_path) == source.vocabulary
    (member,) = source.train
    other = dataclasses.replace(
        member, action_stats={key: 1.001 * np.asarray(x) for key, x in member.action_stats.items()}
    )
    with pytest.raises(ValueError, match=r"fast\.json is of other data: expected data with the"):
        strings.vocabulary(given, [other], tmp_path)
    # The last digits depend on the order of sums.
    close = dataclasses.replace(
        member,
        action_stats={key: (1 + 1e-12) * np.asarray(x) for key, x in member.action_stats.items()},
    )
    assert strings.fingerprint([close]) == strings.fingerprint([member])
    body = json.loads(file.read_text())
    file.write_text(json.dumps({**body, "names": ["a", *body["names"][1:]]}))
    with pytest.raises(ValueError, match=r"expected the dims x, y, .*, got a, y"):
        strings.vocabulary(given, source.train, tmp_path)
    other_head = config.copy_and_resolve_references()
    other_head.model.head = "mlp"
    assert strings.vocabulary(other_head, source.train, tmp_path) is None
    assert strings.writer(other_head, None, 0) is None


def test_a_task_has_the_vocabulary_of_the_head(opened, tmp_path: Path, monkeypatch):
    """objectives.fast beside another head; not in a run that began without."""
    config, source = opened
    given = config.copy_and_resolve_references()
    given.model.head, given.objectives.fast.weight = "mlp", 1.0
    assert build_heads.strings(given) == build_heads.strings(config)
    assert build_heads.action_token_end(given, source.tokenizer) == source.action_end
    assert strings.vocabulary(given, source.train, tmp_path) == source.vocabulary
    monkeypatch.setattr(strings, "complete_steps", lambda _: [3])
    monkeypatch.setattr(strings, "load_meta", lambda _: {})
    with pytest.raises(ValueError, match=r"objectives\.fast, got none: the run began without"):
        strings.vocabulary(given, source.train, tmp_path)


def test_model_and_loader_agree_on_the_size(opened):
    config, source = opened
    for most, expected in ((0, 29), (17, 17)):
        changed = config.copy_and_resolve_references()
        changed.model.fast.most = most
        made = FastConfig(4, 7, (6,), source.action_end, source.vocabulary, most)
        assert build_heads.strings(changed) == FastHead(8, made).num_tokens == expected
    blank = fast_vocabulary.blank(4, ("x",) * 7, 200)
    assert blank.size == 200
