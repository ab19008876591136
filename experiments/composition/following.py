"""What a run is followed by: `pretrain --then=evaluate,export,replay`.

Each is the command that one would type, and so is the training before them: every one is a process
of its own, which leaves the devices to the next.
"""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from experiments.composition import datasets

WORDS = ("evaluate", "export", "replay")  # in this order


def parse(text: str, folder: Path) -> list[str]:
    """The words of --then=WORDS for a run in `folder`, in the order in which they run.

    Raises ValueError for another word, for what would find its folder taken or nothing to replay,
    and where the run is one of several hosts.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    artefact = folder / "artefact"
    if not words or set(words) - set(WORDS):
        raise ValueError(f"--then: expected some of {', '.join(WORDS)}, got {text!r}")
    if "export" in words and artefact.exists():
        raise ValueError(
            f"--then: export writes {artefact}, which is there already; remove it, or leave export"
            " out"
        )
    if "replay" in words and "export" not in words and not artefact.exists():
        raise ValueError(
            f"--then: replay needs the artefact that export writes, and {artefact} is not there;"
            " give --then=export,replay"
        )
    if {"export", "replay"} & set(words) and importlib.util.find_spec("torch") is None:
        raise ValueError(
            "--then: export and replay need torch, which is not installed; install it (the extra"
            " `export`), or leave them out"
        )
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        raise ValueError(
            "--then: expected a run on one host, got JAX_COORDINATOR_ADDRESS in the environment;"
            " start the commands when the run is done"
        )
    return [word for word in WORDS if word in words]


def commands(words: list[str], config: ConfigDict, folder: Path) -> list[list[str]]:
    """The command lines, without the interpreter, for the run of `config` in `folder`."""
    data, artefact = config.data, folder / "artefact"
    lines = []
    if "evaluate" in words:
        lines.append(["experiments.evaluate", f"--workdir={folder}"])
    if "export" in words:
        lines.append(
            ["experiments.export", "--checkpoint", f"{folder / 'checkpoints'}",
             "--out", f"{artefact}", "--data", data.root]
        )  # fmt: skip
    if "replay" in words:
        members = [dataset.name for dataset, _ in datasets.members(config)]
        selection = [
            f"--held_out={data.held_out}", f"--min_length={data.min_length}",
            f"--max_idle={data.max_idle}",
            *["--keep_unlabelled"] * (not data.skip_unlabelled),
            *[f"--quarantine={data.quarantine}"] * bool(data.quarantine),
            *[f"--datasets={data.datasets}"] * bool(data.datasets),
        ]  # fmt: skip
        for name in members:
            out = folder / "replay" / name if len(members) > 1 else folder / "replay"
            lines.append(
                ["experiments.replay", "--artefact", f"{artefact}", "--data", data.root,
                 "--dataset", name, "--out", f"{out}", *selection]
            )  # fmt: skip
    return lines


def run(lines: list[list[str]]) -> int:
    """Runs the commands one after the other and returns the exit code of the first that fails; 0.

    They write where this process does. SIGTERM and SIGUSR1 are for the one that runs; after SIGTERM
    no other begins.
    """
    running: list[subprocess.Popen[bytes]] = []
    heard: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        heard.append(number)
        if running and running[-1].poll() is None:
            running[-1].send_signal(number)

    before = {each: signal.signal(each, pass_on) for each in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        for line in lines:
            if signal.SIGTERM in heard:
                return 128 + signal.SIGTERM
            print(f"\n$ python -m {shlex.join(line)}", flush=True)
            running.append(subprocess.Popen([sys.executable, "-m", *line]))
            code = running[-1].wait()
            if code:
                return code if code > 0 else 128 - code  # as a shell says of one that was killed
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return 0
