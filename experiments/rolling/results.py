"""What became of episodes: a line each in a file that survives kills, and figures of all.

OUT/settings.json   what the results are of; other settings do not go on here
OUT/episodes.jsonl  a line for each episode that ended
OUT/actions/N.npy   what was carried out in episode N
OUT/results.json    written at the end
"""

import fcntl
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from experiments.composition.config import diff
from experiments.composition.json_files import write_json
from experiments.rolling.episodes import ACTIONS, Row

NORMAL = 1.959963984540054  # 97.5% of a normal distribution lie below

ERROR = "error"  # the outcome of an episode whose world's process ended: it counts as no episode


class Kept:
    """The episodes in a folder, for one process. To be used in a `with` statement.

    Attributes:
        out: the folder.
        settings: what the results are of.
        rows: of the episodes that ended, by their number. Those that were errors are not there.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        """Raises ValueError where another process writes there, and for results of other settings,
        which are named.
        """
        self.out, self.settings = out, settings
        out.mkdir(parents=True, exist_ok=True)
        self._file = (out / "episodes.jsonl").open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"--out={out}: another process writes its episodes there; wait for it, or give"
                " another folder"
            ) from None
        rows = self._read()
        self.rows = {number: row for number, row in rows.items() if row["outcome"] != ERROR}
        self.errors: dict[int, str] = {}  # of this process
        changed = self._other(settings)
        if changed:
            self._file.close()
            lines = "\n".join(f"  {key}: {was}, now {now}" for key, (was, now) in changed.items())
            raise ValueError(
                f"--out={out}: holds episodes of other settings, which are not to be counted"
                f" together:\n{lines}\ngive another folder"
            )

    def add(self, row: Row, actions: np.ndarray | None) -> None:
        """Keeps an episode and the actions [d] carried out in it, on the disk when this returns."""
        if actions is not None:
            (self.out / ACTIONS).mkdir(exist_ok=True)
            with (self.out / ACTIONS / f"{row['episode']}.npy").open("wb") as file:
                np.save(file, actions, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        if row["outcome"] == ERROR:
            self.errors[row["episode"]] = row["error"]
        else:
            self.rows[row["episode"]] = row
            self.errors.pop(row["episode"], None)

    def _other(self, settings: dict[str, Any]) -> dict[str, tuple[str, str]]:
        """What was other for the episodes that are there; without one, these settings are kept."""
        file = self.out / "settings.json"
        if self.rows:
            return diff(json.loads(file.read_text(encoding="utf-8")), settings)
        write_json(file, settings)
        return {}

    def _read(self) -> dict[int, Row]:
        """What is there; the end of a line that a kill cut off is removed."""
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        self._file.truncate(whole)
        return rows_in(data)

    def __enter__(self) -> "Kept":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def rows_in(data: bytes) -> dict[int, Row]:
    """The episodes of an episodes.jsonl by their number, each as it ended last; a line that a kill
    cut off is left out.
    """
    rows = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    return {row["episode"]: row for row in rows}


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The interval of a share at 95% (Wilson 1927): all p for which `successes` of n are within
    1.96 standard deviations of n p. Raises ValueError without an episode.
    """
    if n < 1:
        raise ValueError("wilson: expected one episode or more, got none")
    share, z2 = successes / n, NORMAL * NORMAL
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def figures(rows: list[Row], control_hz: float) -> dict[str, Any]:
    """JSON-able: success of all, by wording and by task and wording, how episodes ended, how many
    steps a second the worlds made on a core each, how jerky what was carried out was (the mean of
    episodes, chunking.jerk), how long the policy took for a plan, ms, and what share of the plans
    took longer than the steps they were for last on the robot. Of episodes with several
    instructions how many were carried out.
    """
    by_task = {
        task: _by("wording", [row for row in rows if row["task"] == task])
        for task in dict.fromkeys(row["task"] for row in rows)
    }
    body: dict[str, Any] = {
        "success": _share(rows),
        "by_wording": _by("wording", rows),
        "by_task": by_task,
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "steps_per_second": sum(row["steps"] for row in rows) / sum(row["seconds"] for row in rows),
    }
    units = dict.fromkeys(unit for row in rows for unit in row["jerk"])
    body["jerk"] = {
        unit: float(np.mean([row["jerk"][unit] for row in rows if unit in row["jerk"]]))
        for unit in units
    }
    if all("solved" in row for row in rows):
        body["in_a_row"] = in_a_row([row["solved"] for row in rows], len(rows[0]["chain"]))
    times = [row["milliseconds"] for row in rows]
    if any(times):
        p50, p95 = np.quantile(np.concatenate(times), [0.5, 0.95]).tolist()
        late = sum(_late(row, control_hz) for row in rows)
        count = sum(map(len, times))
        body |= {"plans": count, "milliseconds": {"p50": p50, "p95": p95}, "late": late / count}
    return body


