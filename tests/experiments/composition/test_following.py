"""What follows a run: which commands, in which order, and how they end."""

import signal
import threading
import time
from pathlib import Path

import pytest

from experiments.composition import following
from experiments.composition.config import load_config


def test_words_run_in_the_order_in_which_they_need_each_other(tmp_path: Path) -> None:
    assert following.parse("replay, evaluate,export", tmp_path) == ["evaluate", "export", "replay"]
    config = load_config(
        "oxe_paligemma.py:tiny",
        ["--config.data.root=ROOT", "--config.data.held_out=4", "--config.data.min_length=3",
         "--config.data.skip_unlabelled=False", "--config.data.quarantine=bad.txt"],
    )  # fmt: skip
    evaluate, export, replay = following.commands(list(following.WORDS), config, Path("RUN"))
    assert evaluate == ["experiments.evaluate", "--workdir=RUN"]
    assert " ".join(export) == (
        "experiments.export --checkpoint RUN/checkpoints --out RUN/artefact --data ROOT"
    )
    assert " ".join(replay) == (
        "experiments.replay --artefact RUN/artefact --data ROOT --dataset blocks --out RUN/replay"
        " --held_out=4 --min_length=3 --max_idle=1.0 --keep_unlabelled --quarantine=bad.txt"
    )


def test_each_dataset_of_a_mixture_is_replayed(tmp_path: Path) -> None:
    config = load_config("oxe_paligemma.py:tiny")
    with config.unlocked():
        config.data.mixture = (("blocks", 1.0), ("bridge", 1.0))
    lines = following.commands(["replay"], config, Path("RUN"))
    assert [line[line.index("--out") + 1] for line in lines] == [
        "RUN/replay/blocks", "RUN/replay/bridge"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "there", "message"),
    [
        ("evaluate,serve", False, "expected some of evaluate, export, replay, got 'evaluate,serve"),
        ("", False, "expected some of"),
        ("replay", False, "replay needs the artefact that export writes"),
        ("evaluate,export", True, "is there already; remove it, or leave export out"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(
    words: str, there: bool, message: str, tmp_path: Path
) -> None:
    if there:
        (tmp_path / "artefact").mkdir()
    with pytest.raises(ValueError, match=f"--then: .*{message}"):
        following.parse(words, tmp_path)


def test_not_on_several_hosts_and_not_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--then: export and replay need torch"):
        following.parse("export", tmp_path)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "auto")
    with pytest.raises(ValueError, match="--then: expected a run on one host"):
        following.parse("evaluate", tmp_path)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that can be run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "says.py").write_text(
        "import pathlib, sys\n"
        "with open(sys.argv[1], 'a') as file: file.write(sys.argv[2])\n"
        "sys.exit(int(sys.argv[2]))\n"
    )
    (tmp_path / "waits.py").write_text(
        "import pathlib, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "signal.pause()\n"
    )
    return tmp_path


def test_the_first_that_fails_is_the_end(python: Path) -> None:
    out = str(python / "out")
    assert following.run([["says", out, "0"], ["says", out, "3"], ["says", out, "4"]]) == 3
    assert Path(out).read_text() == "03"
    assert following.run([["says", out, "0"]]) == 0


def test_who_runs_is_asked_to_stop_and_no_other_begins(python: Path) -> None:
    ready, out = python / "ready", python / "out"

    def ask() -> None:
        while not ready.exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    threading.Thread(target=ask).start()
    assert following.run([["waits", str(ready)], ["says", str(out), "0"]]) == 143
    assert not out.exists()
