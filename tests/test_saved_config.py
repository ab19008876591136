"""Saved configs: completed with what was done before a field was there, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.composition import changes, spaces
from experiments.composition.config import load_config, parse_argv, save
from experiments.configs import oxe_paligemma
from tests.older.unpack import unpack
from vla_jax import build, saved
from vla_jax.params import abstract
from vla_jax.saved_config import FIRST, INTRODUCED, complete, flatten

TINY = oxe_paligemma.get_config("tiny").to_dict()


def without(*fields: str) -> dict[str, Any]:
    """The tiny config as JSON gives it back, some fields removed."""
    tree = as_json(TINY)
    for field in fields:
        *parents, last = field.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        del node[last]
    return tree


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_every_field_is_of_the_first_config_or_in_the_table() -> None:
    """Whoever adds a field to oxe_paligemma.py adds to INTRODUCED what was done before it."""
    assert not FIRST & INTRODUCED.keys()
    assert flatten(TINY).keys() == FIRST | INTRODUCED.keys()


def test_a_whole_config_is_left_as_it_is() -> None:
    assert as_json(complete(without(), "here").to_dict()) == as_json(TINY)


@pytest.mark.parametrize("field", INTRODUCED)
def test_a_field_that_came_later_is_filled_in(field: str) -> None:
    fields = flatten(complete(without(field), "here").to_dict())
    expected = flatten(TINY) | {field: INTRODUCED[field]}
    assert as_json(fields) == as_json(expected)

    now = load_config("oxe_paligemma.py:tiny")
    with now.unlocked():
        now.update_from_flattened_dict({field: INTRODUCED[field]})
    assert not changes.since(complete(without(field), "here"), now)  # a run goes on


def test_a_config_of_the_first_commit_builds_the_same_parameters() -> None:
    older = complete(without(*INTRODUCED), "here")
    assert older.augment.crop_scale == (1.0, 1.0)  # as then, and not as new runs do
    shapes = abstract(build.training_model(older))[1]
    now = spaces.resolve(oxe_paligemma.get_config("tiny"))
    assert shapes == abstract(build.training_model(now))[1]


def test_a_value_that_came_later_than_the_run_is_another_run() -> None:
    two = load_config("oxe_paligemma.py:tiny", ["--config.model.readouts=2"])
    (change,) = changes.since(complete(without("model.readouts"), "here"), two)
    assert str(change) == "model.readouts: there 1, now 2"
    assert change.effect is None


def test_what_nobody_knows_is_refused_by_name() -> None:
    tree = without()
    tree["model"]["wheels"] = 4
    with pytest.raises(
        ValueError, match=r"here: config: no such field here: model.wheels; a later"
    ):
        complete(tree, "here")
    with pytest.raises(ValueError, match=r"config: expected optim.lr, steps, which every config"):
        complete(without("steps", "optim.lr"), "here")


def test_a_run_with_fields_of_its_own_does_not_start(tmp_path: Path) -> None:
    """Its checkpoints would be refused."""
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from experiments.configs import oxe_paligemma\n"
        "def get_config(arg):\n"
        "    config = oxe_paligemma.get_config('tiny')\n"
        "    config.model.wheels = 4\n"
        "    return config\n"
    )
    with pytest.raises(ValueError, match=r"mine.py: has fields that nothing reads: model.wheels"):
        parse_argv([f"--config={mine}"])


def test_a_checkpoint_from_before_a_field_opens(tmp_path: Path) -> None:
    directory = unpack("run", tmp_path) / "checkpoints"
    file = directory / "4" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    del meta["config"]["model"]["start"], meta["config"]["objectives"]["text_align"]
    file.write_text(json.dumps(meta))
    assert saved.open_checkpoint(directory).image_size == (32,)
    meta["config"]["wheels"] = 4
    file.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"checkpoints: config: no such field here: wheels"):
        saved.open_checkpoint(directory)


def test_a_saved_config_is_read_back(tmp_path: Path) -> None:
    config = load_config("oxe_paligemma.py:tiny")
    save(config, tmp_path / "config.json")
    read = complete(json.loads((tmp_path / "config.json").read_text()), tmp_path)
    assert not changes.since(read, config)
