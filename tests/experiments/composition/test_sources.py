"""What a run checks of its tokenizer, asks of CLIP, and misses."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.builders.blocks import write_blocks
from experiments.composition import sources, spaces
from experiments.composition.config import load_config
from vla_jax.models import clip_text
from vla_jax.models.backbones import paligemma
from vla_jax.models.tokenizer import digest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_blocks(root, train=4, val=2)
    return root


def config(root: Path, word: str, *overrides: str) -> ConfigDict:
    return load_config(f"oxe_paligemma.py:{word}", [f"--config.data.root={root}", *overrides])


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(paligemma.CONFIGS["tiny"], vocab=100)
    monkeypatch.setitem(paligemma.CONFIGS, "tiny", small)
    with pytest.raises(ValueError, match=r"model\.tokenizer: .* tokens, paligemma tiny embeds 100"):
        sources.data(config(root, "tiny"), tmp_path)


def test_a_tokenizer_does_not_outlive_what_it_was_trained_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_blocks(tmp_path / "data", train=4, val=2)
    wanted = config(tmp_path / "data", "tiny")
    before = digest(sources.data(wanted, tmp_path / "run").tokenizer)
    assert digest(sources.data(wanted, tmp_path / "run").tokenizer) == before
    assert "training it again" not in capsys.readouterr().out
    other = config(tmp_path / "data", "tiny", "--config.model.backbone=kosmos2")
    assert digest(sources.data(other, tmp_path / "run").tokenizer) != before
    assert "is of other instructions or another model" in capsys.readouterr().out
    write_blocks(tmp_path / "data", train=9, val=2, seed=7)
    assert digest(sources.data(wanted, tmp_path / "run").tokenizer) != before
    assert "is of other instructions or another model" in capsys.readouterr().out
    # Checkpoints know theirs: it stays, and the data's digest is what refuses them.
    after = digest(tmp_path / "run" / "tokenizer")
    write_blocks(tmp_path / "data", train=4, val=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "complete_steps", lambda folder: [4])
        assert digest(sources.data(wanted, tmp_path / "run").tokenizer) == after


def test_a_run_to_begin_from_keeps_its_tokenizer(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids of another one would name other rows of its embedding. It may lie anywhere."""
    known = sources.data(config(root, "tiny"), tmp_path / "elsewhere").tokenizer
    begun = tmp_path / "start" / "checkpoints"
    monkeypatch.setattr(sources, "complete_steps", lambda folder: [4] * (folder == begun))
    meta = {"tokenizer": {"sha256": digest(known), "folder": str(known)}}
    monkeypatch.setattr(sources, "load_meta", lambda _: meta)
    goes_on = f"--config.model.start={begun}"
    assert sources.data(config(root, "tiny", goes_on), tmp_path / "same")
    write_blocks(tmp_path / "more", train=9, val=2, seed=7)
    with pytest.raises(
        ValueError,
        match=rf"model\.tokenizer: expected that of model\.start={begun}, .*, of the instructions"
        rf" of this data; give --config\.model\.tokenizer={known}",
    ):
        sources.data(config(tmp_path / "more", "tiny", goes_on), tmp_path / "other")
    named = config(tmp_path / "more", "tiny", goes_on, f"--config.model.tokenizer={known}")
    assert sources.data(named, tmp_path / "named").tokenizer == known


def test_action_tokens_stand_apart_from_the_words(root: Path, tmp_path: Path) -> None:
    source = sources.data(config(root, "tiny,discrete"), tmp_path)
    tokenizer = paligemma.load_tokenizer(source.tokenizer)
    assert 256 < source.action_end < tokenizer.vocab
    used = {
        int(i)
        for part in source.train
        for text in part.index.splits["train"].sentences
        for i in source.encode(text)
    }
    assert max(used) < source.action_end - 256
    first = "<loc0900>"  # one of the tokens at the vocabulary's end
    with pytest.raises(ValueError, match=r"collide with token .* of the text 'go to <loc0900>'"):
        source.encode(f"go to {first}")
    plain = sources.data(config(root, "tiny"), tmp_path)
    assert plain.action_end == 0
    assert len(plain.encode(f"go to {first}"))


def test_the_target_is_clips_embedding(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = f"--config.objectives.text_align.clip={tmp_path / 'clip'}"
    wanted = config(root, "tiny", "--config.objectives.text_align.weight=0.05", clip)
    (line,) = sources.missing(wanted)
    assert "openai/clip-vit-large-patch14" in line
    (tmp_path / "clip").mkdir()
    monkeypatch.setattr(
        clip_text, "embedder", lambda folder: lambda text: np.full(768, len(text), np.float32)
    )
    source = sources.data(wanted, tmp_path)
    loader = sources.loader(wanted, source, source.train, shuffle=False)
    target = loader.batch(0).text_target
    assert target.shape == (wanted.batch_size, 768)
    assert target[0, 0] == len(loader.instruction(0))
    assert sources.data(config(root, "tiny"), tmp_path).target is None
    assert (
        sources.data(wanted, tmp_path, training=False).target is not None
    )  # the loss wants it in evaluation too


def test_a_start_that_is_not_there_is_missing(root: Path) -> None:
    (line,) = sources.missing(config(root, "tiny", "--config.model.start=nowhere"))
    assert "no complete checkpoint" in line


def test_wandb_that_is_not_installed_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    (line,) = sources.missing(config(root, "tiny", "--config.wandb=robots"))
    assert 'pip install "vla_jax[wandb]"' in line
    assert sources.missing(config(root, "tiny")) == []


def test_a_dim_that_is_constant_has_no_error_in_robot_units(root: Path, tmp_path: Path) -> None:
    """The robot is held there, whatever the network says."""
    tiny = spaces.resolve(config(root, "tiny"))
    source = sources.data(tiny, tmp_path)
    units = sources.units(tiny, source)
    assert units.names[3:5] == ("roll", "pitch")
    assert (units.scale[0, 3:5] == 0).all()
    assert units.scale[0, 0] == source.train[0].action_spec.units()[0] > 0
