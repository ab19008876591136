"""Whose a work directory is: a run's from its first logged or saved step on.

A run that is refused writes nothing into it, and one that ended before that step (its step did not
compile, say) left nothing that another could mix with.
"""

import json
import os
import shutil
import time
from pathlib import Path

from ml_collections import ConfigDict

from experiments.composition import sources
from experiments.composition.config import check_same, check_same_run, diff, save
from vla_jax.training.checkpoint import complete_steps, load_meta


def check(workdir: Path, config: ConfigDict) -> None:
    """Raises ValueError when steps of another run lie in workdir, or when it cannot be written."""
    check_writable(workdir)
    saved, checkpoints = workdir / "config.json", workdir / "checkpoints"
    kept = complete_steps(checkpoints)
    if not kept and not logged(workdir):
        return
    if kept and not saved.exists():
        check_same(load_meta(checkpoints)["config"], checkpoints, config)
    check_same_run(saved, config)


def check_writable(workdir: Path) -> None:
    """Raises ValueError when workdir cannot be made or written."""
    there = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"--workdir={workdir}: expected a folder to write into, got"
            f" {'one without that right' if there.is_dir() else 'a file'} at {there}; give another"
        )


def logged(workdir: Path) -> bool:
    """Whether a step of a run was logged here."""
    rows = workdir / "metrics.jsonl"
    return rows.exists() and rows.stat().st_size > 0


def claim(workdir: Path, config: ConfigDict, source: sources.Data) -> None:
    """Makes workdir this run's, once nothing is left to be refused: its tokenizer, then its
    config.json.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    saved, own = workdir / "config.json", workdir / "tokenizer"
    begun = bool(complete_steps(workdir / "checkpoints")) or logged(workdir)
    if saved.exists() and not begun and diff(json.loads(saved.read_text()), config.to_dict()):
        print(f"{workdir}: another run ended here before a step was logged or saved", flush=True)
    if config.model.tokenizer == "train" and source.tokenizer != own:
        part = own.with_name(own.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source.tokenizer, part)
        shutil.rmtree(own, ignore_errors=True)
        os.replace(part, own)
    save(config, saved)


def await_claim(workdir: Path) -> None:
    """Returns when the config.json that host 0 has written is seen here: network file systems may
    take a minute to show it.
    """
    saved = workdir / "config.json"
    for _ in range(90):
        if saved.exists():
            return
        time.sleep(1)
    raise ValueError(
        f"--workdir: expected a folder that all hosts share, got {workdir.absolute()} without"
        f" the {saved.name} that host 0 has written there; give one on shared storage"
    )
