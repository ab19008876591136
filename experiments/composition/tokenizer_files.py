"""A tokenizer's files beside weights, and copied to a checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from vla_jax.models.tokenizer import digest


def there(folder: Path | str) -> bool:
    """Whether a folder has any."""
    return bool(str(folder)) and Path(folder).is_dir() and any(Path(folder).glob("tokenizer*"))


def copy(folder: Path | str, out: Path) -> dict[str, Any]:
    """Copies the tokenizer's files beside the checkpoint, whole or not at all; returns how meta
    names it.
    """
    if not there(folder):
        print(
            f"\nno tokenizer at {folder}: give --tokenizer=DIR, or set model.tokenizer when you use"
            " this checkpoint"
        )
        return {"folder": None, "sha256": None, "reference": str(folder)}
    target, part = out / "tokenizer", out / "tokenizer.part"
    for old in (target, part):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir(parents=True)
    for pattern in (
        "tokenizer*",
        "special_tokens*",
        "added_tokens*",
        "*.model",
        "vocab*",
        "merges*",
        "config.json",
    ):
        for file in Path(folder).glob(pattern):
            shutil.copyfile(file, part / file.name)
    part.rename(target)
    return {"folder": "tokenizer", "sha256": digest(target), "reference": str(folder)}
