"""LLaVA: what config files are read or refused, released sizes, prompt."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from vla_jax import params as flat
from vla_jax.models.backbones import llava

HUB = {  # llava-hf/llava-1.5-7b-hf: what is left out is transformers' default
    "model_type": "llava", "image_token_index": 32000, "torch_dtype": "float16",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
    "vocab_size": 32064,
    "text_config": {"model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064,
    "torch_dtype": "float16"},
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
        "vocab_size": 32000,
    },
}  # fmt: skip
LIGHTNING = {
    "model_type": "llava_mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "expansion_ratio": 4,
    "vocab_size": 50432, "no_bias": True, "norm_type": "low_precision_layernorm",
    "learned_pos_emb": True,
    "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "clip_qkv": None,
    "qk_ln": False},
    "mm_vision_tower": "openai/clip-vit-large-patch14", "mm_vision_select_layer": -2,
    "mm_hidden_size": 1024,
}  # fmt: skip


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    key, _, rest = path.partition(".")
    return {**body, key: changed(body[key], rest, value) if rest else value}


def test_config_files_of_the_releases() -> None:
    assert llava.hf_config(HUB) == llava.CONFIGS["1.5-7b"]
    assert llava.hf_config(LIGHTNING) == llava.CONFIGS["mpt-7b"]
    new = changed(HUB, "text_config.rope_parameters", {"rope_type": "default", "rope_theta": 1e6})
    assert llava.hf_config(new).block.rope_theta == 1e6
    assert llava.hf_config(changed(HUB, "text_config.rope_theta", 5e5)).block.rope_theta == 5e5
    assert (
        llava.hf_config(changed(LIGHTNING, "mm_projector_type", "mlp2x_gelu")).projector == "mlp2"
    )
    assert (
        llava.hf_config(changed(LIGHTNING, "mm_vision_select_feature", "cls_patch")).vision.tokens
        == 257
    )


REFUSED = [
    (
        HUB,
        "model_type",
        "paligemma",
        "model_type: expected 'llava' or 'llava_mpt', got 'paligemma'",
    ),
    (HUB, "projector_hidden_act", "relu", "projector_hidden_act: expected 'gelu', got 'relu'"),
    (HUB, "multimodal_projector_bias", False, "multimodal_projector_bias: expected True"),
    (HUB, "vision_feature_select_strategy", "odd", "expected 'default' or 'full', got 'odd'"),
    (HUB, "vision_feature_layer", [-2, -5], "vision_feature_layer: expected one layer"),
    (HUB, "vision_feature_layer", -25, "from -24 to -1, got -25"),
    (HUB, "vision_feature_layer", 0, "expected one layer from 1 to 24"),
    (
        HUB,
        "text_config.model_type",
        "mistral",
        "text_config.model_type: expected 'llama' or 'mpt', got 'mistral'",
    ),
    (HUB, "text_config.hidden_act", "gelu", "text_config.hidden_act: expected 'silu', got 'gelu'"),
    (
        HUB,
        "text_config.rope_scaling",
        {"type": "linear", "factor": 2},
        "rope_type: expected 'default', got 'linear'",
    ),
    (
        HUB,
        "text_config.rope_parameters",
        {"rope_type": "llama3"},
        "rope_type: expected 'default', got 'llama3'",
    ),
    (HUB, "text_config.attention_bias", True, "text_config.attention_bias: expected False"),
    (
        HUB,
        "text_config.tie_word_embeddings",
        True,
        "text_config.tie_word_embeddings: expected False",
    ),
    (
        HUB,
        "vision_config.hidden_act",
        "relu",
        "vision_config.hidden_act: expected 'quick_gelu' or 'gelu', got 'relu'",
    ),
    (HUB, "vision_config.model_type", "siglip_vision_model", "expected 'clip_vision_model'"),
    (
        LIGHTNING,
        "mm_vision_tower",
        "google/siglip",
        "mm_vision_tower: expected 'clip-vit-large-patch14'",
    ),
    (
        LIGHTNING,
        "mm_projector_type",
        "mlp3x_gelu",
        "mm_projector_type: expected 'linear' or 'mlp2x_gelu'",
    ),
    (LIGHTNING, "attn_config.alibi", False, "attn_config.alibi: expected True, got False"),
    (LIGHTNING, "attn_config.prefix_lm", True, "attn_config.prefix_lm: expected False"),
    (LIGHTNING, "attn_config.qk_ln", True, "attn_config.qk_ln: expected False"),
    (LIGHTNING, "no_bias", False, "no_bias: expected True"),
    (
        LIGHTNING,
        "norm_type",
        "rmsnorm",
        "norm_type: expected 'low_precision_layernorm' or 'layernorm'",
    ),
]


@pytest.mark.parametrize(
    ("body", "path", "value", "message"), REFUSED, ids=[f"{r[1]}={r[2]}" for r in REFUSED]
)
def test_configs_of_other_models_are_refused_by_name(
    body: dict[str, Any], path: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=r"config\.json") as error:
        llava.hf_config(changed(body, path, value))
    assert message in str(error.value)


def test_a_file_of_the_original_llama_release_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hf download llava-hf/llava-1\.5-7b-hf"):
        llava.hf_config({"model_type": "llava", "hidden_size": 4096})


DEAD_TOWER = 12_598_272  # one layer of 12,596,224 (width 1024, mlp 4096, biases) and a norm of 2048


def test_released_sizes() -> None:
    for name, released, tokens in (("1.5-7b", 7_063_427_072, 576), ("mpt-7b", 6_956_664_832, 256)):
        config = llava.CONFIGS[name]
        _, shapes, _ = flat.abstract(functools.partial(llava.Llava, config))
        assert sum(math.prod(shape.shape) for shape in shapes.values()) + DEAD_TOWER == released
        assert config.vision.tokens == tokens
        assert config.block.eps == config.vision.eps == 1e-5  # parity cannot see the vision tower's


@pytest.mark.parametrize("name", ["tiny", "tiny-mpt"])
def test_tiny_sizes_run(name: str) -> None:
    graphdef, shapes, _ = flat.abstract(functools.partial(llava.Llava, llava.CONFIGS[name]))

    def run(params: flat.Params) -> Any:
        model = flat.merge(graphdef, params)
        images, ids = jnp.zeros((2, 32, 32, 3), jnp.uint8), jnp.zeros((2, 3), jnp.int32)
        x = jnp.concatenate([model.embed_image(images), model.embed_text(ids)], axis=1)
        n, s = x.shape[:2]
        assert s == model.tokens_per_image + 3 == 16 + 3
        return model.logits(
            model(x, jnp.ones((n, s, s), bool), jnp.zeros((n, s), jnp.int32), num_queries=1)
        )

    assert jax.eval_shape(run, shapes).shape == (2, 1, 1600)


def test_a_wrong_decoder_or_projector_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected decoder in .*'gpt'"):
        dataclasses.replace(llava.CONFIGS["tiny"], decoder="gpt")
    with pytest.raises(ValueError, match=r"projector in .*'mlp9'"):
        dataclasses.replace(llava.CONFIGS["tiny"], projector="mlp9")


def test_the_tokenizer_puts_the_first_token_before_the_bare_instruction(tmp_path: Path) -> None:
    llava.train_tiny_tokenizer(
        ["push the red block left", "move the blue block up"], tmp_path / "a"
    )
    tokenizer = llava.load_tokenizer(tmp_path / "a")
    ids = tokenizer.encode("push the  red\nblock left")
    assert ids == tokenizer.encode("push the red block left")  # one clean line
    assert tokenizer.encode("") == ids[:1] == [2]
    assert tokenizer.vocab <= llava.CONFIGS["tiny"].vocab

    from transformers import AutoTokenizer

    assert (
        AutoTokenizer.from_pretrained(str(tmp_path / "a")).decode(ids[1:])
        == "push the red block left"
    )
