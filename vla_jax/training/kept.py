"""Which checkpoints of a run stay, and which of them is the policy.

The newest ones stay, and for as long as it is held one that something reads. The policy is the
newest one, unless the run marks the one with the lowest held-out loss: then that one stays whatever
comes after it, and who asks for a policy and names no step gets it. Training always goes on from
the newest.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orbax.checkpoint as ocp

MARK = "best"  # the file among the steps that holds the number of one


class LatestAndBest:
    """As orbax asks for it: the last `count` checkpoints stay, that of the step `best` and those of
    the steps that are `held`.
    """

    def __init__(self, count: int, best: int | None) -> None:
        self.best = best
        self.held: set[int] = set()
        self._latest = ocp.checkpoint_managers.LatestN(count)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Of each checkpoint, oldest first."""
        latest = self._latest.should_preserve(checkpoints, context=context)
        return [
            stays or each.step == self.best or each.step in self.held
            for stays, each in zip(latest, checkpoints, strict=True)
        ]

    def gone(self, steps: Sequence[int]) -> list[int]:
        """Those of the checkpoints `steps`, ascending, that do not stay."""
        stay = self.should_preserve([SimpleNamespace(step=step) for step in steps], context=None)
        return [step for step, stays in zip(steps, stay, strict=True) if not stays]


def marked(directory: Path | str) -> int | None:
    """The step that is marked as the best; None where none is."""
    file = Path(directory) / MARK
    return int(file.read_text()) if file.exists() else None


def mark(directory: Path | str, step: int | None) -> None:
    """Marks a step as the best, None: none; whole or not at all."""
    file = Path(directory) / MARK
    if step is None:
        file.unlink(missing_ok=True)
        return
    part = file.with_name(file.name + ".part")
    part.write_text(f"{step}\n")
    os.replace(part, file)


def chosen(directory: Path | str, steps: Sequence[int]) -> int:
    """Of the complete checkpoints `steps` in `directory`, ascending, the one that is the policy."""
    best = marked(directory)
    return steps[-1] if best is None or best not in steps else best
