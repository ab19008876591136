"""The commands in our READMEs: all of them are ones that exist, with flags and fields that exist;
those of the first hour run, in their order, as they are written (with fewer steps).
"""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data_pipelines.builders.blocks import write_blocks
from experiments.composition import config as configs

REPO = Path(__file__).resolve().parents[1]
# Not those of the table of datasets and of what an older commit wrote: they have no commands.
READMES = [
    path
    for path in (REPO / "README.md", *sorted(REPO.glob("[!.]*/**/README.md")))
    if path.parent.name not in ("datasets", "older")
]
TARGETS = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
LESS = [  # for pretrain
    "--config.steps=4", "--config.log_every=2", "--config.eval_every=2", "--config.eval_batches=1",
    "--config.save_every=2", "--config.batch_size=8", "--config.optim.warmup_steps=1",
    "--config.optim.warmup_epochs=0",
]  # fmt: skip


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code of a language, without indentation."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [
        "\n".join(line.removeprefix(indent) for line in code.split("\n"))
        for indent, name, code in found
        if name == language
    ]


def commands(path: Path) -> list[list[str]]:
    """The words of every command in fenced code, and of every `python -m` in the text."""
    text = path.read_text()
    lines = [line for code in blocks(path, "") for line in code.replace("\\\n", " ").split("\n")]
    lines += re.findall(r"`(python -m [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    # [optional] words are there, a comment is not.
    lines = [re.sub(r"[\[\]](?!\")", " ", line) for line in lines]
    lines = [line.replace("<root>", "ROOT") for line in lines]
    first = re.compile(r"([A-Z_]+=\S* )*(\S*python|make|sbatch|experiments/launch/\S+) ")
    lines = [line for line in lines if first.match(line.strip()) and "experiments.NAME" not in line]
    return [shlex.split(line, comments=True) for line in lines]


ALL = {
    f"{path.relative_to(REPO)}: {' '.join(words)}": words
    for path in READMES
    for words in commands(path)
}


def test_they_are_found() -> None:
    assert len(READMES) >= 6
    assert len(ALL) > 50
    assert any("operator_cli" in each for each in ALL)


@pytest.fixture(scope="session")
def helps() -> dict[tuple[str, ...], str]:
    return {}


@pytest.mark.parametrize("name", ALL)
def test_a_command_is_one_that_exists(name: str, helps: dict[tuple[str, ...], str]) -> None:
    words = [word for word in ALL[name] if not re.match(r"[A-Z_]+=", word)]
    program = words.pop(0)
    if program == "make":
        assert {word for word in words if word.isidentifier() or "-" in word} <= TARGETS
        return
    scripts = [word for word in [program, *words] if word.startswith("experiments/launch/")]
    if scripts:
        assert all((REPO / script).is_file() for script in scripts)
        words = [
            "-m",
            "experiments.pretrain",
            *[word for word in words if word.startswith("--config")],
        ]
    assert words[0] == "-m"
    module = words[1]
    if module == "pytest":
        assert all((REPO / word.partition("::")[0]).exists() for word in words if "/" in word)
        return
    given = [word for word in words[2:] if word.startswith("--")]
    overrides = [word for word in given if word.startswith("--config.")]
    flags = {word.partition("=")[0] for word in given} - {
        word.partition("=")[0] for word in overrides
    }
    key = (module, *[word for word in words[2:3] if module.endswith("benchmark")])
    if key not in helps:
        helps[key] = help_of(*key)
    absent = {flag for flag in flags if not re.search(rf"{flag}\b", helps[key])}
    assert not absent
    of = next((word.partition("=")[2] for word in given if word.startswith("--config=")), "...")
    file = of if of.endswith(".py") or ".py:" in of else "oxe_paligemma.py"  # of FILE, ...
    begun = ("finetune", *(f"blocks_{word}" for word in ("ppo", "reward", "dpo", "success")))
    if not file.startswith((*begun, "metaworld_ppo", "FILE")):  # at a checkpoint
        configs.load_config(file, [word for word in overrides if "=" in word])


def help_of(module: str, *words: str) -> str:
    """What a command says of its flags; the text of one that has no such function."""
    loaded = importlib.import_module(module)
    if not hasattr(loaded, "main"):
        return Path(loaded.__file__).read_text()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        loaded.main([*words, "--help"])
    assert not ended.value.code
    return said.getvalue()


@pytest.mark.slow
def test_the_first_hour(tmp_path: Path) -> None:
    """Own data in five commands, the fine-tuning, the robot: every line of README, from nothing."""
    (own, *_) = [code for code in blocks(REPO / "README.md", "python") if "DATASETS" in code]
    (tmp_path / "own.py").write_text(own)
    lines = [words[1:] for words in commands(REPO / "README.md") if words[0] == "python"]
    names = [words[1].rpartition(".")[2] for words in lines]
    assert names == [
        "blocks", "index_data", "view", "pretrain", "evaluate",
        "pretrain", "export", "replay", "serve",
    ]  # fmt: skip
    for name, words in zip(names, lines, strict=True):
        if name == "blocks":
            write_blocks(tmp_path / words[-1], train=8, val=4)  # the same, of 280 episodes
        elif name == "serve":
            assert serves(tmp_path, words)
        else:
            run(tmp_path, [*words, *(LESS if name == "pretrain" else [])])
    for wrote in (
        "runs/mine.html", "runs/mine/curves.png", "runs/mine/actions.png",
        "runs/fine/evaluation.json", "runs/fine/artefact", "runs/fine/replay/traces.png",
        "runs/replay/traces.png",
    ):  # fmt: skip
        assert (tmp_path / wrote).exists(), wrote


@pytest.mark.slow
def test_looking_at_data_and_converting_it(tmp_path: Path) -> None:
    """What data_pipelines/README.md says beyond that."""
    (own, *_) = [code for code in blocks(REPO / "README.md", "python") if "DATASETS" in code]
    (tmp_path / "own.py").write_text(own)
    write_blocks(tmp_path / "ROOT", train=3, val=2)
    lines = commands(REPO / "data_pipelines/README.md")
    wanted = [words for words in lines if re.search("--validate|--to ", " ".join(words))]
    assert len(wanted) == 2
    for words in wanted:  # to LeRobot, as these are RLDS
        run(tmp_path, ["lerobot" if word == "rlds" else word for word in words[1:]])
    assert (tmp_path / "ROOT/mine_lerobot/meta/info.json").is_file()


def test_the_python_in_them_is_as_it_says() -> None:
    """Descriptions and recipes are made; that they are read right the commands show."""
    names: dict[str, object] = {}
    for path in (REPO / "README.md", REPO / "data_pipelines/README.md"):
        for code in blocks(path, "python"):
            if "DATASETS" in code or "Recipe" in code:
                exec(code, names)
    assert {"DATASETS", "reached", "flat", "slow"} <= names.keys()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu"}


def run(where: Path, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=where, env=environment(), capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def serves(where: Path, words: list[str]) -> bool:
    """Whether the server says that it is ready, within two minutes; it is ended then."""
    process = subprocess.Popen(
        [sys.executable, *words, "--port=0"],
        cwd=where, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    late = threading.Timer(120, process.kill)
    late.start()
    try:
        return any(" ready: artefact " in line for line in process.stderr)
    finally:
        late.cancel()
        process.terminate()
        process.communicate(timeout=60)
