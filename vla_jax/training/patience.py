"""Early stopping: a run ends when its held-out loss no longer falls.

The count is not part of the state: it is that of the rows of metrics.jsonl, so a run that was
killed, or extended, goes on counting.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

# Fields whose change makes another loss of val/loss: what came before is no measure of what comes.
OTHER_LOSS = ("data.", "loss.", "objectives.", "eval_batches", "batch_size")


class Patience:
    """Counts the evaluations since the best one. All hosts see the same losses and decide alike.

    Attributes:
        most: evaluations in a row that may be no better than the best before them.
        step, loss: of the best evaluation; None and infinity before the first.
        count: evaluations since then.
    """

    def __init__(self, most: int, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Begins with the `rows` of metrics.jsonl that were written until now."""
        self.most = most
        self.step: int | None = None
        self.loss, self.count = math.inf, 0
        for row in rows:
            if "changed" in row and _another_loss(row["changed"]):
                self._forget()
            elif "val/loss" in row:
                value = row["val/loss"]
                self.saw(row["step"], math.nan if value is None else value)

    def saw(self, step: int, loss: float) -> bool:
        """Counts an evaluation; True when it is the best so far. What is not finite is not."""
        if loss < self.loss:
            self.step, self.loss, self.count = step, loss, 0
            return True
        self.count += 1
        return False

    @property
    def over(self) -> bool:
        """Whether the run is to end."""
        return self.count >= self.most

    def _forget(self) -> None:
        self.step, self.loss, self.count = None, math.inf, 0


def resumed(most: int, file: Path, step: int, kept: Collection[int]) -> Patience:
    """The patience of a run that goes on from `step`, by the rows of its metrics.jsonl.

    It begins anew where the best of them was at a step that is not among the checkpoints `kept`
    (early stopping was switched on later, say): nothing could be given for it.
    """
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a kill cut it short
            continue
        if row["step"] <= step:
            rows.append(row)
    patience = Patience(most, rows)
    return patience if patience.step in kept else Patience(most)


def _another_loss(changed: Mapping[str, Any]) -> bool:
    return any(name.startswith(OTHER_LOSS) and name != "data.root" for name in changed)
