"""What a config asks of the data beside windows: images with texts, future frames, past actions."""

import dataclasses
import threading
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.builders.blocks import write_blocks
from data_pipelines.builders.blocks_captions import write_captions
from experiments.composition import cotraining, sources
from experiments.composition.config import load_config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_blocks(root, train=4, val=2)
    write_captions(root, train=6, val=3)
    return root


def config(root: Path, *overrides: str) -> ConfigDict:
    return load_config(
        "oxe_paligemma.py:tiny", [f"--config.data.root={root}", "--config.batch_size=4", *overrides]
    )


ON = (
    "--config.objectives.image_text.weight=0.05",
    "--config.objectives.image_text.dataset=blocks_questions",
    "--config.objectives.forward.weight=0.1",
    "--config.objectives.forward.offsets=3",
    "--config.model.past_action=True",
)


def test_everything_asked_for_is_in_the_batches(root: Path, tmp_path: Path) -> None:
    on = config(root, *ON)
    source = dataclasses.replace(
        sources.data(on, tmp_path), target=lambda text: np.ones(5, np.float32)
    )
    loader = sources.loader(on, source, source.train, shuffle=True)
    reader = cotraining.reader(on, source.texts, "train")
    assert reader is not None

    def take(start: int, count: int) -> list:
        stream = cotraining.batches(loader, reader, start, start)
        try:
            return [jax.tree.map(np.array, batch) for batch in islice(stream, count)]
        finally:
            stream.close()

    batches = take(0, 4)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("loader", "decode"))
    ]
    batch = batches[0]
    assert batch.image_text.images.shape == (4, 32, 32, 3)
    assert batch.image_text.tokens.shape == (4, 128)
    assert batch.image_text.target.any(1).all()
    assert batch.future.images[0].shape == (4, 2, 1, 32, 32, 3)
    assert batch.obs.past_action.shape == (4, 2, 7)
    assert batch.text_target.shape == (4, 5)
    for one, other in zip(
        take(2, 2), batches[2:], strict=True
    ):  # as a run that is continued reads them
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert "image_text" in cotraining.identity(loader, reader)
    held_out = cotraining.reader(on, source.texts, "held_out")
    assert held_out is not None
    assert (reader.images, held_out.images) == (6, 3)


def test_nothing_is_there_when_it_is_off(root: Path, tmp_path: Path) -> None:
    off = config(root)
    source = sources.data(off, tmp_path)
    assert source.texts is None
    loader, reader = (
        sources.loader(off, source, source.train, shuffle=True),
        cotraining.reader(off, source.texts, "train"),
    )
    stream = cotraining.batches(loader, reader)
    batch = next(stream)
    stream.close()
    assert (
        reader
        is batch.image_text
        is batch.future
        is batch.text_target
        is batch.obs.past_action
        is None
    )
    assert cotraining.identity(loader, reader) == loader.identity()


def test_evaluation_needs_no_images_with_texts(root: Path, tmp_path: Path) -> None:
    on = config(root, *ON, "--config.objectives.image_text.dataset=clevr")
    assert sources.data(on, tmp_path, training=False).texts is None
    with pytest.raises(
        ValueError,
        match=r"objectives.image_text.dataset: clevr: no .*; tfds build clevr --data_dir=",
    ):
        sources.data(on, tmp_path)


def test_what_is_missing_is_listed(root: Path) -> None:
    (line,) = sources.missing(
        config(root, *ON, "--config.objectives.image_text.dataset=coco_captions")
    )
    assert "co-training: coco_captions: no " in line
    assert "tfds build coco_captions" in line
    assert sources.missing(config(root, *ON)) == []
    with pytest.raises(
        ValueError,
        match=r"objectives.image_text.dataset: expected one of coco_captions, clevr, .*got ''",
    ):
        sources.missing(config(root, *ON, "--config.objectives.image_text.dataset="))


def test_a_users_file_may_describe_what_is_co_trained_on(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import dataclasses\nfrom data_pipelines.datasets.image_text import"
        " BLOCKS_CAPTIONS\nIMAGE_TEXT = {'mine': dataclasses.replace(BLOCKS_CAPTIONS, name='mine',"
        " prompt='tell me')}\n"
    )
    on = config(
        root, *ON, f"--config.data.datasets={own}", "--config.objectives.image_text.dataset=mine"
    )
    assert sources.missing(on) == []
    found = cotraining.dataset(on)
    assert found is not None
    assert found.prompt == "tell me"
