"""The page about a dataset, as a person opens it: in headless Chromium where there is one."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index
from experiments import replay, view
from experiments.replaying.recorded import Recording
from tests.data_pipelines.blocks_files import rewrite, shard
from vla_jax.actions import ActionSpec

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOSTILE = "</q><script>document.title='owned'</script><img src=http://evil.example/x> & \"quoted\""
TURN = 4  # the step from which on episode 0 is told something else


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks whose first episode is told hostile words, and others from step TURN on."""
    root = tmp_path_factory.mktemp("blocks")
    write_blocks(root, train=6, val=4)

    def change(features: dict[str, Any]) -> None:
        count = len(features["steps/language_instruction"])
        told = [HOSTILE.encode()] * TURN + ["빨간 블록".encode()] * (count - TURN)
        features["steps/language_instruction"] = told

    rewrite(shard(root), change)
    return root


@pytest.fixture(scope="module")
def page(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "blocks.html"
    look(root, file)
    return file


def look(root: Path, out: Path, *options: object) -> None:
    view.main(["--root", str(root), "--dataset", "blocks", "--out", str(out), *map(str, options)])


def opened(page: Path, query: str, tmp_path: Path) -> str:
    """The page as Chromium has it after its script ran."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         f"{page.as_uri()}{query}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def episodes(dom: str, hidden: bool) -> list[int]:
    tags = re.findall(r'<section class="episode"[^>]*>', dom)
    found = [tag for tag in tags if ("hidden" in tag) == hidden]
    return [int(re.findall(r'data-number="(\d+)"', tag)[0]) for tag in found]


def test_a_page_holds_all_of_it_and_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    assert text.count('<section class="episode"') == 6
    assert text.count('src="data:image/jpeg;base64,') == 6 * 2  # cameras
    assert "left out: nothing" in text
    assert re.search(r"<tr class=constant><td>roll \(rad\)</td>.*?constant</td>", text)
    assert "constant, not drawn: roll (rad) = 0, pitch (rad) = 0" in text
    assert "default-src 'none'" in text
    # Nothing is fetched: no address but data: in a tag (the hostile text has one, escaped).
    assert not re.findall(r"<[^>]*(?:src|href)=\"?(?!\"?data:)", text)
    assert "<img src=http" not in text
    assert "&lt;img src=http://evil.example/x&gt; &amp; &quot;quoted&quot;" in text


def test_words_that_change_inside_an_episode_stand_at_their_step(page: Path) -> None:
    first = page.read_text().split("<section")[1]
    assert f"from step {TURN}:</span> <q>빨간 블록</q>" in first
    assert first.count('class="change"') == 5 + 5  # dims of actions and states that move
    assert 'class="change"' not in page.read_text().split("<section")[2]


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("#q=RED", [3]),
        ("#q=3", [3]),  # a number
        ("#q=block%20blue", [2, 5]),  # both words, in any order
        ("#q=%EB%B9%A8%EA%B0%84", [0]),
        ("#q=%", []),  # no URL's escape: searched as it stands
    ],
)
def test_search_keeps_what_was_typed(
    page: Path, tmp_path: Path, query: str, shown: list[int]
) -> None:
    dom = opened(page, query, tmp_path)
    assert episodes(dom, hidden=False) == shown
    assert episodes(dom, hidden=True) == sorted({*range(6)} - {*shown})
    assert f'<span id="shown">{len(shown)} of 6</span>' in dom


def test_words_of_a_dataset_are_no_program(page: Path, tmp_path: Path) -> None:
    assert "<title>blocks, train</title>" in opened(page, "", tmp_path)


def test_what_was_left_out_is_counted(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "bad.txt"
    listed.write_text(f"{shard(root).name} 1  # seen by a person\n")
    look(root, tmp_path / "few.html", "--quarantine", listed, "--min_length", 12)
    text = (tmp_path / "few.html").read_text()
    assert "left out: 1 episodes in quarantine" in text
    assert "left out: 4 episodes shorter than data.min_length" in text
    assert text.count('<section class="episode"') == 6 - 1 - 4
    assert "holds 1 of 1, all of them" in text


def test_a_page_of_some_episodes_says_so(root: Path, tmp_path: Path) -> None:
    look(root, tmp_path / "some.html", "--episodes", 2)
    text = (tmp_path / "some.html").read_text()
    assert episodes(text, hidden=False) == [0, 5]
    assert "holds 2 of 6, evenly spaced; --episodes=N shows more" in text


def test_an_older_page_stays_until_the_new_one_is_whole(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "page.html"
    look(root, out, "--episodes", 1)
    before = out.read_text()
    broken = tmp_path / "broken"
    shutil.copytree(root, broken)

    def change(features: dict[str, Any]) -> None:
        pictures = features["steps/observation/image"]
        pictures[0] = pictures[0][:20] + b"x" * (len(pictures[0]) - 20)

    rewrite(shard(broken), change)
    with pytest.raises(ValueError, match=r"episode 0 .record 0 of its file.: primary, step 0: im"):
        look(broken, out, "--episodes", 1)
    assert out.read_text() == before
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split", "test"), "--split: expected one of train, val, got 'test'"),
        (("--dataset", "blogs"), "--dataset: expected one of blocks, bridge"),
        (("--out", "page"), r"--out: expected a file that ends in \.html, got page"),
    ],
)
def test_what_cannot_work_is_refused(
    root: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        look(root, tmp_path / "page.html", *options)


def test_replay_links_to_the_runs_of_its_own_data_only(
    root: Path, page: Path, tmp_path: Path
) -> None:
    index = open_index(root, DATASETS["blocks"])
    train, held_out = (
        Recording(
            index,
            index.splits[name],
            ("primary",),
            {"primary": 24},
            "bicubic",
            ActionSpec(()),
            np.zeros(0),
        )
        for name in ("train", "val")
    )
    links = replay.page_links(page, train)
    # Episode 0 is two runs of steps: a robot begins anew with each.
    assert links == {run: f"{page.as_uri()}#run-{run}" for run in range(7)}
    for run in links:
        assert page.read_text().count(f'id="run-{run}"') == 1
    with pytest.raises(ValueError, match=r"about blocks, split val, as .* about blocks, split tra"):
        replay.page_links(page, held_out)
    (tmp_path / "other.html").write_text("<html>")
    with pytest.raises(ValueError, match=r"expected a page of experiments.view, got another file"):
        replay.page_links(tmp_path / "other.html", train)
