"""Episodes by how they are said to have ended: what is left out, and a table and a page of it."""

import base64
import csv
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files.outcomes import FAILURE, SUCCESS, UNKNOWN
from data_pipelines.index import Split
from experiments.composition import film
from experiments.composition.plots import plt, save
from experiments.viewing.page import POLICY, STYLE

WORDS = {SUCCESS: "success", FAILURE: "failure", UNKNOWN: ""}
COLUMNS = ("file", "record", "split", "steps", "recorded", "chance", "left_out", "words")
LEFT_OUT, KEPT, PIXELS = 100, 40, 64  # strips on the page of either kind, and how high they are


class Score(NamedTuple):
    """An episode: its split and number in it, how it ended as its files say, the chance of success
    that a classifier gives (None without one), and whether it is left out.
    """

    split: Split
    episode: int
    recorded: int
    chance: float | None
    left_out: bool

    @property
    def where(self) -> tuple[str, int]:
        """Its file and record, as a quarantine has them."""
        row = int(self.split.first[self.episode])
        name = self.split.listed[int(self.split.shard[row])]
        return name, int(self.split.record[self.episode])

    @property
    def reason(self) -> str:
        """Why it is left out."""
        if self.chance is None:
            return "recorded as a failure"
        told = WORDS[self.recorded]
        return f"chance of success {self.chance:.3f}{f', recorded as a {told}' if told else ''}"


def text(scores: Sequence[Score]) -> str:
    """Counts, and where files say how episodes ended, what of either kind is left out."""
    out = [each for each in scores if each.left_out]
    lines = [f"{len(out)} of {len(scores)} episodes are left out as failures"]
    for kind in (FAILURE, SUCCESS, UNKNOWN):
        own = [each for each in scores if each.recorded == kind]
        dropped = sum(each.left_out for each in own)
        named = {SUCCESS: "successes", FAILURE: "failures", UNKNOWN: "of unknown outcome"}[kind]
        if own and any(each.recorded != UNKNOWN for each in scores):
            lines.append(f"  recorded {named}: {len(own)}, of which {dropped} are left out")
    known = [each for each in scores if each.recorded != UNKNOWN]
    kept = [each for each in known if not each.left_out]
    if kept:
        before, after = (
            sum(each.recorded == FAILURE for each in some) / len(some) for some in (known, kept)
        )
        lines.append(
            f"  failures among what is learnt from: {before:.1%} before, {after:.1%} after"
        )
    return "\n".join(lines)


def write_table(scores: Sequence[Score], out: Path) -> None:
    """A CSV file of all of them."""
    part = out.with_name(out.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for each in scores:
            name, record = each.where
            chance = "" if each.chance is None else f"{each.chance:.6f}"
            length = int(each.split.length[each.episode])
            told = WORDS[each.recorded]
            words = each.split.words(each.episode)
            row = (name, record, each.split.name, length, told, chance, int(each.left_out), words)
            table.writerow(row)
    os.replace(part, out)


def draw(scores: Sequence[Score], threshold: float, out: Path) -> None:
    """Draws how many episodes have which chance, by how they ended as their files say."""
    figure, axis = plt.subplots(figsize=(7, 3.5))
    kinds = {SUCCESS: "recorded success", FAILURE: "recorded failure", UNKNOWN: "not recorded"}
    found = {
        name: [each.chance or 0.0 for each in scores if each.recorded == kind]
        for kind, name in kinds.items()
    }
    found = {name: values for name, values in found.items() if values}
    bins = np.linspace(0, 1, 21).tolist()
    axis.hist(list(found.values()), bins=bins, label=list(found), stacked=True)
    axis.axvline(threshold, color="black", linewidth=1, linestyle="--")
    axis.set(xlabel="chance of success; dashed: below it episodes are left out", ylabel="episodes")
    axis.legend()
    save(figure, out)


def write_page(dataset: Dataset, scores: Sequence[Score], threshold: float, out: Path) -> None:
    """An HTML page that needs nothing else: the counts, film strips of episodes that are left out,
    the surest failures first, and of those kept that come next.
    """

    def order(each: Score) -> float:
        return 0.0 if each.chance is None else each.chance

    left = sorted((each for each in scores if each.left_out), key=order)
    kept = sorted((each for each in scores if not each.left_out), key=order)
    shown = [left[i] for i in np.linspace(0, len(left) - 1, min(LEFT_OUT, len(left))).astype(int)]
    slot = film.slots(dataset, scores[0].split)[0]
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(dataset.name)}: failures</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(dataset.name)}: which episodes failed</h1><pre>{escape(text(scores))}</pre>"
    ]
    for title, some in (
        (f"Left out: {len(shown)} of {len(left)}, from the surest to the nearest to"
         f" {threshold:g}", shown),
        (f"Kept: the {min(KEPT, len(kept))} of {len(kept)} nearest to it", kept[:KEPT]),
    ):  # fmt: skip
        parts.append(f"<h2>{title}</h2>")
        parts += [_row(dataset, each, slot) for each in some]
    part = out.with_name(out.name + ".part")
    part.write_text("".join([*parts, "</body></html>\n"]), encoding="utf-8")
    os.replace(part, out)


def _row(dataset: Dataset, each: Score, slot: str) -> str:
    buffer = io.BytesIO()
    strip = film.strip(dataset, each.split, each.episode, slot, PIXELS)
    Image.fromarray(strip).save(buffer, "JPEG", quality=75)
    name, record = each.where
    told = WORDS[each.recorded] or "not said"
    said = "" if each.chance is None else f"chance {each.chance:.3f}, "
    words = escape(each.split.words(each.episode))
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure class="strip"><figcaption>{said}recorded: {told} · <q>{words}</q>'
        f" <span>{escape(name)} {record}</span></figcaption>"
        f'<img alt="" src="data:image/jpeg;base64,{data}"></figure>\n'
    )
