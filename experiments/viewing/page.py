"""A page about a split of a dataset: one HTML file that needs nothing else, server and network
included.
"""

import json
import os
import re
from collections.abc import Iterable
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple

from data_pipelines import report
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.index import Index, Split
from data_pipelines.report import Report
from experiments.viewing import episodes
from vla_jax.progress import Progress

MOST = 64 * 2**20  # bytes of a page, which a browser still opens in a few seconds
SPARE = 0.9  # of the episodes that fit, this share is advised: others may be larger

# The browser is told to fetch nothing, whatever the texts of a dataset hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1em auto; max-width: 1100px; padding: 0 1em }
header { position: sticky; top: 0; background: #fff; padding: .5em 0 }
#q { font: inherit; width: 24em; padding: .3em }
small, .note, figcaption span, .axis { color: #666; font-weight: normal; font-size: 12px }
table { border-collapse: collapse; margin: .5em 0; font-size: 13px }
th, td { text-align: right; padding: .1em .7em; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
tr.constant { color: #888 }
.episode { border-top: 2px solid #888; margin-top: 1.2em; content-visibility: auto;
  contain-intrinsic-size: auto 800px }
h2 { font-size: 17px; margin: .5em 0 } h3 { font-size: 14px; margin: .6em 0 .2em }
ul { margin: .2em 0; padding-left: 1.2em }
li { scroll-margin-top: 6em } li:target { background: #ffefb0 }
figure { margin: 0 } .strip { margin: .3em 0 } .strip img { display: block; max-width: 100% }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: .5em }
svg { width: 100%; height: 64px; display: block; background: #f6f6f6 }
polyline { fill: none; stroke: #1f77b4; stroke-width: 1.4; vector-effect: non-scaling-stroke }
.limit { stroke: #d62728; stroke-width: .7; stroke-dasharray: 3 3 }
.change { stroke: #2ca02c; stroke-width: 1.2; vector-effect: non-scaling-stroke }
.axis { display: flex; justify-content: space-between }
"""

# A word of digits is an episode's number or stands as a word in its instruction; any other word is
# found anywhere in it.
SCRIPT = """
const box = document.getElementById('q');
const all = [...document.querySelectorAll('.episode')].map(section => {
  const said = [...section.querySelectorAll('q')].map(q => q.textContent);
  const text = said.join(' ').normalize().toLowerCase();
  return { section, text, words: [section.dataset.number, ...text.split(/\\W+/)] };
});
function filter() {
  const asked = box.value.normalize().toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const { section, text, words } of all) {
    const fits = word => /^\\d+$/.test(word) ? words.includes(word) : text.includes(word);
    section.hidden = !asked.every(fits);
    shown += !section.hidden;
  }
  document.getElementById('shown').textContent = shown + ' of ' + all.length;
}
function read() {
  const asked = location.hash.match(/^#q=(.*)$/);
  if (asked) try { box.value = decodeURIComponent(asked[1]); } catch { box.value = asked[1]; }
  filter();
}
box.addEventListener('input', filter);
addEventListener('hashchange', read);
read();
"""


class Shown(NamedTuple):
    """What a page says that it holds."""

    dataset: str
    split: str
    digest: str  # of the index
    runs: frozenset[int]  # numbers of runs of steps with one instruction, as replay counts


def write(index: Index, split: Split, most: int, quarantined: int, out: Path) -> int:
    """Writes a page with at most so many episodes, evenly spaced over the split, to `out`, whole or
    not at all; returns its bytes.

    Args:
        quarantined: episodes that a list left out of the split's files.

    Raises ValueError for pages over MOST, saying how many episodes to ask for, and for a frame that
    is no picture.
    """
    dataset, numbers = index.dataset, episodes.chosen(split, most)
    measured = report.measure(dataset, split)
    there = int((split.length > 0).sum())
    how = "all of them" if len(numbers) == there else "evenly spaced; --episodes=N shows more"
    parts = [
        _head(index, split),
        _about(dataset, split, measured, quarantined),
        f'<header><input id="q" type="search" placeholder="instruction or number of an episode">'
        f' <span id="shown">{len(numbers)} of {len(numbers)}</span> episodes shown; the page holds'
        f" {len(numbers)} of {there}, {how}</header>\n",
    ]
    size = sum(len(part.encode("utf-8", "replace")) for part in parts)
    with Progress(f"{dataset.name}: view", len(numbers), "episodes") as progress:
        for done, episode in enumerate(numbers):
            parts.append(episodes.section(dataset, split, measured, episode))
            size += len(parts[-1].encode("utf-8", "replace"))
            if size > MOST:
                raise ValueError(
                    f"--episodes: expected so few that the page has at most {MOST / 2**20:.0f} MiB,"
                    f" got {len(numbers)}, of which {done} fill it; ask for --episodes="
                    f"{max(1, int(SPARE * done))} or fewer"
                )
            progress.add(1)
    parts.append(f"<script>{SCRIPT}</script></body></html>\n")
    body = "".join(parts).encode("utf-8", "replace")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_bytes(body)
    os.replace(part, out)
    return len(body)


def read(file: Path) -> Shown:
    """What the page in `file` holds. Raises ValueError where it is none of ours."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    found = re.search(r'<meta name="vla_jax" content="([^"]*)">', text)
    if found is None:
        raise ValueError(
            f"{file}: expected a page of experiments.view, got"
            f" {'another file' if text else 'none'}; write one with python -m experiments.view"
        )
    name, split, digest = json.loads(unescape(found[1]))
    return Shown(name, split, digest, frozenset(map(int, re.findall(r'<li id="run-(\d+)"', text))))


def _head(index: Index, split: Split) -> str:
    name = escape(f"{index.dataset.name}, {split.label}")
    about = escape(json.dumps([index.dataset.name, split.name, index.digest]))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="vla_jax" content="{about}"><title>{name}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>{name}</h1>\n"
    )


def _about(dataset: Dataset, split: Split, measured: Report, quarantined: int) -> str:
    """What is known of the split as a whole."""
    first, *others = report.summary(dataset, split.label, measured)
    empty = int((split.length == 0).sum())
    others += [f"left out: {empty} episodes too short for a step"] * bool(empty)
    others += [f"left out: {quarantined} episodes in quarantine"] * bool(quarantined)
    if not (split.left_out or empty or quarantined):
        others.append("left out: nothing")
    lines = [first, *others, *report.remarks(measured), *(f"note: {n}" for n in dataset.notes)]
    labels = {"actions": dataset.action_labels, "state": dataset.state_labels}
    tables = "".join(_table(kind, labels[kind], measured[kind]) for kind in labels if labels[kind])
    return (
        f"{_list(lines)}{tables}<p class=note>In the charts below: red, q01 and q99 of the"
        " whole split; green, where the instruction changes.</p>\n"
    )


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _table(kind: str, labels: tuple[str, ...], rows: dict[str, Report]) -> str:
    head = "".join(f"<th>{word}</th>" for word in (kind, *report.COLUMNS, "clipped", ""))
    body = "".join(
        f"<tr{' class=constant' * row['constant']}><td>{escape(label)}</td>"
        + "".join(f"<td>{row[word]:.4g}</td>" for word in report.COLUMNS)
        + f"<td>{row['clipped']:.2%}</td><td>{'constant' if row['constant'] else ''}</td></tr>"
        for label, row in zip(labels, rows.values(), strict=True)
    )
    return f"<table><tr>{head}</tr>{body}</table>\n"
