"""An episode of a page: its words, film strips, actions and states."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.index import Split
from data_pipelines.report import Report
from experiments.composition import film
from experiments.viewing import svg

PIXELS, QUALITY = 96, 75  # of a strip: its height, and the JPEG's quality
NO_WORDS = "(no instruction)"


def chosen(split: Split, most: int) -> list[int]:
    """At most so many of the episodes that have a step, evenly spaced over the split."""
    there = np.flatnonzero(split.length)
    places = np.linspace(0, len(there) - 1, min(most, len(there))).astype(int)
    return there[places].tolist()


def dims(labels: tuple[str, ...], rows: dict[str, Report]) -> list[svg.Dim]:
    """What is drawn of the dims that data_pipelines/report.py measured."""
    return [
        svg.Dim(label, row["q01"], row["q99"], row["constant"])
        for label, row in zip(labels, rows.values(), strict=True)
    ]


def told(split: Split, episode: int) -> list[tuple[int, int, list[str]]]:
    """What an episode is told: of each run of steps its number in the split, as replay counts, the
    step of the episode that it begins with, and the words, alternatives after the first.
    """
    first = int(split.first[episode])
    begin, end = np.searchsorted(split.run, [first, first + int(split.length[episode])])
    return [
        (run, int(split.run[run]) - first, _words(split, run))
        for run in range(int(begin), int(end))
    ]


def _words(split: Split, run: int) -> list[str]:
    words = [split.sentences[i] for i in split.instruction[run].tolist() if i >= 0]
    return [text for text in words if text.strip()] or [NO_WORDS]


def section(dataset: Dataset, split: Split, measured: Report, episode: int) -> str:
    """The HTML of an episode. Raises ValueError for a frame that is no picture."""
    length = int(split.length[episode])
    rows = slice(int(split.first[episode]), int(split.first[episode]) + length)
    runs = told(split, episode)
    changes = [step for _, step, _ in runs[1:]]
    said = "".join(
        f'<li id="run-{run}">'
        + (f'<span class="note">from step {step}:</span> ' if len(runs) > 1 else "")
        + ' <span class="note">or</span> '.join(f"<q>{escape(text)}</q>" for text in words)
        + "</li>"
        for run, step, words in runs
    )
    seconds = f", {length / dataset.control_hz:.1f} s" if dataset.control_hz else ""
    parts = [
        f'<section class="episode" id="episode-{episode}" data-number="{episode}">'
        f"<h2>Episode {episode} <small>{length} steps{seconds}"
        f" · {escape(_where(split, episode))}</small></h2><ul>{said}</ul>"
    ]
    parts += [_strip(dataset, split, episode, slot) for slot in film.slots(dataset, split)]
    for title, values, labels, kind in (
        ("action", split.actions[rows], dataset.action_labels, "actions"),
        ("state", split.state[rows], dataset.state_labels, "state"),
    ):
        if labels:
            drawn = svg.charts(values, dims(labels, measured[kind]), changes)
            parts.append(f"<h3>{title}</h3>{drawn}")
    return "".join(parts) + "</section>\n"


def _where(split: Split, episode: int) -> str:
    """The file and record of an episode; without cameras nothing says which file."""
    record = f"record {split.record[episode]}"
    for frames in split.frames.values():
        shard = split.shards[int(frames.shard[split.first[episode]])]
        return f"{shard.rsplit('/', 1)[-1]}, {record}"
    return record


def _strip(dataset: Dataset, split: Split, episode: int, slot: str) -> str:
    pixels = film.strip(dataset, split, episode, slot, PIXELS)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    body = base64.b64encode(file.getvalue()).decode()
    steps = film.steps(int(split.length[episode]))
    return (
        f'<figure class="strip"><figcaption><b>{escape(slot)}</b> steps'
        f" {', '.join(map(str, steps))}</figcaption>"
        f'<img alt="{escape(slot)}" src="data:image/jpeg;base64,{body}"></figure>'
    )
