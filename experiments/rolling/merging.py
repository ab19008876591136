"""Results of a command's shards become those of the whole."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.composition.config import diff
from experiments.rolling import films
from experiments.rolling.episodes import Row, actions_of
from experiments.rolling.results import Kept


def merge(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Puts the episodes of several folders, of one command's shards, into one more, and returns
    their settings. Raises ValueError for other settings, which are named, and for an episode that
    is there twice.
    """
    first: dict[str, Any] | None = None
    whose: dict[int, Path] = {}
    rows: dict[int, Row] = {}
    for folder in folders:
        file = folder / "settings.json"
        if not file.is_file():
            raise ValueError(f"--merge: expected the --out of a rollout, got {folder}")
        settings = json.loads(file.read_text(encoding="utf-8"))
        first = settings if first is None else first
        changed = diff(first, settings)
        if changed:
            lines = "\n".join(f"  {key}: {a}, {b}" for key, (a, b) in changed.items())
            raise ValueError(
                f"--merge: expected results of one kind, got others in {folders[0]} and"
                f" {folder}:\n{lines}"
            )
        with Kept(folder, settings) as kept:
            for number in kept.rows:
                if number in whose:
                    raise ValueError(
                        f"--merge: expected each episode once, got {number} in {whose[number]} and"
                        f" in {folder}; give each shard once"
                    )
                whose[number] = folder
            rows |= kept.rows
    assert first is not None
    if (out / "episodes.jsonl").exists():
        raise ValueError(f"--out={out}: expected an empty folder for what is merged")
    with Kept(out, first) as merged:
        for number, folder in sorted(whose.items()):
            merged.add(rows[number], actions_of(folder, number))
            _copy_pictures(folder, out, number)
    return first


def _copy_pictures(folder: Path, out: Path, number: int) -> None:
    for name in (f"{films.STRIPS}/{number}.png", f"{films.VIDEOS}/{number}.mp4"):
        if (folder / name).is_file():
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, out / name)