def in_a_row(solved: Sequence[int], most: int) -> dict[str, Any]:
    """Of chains of `most` instructions, of each of which so many were carried out before one was
    not: the share with at least 1, 2, ... and the mean number, with intervals at 95% (Wilson's; of
    the mean 1.96 standard errors).
    """
    n = len(solved)
    shares = []
    for least in range(1, most + 1):
        count = sum(each >= least for each in solved)
        low, high = wilson(count, n)
        shares.append({"successes": count, "episodes": n, "low": low, "high": high})
    half = NORMAL * float(np.std(solved, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    mean = float(np.mean(solved))
    low, high = max(0.0, mean - half), min(float(most), mean + half)
    return {"at_least": shares, "mean": mean, "low": low, "high": high}


def _late(row: Row, control_hz: float) -> int:
    """The plans that took longer than their share of an episode's steps last."""
    plans = row["milliseconds"]
    return sum(each > 1e3 * row["steps"] / control_hz / len(plans) for each in plans)


def text(body: dict[str, Any]) -> str:
    """The figures as a table for people."""
    wordings = list(body["by_wording"])
    lines = ["task".ljust(20) + "".join(f"{wording:>28}" for wording in wordings)]
    for task, cells in [*body["by_task"].items(), ("all", body["by_wording"])]:
        shown = (_cell(cells[wording]) if wording in cells else "" for wording in wordings)
        lines.append(task.ljust(20) + "".join(f"{cell:>28}" for cell in shown))
    ended = ", ".join(f"{name} {count}" for name, count in body["outcomes"].items())
    lines += [
        f"success {_cell(body['success'])}: {ended}",
        f"{body['steps_per_second']:,.0f} steps a second and world",
    ]
    if body["jerk"]:
        each = ", ".join(f"{value:.4g} {unit}" for unit, value in body["jerk"].items())
        lines.append(f"jerk of what was carried out: {each}")
    if "in_a_row" in body:
        chains = body["in_a_row"]
        shares = " / ".join(
            f"{100 * each['successes'] / each['episodes']:.1f}" for each in chains["at_least"]
        )
        mean = f"{chains['mean']:.2f} [{chains['low']:.2f}, {chains['high']:.2f}]"
        lines.append(f"in a row, at least 1 to {len(chains['at_least'])}: {shares}%; mean {mean}")
    if "plans" in body:
        times = body["milliseconds"]
        lines.append(
            f"{body['plans']} plans, {times['p50']:.2f} ms (p95 {times['p95']:.2f}),"
            f" {body['late']:.1%} of them longer than the steps they are for"
        )
    return "\n".join(lines)


def _by(key: str, rows: list[Row]) -> dict[str, Any]:
    names = dict.fromkeys(row[key] for row in rows)
    return {name: _share([row for row in rows if row[key] == name]) for name in names}


def _share(rows: list[Row]) -> dict[str, Any]:
    count = sum(row["outcome"] == "success" for row in rows)
    low, high = wilson(count, len(rows))
    return {"successes": count, "episodes": len(rows), "low": low, "high": high}


def _cell(share: dict[str, Any]) -> str:
    percent = 100 * share["successes"] / share["episodes"]
    return (
        f"{percent:.1f}% [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"
        f" of {share['episodes']}"
    )
