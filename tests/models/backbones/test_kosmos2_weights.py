"""Kosmos-2's released sizes, its files and its tokenizer."""

import functools
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer
from transformers import Kosmos2Config as HFConfig

from tests.models.backbones.loading import from_pretrained
from tests.models.backbones.test_kosmos2 import (
    DEPTH,
    IMAGE,
    WIDTH,
    Saved,
    _build,
    make_saved,
)
from vla_jax import params as flat
from vla_jax import sharding
from vla_jax.models.backbones import kosmos2
from vla_jax.models.tokenizer import train_tiny_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return make_saved(tmp_path_factory)


def test_released_sizes() -> None:
    config = kosmos2.CONFIGS["2-patch14-224"]
    _, shapes, _ = flat.abstract(functools.partial(_build, config))
    assert sum(math.prod(shape.shape) for shape in shapes.values()) == 1_664_485_376
    assert config.vision.tokens == 257
    assert config.latents == 64
    assert config.eps == config.vision.eps == 1e-5  # parity cannot see the vision tower's


def test_the_released_config_is_read() -> None:
    assert kosmos2.hf_config(HFConfig().to_dict()) == kosmos2.CONFIGS["2-patch14-224"]
    assert kosmos2.hf_config({"model_type": "kosmos-2"}) == kosmos2.CONFIGS["2-patch14-224"]


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        (None, "model_type", "kosmos-2.5"),
        (None, "tie_word_embeddings", False),
        ("text_config", "activation_function", "relu"),
        ("text_config", "scale_embedding", False),
        ("text_config", "pad_token_id", 0),
        ("text_config", "add_cross_attention", True),
        ("vision_config", "hidden_act", "gelu"),
    ],
)
def test_a_config_that_is_not_implemented_is_refused(
    where: str | None, key: str, value: Any
) -> None:
    body: dict[str, Any] = {"model_type": "kosmos-2", "text_config": {}, "vision_config": {}}
    (body[where] if where else body)[key] = value
    with pytest.raises(ValueError, match=rf"{where or ''}.?{key}: expected .*, got {value!r}"):
        kosmos2.hf_config(body)
    with pytest.raises(ValueError, match="model_type: expected 'kosmos-2', got None"):
        kosmos2.hf_config({})


def test_tied_and_constant_arrays_of_older_files_are_ignored_and_others_named(
    saved: Saved, tmp_path: Path
) -> None:
    arrays = load_file(saved.folder / "model.safetensors")
    shutil.copy(saved.folder / "config.json", tmp_path)
    older = {
        "text_model.lm_head.weight": arrays["text_model.model.embed_tokens.weight"].copy(),
        "text_model.model.embed_positions.weights": np.zeros((66, WIDTH), np.float32),
        "vision_model.model.embeddings.position_ids": np.zeros((1, 5), np.float32),
    }
    save_file(arrays | older, tmp_path / "model.safetensors")
    _, params = from_pretrained(kosmos2, tmp_path)
    for name, value in saved.params.items():
        np.testing.assert_array_equal(params[name], value, err_msg=name)

    del arrays["text_model.model.layers.1.ffn.ffn_layernorm.bias"]
    del arrays["image_to_text_projection.latent_query"]
    arrays["text_model.model.layers.3.ffn.fc1.bias"] = np.zeros(96, np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="3 arrays do not fit") as error:
        from_pretrained(kosmos2, tmp_path)
    for line in (
        (
            "missing: text_model.model.layers.1.ffn.ffn_layernorm.bias (for"
            " decoder/layers/blocks/mlp/sub_norm/bias)"
        ),
        "missing: image_to_text_projection.latent_query (for projector/latents)",
        "unexpected: text_model.model.layers.3.ffn.fc1.bias",
    ):
        assert line in str(error.value)


def test_weights_are_loaded_sharded(saved: Saved) -> None:
    _, split = from_pretrained(kosmos2, saved.folder, sharding.make_mesh(2, 2, 2))
    kernel = split["decoder/layers/blocks/mlp/up/kernel"]
    assert kernel.addressable_shards[0].data.shape == (DEPTH, WIDTH // 2, 96 // 2)
    assert split["projector/latents"].addressable_shards[0].data.shape == (IMAGE, WIDTH // 2)
    for name, value in saved.params.items():
        np.testing.assert_array_equal(split[name], value, err_msg=name)


# ----------------------------------------------------------------------------- prompt and tokenizer


def test_the_prompt_stands_between_bos_and_eos(tmp_path: Path) -> None:
    assert (
        kosmos2.prompt("push the  red\nblock ")
        == "<grounding>An image of a robot push the red block"
    )
    texts = [
        f"push the {colour} block {way}"
        for colour in ("red", "green", "blue")
        for way in ("left", "right", "up")
    ]
    kosmos2.train_tiny_tokenizer(texts, tmp_path / "a")
    tokenizer, instruction = kosmos2.load_tokenizer(tmp_path / "a"), "push the red block left"
    ids = tokenizer.encode(instruction)
    inner = AutoTokenizer.from_pretrained(str(tmp_path / "a"))
    assert (ids[0], ids[-1]) == (inner.bos_token_id, inner.eos_token_id)
    assert inner.decode(ids[1:-1]) == kosmos2.prompt(instruction)
    assert max(ids) < tokenizer.vocab <= kosmos2.CONFIGS["tiny"].vocab
    train_tiny_tokenizer(texts, tmp_path / "b")  # without the prompt's words
    assert len(ids) < len(kosmos2.load_tokenizer(tmp_path / "b").encode(instruction))
