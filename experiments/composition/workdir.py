"""Whose a work directory is: a run's from its first logged or saved step on.

A run that is refused writes nothing into it, and one that ended before that step (its step did not
compile, say) left nothing that another could mix with.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.composition import changes, sources, strings
from experiments.composition.config import diff, save
from vla_jax.saved_config import of_checkpoint
from vla_jax.training.checkpoint import complete_steps, load_meta


class Before(NamedTuple):
    """The run that a work directory holds: its config, and what is other in this one's."""

    config: ConfigDict
    changes: list[changes.Change]


def check(workdir: Path, config: ConfigDict, asked: bool = False) -> Before | None:
    """The run that goes on in workdir; None where none has begun.

    Raises ValueError when workdir cannot be written, for changes that cannot be made in place, and
    for others unless they are `asked` for.
    """
    check_writable(workdir)
    saved, checkpoints = workdir / "config.json", workdir / "checkpoints"
    kept = complete_steps(checkpoints)
    if not kept and not logged(workdir):
        return None
    if saved.exists():
        meta = load_meta(checkpoints) if kept else {"datasets": {}}
        then = of_checkpoint(meta | {"config": json.loads(saved.read_text())}, saved)
    elif kept:
        then = of_checkpoint(load_meta(checkpoints), checkpoints)
    else:
        return None
    found = changes.since(then, config)
    changes.check(found, workdir, asked)
    return Before(then, found)


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


def claim(
    workdir: Path,
    config: ConfigDict,
    source: sources.Data,
    changed: changes.Changed | None = None,
) -> None:
    """Makes workdir this run's, once nothing is left to be refused: its tokenizer and vocabulary,
    what is other from now on, then its config.json.
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
    if source.vocabulary is not None:
        strings.save(source.vocabulary, workdir)
    if changed is not None:
        changes.record(workdir, changed)
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
