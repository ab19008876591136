"""Which episodes a page holds, and how large it may be."""

import re
from pathlib import Path

import pytest

from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.index import Index, open_index
from experiments.viewing import episodes, page


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("blocks")
    write_blocks(root, train=9, val=2)
    return open_index(root, DATASETS["blocks"])


def test_episodes_are_evenly_spaced(index: Index) -> None:
    train = index.splits["train"]
    assert episodes.chosen(train, 3) == [0, 4, 8]
    assert episodes.chosen(train, 1) == [0]
    assert episodes.chosen(train, 100) == list(range(9))


def test_a_page_too_large_says_how_many_episodes_fit(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, train = tmp_path / "page.html", index.splits["train"]
    one = page.write(index, train, 1, 0, out)
    nine = page.write(index, train, 9, 0, out)
    out.unlink()
    monkeypatch.setattr(page, "MOST", one + 4.5 * (nine - one) / 8)
    with pytest.raises(ValueError, match=r"--episodes: .* got 9, of which 5 fill it; ") as error:
        page.write(index, train, 9, 0, out)
    assert not list(tmp_path.iterdir())
    advised = int(re.findall(r"--episodes=(\d+) or fewer", str(error.value))[0])
    assert page.write(index, train, advised, 0, out) < page.MOST


def test_a_page_says_what_it_is_about(index: Index, tmp_path: Path) -> None:
    page.write(index, index.splits["val"], 9, 0, tmp_path / "page.html")
    assert page.read(tmp_path / "page.html") == ("blocks", "val", index.digest, frozenset({0, 1}))
