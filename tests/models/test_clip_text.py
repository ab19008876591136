"""CLIP's text encoder against transformers with every parameter jittered, and the embedder on a
folder of its own.
"""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vla_jax import params as flat
from vla_jax.models import clip_text

WIDTH, CONTEXT, TOLERANCE = 32, 12, 1e-5
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [*LETTERS, *(f"{x}</w>" for x in LETTERS), "re", "red</w>", "pu", "push</w>", "sh</w>"]
MERGES = [("r", "e"), ("re", "d</w>"), ("p", "u"), ("s", "h</w>"), ("pu", "sh</w>")]
BOS, EOS = len(PIECES), len(PIECES) + 1
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "projection_dim": 24, "vocab_size": EOS + 1, "max_position_embeddings": CONTEXT,
    "bos_token_id": BOS,
    "pad_token_id": EOS,
}  # fmt: skip


def jitter(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model.eval()


@pytest.fixture(scope="module", params=[EOS, 2], ids=["first end", "legacy"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    """A tiny jittered encoder of transformers, and the folder with it and a CLIP tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    model = jitter(CLIPTextModelWithProjection(CLIPTextConfig(eos_token_id=request.param, **TEXT)))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    vocab = {piece: i for i, piece in enumerate([*PIECES, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocab, merges=MERGES).save_pretrained(folder)
    return model, folder


def texts() -> np.ndarray:
    """Texts of several lengths and several ends, padded with the end token, with 0 and with other
    tokens.
    """
    ids = np.random.default_rng(0).integers(0, BOS, (4, CONTEXT))
    ids[:, 0] = BOS
    ids[0, -1] = ids[1, 4:] = ids[2, 3] = ids[3, [5, 8]] = EOS
    ids[2, 4:] = 0
    return ids


def errors(case: tuple[Any, Path], **changes: Any) -> dict[str, float]:
    """Largest differences from transformers, with a changed config."""
    model, folder = case
    graphdef, params = clip_text.from_pretrained(folder)
    config = dataclasses.replace(flat.merge(graphdef, params).config, **changes)
    ours = flat.merge(flat.abstract(lambda rngs: clip_text.ClipText(config, rngs))[0], params)
    ids = texts()
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids))
    pairs = {
        "states": (ours.states(jnp.asarray(ids)), theirs.last_hidden_state),
        "embeds": (ours(jnp.asarray(ids)), theirs.text_embeds),
    }
    return {name: float(np.abs(np.asarray(a) - b.numpy()).max()) for name, (a, b) in pairs.items()}


def test_parity_with_transformers(case: tuple[Any, Path]) -> None:
    differences = errors(case)
    assert max(differences.values()) < TOLERANCE, differences


@pytest.mark.slow
def test_parity_sees_wrong_numbers(case: tuple[Any, Path]) -> None:
    assert errors(case, act="gelu")["states"] > 100 * TOLERANCE
    assert errors(case, eps=1e-3)["states"] > 100 * TOLERANCE
    assert errors(case, eos=3)["embeds"] > 100 * TOLERANCE


def test_a_whole_clip_holds_the_same_encoder(tmp_path: Path) -> None:
    """Its image half is ignored by name; anything else is refused."""
    from safetensors.numpy import load_file, save_file
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision |= {"image_size": 8, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=TEXT | {"eos_token_id": EOS}, vision_config=vision, projection_dim=20
    )
    whole = jitter(CLIPModel(config))
    whole.save_pretrained(tmp_path)
    graphdef, params = clip_text.from_pretrained(tmp_path)
    ids = texts()
    with torch.no_grad():
        theirs = whole.get_text_features(input_ids=torch.tensor(ids))
    theirs = getattr(theirs, "pooler_output", theirs)  # transformers 5 wraps it
    np.testing.assert_allclose(
        flat.merge(graphdef, params)(jnp.asarray(ids)), theirs.numpy(), atol=TOLERANCE, rtol=0
    )

    file = tmp_path / "model.safetensors"
    save_file(
        load_file(file) | {"text_model.extra": np.zeros(1, np.float32)}, file, {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"unexpected: text_model\.extra"):
        clip_text.from_pretrained(tmp_path)


def test_the_embedder_is_transformers_pipeline(case: tuple[Any, Path]) -> None:
    """Tokenised, padded, pooled at the end, normalised; a long instruction is cut and ends all the
    same.
    """
    from transformers import AutoTokenizer

    model, folder = case
    embed, tokenizer = clip_text.embedder(folder), AutoTokenizer.from_pretrained(folder)
    for instruction in (
        "push the red block",
        "Push  the red\nblock",
        "push the red block to the left of the bowl",
    ):
        ids = tokenizer(
            instruction,
            padding="max_length",
            max_length=CONTEXT,
            truncation=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            theirs = model(input_ids=ids.input_ids).text_embeds[0]
        ours = embed(instruction)
        assert ours.dtype == np.float32
        assert abs(np.linalg.norm(ours) - 1) < 1e-6
        np.testing.assert_allclose(ours, (theirs / theirs.norm()).numpy(), atol=TOLERANCE, rtol=0)
    assert np.abs(embed("push the red block") - embed("push the block")).max() > 1e-3
    with pytest.raises(ValueError, match="holds the end token"):
        embed("push the 7th block")  # no digits in this vocabulary


def test_what_does_not_fit_is_refused(case: tuple[Any, Path], tmp_path: Path) -> None:
    body = json.loads((case[1] / "config.json").read_text())
    for changes, message in (
        ({"hidden_act": "relu"}, "hidden_act: expected 'quick_gelu' or 'gelu', got 'relu'"),
        (
            {"model_type": "siglip"},
            "model_type: expected 'clip' or 'clip_text_model', got 'siglip'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            clip_text.hf_config(body | changes)
    folder = tmp_path / "other"
    shutil.copytree(case[1], folder)
    (folder / "config.json").write_text(json.dumps(body | {"eos_token_id": 7}))
    with pytest.raises(ValueError, match="expected its tokenizer to end texts with"):
        clip_text.embedder(folder)
    graphdef, params = clip_text.from_pretrained(case[1])
    with pytest.raises(ValueError, match=f"at most {CONTEXT} a text"):
        flat.merge(graphdef, params).states(jnp.zeros((1, CONTEXT + 1), jnp.int32))


def test_released_size() -> None:
    """123.1 M and the projection."""
    config = clip_text.CONFIGS["vit-large-patch14"]
    _, shapes, _ = flat.abstract(lambda rngs: clip_text.ClipText(config, rngs))
    counts = {name: math.prod(shape.shape) for name, shape in shapes.items()}
    assert sum(counts.values()) == 123_060_480 + 768 * 768
    assert counts["projection/kernel"] == 768 * 768
    assert set(clip_text.hf_names(config)) == set(shapes)
