"""Config files: where they are found, what an override may say, and what is refused."""

import json
from pathlib import Path

import pytest

from experiments.composition.config import diff, load_config, parse_argv


def test_the_users_two_configs_load_and_differ() -> None:
    full, tiny = load_config("oxe_paligemma.py"), load_config("oxe_paligemma.py:tiny")
    assert (full.model.variant, full.model.window, full.model.chunk, full.model.image_size) == (
        "3b-pt-224",
        8,
        10,
        224,
    )
    assert tiny.model.variant == "tiny"


@pytest.mark.parametrize("head", ["gpt", "attention", "flow"])
def test_heads_are_arguments(head: str) -> None:
    full, tiny = (
        load_config(f"oxe_paligemma.py:{head}"),
        load_config(f"oxe_paligemma.py:tiny,{head}"),
    )
    assert full.model.head == tiny.model.head == head
    assert (full.model.variant, tiny.model.variant) == ("3b-pt-224", "tiny")
    with pytest.raises(
        ValueError, match="one of gpt, attention, flow, discrete, fast, oft, expert at most"
    ):
        load_config(f"oxe_paligemma.py:{head},flow,gpt")


def test_overrides_take_the_type_of_the_field() -> None:
    config = load_config(
        "oxe_paligemma.py:tiny",
        ["--config.steps=7", "--config.optim.lr=1", "--config.model.cameras=('primary','wrist')",
         "--config.optim.freeze=backbone/vision/*", "--config.optim.freeze_backbone=True",
         "--config.data.root=/x"],
    )  # fmt: skip
    assert config.steps == 7
    assert config.optim.lr == 1.0
    assert isinstance(config.optim.lr, float)
    assert config.model.cameras == ("primary", "wrist")
    assert config.optim.freeze == ("backbone/vision/*",)
    assert config.optim.freeze_backbone is True
    assert config.data.root == "/x"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.cameras=primary", ("primary",)),
        ("model.cameras=primary, wrist", ("primary", "wrist")),
        ("model.cameras=['primary', 'wrist']", ("primary", "wrist")),
        ("optim.freeze=", ()),
        ("optim.freeze=backbone/vision/*,head/*", ("backbone/vision/*", "head/*")),
        ("model.head_mlp=64", (64,)),
        ("data.normalise=('q99', ('bounds', -0.65, 0.65))", ("q99", ("bounds", -0.65, 0.65))),
        ("model.weights=a=b,c", "a=b,c"),
        ("optim.lr=3e-5", 3e-5),
    ],
)
def test_values_need_no_quotes(override: str, value: object) -> None:
    config = load_config("oxe_paligemma.py:tiny", [f"--config.{override}"])
    found = config.to_dict()
    for name in override.partition("=")[0].split("."):
        found = found[name]
    assert found == value
    assert type(found) is type(value)


def test_a_mixture_is_a_name_or_a_list_of_pairs(tmp_path: Path) -> None:
    body = """
from experiments.configs.oxe_paligemma import get_config as base
def get_config(arg):
    config = base("tiny")
    config.data.mixture = (("blocks", 1.0), ("bridge", 0.5))
    return config
"""
    (tmp_path / "mixed.py").write_text(body)
    file = str(tmp_path / "mixed.py")
    assert load_config(file).data.mixture == (("blocks", 1.0), ("bridge", 0.5))
    assert load_config(file, ["--config.data.mixture=bridge"]).data.mixture == "bridge"
    assert (
        load_config("oxe_paligemma.py", ["--config.data.mixture=bridge"]).data.mixture == "bridge"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.learning=1", "no such field; did you mean"),
        ("--config.model.windw=1", "did you mean model.window"),
        ("--config.steps=many", "expected int such as"),
        ("--config.steps=1.5", "expected int such as"),
        ("--config.optim.freeze_backbone=1", "expected bool"),
        ("--config.model=1", "no such field"),
        ("--config.model.head_mlp=wide", "expected tuple such as"),
        ("--config.model.head_mlp=(64, 'wide')", "expected tuple such as"),
        ("--config.model.cameras=1", "expected tuple such as"),
        ("--config.optim.lr=True", "expected float such as"),
        ("--config.steps={[]: 1}", "expected int such as"),
        ("--config.steps=", "expected int such as 1000, got ''"),
        ("--config.data.root", "expected a value, as in --config.data.root="),
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
    with pytest.raises(
        ValueError,
        match=(
            "expected 'lora', one of tiny, small, base and one of gpt, attention, flow, discrete,"
            " fast, oft, expert at most, got 'huge'"
        ),
    ):
        load_config("oxe_paligemma.py:huge")


def test_a_path_comes_before_the_folder_of_configs(tmp_path: Path) -> None:
    mine = tmp_path / "oxe_paligemma.py"
    mine.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg):\n"
        "    return ConfigDict({'arg': arg, 'note': None})\n"
    )
    assert load_config(f"{mine}:x", ["--config.note=3"]).to_dict() == {"arg": "x", "note": 3}
    mine.write_text("")
    with pytest.raises(ValueError, match=r"has no get_config"):
        load_config(str(mine))


def test_argv() -> None:
    args = parse_argv(
        ["--config=oxe_paligemma.py:tiny", "--config.steps", "5", "--workdir=w", "--dry_run"]
    )
    assert (args.config.steps, args.workdir, args.dry_run) == (5, Path("w"), True)
    assert parse_argv(["--config", "oxe_paligemma.py:tiny"]).workdir == Path(
        "runs/oxe_paligemma-tiny"
    )
    with pytest.raises(ValueError, match=r"--config.steps: expected a value"):
        parse_argv(["--config=oxe_paligemma.py:tiny", "--config.steps"])


def test_a_run_to_begin_with_means_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)

    def begins(field: str, value: Path | str) -> str:
        args = parse_argv(["--config=oxe_paligemma.py:tiny", f"--config.model.{field}={value}"])
        return str(args.config.model[field])

    inside = tmp_path / "run" / "checkpoints"
    for field in ("start", "weights"):
        assert begins(field, tmp_path / "run") == begins(field, inside) == str(inside)
        assert begins(field, tmp_path / "gone") == str(tmp_path / "gone")
    assert begins("weights", "none") == "none"


def test_the_difference_of_two_configs() -> None:
    a = load_config("oxe_paligemma.py:tiny").to_dict()
    b = load_config(
        "oxe_paligemma.py:tiny", ["--config.model.window=3", "--config.model.cameras=wrist"]
    ).to_dict()
    assert diff(a, a) == diff(a, json.loads(json.dumps(a))) == {}
    assert diff(a, b) == {"model.cameras": ('["primary"]', '["wrist"]'), "model.window": ("2", "3")}
    assert diff({"a": {"b": 1}}, {"a": {"c": None}}) == {
        "a.b": ("1", "(absent)"),
        "a.c": ("(absent)", "null"),
    }
