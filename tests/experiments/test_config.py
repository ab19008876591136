"""Config files: where they are found, what an override may say, and what is refused."""

import json
from pathlib import Path

import pytest

from experiments.config import check_same_run, load_config, parse_argv, save


def test_the_users_two_configs_load_and_differ() -> None:
    full, tiny = load_config("oxe_paligemma.py"), load_config("oxe_paligemma.py:tiny")
    assert (full.model.variant, full.model.window, full.model.chunk, full.model.image_size) == ("3b-pt-224", 8, 10, 224)
    assert tiny.model.variant == "tiny"


def test_overrides_take_the_type_of_the_field() -> None:
    config = load_config(
        "oxe_paligemma.py:tiny",
        ["--config.steps=7", "--config.optim.lr=1", "--config.model.cameras=('primary','wrist')",
         "--config.optim.freeze=backbone/vision/*", "--config.optim.freeze_backbone=True", "--config.data.root=/x"],
    )  # fmt: skip
    assert config.steps == 7
    assert config.optim.lr == 1.0
    assert isinstance(config.optim.lr, float)
    assert config.model.cameras == ("primary", "wrist")
    assert config.optim.freeze == ("backbone/vision/*",)
    assert config.optim.freeze_backbone is True
    assert config.data.root == "/x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.learning=1", "no such field; did you mean"),
        ("--config.model.windw=1", "did you mean model.window"),
        ("--config.steps=many", "expected int such as"),
        ("--config.steps=1.5", "expected int such as"),
        ("--config.optim.freeze_backbone=1", "expected bool"),
        ("--config.model=1", "no such field"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("oxe_paligemma.py:tiny", [override])


def test_the_config_is_locked() -> None:
    with pytest.raises((KeyError, AttributeError)):
        load_config("oxe_paligemma.py:tiny").model.new = 1


def test_unknown_files_and_arguments_name_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no file 'nope.py'.*oxe_paligemma.py"):
        load_config("nope.py")
    with pytest.raises(ValueError, match="expected the argument '' or 'tiny'"):
        load_config("oxe_paligemma.py:huge")


def test_argv() -> None:
    args = parse_argv(["--config=oxe_paligemma.py:tiny", "--config.steps", "5", "--workdir=w", "--dry_run"])
    assert (args.config.steps, args.workdir, args.dry_run) == (5, Path("w"), True)
    assert parse_argv(["--config=oxe_paligemma.py:tiny"]).workdir == Path("runs/oxe_paligemma-tiny")


def test_a_work_directory_belongs_to_one_run(tmp_path: Path) -> None:
    config = load_config("oxe_paligemma.py:tiny")
    save(config, tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["model"]["variant"] == "tiny"
    check_same_run(tmp_path / "config.json", load_config("oxe_paligemma.py:tiny", ["--config.log_every=1"]))
    with pytest.raises(ValueError, match=r"optim.lr: there 0.001, now 0.5"):
        check_same_run(tmp_path / "config.json", load_config("oxe_paligemma.py:tiny", ["--config.optim.lr=0.5"]))
