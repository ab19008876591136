"""`vla-jax`: which commands there are, and that it starts them as `python -m` does."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments import __main__ as commands

REPO = Path(__file__).parents[2]


def said(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["vla-jax", *words])
    return commands.main(), *capsys.readouterr()


def test_every_command_is_listed(monkeypatch, capsys):
    files = {path.stem for path in (REPO / "experiments").glob("[!_]*.py")}
    assert files <= set(commands.COMMANDS)
    code, out, _ = said(monkeypatch, capsys)
    assert code == 0
    for name, (module, what) in commands.COMMANDS.items():
        assert find_spec(module) is not None
        assert module.endswith(f".{name}")
        assert any(line.split(maxsplit=1) == [name, what] for line in out.splitlines())
    assert said(monkeypatch, capsys, "--help") == (0, out, "")


def test_an_unknown_command_is_answered_with_the_nearest(monkeypatch, capsys):
    code, out, err = said(monkeypatch, capsys, "pretain", "--config=a.py")
    assert (code, out) == (2, "")
    assert err == (
        "vla-jax: no command 'pretain'; did you mean pretrain? vla-jax lists all of them\n"
    )


@pytest.mark.parametrize("start", [["experiments", "serve"], ["experiments.serve"]])
def test_a_command_gets_the_words_behind_its_name(start):
    words = [sys.executable, "-m", *start, "--artefact=there", "--port=none"]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2
    assert "serve.py: error: argument --port: invalid int value: 'none'" in done.stderr


def test_listing_loads_no_large_library():
    code = "import sys, experiments.__main__ as commands; print(commands.listed())"
    code += "; assert not {'jax', 'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)
