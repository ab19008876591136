"""How commands end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vla_jax import command

REPO = Path(__file__).parents[1]


def fail(argv: list[str]) -> None:
    raise ValueError(f"--root: expected a folder, got {argv}")


def ended(monkeypatch: pytest.MonkeyPatch, main: object, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["/x/index_data.py", *words])
    with pytest.raises(SystemExit) as left:
        command.run(main)  # type: ignore[arg-type]
    return left.value.code


def test_what_a_person_can_mend_has_no_traceback(monkeypatch, capsys):
    assert ended(monkeypatch, fail, "a", "b") == 2
    said = capsys.readouterr()
    assert said.err.startswith("index_data: --root: expected a folder, got ['a', 'b']\n")
    assert "Traceback" not in said.err
    assert "--traceback shows" in said.err


def test_a_developer_gets_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["index_data.py", "--traceback", "a"])
    with pytest.raises(ValueError, match=r"got \['a'\]"):
        command.run(fail)


def test_what_is_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["index_data.py"])
    with pytest.raises(TypeError):
        command.run(lambda argv: 1 + "a")  # type: ignore[operator]


@pytest.mark.parametrize("code", [None, 0, 1])
def test_the_code_of_a_command_is_its_own(monkeypatch, code):
    assert ended(monkeypatch, lambda argv: code) == code


def test_every_command_ends_this_way():
    files = [*(REPO / "experiments").glob("*.py"), *(REPO / "data_pipelines").rglob("*.py")]
    commands = [path for path in files if 'if __name__ == "__main__":' in path.read_text()]
    assert len(commands) >= 13
    for path in commands:
        # The first writes a README of ours and takes nothing, the other starts the others.
        if path.name not in ("table.py", "__main__.py"):
            assert path.read_text().endswith("    command.run(main)\n"), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "pretrain --config=oxe_paligemma.py:tiny --config.data.root=/nowhere",
        "pretrain --config=oxe_paligemma.py:tiny --config.nothing=1",
        "preflight --config=nowhere.py --topology=v5e:2x4",
        "evaluate --workdir=/nowhere",
        "export --checkpoint=/nowhere --out=/nowhere",
        "import_weights --from=hf:/nowhere --out=/nowhere",
        "index_data --root=/nowhere --dataset=blocks",
        "replay --artefact=/nowhere --data=/nowhere --out=/nowhere",
        "quantise --artefact=/nowhere --data=/nowhere",
        "serve --artefact=/nowhere",
    ],
)
def test_a_command_says_what_is_not_there(words):
    name, *rest = words.split()
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *rest],
        cwd=REPO, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.match(rf"{name}: .*(nowhere|nothing)", done.stderr, re.DOTALL)
